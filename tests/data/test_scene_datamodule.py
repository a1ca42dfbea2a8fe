import warnings
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DistributedSampler

from anomseg.data.crops import CropDataset, Visit
from anomseg.data.mask_rules import full_mask
from anomseg.data.sampler import UnpaddedSampler
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule, SceneFacts
from anomseg.functional.windows import random_blocks
from anomseg.sample import METADATA, check_sample

TRANSFORM = (10.0, 0.0, 5.0, 0.0, -10.0, 7.0)


def make_scene(name, size=(30, 20), value=1, truth=True, wavelength=None):
    mask = torch.zeros(size, dtype=torch.int64)
    mask[5:7, 6:9] = value
    return Scene(name, torch.rand(2, *size), mask if truth else None, wavelength, TRANSFORM, "WKT")


class Scenes(SceneDataModule):
    def __init__(self, loaders, **arguments):
        super().__init__(**arguments)
        self.loaders = loaders

    def scenes(self):
        return self.loaders


def module(*names, **arguments):
    return Scenes([partial(make_scene, name, wavelength=(400.0, 500.0)) for name in names or ("one", "two", "three")], **arguments)


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch):
        self.seen["train"].append(batch)
        return self.weight * 0.0

    def validation_step(self, batch):
        self.seen["val"].append(batch)

    def test_step(self, batch):
        self.seen["test"].append(batch)

    def predict_step(self, batch):
        self.seen["predict"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=2, num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)


def test_scene_datamodule__serves_every_stage_of_a_trainer(trainer):
    recorder, data = Recorder(), module(seed=4)
    trainer.fit(recorder, data)
    trainer.test(recorder, data)
    trainer.predict(recorder, data)
    assert {stage: len(batches) for stage, batches in recorder.seen.items()} == {"train": 6, "val": 6, "test": 3, "predict": 3}
    blocks = random_blocks((30, 20), 10, 0.25, seed=4)
    for batch in (batch for batches in recorder.seen.values() for batch in batches):
        check_sample(batch)
        assert batch["image"].shape == (1, 2, 30, 20)
        assert batch["window"] == [(0, 0, 30, 20)]
        assert batch["transform"] == [TRANSFORM]
        assert batch["wavelength"] == [(400.0, 500.0)]
        assert batch["crs"] == ["WKT"]
    for batch in recorder.seen["val"]:
        assert torch.equal(batch["mask"][0] != 255, blocks)
    for batch in recorder.seen["test"] + recorder.seen["predict"]:
        assert int((batch["mask"] == 1).sum()) == 6
        assert not (batch["mask"] == 255).any()


def test_scene_datamodule__shuffles_training_by_seed_and_epoch():
    orders = []
    for _ in range(2):
        data = module(*"abcdefgh", seed=1)
        data.setup("fit")
        loader = data.train_dataloader()
        orders.append([])
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            orders[-1] += [batch["name"][0] for batch in loader]
    assert orders[0] == orders[1]
    assert orders[0][:8] != orders[0][8:]
    assert sorted(orders[0][:8]) == list("abcdefgh")


def test_scene_datamodule__transfer_leaves_metadata_untouched():
    data = module(batch_size=2)
    batch = next(iter(data.predict_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["image"].device.type == moved["mask"].device.type == "meta"
    for key in set(METADATA) & batch.keys():
        assert moved[key] == batch[key]
        assert [type(value) for value in moved[key]] == [type(value) for value in batch[key]]


def test_scene_datamodule__tests_outside_of_the_calibration_blocks_on_demand():
    data = module("one", test_on="held_out", calibration_block=5, calibration_share=0.5, seed=2)
    inside = next(iter(data.val_dataloader()))["mask"] != 255
    outside = next(iter(data.test_dataloader()))["mask"] != 255
    assert torch.equal(inside, ~outside)


def test_scene_datamodule__cuts_tiles_of_one_size_into_full_batches():
    data = module(batch_size=4, tile=10, overlap=2)
    batches = list(data.test_dataloader())
    assert [len(batch["name"]) for batch in batches] == [4] * 9
    assert {tuple(batch["image"].shape[1:]) for batch in batches} == {(2, 10, 10)}


def test_scene_datamodule__loads_in_workers_that_persist():
    data = module(num_workers=1)
    loader = data.predict_dataloader()
    assert loader.persistent_workers
    assert [batch["name"] for batch in loader] == [["one"], ["two"], ["three"]]


def test_scene_datamodule__shares_scenes_among_ranks_without_repeats(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    names = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        data = module(tile=10)
        loaders = (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
        assert all(isinstance(loader.sampler, UnpaddedSampler) for loader in loaders)
        assert isinstance(data.train_dataloader().sampler, DistributedSampler)
        assert len(data.train_dataloader()) == 9
        names.append({batch["name"][0] for batch in loaders[1]})
    assert sorted(names[0] | names[1]) == ["one", "three", "two"]
    assert not names[0] & names[1]


def test_scene_datamodule__reads_each_scene_once_to_check_it():
    reads = []

    def load(name):
        reads.append(name)
        return make_scene(name)

    data = Scenes([partial(load, "one"), partial(load, "two")])
    data.setup("fit")
    data.setup("test")
    assert reads == ["one", "two"]


def test_scene_datamodule__refuses_to_test_without_truth_but_predicts():
    data = Scenes([partial(make_scene, "one"), partial(make_scene, "bare", truth=False)])
    data.setup("predict")
    assert [int((batch["mask"] == 1).sum()) for batch in data.predict_dataloader()] == [6, 0]
    with pytest.raises(ValueError, match=r"\['bare'\] have none"):
        data.setup("test")


def test_scene_datamodule__refuses_masks_and_images_without_a_pixel_that_counts():
    void = Scene("void", torch.rand(1, 4, 4), torch.full((4, 4), 255))
    dead = Scene("dead", torch.full((1, 4, 4), float("nan")))
    for scene in (void, dead):
        with pytest.raises(ValueError, match=scene.name):
            Scenes([lambda scene=scene: scene]).setup("fit")


@pytest.mark.parametrize(("value", "kind"), [(0, "anomalous"), (1, "normal")])
def test_scene_datamodule__warns_of_a_mask_of_one_class(value, kind):
    scene = Scene("plain", torch.rand(1, 4, 4), torch.full((4, 4), value))
    with pytest.warns(UserWarning, match=f"'plain' holds no {kind} pixel"):
        Scenes([lambda: scene]).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scenes([partial(make_scene, "both")]).setup("fit")


def test_scene_datamodule__refuses_scenes_of_one_name_and_no_scenes():
    with pytest.raises(ValueError, match=r"\['one'\] more than once"):
        module("one", "one", "two").setup("fit")
    with pytest.raises(ValueError, match="at least one scene"):
        Scenes([]).setup("fit")


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"num_workers": -1},
        {"calibration_block": 0},
        {"calibration_share": 1.0},
        {"test_on": "some"},
        {"tile": 8, "overlap": 8},
        {"tile": 0},
        {"overlap": 2},
    ],
)
def test_scene_datamodule__refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected"):
        module(**arguments)


def test_scene_datamodule__evaluates_scenes_of_different_sizes_one_by_one():
    data = Scenes([partial(make_scene, "one"), partial(make_scene, "two", (20, 20))], batch_size=2)
    assert [batch["name"] for batch in data.test_dataloader()] == [["one"], ["two"]]
    assert [batch["name"] for batch in module(batch_size=2).test_dataloader()] == [["one", "two"], ["three"]]


class Parts(SceneDataModule):
    def scenes(self):
        return [*self.scenes_of("train"), *self.scenes_of("test")]

    def scenes_of(self, stage):
        return [partial(make_scene, "learnt")] if stage in ("train", "val") else [partial(make_scene, "new", truth=stage == "test")]


def test_scene_datamodule__serves_scenes_of_their_own_to_stages_that_name_them():
    data = Parts()
    data.setup("fit")
    data.setup("test")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    assert [batch["name"] for loader in loaders for batch in loader] == [["learnt"], ["learnt"], ["new"], ["new"]]
    assert not next(iter(loaders[3]))["mask"].any()


class Known:
    def __init__(self, name, reads):
        self.name = name
        self.reads = reads

    def __call__(self):
        self.reads.append(self.name)
        return make_scene(self.name)

    def facts(self):
        return SceneFacts(self.name, (30, 20), True)


def test_scene_datamodule__does_not_read_scenes_that_know_their_facts():
    reads = []
    data = Scenes([Known("one", reads), Known("two", reads)], tile=10)
    data.setup("test")
    assert len(data.test_dataloader()) == 12
    assert reads == []
    assert next(iter(data.test_dataloader()))["name"] == ["one"]
    assert reads == ["one"]


class Cropped(Scenes):
    def dataset(self, stage):
        if stage == "train":
            return CropDataset(self.scene_dataset(stage, full_mask, tiled=False), 8, crops=2, seed=self.seed)
        return super().dataset(stage)


def test_scene_datamodule__tells_crops_the_epoch(trainer):
    recorder, data = Recorder(), Cropped([partial(make_scene, name) for name in ("one", "two")], batch_size=2, tile=10, seed=3)
    trainer.fit(recorder, data)
    windows = [
        sorted(window for batch in recorder.seen["train"][2 * epoch : 2 * epoch + 2] for window in batch["window"]) for epoch in (0, 1)
    ]
    expected = CropDataset(data.scene_dataset("train", full_mask, tiled=False), 8, crops=2, seed=3)
    for epoch in (0, 1):
        assert windows[epoch] == sorted(expected[Visit(epoch, index)]["window"] for index in range(4))
    assert windows[0] != windows[1]


def test_scene_datamodule__hides_the_truth_of_scenes_that_are_tested_from_training():
    blind, open_ = module("one", train_on="all"), module("one")
    for data in (blind, open_):
        data.setup("fit")
        data.setup("test")
    assert not bool((next(iter(blind.train_dataloader()))["mask"] == 1).any())
    assert bool((next(iter(open_.train_dataloader()))["mask"] == 1).any())
    assert torch.equal(next(iter(blind.test_dataloader()))["mask"], next(iter(open_.test_dataloader()))["mask"])
    with pytest.raises(ValueError, match="train_on"):
        module(train_on="some")


class Windowed:
    """Can be read in parts, and notes what it is asked for."""

    nbytes, exact_parts = 2 * 30 * 20 * 4, True

    def __init__(self, reads):
        self.reads = reads

    def __call__(self):
        self.reads.append("whole")
        return make_scene("s")

    def facts(self):
        return SceneFacts("s", (30, 20), True)

    def part(self, window):
        self.reads.append(window)
        return make_scene("s", window[2:])


@pytest.mark.parametrize(("cache_bytes", "expected"), [(4799, (3, 4, 8, 9)), (4800, "whole")])
def test_scene_datamodule__cuts_crops_the_same_way_for_any_number_of_workers(cache_bytes, expected):
    for workers in (0, 4):
        reads = []
        data = Scenes([Windowed(reads)], num_workers=workers)
        data.cache_bytes = cache_bytes
        data.dataset("train").cut_once(0, (3, 4, 8, 9))
        assert reads == [expected]
