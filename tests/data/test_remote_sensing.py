import inspect

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from anomseg.data.augment import Albumentations, FlipRotate
from anomseg.data.class_rule import ClassAsNormal, ClassTable, IndexThreshold
from anomseg.data.folder_image import FolderImage
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import FolderLayout
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.remote_sensing import RemoteSensingDataModule
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.methods.rx import RX
from anomseg.sample import check_sample

LAND = FolderLayout(
    ("{split}/images/{name}.png",), "{split}/masks/{name}.png", ClassTable(("void", "land", "water"), void=("void",)), "index"
)
LAND_NORMAL = ClassAsNormal(("land",))
SIZES = ((30, 24), (17, 40), (24, 24), (30, 24), (25, 33), (12, 60))


def save(root, name, size, seed):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.repeat(rng.integers(0, 3, (15, 15)), 4, axis=0), 4, axis=1)[: size[0], : size[1]]
    image = rng.integers(0, 40, (*size, 3)) + 50 * ids[..., None]
    for folder, array in (("images", image), ("masks", ids)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(root / folder / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    for index, size in enumerate(SIZES):
        save(tmp_path, f"i{index}", size, index)
    return tmp_path


def module(root, **arguments):
    return RemoteSensingDataModule(root, LAND, LAND_NORMAL, **{"split": ShareSplit(0.5, 0.0, 0.5), **arguments})


def truth_of(root, name):
    ids = torch.from_numpy(np.array(Image.open(root / "masks" / f"{name}.png"))).long()
    return torch.tensor([255, 0, 1])[ids]


def test_remote_sensing__does_not_care_what_dropped_bands_lack(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for index in range(4):
        save(tmp_path, f"i{index}", (24, 24), index)
        stored = np.array(Image.open(tmp_path / f"images/i{index}.png")).transpose(2, 0, 1).astype(np.float32)
        stored[2] = np.nan
        (tmp_path / f"images/i{index}.png").unlink()
        profile = {"driver": "GTiff", "count": 3, "height": 24, "width": 24, "dtype": "float32"}
        with rasterio.open(tmp_path / f"images/i{index}.tif", "w", **profile, transform=rasterio.Affine(2, 0, 0, 0, -2, 0)) as file:
            file.write(stored)
    layout = FolderLayout(("images/{name}.tif",), LAND.masks.replace("{split}/", ""), LAND.table, "index")
    data = RemoteSensingDataModule(tmp_path, layout, LAND_NORMAL, ShareSplit(0.5, 0.0, 0.5), bands=[1, 0], tile=16)
    data.setup("fit")
    data.setup("test")
    for batch in (*data.train_dataloader(), *data.test_dataloader()):
        assert batch["image"].shape[1] == 2
        assert torch.isfinite(batch["image"]).all()
    tested = [(scene().mask, truth_of(tmp_path, scene.name)) for scene in data.scenes_of("test")]
    assert all(torch.equal(mask, truth) for mask, truth in tested)


def test_remote_sensing__refuses_class_ids_in_the_layout_of_black_and_white_masks(root):
    data = RemoteSensingDataModule(root)
    with pytest.raises(SceneFormatError, match=r"masks/i\d\.png', but got the values \[0, 1, 2\].*encoding='index'"):
        data.setup("fit")


def test_remote_sensing__tests_all_pixels_of_images_that_did_not_train(root):
    data = module(root)
    data.setup("fit")
    data.setup("test")
    trained = {name for batch in data.train_dataloader() for name in batch["name"]}
    tested = {batch["name"][0]: batch["mask"][0] for batch in data.test_dataloader()}
    assert trained | set(tested) == {f"i{index}" for index in range(6)}
    assert not trained & set(tested)
    assert all(torch.equal(mask, truth_of(root, name)) for name, mask in tested.items())
    assert {batch["name"][0] for batch in data.predict_dataloader()} == set(tested)


def test_remote_sensing__validates_on_blocks_that_do_not_train(root):
    data = module(root, calibration_block=5)
    trained = {batch["name"][0]: batch["mask"][0] for batch in data.train_dataloader()}
    validated = {batch["name"][0]: batch["mask"][0] for batch in data.val_dataloader()}
    assert trained.keys() == validated.keys()
    for name, mask in trained.items():
        assert not ((mask != 255) & (validated[name] != 255)).any()
        assert torch.equal(torch.where(mask == 255, validated[name], mask), truth_of(root, name))


def test_remote_sensing__validates_on_images_where_some_are_set_apart(root):
    data = module(root, split=NameSplit(("i0", "i1"), ("i2", "i3"), ("i4",)))
    assert {batch["name"][0]: batch["mask"].shape for batch in data.val_dataloader()} == {"i2": (1, 24, 24), "i3": (1, 30, 24)}
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert torch.equal(batch["mask"][0], truth_of(root, batch["name"][0]))


def test_remote_sensing__follows_the_folders_of_its_parts(tmp_path):
    for index, part in enumerate(("train", "val", "test")):
        save(tmp_path / part, "same", (20, 20), index)
    data = module(tmp_path, split=None)
    images = [next(iter(loader()))["image"] for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    for index, part in enumerate(("train", "val", "test")):
        stored = np.array(Image.open(tmp_path / part / "images" / "same.png")).transpose(2, 0, 1)
        assert torch.equal(images[index][0], torch.from_numpy(stored).float())


def test_remote_sensing__trains_on_stacked_crops_and_evaluates_windows_of_any_size(root):
    data = module(root, batch_size=4, tile=16, overlap=4, crops=3, augment=FlipRotate())
    batches = list(data.train_dataloader())
    assert [len(batch["name"]) for batch in batches] == [4, 4, 1]
    for batch in batches:
        check_sample(batch)
        assert batch["image"].shape[1:] == (3, 16, 16)
    covered = {name: torch.zeros(SIZES[int(name[1])]) for batch in data.test_dataloader() for name in batch["name"]}
    for batch in data.test_dataloader():
        check_sample(batch)
        for name, (row, column, height, width) in zip(batch["name"], batch["window"], strict=True):
            covered[name][row : row + height, column : column + width] += 1
    assert all(bool((count > 0).all()) for count in covered.values())


def test_remote_sensing__splits_by_groups_of_names(root):
    data = module(root, split=GroupSplit(r"^i\d", test=("i1", "i4"), val=("i2",)))
    parts = {stage: {image.name for image in data.scenes_of(stage)} for stage in ("train", "val", "test")}
    assert parts == {"train": {"i0", "i3", "i5"}, "val": {"i2"}, "test": {"i1", "i4"}}


def test_remote_sensing__aims_crops_at_anomalous_pixels(root):
    data = module(root, tile=6, crops=20, anomaly_share=1.0)
    data.setup("fit")
    assert all(bool((batch["mask"] == 1).any()) for batch in data.train_dataloader())


@pytest.mark.parametrize("calibration_block", [10, 4])
def test_remote_sensing__serves_the_same_whatever_is_kept_in_memory(root, calibration_block, monkeypatch):
    windows = []
    part = FolderImage.part
    monkeypatch.setattr(FolderImage, "part", lambda image, window: windows.append(window) or part(image, window))
    options = {"tile": 9, "overlap": 2, "anomaly_share": 0.5, "crops": 5, "calibration_block": calibration_block}
    modules = [module(root, **options, cache_bytes=kept) for kept in (2**29, 100)]
    for data in modules:
        for stage in ("fit", "test", "predict"):
            data.setup(stage)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"):
        whole, parts = (list(getattr(data, loader)()) for data in modules)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(other["image"], one["image"], equal_nan=True, rtol=0, atol=0)
            assert torch.equal(other["mask"], one["mask"])
            assert (other["window"], other["transform"]) == (one["window"], one["transform"])
    windows.clear()
    tested = modules[1].dataset("test")
    sample = tested[3]
    assert windows == [sample["window"]]


def test_remote_sensing__predicts_a_folder_of_images_without_truth(root, tmp_path):
    free = tmp_path / "free"
    save(free, "new", (20, 21), 9)
    data = module("nowhere", predict_root=free / "images")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["name"] == ["new"]
    assert set(batch["mask"].unique().tolist()) == {0}


def test_remote_sensing__fits_and_tests_a_method(root, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, default_root_dir=tmp_path, **quiet)
    method, data = RX(background="training"), module(root, tile=16, batch_size=2, crops=4)
    trainer.fit(method, data)
    (figures,) = trainer.test(method, data, verbose=False)
    assert figures["test_auroc"] > 0.9  # water is 50 grey values brighter than land


def test_remote_sensing__stores_every_argument_under_its_name(root):
    given = {
        "root": str(root),
        "layout": LAND,
        "classes": LAND_NORMAL,
        "split": ShareSplit(),
        "bands": [2, 0],
        "augment": FlipRotate(),
        "crops": 2,
        "anomaly_share": 0.25,
        "predict_root": str(root),
        "batch_size": 3,
        "num_workers": 1,
        "tile": 5,
        "overlap": 2,
        "calibration_share": 0.5,
        "calibration_block": 3,
        "seed": 9,
        "cache_bytes": 1000,
    }
    assert list(given) == list(inspect.signature(RemoteSensingDataModule).parameters)
    data = RemoteSensingDataModule(**given)
    assert {name: getattr(data, name) for name in given} == given
    assert next(iter(data.train_dataloader()))["image"].shape == (3, 2, 5, 5)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"train": 0.7, "val": 0.0, "test": 0.3}, ShareSplit(0.7, 0.0, 0.3)),
        ({"train": ["a"], "test": ["b"]}, NameSplit(("a",), (), ("b",))),
    ],
)
def test_remote_sensing__is_configured_by_plain_data(split, expected):
    parser = ArgumentParser()
    parser.add_subclass_arguments(SceneDataModule, "data")
    layout = {"images": ["image/{name}.png"], "masks": "label/{name}.png", "table": {"names": ["ground", "road"], "ids": [0, 1]}}
    arguments = {
        "root": "roads",
        "layout": layout,
        "classes": {"normal_classes": ["road"]},
        "split": split,
        "augment": {"class_path": "anomseg.data.augment.Albumentations", "init_args": {"transforms": [{"name": "D4", "p": 1.0}]}},
    }
    config = parser.parse_object({"data": {"class_path": "anomseg.data.remote_sensing.RemoteSensingDataModule", "init_args": arguments}})
    data = parser.instantiate_classes(config).data
    assert data.layout == FolderLayout(("image/{name}.png",), "label/{name}.png", ClassTable(("ground", "road"), (0, 1)))
    assert data.classes == ClassAsNormal(("road",))
    assert data.split == expected
    assert isinstance(data.augment, Albumentations)


def test_remote_sensing__fails_in_setup_before_any_training(root, tmp_path):
    with pytest.raises(SceneNotFoundError, match="nowhere"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(SceneNotFoundError, match="layout="):
        RemoteSensingDataModule(root, "loveda", ClassAsNormal(("road",))).setup("fit")
    Image.fromarray(np.full((30, 24), 9, np.uint8)).save(root / "masks" / "i0.png")
    with pytest.raises(SceneFormatError, match=r"i0\.png', but got also \[9\]"):
        module(root, split=ShareSplit(1.0, 0.0, 0.0)).setup("fit")
    with pytest.raises(ValueError, match="one image for 'test'"):
        module(root, split=NameSplit(("i1",))).setup("test")


@pytest.mark.parametrize(
    "arguments",
    [
        {"bands": []},
        {"bands": [1, 1]},
        {"crops": 0},
        {"anomaly_share": 2.0},
        {"cache_bytes": -1},
        {"tile": 8, "overlap": 8},
        {"layout": "unknown"},
        {"classes": ClassAsNormal((7,))},
    ],
)
def test_remote_sensing__refuses_arguments_out_of_range(root, arguments):
    with pytest.raises(ValueError, match="Expected"):
        RemoteSensingDataModule(root, **{"layout": LAND, **arguments})


@pytest.mark.real
def test_remote_sensing__splits_the_real_roads_into_35_and_15(real_data):
    folder = real_data / "remote_sensing" / "aerial_roads"
    data = RemoteSensingDataModule(folder, "image_label", ClassAsNormal(("object",)), ShareSplit(0.7, 0.0, 0.3), tile=128, batch_size=7)
    data.setup("fit")
    data.setup("test")
    assert [len(data.scenes_of(part)) for part in ("train", "test")] == [35, 15]
    assert all(batch["image"].shape == (7, 3, 128, 128) for batch in data.train_dataloader())
    tested = torch.cat([scene().mask.flatten() for scene in data.scenes_of("test")])
    assert 0.1 < float((tested == 0).float().mean()) < 0.3


@pytest.mark.real
@pytest.mark.parametrize(("name", "layout", "found"), [("loveda", "loveda_flat", 6), ("potsdam", "potsdam", 6)])
def test_remote_sensing__reads_real_class_masks(real_data, name, layout, found):
    data = RemoteSensingDataModule(real_data / "remote_sensing" / name, layout, ClassAsNormal((1,)), ShareSplit(0.5, 0.0, 0.5, block=256))
    data.setup("fit")
    images = data.scenes()
    assert len({image.window for image in images}) == len(images) / (2 if name == "loveda" else 1)
    assert len({entry for image in images for entry in image.found()}) == found
    assert {0, 1} <= {value for image in images for value in image().mask.unique().tolist()}


@pytest.mark.real
def test_remote_sensing__derives_real_water_and_splits_one_raster_by_blocks(real_data):
    layout = FolderLayout(("m_4709963_se_14_1_20120731.tif",), IndexThreshold((1, 3)))
    split = ShareSplit(0.5, 0.25, 0.25, block=128)
    data = RemoteSensingDataModule(real_data / "geo" / "naip", layout, ClassAsNormal(("below",)), split, bands=[0, 1, 2])
    data.setup("fit")
    data.setup("test")
    parts = [data.scenes_of(part) for part in ("train", "val", "test")]
    assert sum(image.size[0] * image.size[1] for part in parts for image in part) == 723 * 934
    scene = parts[0][0]()
    assert scene.image.shape[0] == 3
    row, column = parts[0][0].window[:2]
    assert scene.transform == (5.0, 0.0, 485900.0 + 5 * column, 0.0, -5.0, 5209245.0 - 5 * row)
    assert 0.1 < float(torch.cat([image().mask.flatten() for part in parts for image in part]).float().mean()) < 0.6
