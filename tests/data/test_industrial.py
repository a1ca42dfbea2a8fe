import os
import pickle
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from anomseg.data.augment import FlipRotate
from anomseg.data.defects import Blend, ColourShift, Corruption, Hole
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.industrial import IndustrialDataModule
from anomseg.data.industrial_layouts import industrial_layout_of
from anomseg.data.industrial_sets import IndustrialSet
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import SceneFormatError
from anomseg.methods.rx import RX
from anomseg.sample import check_sample

QUIET = Corruption((Hole(), Blend()), max_defects=1)


def save(path, seed=0, size=(32, 40), bands=1, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    top = np.iinfo(dtype).max
    noise = np.random.default_rng(seed).integers(0, top, (*size, bands) if bands > 1 else size, endpoint=True).astype(dtype)
    Image.fromarray(noise).save(path)


def mark(path, size=(32, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size, np.uint8)
    array[4:12, 6:14] = 255
    Image.fromarray(array).save(path)


def category(root, name="nut", train=6, **image):
    for number in range(train):
        save(root / name / "train/good" / f"{number:03d}.png", number, **image)
    for number in range(2):
        save(root / name / "test/good" / f"{number:03d}.png", 50 + number, **image)
        save(root / name / "test/hole" / f"{number:03d}.png", 60 + number, **image)
        mark(root / name / "ground_truth/hole" / f"{number:03d}_mask.png", image.get("size", (32, 40)))
    return root


def module(root, **arguments):
    return IndustrialDataModule(root, **{"batch_size": 2, **arguments})


def batches(data, stage):
    data.setup({"train": "fit", "val": "validate"}.get(stage, stage))
    found = list(getattr(data, f"{stage}_dataloader")())
    for batch in found:
        check_sample(batch)
    return found


def named(found, key):
    return {name: value for batch in found for name, value in zip(batch["name"], batch[key], strict=True)}


def test_industrial__serves_normal_images_to_train_and_validate_and_all_to_test(tmp_path):
    data = module(category(tmp_path))
    for stage, count in (("train", 5), ("val", 1)):
        found = batches(data, stage)
        assert len(named(found, "image")) == count
        assert set(torch.cat([batch["image_label"] for batch in found]).tolist()) == {0}
        assert all(bool((batch["mask"] == 0).all()) for batch in found)
    tested = batches(data, "test")
    labels, masks = named(tested, "image_label"), named(tested, "mask")
    assert {name: int(label) for name, label in labels.items()} == {
        f"nut/{k}/00{n}": int(k == "hole") for k in ("good", "hole") for n in (0, 1)
    }
    assert {int((mask == 1).sum()) for name, mask in masks.items() if "hole" in name} == {64}
    assert {value for batch in tested for value in batch["category"]} == {"nut"}
    assert tested[0]["image"].dtype == torch.float32
    assert not {"corrupted", "defect"} & set(tested[0])


def test_industrial__shows_no_validation_image_in_training(tmp_path):
    data = module(category(tmp_path))
    assert not set(named(batches(data, "train"), "image")) & set(named(batches(data, "val"), "image"))


def test_industrial__corrupts_training_samples_beside_a_clean_image(tmp_path):
    clean = named(batches(module(category(tmp_path)), "train"), "image")
    for batch in batches(module(tmp_path, corruption=QUIET), "train"):
        for name, image, corrupted, defect in zip(batch["name"], batch["image"], batch["corrupted"], batch["defect"], strict=True):
            assert torch.equal(image, clean[name])
            assert torch.equal((corrupted != image).any(0), defect == 1)
            assert bool((defect == 1).any())


def test_industrial__corrupts_after_the_augmentation_which_both_share(tmp_path):
    data = module(category(tmp_path), corruption=Corruption((ColourShift(size=(0.01, 0.01)),), max_defects=1), augment=FlipRotate())
    for batch in batches(data, "train"):
        same = (batch["corrupted"] == batch["image"]).all(1)
        assert bool((same.flatten(1).float().mean(1) > 0.95).all())
    plain = named(batches(module(tmp_path), "train"), "image")
    turned = named(batches(data, "train"), "image")
    assert any(not torch.equal(plain[name], turned[name]) for name in plain)


def test_industrial__corrupts_anew_in_each_epoch_by_its_seed(tmp_path):
    category(tmp_path)

    def epochs(seed, workers=0):
        data = module(tmp_path, corruption=QUIET, seed=seed, num_workers=workers, tile=24, split=NameSplit(("nut/good/train_000",)))
        data.setup("fit")
        loader, found = data.train_dataloader(), []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            found.append(torch.cat([batch["corrupted"] for batch in loader]))
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the only training image
        first, again, worked, other = epochs(0), epochs(0), epochs(0, 1), epochs(1)
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(first, worked, strict=True))
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0], other[0])


def test_corruption__blends_images_of_the_same_category_alone(tmp_path):
    for name, value in (("dark", 20), ("light", 220)):
        category(tmp_path, name)
        for path in (tmp_path / name).rglob("*good/*.png"):
            Image.fromarray(np.random.default_rng(0).integers(value - 15, value + 15, (32, 40)).astype(np.uint8)).save(path)
    data = module(tmp_path, corruption=Corruption((Blend(edge="feathered"),), max_defects=1), crops=4)
    for batch in batches(data, "train"):
        bright = batch["corrupted"].flatten(1).amax(1) > 0.5
        assert bright.tolist() == [kind == "light" for kind in batch["category"]]
        assert not bool((bright & (batch["corrupted"].flatten(1).amin(1) < 0.5)).any())


def test_industrial__trains_one_model_of_several_data_sets(tmp_path):
    category(tmp_path / "one"), category(tmp_path / "two", "pill", size=(48, 48))
    sets = [IndustrialSet(tmp_path / "one"), IndustrialSet(tmp_path / "two", size=0.5)]
    data = module(sets, size=(16, 16))
    found = batches(data, "test")
    assert data.known_categories == ("nut", "pill")
    assert Counter(kind for batch in found for kind in batch["category"]) == {"nut": 4, "pill": 4}
    assert {(kind, tuple(size)) for batch in found for kind, size in zip(batch["category"], batch["scene_size"], strict=True)} == {
        ("nut", (16, 16)),
        ("pill", (24, 24)),
    }
    with pytest.raises(ValueError, match="Move them into IndustrialSet"):
        module(sets, categories=["nut"])


def test_industrial__draws_more_samples_from_sets_that_repeat(tmp_path):
    category(tmp_path / "one"), category(tmp_path / "two", "pill")
    data = module([IndustrialSet(tmp_path / "one"), IndustrialSet(tmp_path / "two", repeats=3)], crops=2, tile=16)
    found = batches(data, "train")
    assert Counter(kind for batch in found for kind in batch["category"]) == {"nut": 10, "pill": 30}


def test_industrial__evaluates_whole_images_unless_asked_for_tiles(tmp_path):
    category(tmp_path)
    assert {tuple(batch["image"].shape[2:]) for batch in batches(module(tmp_path, tile=16), "test")} == {(32, 40)}
    tiled = batches(module(tmp_path, tile=16, evaluate_on="tiles"), "test")
    assert {tuple(batch["image"].shape[2:]) for batch in tiled} == {(16, 16)}
    assert sum(len(batch["image"]) for batch in tiled) == 4 * 2 * 3


def test_industrial__takes_the_categories_asked_for(tmp_path):
    for name in ("nut", "pill", "zip"):
        category(tmp_path, name)
    data = module(tmp_path, categories=["nut", "zip"])
    batches(data, "train")
    assert data.known_categories == ("nut", "zip")


def test_industrial__says_that_grey_lies_beside_colour_and_repeats_it(tmp_path):
    category(tmp_path, "grey"), category(tmp_path, "rgb", bands=3)
    data = module(tmp_path)
    with pytest.warns(UserWarning, match="Grey images lie beside those of three bands"):
        found = batches(data, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        images = named([*found, *batches(data, "test")], "image")
    assert {image.shape[0] for image in images.values()} == {3}
    assert all(torch.equal(image[0], image[2]) == name.startswith("grey") for name, image in images.items())
    one = module(tmp_path, channels=1)
    assert {batch["image"].shape[1] for batch in batches(one, "train")} == {1}


def test_industrial__refuses_bands_that_have_no_rule(tmp_path):
    category(tmp_path, "grey")
    Image.fromarray(np.zeros((32, 40, 2), np.uint8), "LA").save(tmp_path / "grey/train/good/900.png")  # alpha is no band
    from anomseg.data.raster_io import write_geotiff

    write_geotiff(tmp_path / "grey/train/good/901.tif", torch.rand(5, 32, 40), None, None)
    with pytest.raises(SceneFormatError, match=r"1 in '.*', 5 in '.*901.tif'"):
        batches(module(tmp_path), "train")


def test_industrial__reads_16_bits(tmp_path):
    category(tmp_path, dtype=np.uint16)
    image = batches(module(tmp_path), "train")[0]["image"]
    assert 0.9 < float(image.max()) <= 1
    assert 0 <= float(image.min()) < 0.1


def test_industrial__pads_images_smaller_than_the_crop_and_says_so(tmp_path):
    data = module(category(tmp_path), tile=36, corruption=QUIET)
    with pytest.warns(UserWarning, match="5 of 5 training images are smaller than the crop of 36"):
        found = batches(data, "train")
    for batch in found:
        assert bool(batch["corrupted"][:, :, 32:].isnan().all())
        assert bool((batch["defect"][:, 32:] == 255).all())
        assert bool((batch["mask"][:, 32:] == 255).all())


def test_industrial__calibrates_one_training_image_on_its_blocks(tmp_path):
    data = module(category(tmp_path, train=1))
    with pytest.warns(UserWarning, match="calibrated on blocks"):
        trained = batches(data, "train")[0]["mask"]
    validated = batches(data, "val")[0]["mask"]
    assert bool(((trained == 0) ^ (validated == 0)).all())
    assert 0 < int((validated == 0).sum()) < validated.numel() / 2


def test_industrial__tests_a_category_that_was_never_learnt_and_says_so(tmp_path):
    category(tmp_path), category(tmp_path, "pill", train=0)
    data = module(tmp_path)
    with pytest.warns(UserWarning, match=r"\['pill'\] are tested but never learnt"):
        found = batches(data, "test")
    assert {kind for batch in found for kind in batch["category"]} == {"nut", "pill"}
    assert data.known_categories == ("nut",)


def test_industrial__predicts_a_folder_of_images_nothing_is_known_of(tmp_path):
    category(tmp_path / "set"), save(tmp_path / "new/x.png", size=(20, 20))
    data = module(tmp_path / "set", predict_root=tmp_path / "new")
    (batch,) = batches(data, "predict")
    assert (batch["name"], batch["image_label"].tolist(), batch["category"]) == (["nut/unknown/x"], [255], ["nut"])


def test_industrial__gives_no_category_to_a_plain_folder_where_it_knows_several(tmp_path):
    category(tmp_path / "set", "nut"), category(tmp_path / "set", "bolt")
    save(tmp_path / "new/x.png", size=(20, 20))
    (batch,) = batches(module(tmp_path / "set", predict_root=tmp_path / "new"), "predict")
    assert (batch["name"], batch["image_label"].tolist()) == (["unknown/x"], [255])
    assert "category" not in batch
    known = batches(module(tmp_path / "set", predict_root=tmp_path / "set"), "predict")
    assert {kind for one in known for kind in one["category"]} == {"nut", "bolt"}
    (only,) = batches(module(tmp_path / "set", categories=["nut"], predict_root=tmp_path / "new"), "predict")
    assert only["category"] == ["nut"]


def test_industrial__says_which_categories_have_no_image_to_validate(tmp_path):
    category(tmp_path, "nut"), category(tmp_path, "pill", train=1)
    data = module(tmp_path)
    with pytest.warns(UserWarning, match=r"No image of the categories \['pill'\] is left to validate"):
        batches(data, "train")
    assert {image.file.category for image in data.scenes_of("val")} == {"nut"}


def test_industrial__calibrates_on_blocks_that_grow_with_the_image(tmp_path):
    for side in (32, 160):
        data = module(category(tmp_path / str(side), size=(side, side), train=1))
        with pytest.warns(UserWarning, match="calibrated on blocks"):
            mask = batches(data, "train")[0]["mask"][0]
        blocks = mask.unfold(0, side // 4, side // 4).unfold(1, side // 4, side // 4).flatten(-2)
        assert bool((blocks == blocks[..., :1]).all())
        assert int((blocks[..., 0] == 255).sum()) == 4


def test_industrial__refuses_to_split_by_blocks():
    with pytest.raises(ValueError, match=r"whole images, but got ShareSplit\(block=64\)"):
        IndustrialDataModule(".", split=ShareSplit(block=64))


def test_industrial__trains_validates_and_tests_a_method(tmp_path):
    data = module(category(tmp_path), batch_size=1, size=(16, 20))
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    method = RX()
    trainer.fit(method, data)
    (figures,) = trainer.test(method, data, verbose=False)
    ranking = [figure for key, figure in figures.items() if "auroc" in key]
    assert ranking
    assert all(0 <= figure <= 1 for figure in ranking)


def test_industrial__goes_to_loader_workers(tmp_path):
    data = module(category(tmp_path), corruption=QUIET)
    data.setup("fit")
    dataset = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert set(dataset[0]) >= {"image", "corrupted", "defect", "image_label", "category"}


def test_industrial__is_configured_by_plain_data(tmp_path):
    category(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(SceneDataModule, "data")
    scar = {"class_path": "anomseg.data.defects.Scar", "init_args": {"strength": 0.5}}
    arguments = {
        "root": [{"root": str(tmp_path), "layout": "mvtec", "categories": ["nut"], "size": 0.5}],
        "corruption": {"defects": [scar], "probability": 0.5},
        "size": [16, 16],
        "tile": 12,
    }
    parsed = parser.parse_object({"data": {"class_path": "anomseg.data.industrial.IndustrialDataModule", "init_args": arguments}})
    data = parser.instantiate(parsed)["data"]
    assert data.corruption.kinds[0].strength == 0.5
    assert batches(data, "train")[0]["corrupted"].shape == (1, 1, 12, 12)


def test_industrial__is_configured_by_a_root_alone(tmp_path):
    parser = ArgumentParser()
    parser.add_subclass_arguments(SceneDataModule, "data")
    split = {"class_path": "anomseg.data.industrial_split.SessionSplit", "init_args": {"pattern": r"(\d+)", "gap": 3}}
    arguments = {"root": str(tmp_path), "layout": "folders", "size": 0.5, "split": split, "patches": {"size": 64, "stride": 64}}
    parsed = parser.parse_object({"data": {"class_path": "anomseg.data.industrial.IndustrialDataModule", "init_args": arguments}})
    data = parser.instantiate(parsed)["data"]
    assert (data.split.gap, data.patches.size, data.size, data.sets[0].described) == (3, 64, 0.5, industrial_layout_of("folders"))


@pytest.mark.parametrize(
    "changes",
    [
        {"crops": 0},
        {"val_share": 1.0},
        {"channels": 0},
        {"batch_size": 0},
        {"size": 0.0},
        {"size": (8, 0)},
        {"bands": ()},
        {"evaluate_on": "x"},
        {"categories": "nut"},
    ],
)
def test_industrial__refuses_numbers_out_of_range(changes):
    with pytest.raises(ValueError, match="Expected"):
        IndustrialDataModule(".", **changes)


REAL = Path(os.environ.get("ANOMSEG_DATA", ".")) / "industrial"


@pytest.mark.real
def test_real__magnetic_tiles_are_239_good_ones_in_44_sessions():
    data = IndustrialDataModule(REAL / "magnetic_tile", "magnetic_tile", size=0.5)
    with pytest.warns(UserWarning, match=r"1 of 193 defective images have a mask that marks nothing.*exp4_num_124690"):
        data.setup("fit")
    images = list(data.scenes())
    split = industrial_layout_of("magnetic_tile").split
    good = [image.name for image in images if image.image_label == 0]
    assert (len(good), len(split.sessions(good)), len(images)) == (239, 44, 432)
    counts = {part: Counter(image.file.defect for image in data.scenes_of(part)) for part in ("train", "val", "test")}
    assert set(counts["train"]) == set(counts["val"]) == {"good"}
    assert 0.55 < counts["train"]["good"] / 239 < 0.65
    tested = {"Blowhole": 59, "Uneven": 49, "Break": 42, "Crack": 29, "Fray": 14}
    assert {kind: number for kind, number in counts["test"].items() if kind != "good"} == tested


@pytest.mark.real
def test_real__crack_patches_are_normal_or_cracked():
    data = IndustrialDataModule(REAL / "crackforest", "crackforest", channels=1)
    data.setup("fit"), data.setup("test")
    stems = [{image.file.stem for image in data.scenes_of(part)} for part in ("train", "val", "test")]
    assert len(set.union(*stems)) == sum(map(len, stems)) == 58
    for image in data.scenes_of("test")[::40]:
        scene = image()
        assert scene.image_label == int((scene.mask == 1).sum() > 0)
        assert scene.size == (96, 96)


@pytest.mark.real
def test_real__boards_are_split_by_their_group():
    root = REAL.parent / "change/deeppcb"
    data = IndustrialDataModule([IndustrialSet(root, "deeppcb", test_defects="split", size=0.25)], channels=1)
    groups = [{image.file.stem[:5] for image in data.scenes_of(part)} for part in ("train", "val", "test")]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 5
    assert set(Counter(image.file.defect for image in data.scenes_of("test"))) == {"good", "test"}
    scene = next(image for image in data.scenes_of("test") if image.image_label)()
    assert scene.size == (160, 160)
    assert 0 < float((scene.mask == 1).float().mean()) < 0.05


@pytest.mark.real
def test_real__two_hazelnuts_are_read_with_their_masks():
    layout = replace(industrial_layout_of("folders"), good=("hole",))  # for the sake of the files
    data = IndustrialDataModule(REAL / "mvtec_samples", layout, split=NameSplit(("mvtec_samples/good/000",)))
    with pytest.warns(UserWarning, match="No image is left to validate"):
        data.setup("fit")
    (image,) = data.scenes_of("test")
    assert 0 < int((image().mask == 1).sum()) < 1024 * 1024 / 10
    assert image().image.shape == (3, 1024, 1024)
