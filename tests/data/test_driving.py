import os
import pickle
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from anomseg.data.driving import DrivingDataModule
from anomseg.data.driving_augment import MirrorZoom
from anomseg.data.group_split import GroupSplit
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import RGBACutouts, SyntheticOutliers, TextureCrops
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.methods.segmenter import Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.sample import check_sample

PASTE = OutlierPaste((SyntheticOutliers(),), 1.0, size=(0.3, 0.6))
SEQUENCES = GroupSplit(r"^s\d", test=("s2",), val=("s1",))


def save(root, name, values=(0, 3, 10, 11), size=(48, 60), folder="train"):
    """Write a frame whose columns hold class ids in turn, and colours that go with them."""
    ids = np.tile(np.repeat(np.resize(values, 12), size[1] // 12), (size[0], 1))
    noise = np.random.default_rng(len(name)).integers(0, 20, (*size, 3))
    for kind, array in ((folder, ids[..., None] * 20 + noise), (f"{folder}annot", ids)):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(root / kind / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    for sequence in range(3):
        for number in range(4):
            save(tmp_path, f"s{sequence}_{number}", (0, 3, 10, 11) if number % 2 else (0, 3, 5, 11))
    return tmp_path


def module(root, **arguments):
    return DrivingDataModule(root, "camvid", **{"hold_out": ["bicyclist"], "split": SEQUENCES, "batch_size": 2, **arguments})


def batches(data, stage):
    data.setup({"train": "fit", "val": "validate"}.get(stage, stage))
    found = list(getattr(data, f"{stage}_dataloader")())
    for batch in found:
        check_sample(batch)
        assert batch["label"].dtype == torch.int64
        assert bool((batch["label"][batch["mask"] != 0] == 255).all())
    return found


def values(found, key):
    return set(torch.cat([batch[key].flatten() for batch in found]).unique().tolist())


def test_driving__splits_by_sequence(root):
    data = module(root)
    named = {stage: {name[:2] for batch in batches(data, stage) for name in batch["name"]} for stage in ("train", "val", "test")}
    assert named == {"train": {"s0"}, "val": {"s1"}, "test": {"s2"}}


def test_driving__shows_held_out_classes_in_the_test_alone(root):
    data = module(root)
    assert data.classes[-1] == "pedestrian"
    assert len(data.classes) == 10
    assert values(batches(data, "train"), "mask") == {0, 255}
    assert values(batches(data, "train"), "label") == {0, 3, 5, 255}
    assert values(batches(data, "val"), "mask") == {0, 255}
    tested = batches(data, "test")
    assert values(tested, "mask") == {0, 1, 255}
    with_it = torch.cat([batch["mask"] for batch in tested])[1]
    assert torch.equal((with_it == 1).any(0), torch.arange(60) // 5 % 4 == 2)


def test_driving__drops_frames_that_show_held_out_classes(root):
    data = module(root, hold_out_frames="drop")
    assert sorted(name for batch in batches(data, "train") for name in batch["name"]) == ["s0_0", "s0_2"]
    assert len(batches(data, "test")) == 2


def test_driving__pastes_into_training_and_validation_but_never_in_a_test_of_real_classes(root):
    data = module(root, paste=PASTE, val_paste=PASTE)
    for stage in ("train", "val"):
        for batch in batches(data, stage):
            assert bool((batch["mask"] == 1).flatten(1).any(1).all())
    plain = torch.cat([batch["mask"] for batch in batches(module(root), "test")])
    assert torch.equal(torch.cat([batch["mask"] for batch in batches(data, "test")]), plain)


def test_driving__tests_pasted_objects_with_the_held_out_classes_void(root):
    data = module(root, test_with="pasted", test_paste=PASTE)
    held = torch.arange(60) // 5 % 4 == 2
    plain = {name: mask for batch in batches(module(root), "test") for name, mask in zip(batch["name"], batch["mask"], strict=True)}
    for batch in batches(data, "test"):
        for name, mask in zip(batch["name"], batch["mask"], strict=True):
            assert bool((mask == 1).any())
            if bool((plain[name] == 1).any()):
                assert not bool((mask[:, held] == 0).any())


def test_driving__pastes_anew_in_each_epoch_by_its_seed(root):
    def epochs(seed):
        data = module(root, paste=PASTE, seed=seed, augment=MirrorZoom())
        data.setup("fit")
        loader, found = data.train_dataloader(), []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            samples = {name: image for batch in loader for name, image in zip(batch["name"], batch["image"], strict=True)}
            found.append(torch.stack([samples[name] for name in sorted(samples)]))
        return found

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_driving__keeps_pasted_objects_in_the_crop(root):
    data = module(root, paste=PASTE, tile=32, crops=3)
    for batch in batches(data, "train"):
        assert batch["image"].shape[-2:] == (32, 32)
        assert bool((batch["mask"] == 1).flatten(1).any(1).all())


def test_driving__augments_image_and_classes_alike(root):
    for batch in batches(module(root, augment=MirrorZoom(1.6, 0.0)), "train"):
        known = batch["label"] != 255
        ids = batch["label"][known].float()  # colours are 20 times the id, with noise of up to 20
        assert float(((batch["image"][:, 0][known] * 255 - 10) / 20 - ids).abs().median()) < 1


def test_driving__takes_void_for_outliers_in_training_on_demand(root):
    data = module(root, void_as_outliers=True)
    for batch in batches(data, "train"):
        void = torch.arange(60) // 5 % 4 == 3
        assert bool((batch["mask"][..., void] == 1).all())
        assert not bool((batch["mask"][..., ~void] == 1).any())
    assert values(batches(data, "val"), "mask") == {0, 255}


def test_driving__keeps_the_rim_of_void_out_of_training_on_demand(root):
    for batch in batches(module(root, void_as_outliers=True, void_rim=2), "train"):
        inner = torch.arange(60) // 5 % 4 == 3
        inner = inner & inner.roll(1) & inner.roll(-1) & inner.roll(2) & inner.roll(-2)
        assert bool(inner.any())
        edges = torch.arange(60).lt(2) | torch.arange(60).gt(57)
        assert torch.equal((batch["mask"] == 1)[..., ~edges], inner[~edges].expand_as(batch["mask"][..., ~edges]))


def test_driving__tests_every_so_many_frames(root):
    assert [name for batch in batches(module(root, test_step=3), "test") for name in batch["name"]] == ["s2_0", "s2_3"]


def test_driving__sets_the_last_training_frames_apart_where_none_validate(root):
    data = module(root, split=GroupSplit(r"^s\d", test=("s2",)))
    assert [name for batch in batches(data, "val") for name in batch["name"]] == ["s1_3"]
    assert len({name for batch in batches(data, "train") for name in batch["name"]}) == 7


def test_driving__evaluates_frames_of_many_sizes_one_by_one_and_scales_them_on_demand(root):
    save(root, "s2_9", size=(36, 72))
    assert [len(batch["name"]) for batch in batches(module(root), "test")] == [1] * 5
    scaled = batches(module(root, size=(24, 32)), "test")
    assert [len(batch["name"]) for batch in scaled] == [2, 2, 1]
    assert scaled[0]["image"].shape == (2, 3, 24, 32)


def test_driving__predicts_frames_without_labels(root):
    (root / "new" / "train").mkdir(parents=True)
    (root / "train" / "s0_0.png").rename(root / "new" / "train" / "n.png")
    data = module(root, predict_root=root / "new")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["name"] == ["n"]


def test_driving__leaves_ids_outside_the_table_and_missing_files_to_clear_errors(root):
    save(root, "s0_1", (0, 3, 40, 41))
    data = module(root)
    data.setup("fit")
    with pytest.raises(SceneFormatError, match=r"s0_1\.png.*\[40, 41\]"):
        list(data.train_dataloader())
    (root / "trainannot" / "s2_1.png").unlink()
    with pytest.raises(SceneNotFoundError, match=r"1 of 4 lack one, such as .*s2_1\.png"):
        module(root).setup("test")
    with pytest.raises(SceneNotFoundError, match="folder of images"):
        module(root / "none").setup("fit")


def test_driving__trains_on_a_frame_of_void_pixels_alone(root):
    save(root, "s0_1", (11,))
    assert "s0_1" in {name for batch in batches(module(root), "train") for name in batch["name"]}


@pytest.mark.parametrize(("stage", "sequence"), [("fit", "s0"), ("validate", "s1"), ("test", "s2")])
def test_driving__refuses_a_stage_of_void_pixels_alone(root, stage, sequence):
    for number in range(4):
        save(root, f"{sequence}_{number}", (11,))
    with pytest.raises(ValueError, match=rf"all 4 are void, such as .*{sequence}_0\.png"):
        module(root, void_as_outliers=True).setup(stage)
    save(root, f"{sequence}_3", (11, 3))
    module(root, void_as_outliers=True).setup(stage)


def test_driving__tests_frames_that_show_held_out_classes_on_demand(root):
    data = module(root, hold_out_frames="test")
    named = {stage: sorted(name for batch in batches(data, stage) for name in batch["name"]) for stage in ("train", "val", "test")}
    assert named["train"] == ["s0_0", "s0_2"]
    assert named["val"] == ["s1_0", "s1_2"]
    assert named["test"] == ["s0_1", "s0_3", "s1_1", "s1_3", "s2_0", "s2_1", "s2_2", "s2_3"]


CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*_driving.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_splits__take_the_names_of_all_701_frames_of_camvid(path):
    split = yaml.safe_load(path.read_text())["data"]["init_args"]["split"]["init_args"]
    names = ["0001TP_006690", "0006R0_f00930", "0016E5_00390", "0016E5_07999", "0016E5_08001", "Seq05VD_f00000"]
    shared = GroupSplit(split["pattern"], tuple(split["test"]), tuple(split["val"])).share(names, 0)
    assert shared == (["0006R0_f00930", "0016E5_00390", "0016E5_07999", "Seq05VD_f00000"], ["0016E5_08001"], ["0001TP_006690"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hold_out": ["dragon"]}, "classes to hold out"),
        ({"test_with": "pasted"}, r"SyntheticOutliers\(\)"),
        ({"hold_out_frames": "burn"}, "hold_out_frames"),
        ({"test_step": 0}, "test_step"),
        ({"layout": "venus"}, "layout"),
    ],
)
def test_driving__refuses_arguments_out_of_range(root, wrong, said):
    with pytest.raises(ValueError, match=said):
        DrivingDataModule(root, **{"layout": "camvid", **wrong})


def test_driving__refuses_a_test_without_anything_anomalous(root):
    with pytest.raises(ValueError, match="hold_out is empty"):
        module(root, hold_out=[]).setup("test")


def test_driving__pickles_for_loader_workers(root):
    data = module(root, paste=PASTE, augment=MirrorZoom())
    data.setup("fit")
    assert torch.equal(pickle.loads(pickle.dumps(data.dataset("train")))[1]["image"], data.dataset("train")[1]["image"])


def test_driving__is_built_from_plain_arguments(root):
    parser = ArgumentParser()
    parser.add_subclass_arguments(SceneDataModule, "data")
    source = [{"class_path": "anomseg.data.outlier_sources.SyntheticOutliers"}]
    paste = {"class_path": "anomseg.data.outlier_paste.OutlierPaste", "init_args": {"sources": source, "size": [0.3, 0.6]}}
    plain = {"root": str(root), "layout": "camvid", "hold_out": ["bicyclist"], "size": [24, 32], "paste": paste}
    data = parser.instantiate_classes(
        parser.parse_object({"data": {"class_path": "anomseg.data.driving.DrivingDataModule", "init_args": plain}})
    ).data
    data.split = SEQUENCES
    assert data.paste.size == (0.3, 0.6)
    assert batches(data, "train")[0]["image"].shape == (1, 3, 24, 32)


def test_driving__trains_and_tests_a_segmenter(root, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, default_root_dir=tmp_path, **quiet)
    data = module(root, paste=PASTE, val_paste=PASTE, size=(32, 48))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = Segmenter(len(data.classes), CompactSegmenter(8))
        trainer.fit(method, data)
        figures = trainer.test(method, data, verbose=False)[0]
    assert {"test_ap", "test_miou"} <= set(figures)


@pytest.mark.real
@pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")
def test_driving__holds_bicyclists_out_of_real_streets():
    folder = Path(os.environ["ANOMSEG_DATA"])
    cutouts = [RGBACutouts(str(folder / "outliers"), "index.csv", part) for part in ("train", "test")]
    paste = OutlierPaste((cutouts[0], TextureCrops(str(folder / "industrial" / "crackforest"))), 1.0)
    data = DrivingDataModule(
        folder / "driving" / "camvid",
        "camvid",
        ["bicyclist"],
        split=GroupSplit(r"^[0-9A-Z]{6}", test=("0001TP",)),
        size=(180, 240),
        paste=paste,
        test_step=8,
        batch_size=4,
    )
    data.setup("fit")
    data.setup("test")
    counts = [len(loader().dataset) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert counts == [366, 40, 8]
    batch = next(iter(data.train_dataloader()))
    check_sample(batch)
    assert batch["image"].shape == (4, 3, 180, 240)
    assert bool((batch["mask"] == 1).any())
    held = sum(int((batch["mask"] == 1).sum()) for batch in data.test_dataloader())
    assert held > 0
