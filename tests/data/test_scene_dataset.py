import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from anomseg.data.mask_rules import BlockRule, calibration_mask, full_mask, held_out_mask, unlabelled_mask
from anomseg.data.scene import Scene
from anomseg.data.scene_dataset import SceneDataset
from anomseg.sample import IGNORE, check_sample, collate

TRANSFORM = (10.0, 0.0, 5.0, 0.0, -10.0, 7.0)


def make_scene(name="one", size=(30, 20), truth=True):
    image = torch.arange(2.0 * size[0] * size[1]).view(2, *size)
    image[:, 3, 4] = float("nan")
    mask = torch.zeros(size, dtype=torch.int64)
    mask[5:7, 6:9] = 1
    return Scene(name, image, mask if truth else None, (400.0, 500.0), TRANSFORM, "WKT")


def test_scene_dataset__serves_whole_scenes_as_the_contract_says():
    dataset = SceneDataset([make_scene, partial(make_scene, "two")])
    sample = dataset[1]
    assert len(dataset) == 2
    assert set(sample) == {"image", "mask", "name", "window", "scene_size", "transform", "crs", "wavelength"}
    assert sample["name"] == "two"
    assert sample["window"] == (0, 0, 30, 20)
    assert sample["scene_size"] == (30, 20)
    assert sample["transform"] == TRANSFORM
    assert sample["crs"] == "WKT"
    assert sample["wavelength"] == (400.0, 500.0)
    assert sample["mask"].dtype == torch.int64
    assert sample["mask"][3, 4] == 255
    assert int((sample["mask"] == 1).sum()) == 6
    check_sample(collate([dataset[0], dataset[1]]))


def test_scene_dataset__tiles_put_together_are_the_scene():
    scene = make_scene()
    dataset = SceneDataset([make_scene], tile=8, overlap=3)
    image, mask = torch.zeros_like(scene.image), torch.full((30, 20), -1)
    for sample in (dataset[index] for index in range(len(dataset))):
        row, column, height, width = sample["window"]
        assert sample["image"].shape == (2, 8, 8)
        assert sample["scene_size"] == (30, 20)
        image[:, row : row + height, column : column + width] = sample["image"]
        mask[row : row + height, column : column + width] = sample["mask"]
    torch.testing.assert_close(image, scene.image, equal_nan=True)
    assert torch.equal(mask == 1, scene.mask == 1)


def test_scene_dataset__groups_tiles_by_scene():
    dataset = SceneDataset([make_scene, partial(make_scene, "two", (8, 16))], tile=8)
    assert dataset.groups == [0] * 12 + [1] * 2
    assert SceneDataset([make_scene, make_scene]).groups == [0, 1]


def test_scene_dataset__carries_a_mask_where_there_is_no_truth():
    mask = SceneDataset([partial(make_scene, truth=False)])[0]["mask"]
    assert mask[3, 4] == 255
    assert int(mask.sum()) == 255


def test_scene_dataset__reads_paths(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 5, 3)))
    sample = SceneDataset([tmp_path / "a.npy"])[0]
    assert sample["image"].shape == (3, 4, 5)
    assert sample["name"] == "a"


def counting(scene_size, reads):
    reads.append(scene_size)
    return make_scene(size=(scene_size, 20))


def test_scene_dataset__reads_lazily_and_keeps_the_latest_scenes():
    reads = []
    loaders = [partial(counting, size, reads) for size in (10, 11, 12)]
    dataset = SceneDataset(loaders, tile=8, sizes=[(10, 20), (11, 20), (12, 20)], cache_bytes=2 * 2 * 12 * 20 * 4)
    assert reads == []
    for index in (0, 1, 0, -1, 1):
        _ = dataset[index]
    assert reads == [10, 12]
    _ = dataset[dataset.groups.index(1)]
    assert reads == [10, 12, 11]
    _ = dataset[0]
    assert reads == [10, 12, 11]
    _ = dataset[-1]
    assert reads == [10, 12, 11, 12]


def test_scene_dataset__samples_do_not_share_memory_with_the_cache():
    dataset = SceneDataset([make_scene])
    before = dataset[0]["image"].clone()
    sample = dataset[0]
    sample["image"].zero_()
    sample["mask"].zero_()
    torch.testing.assert_close(dataset[0]["image"], before, equal_nan=True)
    assert (dataset[0]["mask"] == 1).any()


def test_scene_dataset__pickles_without_the_scenes_it_holds():
    dataset = SceneDataset([make_scene], tile=8, mask_rule=BlockRule(calibration_mask, block=5))
    first = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._cache
    assert torch.equal(copy[0]["mask"], first["mask"])


def test_scene_dataset__refuses_nothing_and_misfitting_sizes():
    with pytest.raises(ValueError, match="at least one scene"):
        SceneDataset([])
    with pytest.raises(ValueError, match="Expected 1 sizes"):
        SceneDataset([make_scene], sizes=[])
    with pytest.raises(IndexError):
        SceneDataset([make_scene])[1]


def test_scene_dataset__cuts_any_window_as_the_whole_holds_it():
    dataset = SceneDataset([make_scene, partial(make_scene, "two", (9, 8))], tile=8)
    sample = dataset.cut(0, (2, 3, 7, 5))
    torch.testing.assert_close(sample["image"], make_scene().image[:, 2:9, 3:8], equal_nan=True)
    assert sample["mask"][1, 1] == 255
    assert sample["window"] == (2, 3, 7, 5)
    assert dataset.cut(1)["image"].shape == (2, 9, 8)


class Partial:
    exact_parts = True

    def __init__(self, reads):
        self.reads = reads

    @property
    def nbytes(self):
        self.reads.append("nbytes")
        return make_scene().image.nbytes

    def __call__(self):
        self.reads.append("whole")
        scene = make_scene()
        return replace(scene, label=(scene.mask + 3), image_label=1)

    def part(self, window):
        row, column, height, width = window
        rows, columns = slice(row, row + height), slice(column, column + width)
        scene = self()
        self.reads[-1] = window
        return replace(scene, image=scene.image[:, rows, columns], mask=scene.mask[rows, columns], label=scene.label[rows, columns])


class Inexact(Partial):
    exact_parts = False


RULES = [full_mask, unlabelled_mask, BlockRule(calibration_mask, 5), BlockRule(held_out_mask, 7, 0.5, 3)]


def assert_same(sample, expected):
    assert sample.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert sample[key].dtype == value.dtype
            torch.testing.assert_close(sample[key], value, equal_nan=True, rtol=0, atol=0)
        else:
            assert sample[key] == value


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window", [(2, 1, 9, 12), (0, 0, 4, 5)])
def test_scene_dataset__reads_parts_of_scenes_that_do_not_fit_in_memory(rule, window):
    reads = []
    whole, parts = (SceneDataset([Partial(reads)], None, 0, rule, [(30, 20)], cache) for cache in (2**20, 1))
    expected, sample = whole.cut_once(0, window), parts.cut_once(0, window)
    assert [read for read in reads if read != "nbytes"] == ["whole", window]
    assert_same(sample, expected)


@pytest.mark.parametrize("rule", RULES)
def test_scene_dataset__reads_a_tile_of_a_scene_that_exceeds_its_memory_alone(rule):
    reads = []
    whole, parts = (SceneDataset([Partial(reads)], 12, 5, rule, [(30, 20)], cache, True) for cache in (2**20, 1))
    for index, (_, window) in enumerate(parts.windows):
        expected = whole[index]
        reads.clear()
        assert_same(parts[index], expected)
        assert [read for read in reads if read != "nbytes"] == [window]


@pytest.mark.parametrize(("kind", "rule"), [(Inexact, full_mask), (Partial, partial(calibration_mask, block=5))])
def test_scene_dataset__reads_whole_scenes_where_a_part_would_differ(kind, rule):
    reads = []
    dataset = SceneDataset([kind(reads)], 12, 0, rule, [(30, 20)], 1)
    assert_same(dataset[1], SceneDataset([Partial([])], 12, 0, rule, [(30, 20)])[1])
    assert [read for read in reads if read != "nbytes"] == ["whole"]


def test_scene_dataset__crops_alike_whatever_the_number_of_processes():
    image_bytes = make_scene().image.nbytes
    for cache in (1, image_bytes, 2 * image_bytes):
        logs = []
        for processes in (1, 4):
            reads = []
            SceneDataset([Partial(reads)], sizes=[(30, 20)], cache_bytes=cache, processes=processes).cut_once(0, (1, 2, 3, 4))
            logs.append(reads)
        assert logs[0] == logs[1]
    assert SceneDataset([make_scene], cache_bytes=100, processes=4).cache_bytes == 25


def test_scene_dataset__evaluates_no_property_of_scenes_that_cannot_be_read_in_parts():
    class Unmeasured:
        def __call__(self):
            return make_scene()

        @property
        def nbytes(self):
            raise ValueError("not measured")

    assert SceneDataset([Unmeasured()])[0]["name"] == "one"


def test_scene_dataset__knows_whether_its_samples_stack():
    scenes, sizes = [make_scene, partial(make_scene, "two", (12, 20))], [(30, 20), (12, 20)]
    assert not SceneDataset(scenes, sizes=sizes).of_one_size
    assert not SceneDataset(scenes, tile=16, sizes=sizes).of_one_size
    assert SceneDataset(scenes, tile=12, sizes=sizes).of_one_size
    assert SceneDataset(scenes[:1], sizes=sizes[:1]).of_one_size
    assert SceneDataset(scenes[:1]).size_of(0) == SceneDataset(scenes[:1], sizes=sizes[:1]).size_of(0) == (30, 20)


def test_scene_dataset__serves_two_dates_and_ignores_what_one_of_them_lacks():
    image = torch.arange(2.0 * 3 * 6 * 8).view(2, 3, 6, 8)
    image[1, 2, 0, 7] = torch.nan
    dataset = SceneDataset([lambda: Scene("pair", image, torch.ones(6, 8, dtype=torch.int64))], 4, 2)
    for sample in (dataset[index] for index in range(len(dataset))):
        row, column, height, width = sample["window"]
        torch.testing.assert_close(sample["image"], image[..., row : row + height, column : column + width], equal_nan=True)
        assert torch.equal(sample["mask"] == 255, torch.isnan(sample["image"]).any(dim=1).any(dim=0))


def test_scene_dataset__gives_the_truth_that_counts():
    mask = (torch.arange(48).view(6, 8) % 3 == 0).long()
    dataset = SceneDataset(
        [lambda: Scene("s", torch.zeros(1, 6, 8), mask)], mask_rule=lambda truth, size: truth.clone().fill_diagonal_(255)
    )
    assert torch.equal(dataset.truth_of(0), mask.clone().fill_diagonal_(255))


def test_scene_dataset__cuts_labels_with_the_image_where_a_scene_has_them():
    label = torch.arange(600).view(30, 20) % 7
    dataset = SceneDataset([lambda: replace(make_scene(), label=label.clone())], tile=10)
    label[3, 4] = 255  # no data there
    for index, (_, (row, column, height, width)) in enumerate(dataset.windows):
        sample = dataset[index]
        assert torch.equal(sample["label"], label[row : row + height, column : column + width])
        assert sample["label"].dtype == torch.int64
    check_sample(collate([dataset[0], dataset[1]]))
    assert "label" not in SceneDataset([make_scene])[0]


def test_scene_dataset__gives_each_tile_the_category_of_its_image_and_a_label():
    def scene():
        return Scene("a", torch.zeros(1, 8, 8), torch.ones(8, 8).long(), image_label=1, category="nut")

    samples = list(map(SceneDataset([scene], tile=4).__getitem__, range(4)))
    assert [(int(sample["image_label"]), sample["category"]) for sample in samples] == [(1, "nut")] * 4
    assert samples[0]["image_label"].dtype == torch.int64
    plain = SceneDataset([lambda: Scene("a", torch.zeros(1, 8, 8))])[0]
    assert not {"image_label", "category"} & set(plain)


def test_dataset__counts_each_pixel_of_overlapping_tiles_once():
    g = torch.Generator().manual_seed(0)
    mask, label = (torch.randint(0, 2, (50, 37), generator=g) for _ in range(2))
    scene = Scene("a", torch.rand(2, 50, 37, generator=g), mask, label=label)
    dataset = SceneDataset([lambda: scene], tile=16, overlap=3, count_once=True)
    count, anomalies, classes = torch.zeros(50, 37), torch.zeros(50, 37), torch.full((50, 37), -1)
    for sample in dataset:
        row, column, height, width = sample["window"]
        place = (slice(row, row + height), slice(column, column + width))
        assert torch.equal(sample["image"], scene.image[:, place[0], place[1]])
        known = sample["mask"] != IGNORE
        assert torch.equal(known, sample["label"] != IGNORE)
        count[place] += known
        anomalies[place] += sample["mask"] == 1
        classes[place] = torch.where(known, sample["label"], classes[place])
    assert bool((count == 1).all())
    assert torch.equal(anomalies.long(), mask)
    assert torch.equal(classes, label)


def test_dataset__labels_a_tile_by_what_lies_in_it():
    mask = torch.zeros(8, 24, dtype=torch.int64)
    mask[3, 2], mask[0, 20] = 1, IGNORE
    for whole, expected in ((1, [1, 0, IGNORE]), (0, [0, 0, 0]), (IGNORE, [IGNORE] * 3)):
        scene = Scene("a", torch.rand(1, 8, 24), mask if whole == 1 else mask * 0, image_label=whole)
        dataset = SceneDataset([lambda scene=scene: scene], tile=8, count_once=True)
        assert [int(sample["image_label"]) for sample in dataset] == expected
        assert int(SceneDataset([lambda scene=scene: scene])[0]["image_label"]) == whole


def test_dataset__gives_an_overlapping_tile_the_label_of_what_it_counts():
    mask = torch.zeros(8, 12, dtype=torch.int64)
    mask[0, 7] = 1  # both tiles see it, the second one counts it
    dataset = SceneDataset([lambda: Scene("a", torch.rand(1, 8, 12), mask, image_label=1)], tile=8, count_once=True)
    assert [int(sample["image_label"]) for sample in dataset] == [0, 1]
    assert [bool((sample["mask"] == 1).any()) for sample in dataset] == [False, True]
