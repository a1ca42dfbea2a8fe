import inspect
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from scipy.io import savemat
from spectral.io import envi

from anomseg.data.hyperspectral import HyperspectralDataModule
from anomseg.errors import SceneFormatError, SceneNotFoundError

TRUTH = np.zeros((12, 10), np.uint8)
TRUTH[3:5, 4:6] = 1


def cube(seed=0, bands=4):
    return np.random.default_rng(seed).integers(-50, 5000, size=(12, 10, bands)).astype(np.int16)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("a", "b"):
        savemat(folder / f"{name}.mat", {"data": cube(), "map": TRUTH})
    return folder


def test_hyperspectral__serves_a_folder_a_glob_a_file_and_a_list(root):
    for given, count in ((root, 2), (f"{root}/*.mat", 2), (root / "a.mat", 1), ([root / "b.mat", str(root / "a.mat")], 2)):
        data = HyperspectralDataModule(given)
        data.setup("fit")
        batches = list(data.test_dataloader())
        assert len(batches) == count
        assert batches[0]["image"].shape == (1, 4, 12, 10)
        assert int((batches[0]["mask"] == 1).sum()) == 4


def test_hyperspectral__stores_every_argument_under_its_name(root):
    given = {
        "root": str(root),
        "image_key": "data",
        "mask_key": "map",
        "mask_root": str(root),
        "bands": [2, 0],
        "batch_size": 3,
        "num_workers": 1,
        "tile": 5,
        "overlap": 2,
        "calibration_share": 0.5,
        "calibration_block": 3,
        "test_on": "held_out",
        "seed": 9,
        "train_on": "normal",
    }
    assert list(given) == list(inspect.signature(HyperspectralDataModule).parameters)
    data = HyperspectralDataModule(**given)
    assert {name: getattr(data, name) for name in given} == given


def test_hyperspectral__keeps_the_named_bands_and_their_wavelengths(tmp_path):
    envi.save_image(str(tmp_path / "a.hdr"), cube(), ext=".img", metadata={"wavelength": [400, 500, 600, 700], "wavelength units": "nm"})
    data = HyperspectralDataModule(tmp_path, bands=[3, 1])
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert torch.equal(batch["image"][0], torch.from_numpy(cube().astype(np.float32)).permute(2, 0, 1)[[3, 1]])
    assert batch["wavelength"] == [(700.0, 500.0)]


@pytest.mark.parametrize("kind", ["npy", "mat", "hdr", "tif"])
def test_hyperspectral__does_not_care_what_dropped_bands_lack(tmp_path, kind):
    lacking = cube().astype(np.float32)
    lacking[..., 2] = np.nan
    lacking[3, 4, 1] = -999
    lacking[6, 7, 0] = np.nan
    if kind == "npy":
        np.save(tmp_path / "a.npy", np.where(lacking == -999, np.nan, lacking))
    elif kind == "mat":
        savemat(tmp_path / "a.mat", {"data": np.where(lacking == -999, np.inf, lacking)})
    elif kind == "hdr":
        envi.save_image(str(tmp_path / "a.hdr"), lacking, ext=".img", metadata={"data ignore value": -999})
    else:
        profile = {"driver": "GTiff", "count": 4, "height": 12, "width": 10, "dtype": "float32", "nodata": -999}
        with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=rasterio.Affine(2, 0, 0, 0, -2, 0)) as file:
            file.write(lacking.transpose(2, 0, 1))
    for bands, void in (([3], []), ([3, 1], [[3, 4]]), ([0, 3], [[6, 7]])):
        data = HyperspectralDataModule(tmp_path, bands=bands)
        data.setup("predict")
        image = next(iter(data.predict_dataloader()))["image"][0]
        assert torch.isnan(image).any(dim=0).nonzero().tolist() == void
        expected = torch.from_numpy(lacking).permute(2, 0, 1)[bands]
        assert torch.equal(image[~torch.isnan(image)], expected[~torch.isnan(image)])


def test_hyperspectral__reads_truths_from_a_folder_of_their_own(root, tmp_path):
    truths = tmp_path / "truths"
    truths.mkdir()
    np.save(truths / "a.npy", np.roll(TRUTH, 2, axis=0) * 255)
    data = HyperspectralDataModule(root, mask_root=truths)
    data.setup("test")
    masks = {batch["name"][0]: batch["mask"][0] for batch in data.test_dataloader()}
    assert torch.equal(masks["a"], torch.from_numpy(np.roll(TRUTH, 2, axis=0)).long())
    assert torch.equal(masks["b"], torch.from_numpy(TRUTH).long())


def test_hyperspectral__predicts_but_does_not_test_without_truth(root):
    savemat(root / "bare.mat", {"data": cube()})
    data = HyperspectralDataModule(root)
    data.setup("fit")
    data.setup("predict")
    assert [batch["name"][0] for batch in data.predict_dataloader()] == ["a", "b", "bare"]
    with pytest.raises(ValueError, match=r"\['bare'\] have none"):
        data.setup("test")


def test_hyperspectral__fails_in_setup_before_any_training(root, tmp_path):
    with pytest.raises(SceneNotFoundError, match="nowhere"):
        HyperspectralDataModule(tmp_path / "nowhere").setup("fit")
    with pytest.raises(SceneNotFoundError, match="no such folder"):
        HyperspectralDataModule(root, mask_root=tmp_path / "nowhere").setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneNotFoundError, match="none of the scenes"):
        HyperspectralDataModule(root, mask_root=tmp_path / "empty").setup("fit")
    with pytest.raises(SceneFormatError, match="image_key='cube'"):
        HyperspectralDataModule(root, image_key="cube").setup("fit")
    with pytest.raises(ValueError, match=r"0 to 3 in '.*a\.mat', but got 4"):
        HyperspectralDataModule(root, bands=[0, 4]).setup("fit")
    (root / "b.mat").write_bytes((root / "b.mat").read_bytes()[:300])
    with pytest.raises(SceneFormatError, match=r"b\.mat"):
        HyperspectralDataModule(root).setup("fit")


def test_hyperspectral__refuses_a_truth_that_is_all_ignored(tmp_path):
    savemat(tmp_path / "void.mat", {"data": cube(), "map": np.full((12, 10), -1, np.int16)})
    with pytest.raises(ValueError, match="'void', but all with data are 255"):
        HyperspectralDataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("bands", [[], [-1], [1, 1]])
def test_hyperspectral__refuses_impossible_bands(root, bands):
    with pytest.raises(ValueError, match="bands="):
        HyperspectralDataModule(root, bands=bands)


def test_hyperspectral__loads_in_workers_that_pickle_the_dataset(root):
    data = HyperspectralDataModule(root, tile=6)
    data.setup("predict")
    dataset = data.predict_dataloader().dataset
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset) == 8


@pytest.mark.real
@pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")
def test_hyperspectral__serves_the_eight_real_scenes():
    data = HyperspectralDataModule(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral")
    data.setup("test")
    counts = {batch["name"][0]: int((batch["mask"] == 1).sum()) for batch in data.test_dataloader()}
    assert sum(counts.values()) == 489
    assert len(counts) == 8
    calibrated = {batch["name"][0]: float((batch["mask"] != 255).float().mean()) for batch in data.val_dataloader()}
    assert all(share == pytest.approx(0.25, abs=0.01) for share in calibrated.values())


def test_hyperspectral__does_not_tell_training_where_the_anomalies_of_tested_scenes_are(root):
    found = []
    for train_on in ("all", "normal"):
        data = HyperspectralDataModule(root, train_on=train_on)
        data.setup("fit")
        found.append(any(bool((batch["mask"] == 1).any()) for batch in data.train_dataloader()))
    assert found == [False, True]
    assert HyperspectralDataModule(root).train_on == "all"
