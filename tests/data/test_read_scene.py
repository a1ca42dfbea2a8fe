import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from scipy.io import savemat
from spectral.io import envi

from anomseg.data.read_scene import as_mask, find_mask, find_masks, find_scenes, read_mask, read_scene, scene_name
from anomseg.errors import SceneFormatError, SceneNotFoundError

CUBE = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) - 7
TRUTH = (np.arange(20).reshape(4, 5) > 17).astype(np.uint8)


def save_raster(path, bands, driver="GTiff", **profile):
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver=driver, count=count, height=height, width=width, dtype=bands.dtype, **profile) as dataset:
            dataset.write(bands)
    return path


def image_of(cube):
    return torch.from_numpy(cube.astype(np.float32)).permute(2, 0, 1)


def test_read_scene__reads_matlab_v5(tmp_path):
    savemat(tmp_path / "one.mat", {"data": CUBE, "map": TRUTH})
    scene = read_scene(tmp_path / "one.mat")
    assert scene.name == "one"
    assert torch.equal(scene.image, image_of(CUBE))
    assert scene.image.is_contiguous()
    assert torch.equal(scene.mask, torch.from_numpy(TRUTH).long())
    assert (scene.wavelength, scene.transform, scene.crs) == (None, None, None)


def test_read_scene__reads_matlab_v73_with_reversed_axes(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "one.mat", "w", userblock_size=512) as file:
        file["image"], file["mask"] = CUBE.T, TRUTH.T
    scene = read_scene(tmp_path / "one.mat")
    assert torch.equal(scene.image, image_of(CUBE))
    assert torch.equal(scene.mask, torch.from_numpy(TRUTH).long())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", ">f4", ">i2"])
def test_read_scene__keeps_values_of_any_real_type(tmp_path, dtype):
    cube = (CUBE if dtype[-2:] != "u1" and "uint" not in dtype else CUBE + 7).astype(dtype)
    np.save(tmp_path / "a.npy", cube)
    scene = read_scene(tmp_path / "a.npy")
    assert torch.equal(scene.image, image_of(cube))
    assert scene.mask is None


def test_read_scene__reads_a_plane_as_one_band(tmp_path):
    np.save(tmp_path / "a.npy", CUBE[..., 0])
    np.save(tmp_path / "b.npy", CUBE[..., :1])
    savemat(tmp_path / "c.mat", {"data": CUBE[..., 0]})
    for name in ("a.npy", "b.npy", "c.mat"):
        assert torch.equal(read_scene(tmp_path / name).image, image_of(CUBE[..., :1]))


def test_read_scene__reads_envi_with_wavelengths(tmp_path):
    envi.save_image(str(tmp_path / "a.hdr"), CUBE, ext=".dat", metadata={"wavelength": [400, 500, 600], "wavelength units": "nm"})
    for name in ("a.hdr", "a.dat"):
        scene = read_scene(tmp_path / name)
        assert scene.name == "a"
        assert torch.equal(scene.image, image_of(CUBE))
        assert scene.wavelength == (400.0, 500.0, 600.0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".mat", ".hdr"])
@pytest.mark.parametrize("white", [1, 255])
def test_read_scene__takes_its_truth_from_a_separate_file(tmp_path, suffix, white):
    path, truth = tmp_path / f"truth{suffix}", (TRUTH * white).astype(np.uint8)
    if suffix == ".npy":
        np.save(path, truth)
    elif suffix == ".mat":
        savemat(path, {"PlaneGT": truth})
    elif suffix == ".hdr":
        envi.save_image(str(path), truth[..., None], ext=".img")
    else:
        save_raster(path, truth[None], "PNG" if suffix == ".png" else "GTiff")
    savemat(tmp_path / "a.mat", {"data": CUBE, "map": 1 - TRUTH})
    scene = read_scene(tmp_path / "a.mat", mask_path=path)
    assert torch.equal(scene.mask, torch.from_numpy(TRUTH).long())


def test_read_mask__reads_a_coloured_picture_as_anomalous_where_any_channel_is_set(tmp_path):
    picture = np.zeros((3, 4, 5), np.uint8)
    picture[0] = TRUTH * 255
    assert torch.equal(read_mask(save_raster(tmp_path / "a.png", picture, "PNG")), torch.from_numpy(TRUTH).long())


def test_read_scene__makes_every_band_of_a_pixel_without_data_nan(tmp_path, caplog):
    cube = CUBE.astype(np.float64)
    cube[0, 0, 1], cube[1, 1, 0], cube[2, 2, 2], cube[3, 3, 0] = np.nan, np.inf, -np.inf, 1e300
    savemat(tmp_path / "gaps.mat", {"data": cube, "map": TRUTH})
    with caplog.at_level(logging.INFO, "anomseg"):
        scene = read_scene(tmp_path / "gaps.mat")
        read_scene(tmp_path / "gaps.mat")
    lost = torch.zeros(4, 5, dtype=torch.bool)
    lost[range(4), range(4)] = True
    assert torch.equal(torch.isnan(scene.image), lost.expand(3, 4, 5))
    assert torch.equal(scene.mask == 255, lost)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "'gaps': 4 of 20 pixels" in messages[0]


def test_read_scene__marks_no_data_of_a_geotiff(tmp_path):
    bands = CUBE.transpose(2, 0, 1).copy()
    bands[1, 2, 3] = -9999
    path = save_raster(tmp_path / "a.tif", bands, nodata=-9999, crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5, 0, -10, 7))
    np.save(tmp_path / "truth.npy", TRUTH)
    scene = read_scene(path, mask_path=tmp_path / "truth.npy")
    assert torch.isnan(scene.image).sum(dim=(1, 2)).tolist() == [1, 1, 1]
    assert scene.mask[2, 3] == 255
    assert int((scene.mask == 255).sum()) == 1
    assert scene.transform == (10.0, 0.0, 5.0, 0.0, -10.0, 7.0)
    assert "UTM zone 33N" in scene.crs


@pytest.mark.parametrize(
    "array",
    [
        CUBE.astype(np.complex64),
        np.zeros((0, 4, 3)),
        np.array([[{}]], dtype=object),
        np.zeros(5),
        np.zeros((2, 2, 2, 2)),
        np.array([["a"]]),
    ],
)
def test_read_scene__refuses_arrays_that_are_no_image(tmp_path, array):
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(SceneFormatError, match=r"odd\.npy"):
        read_scene(tmp_path / "odd.npy")


def test_read_scene__refuses_complex_rasters(tmp_path):
    with pytest.raises(SceneFormatError, match="complex64"):
        read_scene(save_raster(tmp_path / "a.tif", np.ones((1, 4, 4), np.complex64)))


def test_read_scene__names_files_that_are_missing_cut_or_of_another_kind(tmp_path):
    np.save(tmp_path / "cut.npy", CUBE)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:150])
    (tmp_path / "notes.txt").write_text("no scene")
    (tmp_path / "junk.mat").write_text("no scene")
    for name in ("cut.npy", "notes.txt", "junk.mat"):
        with pytest.raises(SceneFormatError, match=name):
            read_scene(tmp_path / name)
    for name in ("none.npy", "none.mat", "none.tif", "none.hdr"):
        with pytest.raises(SceneNotFoundError, match=name):
            read_scene(tmp_path / name)


def test_read_scene__refuses_a_truth_of_another_size(tmp_path):
    np.save(tmp_path / "a.npy", CUBE)
    np.save(tmp_path / "truth.npy", TRUTH[:3])
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(3, 5\)"):
        read_scene(tmp_path / "a.npy", mask_path=tmp_path / "truth.npy")


@pytest.mark.parametrize(
    ("place", "crs"),
    [
        ((10, 0, 10005, 0, -10, 7), "EPSG:32633"),  # 10 km away
        ((5, 0, 5, 0, -5, 7), "EPSG:32633"),  # of other pixels
        ((10, 0, 5, 0, 10, -33), "EPSG:32633"),  # turned upside down
        ((10, 0, 5, 0, -10, 7), "EPSG:32632"),
        ((10, 0, 10005, 0, -10, 7), None),
    ],
)
def test_read_scene__refuses_a_truth_of_another_place(tmp_path, place, crs):
    image = save_raster(tmp_path / "a.tif", CUBE.transpose(2, 0, 1), crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5, 0, -10, 7))
    truth = save_raster(tmp_path / "truth.tif", TRUTH[None], crs=crs, transform=rasterio.Affine(*place))
    with pytest.raises(ValueError, match=r"truth\.tif' on the pixels of '.*a\.tif'"):
        read_scene(image, mask_path=truth)
    save_raster(truth, TRUTH[None], crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5, 0, -10, 7))
    assert torch.equal(read_scene(image, mask_path=truth).mask, torch.from_numpy(TRUTH).long())


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 1, 1], [0, 1, 1]),
        ([0, 1, 255], [0, 1, 255]),
        ([0, 255, 255], [0, 1, 1]),
        ([1, 255, 255], [1, 255, 255]),
        ([255, 255, 255], [1, 1, 1]),
        ([0, 3, 255], [0, 1, 1]),
        ([0, 0, 2], [0, 0, 1]),
        ([0.0, 0.5, 1.0], [0, 1, 1]),
        ([0.0, float("nan"), 255.0], [0, 255, 1]),
        ([-1, 0, 1], [255, 0, 1]),
        ([False, True, False], [0, 1, 0]),
    ],
)
def test_as_mask__follows_its_rule(stored, expected):
    assert as_mask(np.array([stored])).tolist() == [expected]


def test_as_mask__drops_an_axis_of_one_channel():
    assert as_mask(TRUTH[..., None]).shape == as_mask(TRUTH[None]).shape == (4, 5)
    with pytest.raises(SceneFormatError, match="one channel"):
        as_mask(CUBE)


@pytest.fixture
def folder(tmp_path):
    savemat(tmp_path / "b.mat", {"data": CUBE})
    envi.save_image(str(tmp_path / "a.hdr"), CUBE, ext=".img")
    np.save(tmp_path / "c.npy", CUBE)
    for name in ("readme.txt", ".hidden.mat", "lone.dat", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    np.save(tmp_path / "deeper" / "d.npy", CUBE)
    return tmp_path


def test_find_scenes__lists_a_folder_with_envi_pairs_once(folder):
    assert [path.name for path in find_scenes(folder)] == ["a.hdr", "b.mat", "c.npy"]


def test_find_scenes__takes_globs_files_and_lists(folder, monkeypatch):
    assert [path.name for path in find_scenes(f"{folder}/*.img")] == ["a.hdr"]
    assert [path.name for path in find_scenes(str(folder / "**" / "*.npy"))] == ["c.npy", "d.npy"]
    assert find_scenes(folder / "b.mat") == [folder / "b.mat"]
    assert [path.name for path in find_scenes([folder / "c.npy", str(folder), f"{folder}/?.mat"])] == ["c.npy", "a.hdr", "b.mat"]
    monkeypatch.chdir(folder)
    assert find_scenes("*.mat") == [Path("b.mat")]


def test_find_scenes__leaves_hidden_folders_out_unless_they_are_named(folder):
    (folder / ".cache" / "deep").mkdir(parents=True)
    for place in (".cache/x.npy", ".cache/deep/y.npy", "deeper/._d.npy"):
        np.save(folder / place, CUBE)
    assert [path.name for path in find_scenes(str(folder / "**" / "*.npy"))] == ["c.npy", "d.npy"]
    assert [path.name for path in find_scenes(str(folder / ".cache" / "**" / "*.npy"))] == ["y.npy", "x.npy"]
    assert [path.name for path in find_scenes(str(folder / ".c*" / "*.npy"))] == ["x.npy"]


@pytest.mark.parametrize("root", ["nowhere", "nowhere/*.mat", "empty", [], ["b.mat", "nowhere.mat"]])
def test_find_scenes__says_what_it_looked_for_and_the_ways_out(folder, monkeypatch, root):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(SceneNotFoundError, match=r"Expected scenes .* Either correct root= .* or copy") as caught:
        find_scenes(root)
    assert str(root if isinstance(root, str) else (root or [""])[-1]) in str(caught.value)


def test_scene_name__drops_both_suffixes_of_an_envi_pair():
    assert [scene_name(Path(name)) for name in ("a.img.hdr", "a.hdr", "a.b.mat", "2003TM")] == ["a", "a", "a.b", "2003TM"]


def test_find_mask__reads_names_in_any_case_of_letters(folder, tmp_path):
    (folder / "b.png").rename(folder / "b.PNG")
    assert find_mask(folder, folder / "b.mat") == folder / "b.PNG"


def test_find_masks__lists_the_scenes_without_a_truth(folder):
    scenes = [folder / "b.mat", folder / "c.npy"]
    with pytest.warns(UserWarning, match=r"1 of 2 scenes have no truth in .*unlabelled: \['c'\]"):
        assert find_masks(folder, scenes) == {scenes[0]: folder / "b.png", scenes[1]: None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_masks(folder, scenes[:1])


def test_find_mask__never_takes_a_scene_for_its_own_truth(folder):
    assert find_mask(folder, folder / "b.mat") == folder / "b.png"
    assert find_mask(folder, folder / "c.npy") is None
    assert find_mask(folder / "deeper", Path("elsewhere/d.tif")) == folder / "deeper" / "d.npy"


needs_data = pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder of real scenes")
DATA = Path(os.environ.get("ANOMSEG_DATA", "."))


@pytest.mark.real
@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "anomalies"),
    [
        ("abu-airport-1", (205, 100, 100), 144),
        ("abu-airport-4", (191, 100, 100), 60),
        ("abu-beach-1", (188, 150, 150), 19),
        ("abu-beach-4", (102, 100, 100), 68),
        ("abu-urban-1", (204, 100, 100), 67),
        ("abu-urban-3", (191, 100, 100), 52),
        ("hydice_urban", (175, 80, 100), 21),
        ("sandiego1_189", (189, 100, 100), 58),
        ("formats/hydice_autoad_v73", (162, 80, 100), 17),
        ("formats/hydice_urban_162", (162, 80, 100), 17),
        ("formats/pavia_lzw", (102, 100, 100), 71),
    ],
)
def test_read_scene__finds_the_known_anomalies_of_real_cubes(name, shape, anomalies):
    scene = read_scene(DATA / "hyperspectral" / f"{name}.mat")
    assert tuple(scene.image.shape) == shape
    assert int((scene.mask == 1).sum()) == anomalies
    assert int((scene.mask == 255).sum()) == 0
    assert torch.isfinite(scene.image).all()


@pytest.mark.real
@needs_data
def test_read_scene__reads_the_same_truth_from_both_matlab_versions():
    newer = read_scene(DATA / "hyperspectral/formats/hydice_autoad_v73.mat")
    older = read_scene(DATA / "hyperspectral/formats/hydice_urban_162.mat")
    assert torch.equal(newer.mask, older.mask)


@pytest.mark.real
@needs_data
def test_read_scene__keeps_negative_values_of_real_cubes():
    image = read_scene(DATA / "hyperspectral/abu-urban-1.mat").image
    assert (image.min(), image.max()) == (-50, 6534)


@pytest.mark.real
@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "epsg", "corner"),
    [
        ("geo/landsat/2000.tif", (4, 377, 697), 4326, (-74.72249415376068, -8.282107593468341)),
        ("geo/hls/hls_10band_224.tif", (10, 224, 224), 32614, (440280.0, 3159720.0)),
        ("geo/rasterio/RGB.byte.tif", (3, 718, 791), 32618, (101985.0, 2826915.0)),
        ("geo/rasterio/RGBA.byte.tif", (3, 718, 791), 32618, (101985.0, 2826915.0)),
        ("change/landsat/Taizhou/2000TM.HDR", (6, 400, 400), 32651, (203325.0, 3604935.0)),
        ("change/landsat/Taizhou/2003TM", (6, 400, 400), 32651, (203325.0, 3604935.0)),
    ],
)
def test_read_scene__places_real_rasters_on_earth(name, shape, epsg, corner):
    scene = read_scene(DATA / name)
    assert tuple(scene.image.shape) == shape
    assert rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() == epsg
    assert (scene.transform[2], scene.transform[5]) == corner
    with rasterio.open(DATA / name.removesuffix(".HDR")) as dataset:
        stored, bands = dataset.read()[: shape[0]], dataset.read_masks()[: shape[0]]
    lost = torch.from_numpy((bands == 0).any(axis=0))
    assert torch.equal(torch.isnan(scene.image), lost.expand(shape))
    np.testing.assert_array_equal(scene.image[:, ~lost], stored.astype(np.float32)[:, ~lost.numpy()])
    if "rasterio" in name:
        assert 0.2 < lost.float().mean() < 0.5


@pytest.mark.real
@needs_data
def test_read_scene__gives_landsat_wavelengths_in_nanometres():
    wavelength = read_scene(DATA / "change/landsat/Taizhou/2000TM.HDR").wavelength
    assert wavelength == pytest.approx((482.5, 565.0, 660.0, 825.0, 1650.0, 2220.0))


@pytest.mark.real
@needs_data
def test_find_scenes__counts_real_envi_pairs_once():
    assert [path.name for path in find_scenes(DATA / "change/landsat/Taizhou")] == ["2000TM.HDR", "2003TM.HDR"]
    assert len(find_scenes(DATA / "hyperspectral")) == 8


def test_read_scene__keeps_the_named_bands_in_their_order_and_names_a_missing_one(tmp_path):
    np.save(tmp_path / "a.npy", CUBE)
    envi.save_image(str(tmp_path / "b.hdr"), CUBE, ext=".dat", metadata={"wavelength": [400, 500, 600], "wavelength units": "nm"})
    for name in ("a.npy", "b.hdr"):
        assert torch.equal(read_scene(tmp_path / name, bands=(2, 0)).image, image_of(CUBE)[[2, 0]])
        with pytest.raises(ValueError, match=rf"0 to 2 in '.*{name}', but got 3 in bands="):
            read_scene(tmp_path / name, bands=(0, 3))
    assert read_scene(tmp_path / "b.hdr", bands=(2, 0)).wavelength == (600.0, 400.0)
