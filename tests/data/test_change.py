import inspect
import os
import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.data.augment import FlipRotate
from anomseg.data.change import ChangeDataModule
from anomseg.data.change_folders import PairFiles
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.pair_augment import GainOffset, PairAugmentation
from anomseg.data.pair_transform import Binarise, GlobalShift
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import SceneNotFoundError
from anomseg.functional.windows import random_blocks
from anomseg.methods.base import AnomalySegmenter
from anomseg.sample import check_sample

NAMES = ("x1", "x2", "x3", "y1", "y2", "z1")


class Difference(AnomalySegmenter):
    """Score by the difference of the dates."""

    learns = False
    size_multiple = 8

    def score(self, image):
        assert image.ndim == 5
        assert image.shape[-1] % 8 == 0
        return (image[:, 1] - image[:, 0]).nan_to_num().abs().mean(1)


class Plain(AnomalySegmenter):
    """Score by the difference of the dates, pixel by pixel."""

    learns = False

    def score(self, image):
        return (image[:, 1] - image[:, 0]).abs().mean(1)


def planes(name, size=(40, 48)):
    rng = np.random.default_rng(NAMES.index(name))
    before = rng.integers(20, 60, (*size, 3))
    after = before + rng.integers(0, 20, (*size, 3))
    truth = np.zeros(size, bool)
    row, column = 2 + rng.integers(0, 30), 2 + rng.integers(0, 38)
    truth[row : row + 5, column : column + 6] = True
    after[truth] += 90
    return before.astype(np.uint8), after.astype(np.uint8), (truth * 255).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        for folder, plane in zip(("A", "B", "label"), planes(name), strict=True):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(tmp_path / "set" / folder / f"{name}.png")
    return tmp_path / "set"


def module(root, **arguments):
    return ChangeDataModule(root, **{"split": GroupSplit("^.", ("y",), ("z",)), **arguments})


def served(loader):
    return {name: (image, mask) for batch in loader for name, image, mask in zip(batch["name"], batch["image"], batch["mask"], strict=True)}


def test_change_data__serves_pairs_of_their_parts_and_nothing_twice(root):
    data = module(root)
    for stage in ("fit", "test"):
        data.setup(stage)
    parts = [served(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert [sorted(part) for part in parts] == [["x1", "x2", "x3"], ["z1"], ["y1", "y2"]]
    for part in parts:
        for name, (image, mask) in part.items():
            before, after, truth = planes(name)
            np.testing.assert_array_equal(image.numpy(), np.stack([before, after]).transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(mask.numpy(), truth > 0)
    assert sorted(served(data.predict_dataloader())) == ["y1", "y2"]


def test_change_data__validates_on_blocks_of_training_pairs_and_never_on_test(root):
    data = module(root, split=GroupSplit("^.", ("y", "z")), calibration_block=5)
    trained, validated = served(data.train_dataloader()), served(data.val_dataloader())
    assert sorted(trained) == sorted(validated) == ["x1", "x2", "x3"]
    for name, (_, mask) in trained.items():
        assert bool(((mask == 255) != (validated[name][1] == 255)).all())


def test_change_data__cuts_the_same_crops_whatever_the_workers(root):
    augment = PairAugmentation(FlipRotate(), GainOffset(), 0.5)
    one, two = (module(root, tile=16, crops=3, augment=augment, num_workers=workers, seed=3) for workers in (0, 1))
    batches = [list(data.train_dataloader()) for data in (one, two)]
    assert len(batches[0]) == 9
    for a, b in zip(*batches, strict=True):
        check_sample(a)
        assert a["image"].shape == (1, 2, 3, 16, 16)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])


def test_change_data__draws_new_crops_in_each_epoch(root):
    loader = module(root, tile=16).train_dataloader()
    first = served(loader)
    loader.sampler.set_epoch(1)
    assert not all(torch.equal(first[name][0], image) for name, (image, _) in served(loader).items())


@pytest.mark.parametrize("cache_bytes", [2**29, 0])
def test_change_data__aims_crops_at_change(root, cache_bytes):
    def share(**arguments):
        data = module(root, tile=12, crops=20, cache_bytes=cache_bytes, **arguments)
        return np.mean([bool((batch["mask"] == 1).any()) for batch in data.train_dataloader()])

    assert share(anomaly_share=1.0) == 1.0
    assert share() < share(anomaly_share=0.7) < 1.0


def test_change_data__keeps_crops_within_their_share_of_memory(root):
    kept, read = (module(root, tile=12, cache_bytes=size) for size in (2**29, 0))
    batches = [list(data.train_dataloader()) for data in (kept, read)]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])


def test_change_data__prepares_every_stage_alike(root):
    data = module(root, prepare=[Binarise(50), GlobalShift(3)])
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        assert torch.cat([image for image, _ in served(loader()).values()]).unique().tolist() == [0.0, 1.0]


def test_change_data__says_how_much_memory_would_prepare_each_pair_once(root):
    prepare = [Binarise(50), GlobalShift(3, keep=True)]
    few = module(root, tile=12, prepare=prepare, cache_bytes=100)
    with pytest.warns(UserWarning, match="cache_bytes=100: each crop reads and prepares") as caught:
        few.train_dataloader()
    needed = int(re.search(r"take (\d+) bytes", str(caught[0].message))[1])
    whole = module(root, prepare=prepare)
    assert needed == sum(pair().image.nbytes for pair in whole.scenes_of("train"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(root, tile=12, prepare=prepare, cache_bytes=needed).train_dataloader()
        module(root, tile=12, cache_bytes=100).train_dataloader()


def test_change_data__serves_pairs_without_truth_to_predict_alone(root):
    pair = PairFiles("one", ("A/x1.png",), ("B/x2.png",))
    data = ChangeDataModule(root, pairs=[pair])
    data.setup("predict")
    assert [batch["name"] for batch in data.predict_dataloader()] == [["one"]]
    with pytest.raises(ValueError, match="Expected a split of the 1 pairs"):
        data.setup("fit")
    unsupervised = ChangeDataModule(root, pairs=[pair], split="all_stages")
    unsupervised.setup("fit")
    blocks = random_blocks((40, 48), 10, 0.25, 0)
    assert torch.equal(next(iter(unsupervised.val_dataloader()))["mask"][0], torch.where(blocks, 0, 255))
    with pytest.raises(ValueError, match=r"\['one'\] have none"):
        unsupervised.setup("test")


def test_change_data__predicts_another_folder(root, tmp_path):
    for folder in ("A", "B"):
        (tmp_path / "new" / folder).mkdir(parents=True)
        Image.fromarray(planes("x1")[0]).save(tmp_path / "new" / folder / "n.png")
    data = module(root, predict_root=tmp_path / "new")
    assert sorted(served(data.predict_dataloader())) == ["n"]


def test_change_data__goes_through_a_trainer_whole_and_in_tiles(root, tmp_path):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    maps = []
    for arguments in ({}, {"tile": 24, "overlap": 8, "batch_size": 3}):
        method, data = Difference(), module(root, **arguments)
        writer = SceneWriter(tmp_path / f"out{len(maps)}")
        loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[writer], **quiet)
        loop.fit(method, data)
        figures = loop.test(method, data, verbose=False)[0]
        assert figures["test_auroc"] > 0.999
        loop.predict(method, data, return_predictions=False)
        assert sorted(path.name for path in writer.written) == sorted(
            f"y{i}{end}" for i in (1, 2) for end in ("_score.npy", "_heatmap.npy", ".png")
        )
        maps.append(np.load(tmp_path / f"out{len(maps)}" / "y1_score.npy"))
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"pattern": "^.", "test": ["y"], "val": ["z"]}, GroupSplit("^.", ("y",), ("z",))),
        ({"train": ["x1"], "test": ["y1"]}, NameSplit(("x1",), (), ("y1",))),
        ({"train": 0.5, "val": 0.0, "test": 0.5, "block": 20}, ShareSplit(0.5, 0.0, 0.5, 20)),
        ("all_stages", "all_stages"),
        (None, None),
    ],
)
def test_change_data__is_configured_by_plain_data(split, expected):
    parser = ArgumentParser()
    parser.add_subclass_arguments(SceneDataModule, "data")
    steps = [
        {"class_path": "anomseg.data.pair_transform.Binarise", "init_args": {"threshold": 9.0}},
        {"class_path": "anomseg.data.pair_transform.GlobalShift", "init_args": {"max_shift": 5}},
    ]
    augment = {
        "class_path": "anomseg.data.pair_augment.PairAugmentation",
        "init_args": {"geometry": {"class_path": "anomseg.data.augment.FlipRotate"}, "swap": 0.5},
    }
    pairs = [{"name": "p", "before": ["a.tif"], "after": ["b.tif"], "changed": "c.bmp", "unchanged": "u.bmp"}]
    arguments = {"root": "x", "layout": "deeppcb", "pairs": pairs, "split": split, "prepare": steps, "augment": augment}
    config = parser.parse_object({"data": {"class_path": "anomseg.data.change.ChangeDataModule", "init_args": arguments}})
    data = parser.instantiate_classes(config).data
    assert data.split == expected
    assert data.prepare == [Binarise(9.0), GlobalShift(5)]
    assert data.pairs == [PairFiles("p", ("a.tif",), ("b.tif",), None, "c.bmp", "u.bmp")]
    assert isinstance(data.augment.geometry, FlipRotate)


def test_change_data__keeps_every_argument_under_its_name(root):
    data = module(root, tile=16, crops=2, scale=(1.0, 2.0))
    assert all(hasattr(data, name) for name in inspect.signature(ChangeDataModule).parameters)


def test_change_data__says_what_is_wrong(root):
    with pytest.raises(ValueError, match=r"bands=\[-1\]"):
        module(root, bands=[-1])
    with pytest.raises(ValueError, match="anomaly_share"):
        module(root, anomaly_share=2.0)
    with pytest.raises(ValueError, match=r"two factors in scale=.*got \(2.0,\)"):
        module(root, scale=(2.0,))
    for wrong in ({"evaluate_on": "images"}, {"evaluate_on": 32}, {"tile": 16, "overlap": 20, "evaluate_on": 20}):
        with pytest.raises(ValueError, match=r"evaluate_on 'tiles', 'pairs' or, beside tile=, a side"):
            module(root, **wrong)
    with pytest.raises(SceneNotFoundError, match="nowhere"):
        module(root / "nowhere", layout="a_b_label").setup("fit")
    (root / "B" / "x1.png").unlink()
    with pytest.raises(SceneNotFoundError, match=r"1 of 6 have none: x1"):
        module(root).setup("fit")


needs_data = pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")


@pytest.mark.real
@needs_data
def test_change_data__leaves_one_real_board_group_out():
    split = GroupSplit(r"^\d{5}", test=("12000",), val=("00041",))
    data = ChangeDataModule(Path(os.environ["ANOMSEG_DATA"]) / "change" / "deeppcb", split=split, prepare=[Binarise()])
    for stage in ("fit", "test"):
        data.setup(stage)
    counts = [len(loader().dataset) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert counts == [120, 40, 14]
    for batch in data.test_dataloader():
        image, mask = batch["image"], batch["mask"]
        assert image.shape == (1, 2, 1, 640, 640)
        assert bool((image[:, 0] != image[:, 1])[:, 0][mask == 1].all())  # change is differing pixels inside of boxes
        assert 0 < float((mask == 1).float().mean()) < 0.02


@pytest.mark.real
@needs_data
@pytest.mark.parametrize(
    ("folder", "count", "shape"), [("levir_cd_samples", 6, (3, 256, 256)), ("dsifn_samples", 5, (3, 256, 256)), ("inlpg", 4, None)]
)
def test_change_data__finds_the_layout_of_real_samples(folder, count, shape):
    bands = None if shape else [0]
    data = ChangeDataModule(Path(os.environ["ANOMSEG_DATA"]) / "change" / folder, split="all_stages", bands=bands)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert len(batches) == count
    for batch in batches:
        assert shape is None or batch["image"].shape[2:] == shape
        assert set(batch["mask"].unique().tolist()) <= {0, 1}
    assert 0.05 < float(torch.stack([(batch["mask"] == 1).float().mean() for batch in batches]).mean()) < 0.4


def test_predict__serves_a_test_folder_without_labels(tmp_path):
    for part, names in (("train", NAMES[:2]), ("val", NAMES[2:3]), ("test", NAMES[3:5])):
        for name in names:
            for folder, plane in zip(("A", "B", "label"), planes(name), strict=True):
                if (part, folder) != ("test", "label"):
                    (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(plane).save(tmp_path / part / folder / f"{name}.png")
    data = ChangeDataModule(tmp_path)
    data.setup("predict")
    assert [batch["name"] for batch in data.predict_dataloader()] == [["y1"], ["y2"]]
    with pytest.raises(SceneNotFoundError, match="mask"):
        data.setup("test")


@pytest.mark.parametrize(
    ("on", "side"), [("tiles", (16, 16)), (24, (24, 24)), (200, planes("y1")[2].shape), ("pairs", planes("y1")[2].shape)]
)
def test_evaluate_on__serves_the_windows_that_it_names_and_trains_on_crops(root, on, side):
    data = module(root, tile=16, evaluate_on=on)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert {tuple(batch["mask"].shape[1:]) for batch in data.train_dataloader()} == {(16, 16)}
    for loader in (data.val_dataloader, data.test_dataloader, data.predict_dataloader):
        assert {tuple(batch["mask"].shape[1:]) for batch in loader()} == {side}


def test_test__counts_each_pixel_once_whatever_the_tile(root, tmp_path):
    found = []
    for tile, overlap, on in ((None, 0, "tiles"), (16, 0, "tiles"), (16, 5, "tiles"), (16, 20, 24), (16, 0, "pairs")):
        data = ChangeDataModule(root, split=GroupSplit("^.", test=("y",), val=("z",)), tile=tile, overlap=overlap, evaluate_on=on)
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1
        )
        method = Plain()
        trainer.fit(method, data)
        figures = trainer.test(method, data, verbose=False)[0]
        found.append([figures[name] for name in ("test_auroc", "test_ap", "test_fpr95")])
    assert all(figures == found[0] for figures in found)
