import pytest
import torch

from anomseg.data.synthetic_streets import BUILDING, CAR, PAVEMENT, POLE, ROAD, SKY, STREET_CLASSES, street_scene
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores


def test_street_scene__is_decided_by_its_seed():
    first, again, other = street_scene(seed=3, unknown=2), street_scene(seed=3, unknown=2), street_scene(seed=4, unknown=2)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.label, other.label)
    assert first.name != other.name


def test_street_scene__marks_unknown_objects_in_mask_and_label_alike():
    for seed in range(20):
        scene = street_scene(seed=seed, unknown=3)
        assert torch.equal(scene.mask == 1, scene.label == 255)
        assert set(scene.mask.unique().tolist()) == {0, 1}
        assert 0 < float((scene.mask == 1).float().mean()) < 0.25
        assert float(scene.image.min()) >= 0
        assert float(scene.image.max()) <= 1
        assert scene.image.dtype == torch.float32


def test_street_scene__changes_nothing_but_the_unknown_objects_and_their_shadows():
    plain, held = street_scene(seed=5), street_scene(seed=5, unknown=2)
    outside = held.label != 255
    assert bool((plain.label == held.label)[outside].all())
    same = (plain.image == held.image).all(0)
    assert float(same[outside].float().mean()) > 0.9
    assert float(same[~outside].float().mean()) < 0.1


def test_street_scene__holds_each_class_and_keeps_the_sky_above_the_road():
    counts = torch.zeros(len(STREET_CLASSES))
    for seed in range(20):
        label = street_scene(seed=seed).label
        counts += torch.bincount(label.flatten(), minlength=6)
        rows = torch.arange(label.shape[0])[:, None].expand_as(label)
        assert int(rows[label == SKY].max()) <= int(rows[label == ROAD].min()) + 2
    shares = counts / counts.sum()
    assert all(float(shares[number]) > 0.003 for number in (ROAD, PAVEMENT, BUILDING, SKY, CAR, POLE))
    assert float(shares.max()) < 0.5


def test_street_scene__is_no_matter_of_colour():
    scores, masks = [], []
    scenes = [street_scene(seed=seed, unknown=2) for seed in range(16)]
    for scene in scenes:
        pixels = scene.image.flatten(1).T
        gap = pixels - pixels.mean(0)
        spread = torch.linalg.inv(gap.T @ gap / len(gap) + 1e-4 * torch.eye(3))
        scores.append((gap @ spread * gap).sum(1))  # RX: how rare a colour is in its scene
        masks.append(scene.mask.flatten())
    score, mask = torch.cat(scores), torch.cat(masks)
    assert 0.4 < float(auroc(count_scores([score], [score[mask == 1]]))) < 0.85


@pytest.mark.parametrize("wrong", [{"size": (40, 64)}, {"unknown": -1}, {"seed": -1}])
def test_street_scene__refuses_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="at least 48 x 48 pixels"):
        street_scene(**wrong)
