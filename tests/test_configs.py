"""Every shipped configuration trains, tests and predicts."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from anomseg.__main__ import main
from anomseg.data.synthetic_scenes import synthetic_scene

FOLDER = Path(__file__).parents[1] / "examples" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHORT = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]


def cubes(folder):
    """Write two small scenes of 24 bands."""
    for seed in range(2):
        scene = synthetic_scene("hyperspectral", (48, 48), seed, 24)
        cube = np.nan_to_num(scene.image.numpy()).transpose(1, 2, 0)
        scipy.io.savemat(folder / f"scene-{seed}.mat", {"data": cube, "map": (scene.mask == 1).numpy().astype(np.uint8)})
    return []


def tiles(folder):
    """Write seven small tiles with masks, of which two are tested."""
    for name in ("image", "label"):
        (folder / name).mkdir()
    for seed in range(7):
        generator = np.random.default_rng(seed)
        mask = np.zeros((48, 48), np.uint8)
        mask[:, 20:30] = 255
        picture = generator.integers(0, 60, (48, 48, 3)) + 100 * (mask > 0)[..., None]
        Image.fromarray(picture.astype(np.uint8)).save(folder / "image" / f"{seed}.png")
        Image.fromarray(mask).save(folder / "label" / f"{seed}.png")
    return ["--data.tile", "32", "--data.crops", "1"]


def pairs(folder, names):
    """Write small pairs of three dates' folders for each stage, in which a square appears."""
    for stage in ("train", "val", "test"):
        for index in range(2):
            generator = np.random.default_rng([index, len(stage)])
            before = generator.integers(0, 90, (48, 48, 3))
            mask = np.zeros((48, 48), np.uint8)
            mask[12:24, 18:30] = 255
            for name, picture in zip(names, (before, before + 120 * (mask[..., None] > 0), mask), strict=True):
                (folder / stage / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture.astype(np.uint8)).save(folder / stage / name / f"{index}.png")
    return []


def boards(folder):
    """Write small grey pairs of two groups and one more, named by their first five digits."""
    for name in ("template", "test", "mask"):
        (folder / name).mkdir()
    for group in ("12000", "12100", "13000"):
        for index in range(2):
            before = 255 * np.random.default_rng(index).integers(0, 2, (12, 12)).repeat(4, 0).repeat(4, 1)
            after = before.copy()
            after[12:24, 18:30] = 255 - after[12:24, 18:30]
            for name, picture in (("template", before), ("test", after), ("mask", 255 * (before != after))):
                Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{group}{index}.png")
    return []


def streets(folder):
    """Write small frames of three sequences in the layout of CamVid, with a bicyclist (10) in two of them."""
    generator = np.random.default_rng(0)
    for part, names in (("train", ("0001TP_1", "0001TP_2", "0006R0_1", "0006R0_2", "0016E5_01", "0016E5_08")),):
        for name in names:
            label = np.arange(48).repeat(64).reshape(48, 64) // 5
            label[10:20, 30:40] = 10
            picture = 25 * label[..., None] + generator.integers(0, 20, (48, 64, 3))
            for kind, values in ((part, picture), (f"{part}annot", label)):
                (folder / kind).mkdir(exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{name}.png")
    return ["--data.size", "[48,64]", "--data.batch_size", "2"]


def parts(folder):
    """Write small parts of two classes in the layout of MVTec, with a dark square as the defect."""
    for category, base in (("plate", 90), ("ring", 160)):
        for index in range(8):
            picture = base + np.random.default_rng(index).integers(0, 30, (48, 48, 3))
            kind = "train/good" if index < 6 else "test/good" if index == 6 else "test/hole"
            if index == 7:
                picture[12:24, 18:30] = 10
                mask = np.zeros((48, 48), np.uint8)
                mask[12:24, 18:30] = 255
                (folder / category / "ground_truth" / "hole").mkdir(parents=True)
                Image.fromarray(mask).save(folder / category / "ground_truth" / "hole" / f"{index}_mask.png")
            (folder / category / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / category / kind / f"{index}.png")


def industrial_options(config, folder):
    """Give options for two classes of parts; the test data are four images, and one class where the configuration is for one."""
    parts(folder)
    if config.stem == "reconstruction_industrial":
        return ["--data.root", str(folder / "plate"), "--data.size", "[48,48]", "--data.tile", "32"]
    return ["--data.root", str(folder), *([] if config.stem.startswith(("position", "score_fusion")) else ["--data.size", "[48,48]"])]


def data_options(config, folder):
    """Give options that put small scenes of the right kind in the place of the user's."""
    if config.stem == "pebal_synthetic":
        return ["--data.train", "8", "--data.val", "2", "--data.test", "2", "--data.size", "[48,64]"]
    if config.stem == "reconstruction_synthetic":
        return ["--data.train", "4", "--data.val", "2", "--data.test", "2", "--data.size", "[32,32]", "--data.kinds", "[woven]"]
    if config.stem.endswith(("industrial", "multiclass")):
        return industrial_options(config, folder)
    if config.stem.endswith("driving"):
        return ["--data.root", str(folder), *streets(folder)]
    if config.stem == "change_synthetic":
        return ["--data.train", "2", "--data.val", "1", "--data.test", "2", "--data.size", "[48,48]"]
    if config.stem in ("change_mamba_gated", "change_mamba_registered"):
        return ["--data.root", str(folder), "--data.tile", "32", *boards(folder)]
    if "change" in config.stem:
        tile = [] if config.stem.startswith("irmad") else ["--data.tile", "32", "--data.batch_size", "2"]
        return ["--data.root", str(folder), *tile, *pairs(folder, ("A", "B", "label"))]
    domain = "remote_sensing" if config.stem.endswith("remote_sensing") else config.stem.rpartition("_")[2]
    if domain == "synthetic":
        return ["--data.count", "2", "--data.size", "[48,48]"]
    return ["--data.root", str(folder), *{"hyperspectral": cubes, "remote_sensing": tiles}[domain](folder)]


def model_options(config):
    """Give options that fit the small scenes, and shorten what is trained where scenes are scored."""
    if config.stem == "svdd_hyperspectral":
        return ["--model.in_channels", "24"]
    if config.stem == "change_mamba_pairs":
        return ["--model.spec", "tiny"]
    implants = ["--model.recipe.implants", "4"] if config.stem.startswith("direct_hyperspectral") else []
    return ["--model.recipe.nets", "1", *implants] if config.stem.startswith("direct") else []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_configuration__fits_tests_and_predicts(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    data = [*data_options(config, scenes), *model_options(config)]
    cli = main(["fit", "--config", str(config), *data, *QUIET, *SHORT])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    cli = main(["test", "--config", str(config), *data, *QUIET, "--ckpt_path", checkpoint])
    assert 0 <= cli.trainer.callback_metrics["test_auroc"] <= 1
    main(["predict", "--config", str(config), *data, *QUIET, "--ckpt_path", checkpoint, "--output", "maps"])
    four = ("feature_library_industrial", "position_gaussian_industrial", "reconstruction_multiclass", "score_fusion_industrial")
    written = 4 if config.stem in four else 2
    assert len(list((tmp_path / "maps").rglob("*.png"))) == written


def test_configurations__are_there():
    assert {"rx_synthetic", "rx_hyperspectral", "lrx_hyperspectral"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_configuration__says_for_how_long_it_trains(config):
    assert "max_epochs:" in config.read_text()
