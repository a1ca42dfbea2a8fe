import pytest
import torch
from torch import nn

from anomseg.data.synthetic_scenes import synthetic_scene
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.methods.direct_training import (
    DirectTraining,
    Lesson,
    built_net,
    flipped_mean,
    lesson_loss,
    pseudo_labels,
    random_crops,
    scene_key,
    teacher_map,
)
from anomseg.nets.context_net import lifted_channels


def lesson(channels=5):
    image = synthetic_scene("multispectral", (40, 44), 0).image
    scene = WhitenedScene.of(image, 4)
    recipe = DirectTraining()
    return Lesson(scene, pseudo_labels(teacher_map(image, recipe, 30), scene.valid, recipe), 30, channels)


def test_pseudo_labels__of_a_map_without_contrast_are_all_normal():
    valid = torch.ones(6, 7, dtype=torch.bool)
    valid[0] = False
    label = pseudo_labels(torch.zeros(6, 7), valid, DirectTraining())
    assert (label[0] == 255).all()
    assert (label[1:] == 0).all()


def test_pseudo_labels__by_threshold_ignore_nothing():
    label = pseudo_labels(torch.tensor([[0.0, 4.0], [6.0, 10.0]]), torch.ones(2, 2, dtype=torch.bool), DirectTraining(labels="threshold"))
    assert label.tolist() == [[0, 0], [1, 1]]


def test_teacher_map__none_knows_nothing():
    assert not teacher_map(torch.rand(3, 8, 9), DirectTraining(teacher="none"), 30).any()


def test_lesson__pads_missing_components_with_zeros():
    narrow, wide = lesson(4), lesson(6)
    assert wide.features.shape[0] == lifted_channels(6)
    assert not wide.features[4:6].any()
    assert torch.equal(wide.features[:4], narrow.features[:4])
    assert torch.equal(wide.features[-4:], narrow.features[-4:])


def test_lesson__implants_without_changing_the_scene():
    held = lesson()
    before = held.features.clone(), held.label.clone()
    features, label = held.simulate(AnomalySimulation(density=200.0), torch.Generator().manual_seed(0))
    assert (label == 1).sum() > (held.label == 1).sum()
    assert not torch.equal(features, held.features)
    assert torch.equal(held.features, before[0])
    assert torch.equal(held.label, before[1])


def collared(image, label):
    image = nn.functional.pad(image, (0, 17, 9, 0), value=torch.nan)
    scene = WhitenedScene.of(image, 4)
    return Lesson(scene, nn.functional.pad(label, (0, 17, 9, 0), value=255), 30, 5)


def test_lesson__sees_a_scene_in_a_collar_without_data_as_the_scene_alone():
    image = torch.randn(6, 30, 32, generator=torch.Generator().manual_seed(0)).cumsum(0)
    label = torch.zeros(30, 32, dtype=torch.long)
    alone, within = Lesson(WhitenedScene.of(image, 4), label, 30, 5), collared(image, label)
    torch.testing.assert_close(within.spread, alone.spread)
    torch.testing.assert_close(within.features[:, 9:, :32], alone.features)
    features, truth = within.simulate(AnomalySimulation(density=100.0), torch.Generator().manual_seed(0))
    assert (truth == 1).any()
    assert not features[:, ~within.scene.valid].any()
    assert not within.features[:, ~within.scene.valid].any()


def test_scene_key__differs_with_shape_and_values_alone():
    image = torch.rand(2, 4, 6)
    assert scene_key(image) == scene_key(image.clone())
    assert scene_key(image.mT) == scene_key(image.mT.contiguous())
    keys = [scene_key(one) for one in (image, image.view(2, 6, 4), image.view(4, 2, 6), image + 1)]
    assert len(set(keys)) == 4


def test_random_crops__turn_features_and_labels_alike():
    plane = torch.arange(80.0).view(8, 10)
    crops, labels = random_crops(plane[None], plane.long(), 5, 6, torch.Generator().manual_seed(0))
    assert crops.shape == (6, 1, 5, 5)
    assert torch.equal(crops[:, 0].long(), labels)
    assert len({tuple(label.flatten().tolist()) for label in labels}) == 6
    assert random_crops(plane[None], plane.long(), 40, 1, torch.Generator())[0].shape == (1, 1, 8, 8)


def test_lesson_loss__has_no_part_for_ignored_pixels():
    net = built_net(lifted_channels(2), DirectTraining())
    features = torch.randn(2, lifted_channels(2), 9, 9)
    label = torch.full((2, 9, 9), 255)
    loss = lesson_loss(net, features, label, DirectTraining(), torch.Generator())
    assert float(loss.detach()) == 0
    label[:, 0, 0], label[:, 0, 1] = 1, 0
    logits = []
    handle = net.register_forward_hook(lambda _net, _args, output: (output.retain_grad(), logits.append(output))[0])
    lesson_loss(net, features, label, DirectTraining(), torch.Generator()).backward()
    handle.remove()
    assert logits[0].grad[label == 1].abs().min() > 0
    assert not logits[0].grad[label == 255].any()


def test_flipped_mean__turns_with_the_features():
    class Corner(nn.Module):
        def forward(self, features):
            return features[:, 0] * torch.arange(features.shape[-1])

    features = torch.rand(1, 6, 6)
    mean = flipped_mean(Corner(), features)
    torch.testing.assert_close(flipped_mean(Corner(), features.rot90(1, (-2, -1))), mean.rot90(1, (-2, -1)))
    torch.testing.assert_close(flipped_mean(Corner(), features.flip(-1)), mean.flip(-1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"net": "ttd"},
        {"teacher": "rx"},
        {"labels": "ranks"},
        {"losses": "all"},
        {"surrogate": "square"},
        {"norm": "layer"},
        {"nets": 0},
        {"implants": 0},
        {"steps": 0},
        {"crop": 0},
        {"rounds": -1},
        {"positive_share": 7.0},
        {"positive_share": 0.6, "ignored_share": 0.4},
        {"lr": 0.0},
        {"width": 0.0},
        {"negative_weight": 0.0},
    ],
)
def test_recipe__refuses_what_it_cannot_do(wrong):
    with pytest.raises(ValueError, match="Expected"):
        DirectTraining(**wrong)
