import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.driving import DrivingDataModule
from anomseg.data.driving_layouts import CAMVID, CITYSCAPES, DRIVING_LAYOUTS, DrivingLayout, driving_layout_of
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import FolderLayout
from anomseg.errors import SceneFormatError, SceneNotFoundError

SIZE = (8, 12)


def write(path, value):
    """Write a file of one value, or one whose columns hold several in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array(value, np.uint8)
    if values.ndim == 1:
        values = np.tile(np.resize(values, SIZE[1]), (SIZE[0], 1))
    elif values.ndim == 2:  # colours
        values = np.tile(np.resize(values, (SIZE[1], 3)), (SIZE[0], 1, 1))
    Image.fromarray(values).save(path)


def picture(path):
    write(path, [[40, 80, 120]])


TREES = {  # name of the layout -> images of training and test, their label files, values there, what they mean: mask and label of the test
    "cityscapes": (
        ("leftImg8bit/train/ulm/u_0_leftImg8bit.png", "gtFine/train/ulm/u_0_gtFine_labelIds.png"),
        ("leftImg8bit/val/bonn/b_0_leftImg8bit.png", "gtFine/val/bonn/b_0_gtFine_labelIds.png"),
        [7, 26, 33, 0, 255],
        {7: (0, 0), 26: (0, 13), 33: (1, 255), 0: (255, 255), 255: (255, 255)},
        ["bicycle"],
    ),
    "cityscapes_train_ids": (
        ("leftImg8bit/train/ulm/u_0_leftImg8bit.png", "gtFine/train/ulm/u_0_gtFine_labelTrainIds.png"),
        ("leftImg8bit/val/bonn/b_0_leftImg8bit.png", "gtFine/val/bonn/b_0_gtFine_labelTrainIds.png"),
        [0, 11, 18, 255],
        {0: (0, 0), 11: (1, 255), 18: (0, 17), 255: (255, 255)},
        ["person"],
    ),
    "camvid": (
        ("train/0001TP_1.png", "trainannot/0001TP_1.png"),
        ("test/0002TP_1.png", "testannot/0002TP_1.png"),
        [0, 3, 10, 11],
        {0: (0, 0), 3: (0, 3), 10: (1, 255), 11: (255, 255)},
        ["bicyclist"],
    ),
    "streethazards": (
        ("train/images/training/t1/3.png", "train/annotations/training/t1/3.png"),
        ("test/images/test/t5/3.png", "test/annotations/test/t5/3.png"),
        [1, 2, 13, 14],
        {1: (255, 255), 2: (0, 0), 13: (0, 11), 14: (1, 255)},
        [],
    ),
    "lost_and_found": (
        ("leftImg8bit/train/01_A/x_1_2_leftImg8bit.png", "gtCoarse/train/01_A/x_1_2_gtCoarse_labelIds.png"),
        ("leftImg8bit/test/02_B/y_1_2_leftImg8bit.png", "gtCoarse/test/02_B/y_1_2_gtCoarse_labelIds.png"),
        [0, 1, 2, 31, 43],
        {0: (255, 255), 1: (0, 255), 2: (1, 255), 31: (255, 255), 43: (1, 255)},
        [],
    ),
    "fishyscapes": (
        None,
        ("leftImg8bit/test/04_M/04_M_8_000000_000030_leftImg8bit.png", "fishyscapes_lostandfound/0007_04_M_8_000000_000030_labels.png"),
        [0, 1, 255],
        {0: (0, 255), 1: (1, 255), 255: (255, 255)},
        [],
    ),
    "road_anomaly": (
        None,
        ("frames/sheep.jpg", "frames/sheep.labels/labels_semantic.png"),
        [0, 2],
        {0: (0, 255), 2: (1, 255)},
        [],
    ),
    "smiyc": (
        None,
        ("images/validation_1.webp", "labels_masks/validation_1_labels_semantic.png"),
        [0, 1, 255],
        {0: (0, 255), 1: (1, 255), 255: (255, 255)},
        [],
    ),
    "synboost": (None, ("original/a.jpg", "labels/a.png"), [0, 1, 255], {0: (0, 255), 1: (1, 255), 255: (255, 255)}, []),
}


@pytest.mark.parametrize("name", TREES)
def test_layout__finds_its_files_and_reads_their_codes(tmp_path, name):
    train, test, values, meaning, held = TREES[name]
    for files in (train, test):
        if files is not None:
            picture(tmp_path / files[0])
            write(tmp_path / files[1], values)
    data = DrivingDataModule(tmp_path, name, hold_out=held)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == (1, 3, *SIZE)
    assert torch.allclose(batch["image"].mean((0, 2, 3)) * 255, torch.tensor([40.0, 80.0, 120.0]), atol=3)
    for column, value in enumerate(np.resize(values, SIZE[1])):
        mask, label = meaning[int(value)]
        assert bool((batch["mask"][..., column] == mask).all()), value
        assert bool((batch["label"][..., column] == label).all()), value


def test_layout__reads_camvid_as_colours(tmp_path):
    for part in ("train", "test"):
        picture(tmp_path / part / f"{part}.png")
        write(tmp_path / f"{part}annot" / f"{part}.png", [[128, 64, 128], [0, 128, 192], [0, 0, 0]])
    data = DrivingDataModule(tmp_path, "camvid_colour", hold_out=["bicyclist"])
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["label"][0, 0, :3].tolist() == [3, 255, 255]
    assert batch["mask"][0, 0, :3].tolist() == [0, 1, 255]


def test_layout__of_cityscapes_never_reads_the_placeholders_of_the_official_test(tmp_path):
    for part, town, count, ids in (("train", "ulm", 2, [7, 26, 31]), ("val", "bonn", 1, [7, 31]), ("test", "jena", 1, [0, 1, 2, 3])):
        for number in range(count):
            picture(tmp_path / f"leftImg8bit/{part}/{town}/{town}_{number}_leftImg8bit.png")
            write(tmp_path / f"gtFine/{part}/{town}/{town}_{number}_gtFine_labelIds.png", ids)
    found = {}
    for split in (None, GroupSplit("^[a-z]+", test=("bonn",))):
        data = DrivingDataModule(tmp_path, "cityscapes", hold_out=["train"], split=split)
        data.setup("fit")
        data.setup("test")
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
        found[split] = {stage: [batch["name"] for batch in loader] for stage, loader in loaders.items()}
    expected = {"train": [["ulm_0"]], "val": [["ulm_1"]], "test": [["bonn_0"]]}
    assert list(found.values()) == [expected, expected]
    with pytest.raises(ValueError, match="Expected the groups"):
        DrivingDataModule(tmp_path, "cityscapes", hold_out=["train"], split=GroupSplit("^[a-z]+", test=("jena",))).setup("test")


def test_layout__of_bdd_tests_the_frames_that_show_held_out_classes_on_demand(tmp_path):
    for name, part, ids in (
        ("a", "train", [0, 16]),
        ("b", "train", [0, 1]),
        ("c", "val", [0, 18, 255]),
        ("d", "val", [0]),
        ("e", "test", None),
    ):
        picture(tmp_path / f"seg/images/{part}/{name}.jpg")
        if ids is not None:
            write(tmp_path / f"seg/labels/{part}/{name}_train_id.png", ids)
    data = DrivingDataModule(tmp_path, "bdd100k", hold_out=["train", "motorcycle", "bicycle"], hold_out_frames="test")
    data.setup("fit")
    data.setup("test")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [[batch["name"][0] for batch in loader] for loader in loaders] == [["b"], ["d"], ["a", "c"]]
    batch = list(data.test_dataloader())[1]
    assert batch["mask"][0, 0, :3].tolist() == [0, 1, 255]
    assert batch["label"][0, 0, :3].tolist() == [0, 255, 255]
    with pytest.raises(ValueError, match="hold_out_frames='test'"):
        DrivingDataModule(tmp_path, "bdd100k", hold_out=["train"], hold_out_frames="drop").setup("test")


def test_layout__reads_the_flattened_cityscapes(tmp_path):
    for part, name in (("train", "a"), ("val", "b")):
        picture(tmp_path / f"images/city_gt_fine/{part}/{name}_leftImg8bit.png")
        write(tmp_path / f"annotation/city_gt_fine/{part}/{name}_gtFine.png", [0, 18, 255])
    data = DrivingDataModule(tmp_path, "cityscapes_flat")
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch["name"] == ["b"]
    assert batch["label"][0, 0, :3].tolist() == [0, 18, 255]


def test_partial_layout__tests_the_labelled_frames_and_predicts_all(tmp_path):
    for number in range(3):
        picture(tmp_path / f"images/f{number}.jpg")
    write(tmp_path / "labels_masks/f1_labels_semantic.png", [0, 1])
    write(tmp_path / "labels_masks/f1_labels_semantic_color.png", [[0, 0, 0]])
    data = DrivingDataModule(tmp_path, "smiyc")
    data.setup("test")
    data.setup("predict")
    assert [batch["name"] for batch in data.test_dataloader()] == [["f1"]]
    assert [batch["name"] for batch in data.predict_dataloader()] == [["f0"], ["f1"], ["f2"]]


def test_layout__tells_towns_with_frames_of_one_name_apart(tmp_path):
    for town in ("t5", "t6"):
        picture(tmp_path / f"test/images/test/{town}/300.png")
        write(tmp_path / f"test/annotations/test/{town}/300.png", [2, 14])
    picture(tmp_path / "train/images/training/t1/1.png")
    write(tmp_path / "train/annotations/training/t1/1.png", [2])
    data = DrivingDataModule(tmp_path, "streethazards")
    data.setup("test")
    assert sorted(batch["name"][0] for batch in data.test_dataloader()) == ["t5_300", "t6_300"]


def test_layouts__put_classes_in_the_order_of_their_train_ids():
    for name in ("cityscapes", "cityscapes_train_ids", "cityscapes_flat", "bdd100k"):
        assert DRIVING_LAYOUTS[name].classes == CITYSCAPES
    assert (CITYSCAPES[0], CITYSCAPES[13], CITYSCAPES[18]) == ("road", "car", "bicycle")
    assert CAMVID.index("bicyclist") == 10


def test_layout__refuses_classes_that_its_table_does_not_know():
    folders = FolderLayout(("{name}.png",), "{name}_l.png", train=None, val=None, test=None)
    with pytest.raises(ValueError, match=r"\['dragon'\] are not there"):
        DrivingLayout(folders, ("background", "dragon"))
    with pytest.raises(ValueError, match="once"):
        DrivingLayout(folders, ("background",), anomalies=("background",))
    own = DrivingLayout(folders, ("background",), ("object",))
    assert driving_layout_of(own) is own
    with pytest.raises(ValueError, match="camvid"):
        driving_layout_of("venus")


def test_static_layout__adds_the_overlay_to_the_frame(tmp_path):
    for city in ("ulm", "bonn"):
        picture(tmp_path / f"leftImg8bit/val/{city}/{city}_000001_000019_leftImg8bit.png")
    write(tmp_path / "fs_val_v2/0007_ulm_000001_000019_labels.png", [0, 1, 255])
    added = np.zeros((*SIZE, 3), np.int16)
    added[:, 1::3] = (100, -100, 200)
    np.savez(tmp_path / "fs_val_v2/0007_ulm_000001_000019_rgb.npz", rgb=added)
    data = DrivingDataModule(tmp_path, "fishyscapes_static_v2")
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["name"] == ["ulm_000001_000019"]
    assert (batch["image"][0, :, 0, :2] * 255).round().T.tolist() == [[40, 80, 120], [140, 0, 255]]
    assert batch["mask"][0, 0, :3].tolist() == [0, 1, 255]
    np.savez(tmp_path / "fs_val_v2/0007_ulm_000001_000019_rgb.npz", rgb=added[:2])
    with pytest.raises(SceneFormatError, match=r"shape \(8, 12, 3\)"):
        data.dataset("test")[0]
    with pytest.raises(SceneNotFoundError, match="overlays"):
        DrivingDataModule(tmp_path, "fishyscapes_static_v1").setup("test")
