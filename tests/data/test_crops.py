from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.data.augment import FlipRotate
from anomseg.data.crops import CropDataset, Visit, VisitSampler
from anomseg.data.mask_rules import BlockRule, held_out_mask, unlabelled_mask
from anomseg.data.scene import Scene
from anomseg.data.scene_dataset import SceneDataset
from anomseg.sample import check_sample, collate

SIZES = ((20, 30), (12, 9), (40, 16))


def make_scene(index):
    height, width = SIZES[index]
    values = torch.arange(float(height * width)).view(1, height, width) + 10000 * index
    return Scene(f"s{index}", torch.cat([values, -values]), (values[0] % 3 == 0).long())


def crops(side=10, **arguments):
    scenes = SceneDataset([partial(make_scene, index) for index in range(3)], sizes=SIZES)
    return CropDataset(scenes, side, **arguments)


def same(a, b):
    torch.testing.assert_close(a["image"], b["image"], equal_nan=True)
    return torch.equal(a["mask"], b["mask"]) and a["window"] == b["window"]


def test_crop_dataset__cuts_what_lies_in_the_scene():
    sample = crops()[Visit(2, 0)]
    row, column, height, width = sample["window"]
    scene = make_scene(0)
    assert torch.equal(sample["image"], scene.image[:, row : row + height, column : column + width])
    assert torch.equal(sample["mask"], scene.mask[row : row + height, column : column + width])
    assert (height, width) == (10, 10)


def test_crop_dataset__pads_small_scenes_with_what_counts_nowhere():
    sample = crops(side=16)[1]
    assert sample["image"].shape == (2, 16, 16)
    assert torch.equal(sample["image"][:, :12, :9], make_scene(1).image)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[:12, :9] = False
    assert bool(torch.isnan(sample["image"][:, outside]).all())
    assert bool((sample["mask"][outside] == 255).all())
    assert bool((sample["mask"][~outside] != 255).all())


def test_crop_dataset__stacks_crops_of_scenes_of_many_sizes():
    dataset = crops(side=14, crops=2)
    batch = collate([dataset[index] for index in range(len(dataset))])
    assert batch["name"] == ["s0", "s0", "s1", "s1", "s2", "s2"]
    check_sample(batch)


def test_crop_dataset__depends_on_seed_epoch_and_index_alone():
    dataset = crops(crops=3, augment=FlipRotate())
    expected = dataset[Visit(4, 7)]
    for index in (1, 5, 0):
        _ = dataset[Visit(0, index)]
    torch.manual_seed(1)
    assert same(crops(crops=3, augment=FlipRotate())[Visit(4, 7)], expected)
    windows = {crops(crops=9, seed=seed)[Visit(epoch, index)]["window"] for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}
    assert len(windows) == 8


def visits(workers):
    dataset = crops(crops=2, seed=5, augment=FlipRotate())
    sampler = VisitSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=5)
    loader = DataLoader(dataset, 2, sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(loader))
    return epochs


def test_crop_dataset__serves_the_same_data_whatever_the_number_of_workers():
    alone, shared = visits(0), visits(2)
    for epoch in range(2):
        assert all(same(a, b) and a["name"] == b["name"] for a, b in zip(alone[epoch], shared[epoch], strict=True))
    windows = [[window for batch in epoch for window in batch["window"]] for epoch in alone]
    assert windows[0] != windows[1]


def test_visit_sampler__shares_all_visits_out_among_ranks():
    parts = [list(VisitSampler(crops(crops=2), num_replicas=2, rank=rank, shuffle=True, seed=1)) for rank in range(2)]
    assert sorted(visit.index for part in parts for visit in part) == list(range(6))


def lone_normal_pixel():
    mask = torch.ones(30, 30, dtype=torch.long)
    mask[15, 15] = 0
    return Scene("lone", torch.zeros(1, 30, 30), mask)


def test_crop_dataset__looks_for_a_normal_pixel():
    dataset = CropDataset(SceneDataset([lone_normal_pixel], sizes=[(30, 30)]), 15)
    hits = [bool((dataset[Visit(epoch, 0)]["mask"] == 0).any()) for epoch in range(60)]
    assert sum(hits) > 55  # a single draw hits in 225 of 256 places


def test_crop_dataset__serves_whole_scenes_without_a_side():
    assert [crops(side=None)[index]["image"].shape[1:] for index in range(3)] == [torch.Size(size) for size in SIZES]
    with pytest.raises(IndexError):
        crops()[Visit(0, 3)]


@pytest.mark.parametrize("arguments", [{"side": 0}, {"crops": 0}])
def test_crop_dataset__refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected whole scenes"):
        crops(**arguments)


def rare(index):
    mask = torch.zeros(SIZES[index], dtype=torch.int64)
    mask[0, 0] = mask[-1, -1] = mask[5, 4] = 1
    return Scene(f"s{index}", torch.zeros(1, *SIZES[index]), mask)


def test_crop_dataset__aims_at_anomalous_pixels_of_any_place():
    scenes = SceneDataset([partial(rare, index) for index in range(3)], sizes=SIZES)
    aimed = CropDataset(scenes, 8, crops=60, anomaly_share=1.0)
    samples = [aimed[index] for index in range(180)]
    assert all(bool((sample["mask"] == 1).any()) for sample in samples)
    places = {tuple(place) for sample in samples[:60] for place in (sample["mask"] == 1).nonzero().tolist()}
    assert len(places) > 10  # not always in the middle, nor in a corner
    assert {sample["window"][:2] for sample in samples[:60]} >= {(0, 0), (12, 22)}  # windows stay inside
    half = CropDataset(scenes, 8, crops=200, anomaly_share=0.5)
    assert 0.4 < sum(bool((half[index]["mask"] == 1).any()) for index in range(600)) / 600 < 0.8


def test_crop_dataset__aims_at_nothing_where_there_is_nothing():
    scenes = SceneDataset([lambda: Scene("s", torch.zeros(1, 20, 20), torch.zeros(20, 20, dtype=torch.int64))], sizes=[(20, 20)])
    assert CropDataset(scenes, 8, anomaly_share=1.0)[0]["image"].shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"anomaly_share=1\.5"):
        CropDataset(scenes, 8, anomaly_share=1.5)


def test_crop_dataset__cuts_pairs_and_pads_them():
    pair = Scene("p", torch.arange(2.0 * 3 * 6 * 9).view(2, 3, 6, 9), torch.zeros(6, 9, dtype=torch.int64))
    sample = CropDataset(SceneDataset([lambda: pair], sizes=[(6, 9)]), 8)[0]
    assert sample["image"].shape == (2, 3, 8, 8)
    column = sample["window"][1]
    assert torch.equal(sample["image"][..., :6, :], pair.image[..., column : column + 8])
    assert bool(torch.isnan(sample["image"][..., 6:, :]).all())


def labelled_scene():
    scene = make_scene(0)
    label = (scene.image[0] % 11).long()
    return replace(scene, label=label.masked_fill(scene.mask == 1, 255))


def test_crop_dataset__lets_labels_travel_with_crop_augmentation_and_padding():
    for side in (10, 40):
        dataset = CropDataset(SceneDataset([labelled_scene], sizes=SIZES[:1]), side, augment=FlipRotate())
        for epoch in range(8):
            sample = dataset[Visit(epoch, 0)]
            values, label = sample["image"][0], sample["label"]
            inside = torch.isfinite(values)
            known = inside & (sample["mask"] == 0)
            assert torch.equal(label[known], (values[known] % 11).long())
            assert bool((label[~known] == 255).all())
            assert label.dtype == torch.int64
            assert int((~inside).sum()) == (0 if side == 10 else 40 * 40 - 20 * 30)


def test_crop_dataset__cuts_as_many_crops_from_each_scene_as_asked_for():
    dataset = crops(crops=[2, 1, 4])
    assert [dataset[index]["name"] for index in range(len(dataset))] == ["s0", "s0", "s1", "s2", "s2", "s2", "s2"]
    with pytest.raises(ValueError, match="crops >= 1"):
        crops(crops=[1, 1])


def test_crop_dataset__finishes_with_the_last_step():
    def finish(sample, generator):
        return {**sample, "mask": sample["mask"] * 0 + int(torch.randint(2, (), generator=generator))}

    dataset = crops(finish=finish)
    drawn = [int(dataset[Visit(epoch, 0)]["mask"][0, 0]) for epoch in range(16)]
    assert set(drawn) == {0, 1}
    assert drawn == [int(dataset[Visit(epoch, 0)]["mask"][0, 0]) for epoch in range(16)]


class Strip:
    """Its columns below 10 hold no data, which its truth alone does not know."""

    nbytes, exact_parts = 4 * 20 * 20, True

    def __init__(self, last=14):
        self.last = last

    def __call__(self):
        image = torch.arange(400.0).view(1, 20, 20)
        image[..., :10] = torch.nan
        return Scene("strip", image, self.truth().masked_fill(torch.isnan(image[0]), 255))

    def truth(self):
        mask = torch.zeros(20, 20, dtype=torch.int64)
        mask[8, 6 : self.last] = 1
        return mask

    def part(self, window):
        row, column, height, width = window
        scene = self()
        rows, columns = slice(row, row + height), slice(column, column + width)
        return replace(scene, image=scene.image[:, rows, columns], mask=scene.mask[rows, columns])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_crop_dataset__cuts_the_same_crops_however_much_memory_there_is(share):
    rule = BlockRule(held_out_mask, 3, 0.1)
    arguments = [{"cache_bytes": 10**6}, {"cache_bytes": 1600, "processes": 4}, {"cache_bytes": 100}, {"cache_bytes": 100, "processes": 4}]
    datasets = [
        CropDataset(SceneDataset([Strip()], sizes=[(20, 20)], mask_rule=rule, **kept), 5, 40, anomaly_share=share) for kept in arguments
    ]
    for index in range(40):
        first, *others = (dataset[index] for dataset in datasets)
        assert all(same(first, other) for other in others)
    if share == 1.0:
        assert sum(bool((datasets[0][index]["mask"] == 1).any()) for index in range(40)) > 35


def test_crop_dataset__cuts_from_anywhere_where_no_anomaly_has_data():
    dataset = CropDataset(SceneDataset([Strip(10)], sizes=[(20, 20)]), 4, 30, anomaly_share=1.0)
    assert all(bool((dataset[index]["mask"] == 0).any()) for index in range(25))


@pytest.mark.parametrize("cache_bytes", [10**6, 100])
def test_crop_dataset__tells_nothing_of_anomalies_that_a_rule_hides(cache_bytes):
    scenes = SceneDataset([Strip()], sizes=[(20, 20)], mask_rule=unlabelled_mask, cache_bytes=cache_bytes)
    for index in range(20):
        assert not bool((CropDataset(scenes, 12, 20, anomaly_share=1.0)[index]["mask"] == 1).any())
