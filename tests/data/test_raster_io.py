import warnings

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.enums import ColorInterp
from spectral.io import envi

from anomseg.data.raster_io import (
    envi_data,
    envi_header,
    raster_shape,
    read_mask_bands,
    read_raster,
    read_raster_mask,
    write_geotiff,
)
from anomseg.errors import SceneFormatError, SceneNotFoundError

CUBE = (np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) - 7).copy()
TRANSFORM = (30.0, 0.0, 500000.0, 0.0, -30.0, 4600000.0)


def save_envi(path, cube=CUBE, ext=".img", interleave="bsq", **metadata):
    envi.save_image(
        str(path), cube, interleave=interleave, ext=ext, metadata={key.replace("_", " "): value for key, value in metadata.items()}
    )
    return path


def save_tif(path, bands, **profile):
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile) as dataset:
            dataset.write(bands)
    return path


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("ext", ["", ".img", ".dat", ".raw"])
def test_read_raster__reads_envi_by_header_and_by_data(tmp_path, interleave, ext):
    header = save_envi(tmp_path / "scene.hdr", ext=ext, interleave=interleave)
    for path in (header, tmp_path / f"scene{ext}"):
        raster = read_raster(path)
        np.testing.assert_array_equal(raster.image, CUBE.transpose(2, 0, 1))
        assert raster.valid.all()
        assert raster.crs is None
        assert raster.transform is None
        assert raster.wavelength is None


def test_read_raster__drops_bad_bands_and_converts_micrometres(tmp_path):
    path = save_envi(tmp_path / "a.hdr", wavelength=[0.4, 0.5, 0.6], wavelength_units="Micrometers", bbl=[1, 0, 1])
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.image, CUBE.transpose(2, 0, 1)[[0, 2]])
    assert raster.wavelength == pytest.approx((400.0, 600.0))


@pytest.mark.parametrize(
    ("units", "stored", "expected"),
    [("Nanometers", 400.0, 400.0), ("Unknown", 0.4, 400.0), (None, 1200.0, 1200.0), ("Wavenumber", 400.0, None), ("μm", 0.4, 400.0)],
)
def test_read_raster__gives_wavelengths_in_nanometres(tmp_path, units, stored, expected):
    metadata = {"wavelength": [stored] * 3} | ({} if units is None else {"wavelength_units": units})
    wavelength = read_raster(save_envi(tmp_path / "a.hdr", **metadata)).wavelength
    assert wavelength == (None if expected is None else pytest.approx((expected,) * 3))


def test_read_raster__keeps_the_named_bands_alone_counted_without_bad_ones(tmp_path):
    header = save_envi(
        tmp_path / "a.hdr", wavelength=[50, 90, 120], wavelength_units="Unknown", bbl=[0, 1, 1], data_ignore_value=CUBE[2, 3, 1]
    )
    raster = read_raster(header, keep=[1])
    np.testing.assert_array_equal(raster.image, CUBE.transpose(2, 0, 1)[[2]])
    assert raster.valid.all()
    assert not read_raster(header, keep=[1, 0]).valid.all()
    assert read_raster(header, keep=[0]).wavelength == read_raster(header).wavelength[:1] == (90.0,)
    for keep in ([2], [-1], []):
        with pytest.raises(ValueError, match=r"0 to 1 in '.*a\.hdr', but got (2|-1|none) in bands="):
            read_raster(header, keep=keep)


def test_read_raster__honours_the_ignore_value_and_the_scale_factor(tmp_path):
    raster = read_raster(save_envi(tmp_path / "a.hdr", data_ignore_value=-7, reflectance_scale_factor=100.0))
    assert np.argwhere(~raster.valid).tolist() == [[0, 0]]
    assert raster.image.dtype == np.float32
    np.testing.assert_allclose(raster.image, CUBE.transpose(2, 0, 1) / 100.0, rtol=1e-6)


def test_read_raster__refuses_a_cut_envi_file_that_gdal_would_fill_with_zeros(tmp_path):
    path = save_envi(tmp_path / "a.hdr")
    data = tmp_path / "a.img"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(SceneFormatError, match=r"Expected 120 bytes in '.*a\.img'.* but got 118"):
        read_raster(path)


@pytest.mark.parametrize(("bbl", "message"), [([0, 0, 0], "all 3 as bad"), ([1, 0], "Expected 3 flags")])
def test_read_raster__refuses_an_impossible_bad_band_list(tmp_path, bbl, message):
    with pytest.raises(SceneFormatError, match=message):
        read_raster(save_envi(tmp_path / "a.hdr", bbl=bbl))


def test_read_raster__says_which_file_of_an_envi_pair_is_missing(tmp_path):
    header = save_envi(tmp_path / "a.hdr", ext=".dat")
    (tmp_path / "a.dat").rename(tmp_path / "b.dat")
    with pytest.raises(SceneNotFoundError, match=r"a\.img, a\.dat"):
        read_raster(header)
    with pytest.raises(SceneFormatError, match=r"b\.dat.*needs its \.hdr"):
        read_raster(tmp_path / "b.dat")
    with pytest.raises(SceneNotFoundError, match=r"none\.tif"):
        read_raster(tmp_path / "none.tif")


def test_envi_partners__are_found_in_any_case_of_letters(tmp_path):
    for name in ("one.HDR", "one", "two.img", "two.img.hdr", "three.DAT", "three.hdr"):
        (tmp_path / name).touch()
    assert envi_data(tmp_path / "one.HDR").name == "one"
    assert envi_header(tmp_path / "one").name == "one.HDR"
    assert envi_data(tmp_path / "two.img.hdr").name == "two.img"
    assert envi_header(tmp_path / "two.img").name == "two.img.hdr"
    assert envi_data(tmp_path / "three.hdr").name == "three.DAT"
    assert envi_header(tmp_path / "four.img") is None


def test_read_raster__keeps_the_georeference_and_no_data_of_a_geotiff(tmp_path):
    bands = CUBE.transpose(2, 0, 1).copy()
    bands[1, 2, 3] = -9999
    raster = read_raster(save_tif(tmp_path / "a.tif", bands, crs="EPSG:32633", transform=rasterio.Affine(*TRANSFORM), nodata=-9999))
    assert rasterio.crs.CRS.from_wkt(raster.crs).to_epsg() == 32633
    assert raster.transform == TRANSFORM
    assert np.argwhere(~raster.valid).tolist() == [[2, 3]]
    np.testing.assert_array_equal(raster.image, bands)


def test_read_raster__takes_alpha_as_validity_not_as_a_band(tmp_path):
    bands = np.full((4, 6, 6), 200, np.uint8)
    bands[3] = 255
    bands[3, 0, 1] = 0
    path = save_tif(tmp_path / "a.tif", bands, photometric="RGB", transform=rasterio.Affine(*TRANSFORM))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    raster = read_raster(path)
    assert raster.image.shape == (3, 6, 6)
    assert np.argwhere(~raster.valid).tolist() == [[0, 1]]


def test_read_raster__honours_a_dataset_mask(tmp_path):
    path = save_tif(tmp_path / "a.tif", np.ones((2, 16, 16), np.uint16), transform=rasterio.Affine(*TRANSFORM))
    mask = np.full((16, 16), 255, np.uint8)
    mask[4, 5] = 0
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert np.argwhere(~read_raster(path).valid).tolist() == [[4, 5]]


def test_read_raster__names_a_geotiff_that_is_cut_short(tmp_path):
    path = save_tif(tmp_path / "cut.tif", np.random.default_rng(0).normal(size=(3, 64, 64)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SceneFormatError, match=r"cut\.tif"):
        read_raster(path)


def test_read_raster__refuses_a_cut_png_file_that_gdal_would_fill_with_anything(tmp_path):
    path = tmp_path / "frame.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"written after the end by another program")
    assert raster_shape(path) == (3, 64, 64)
    path.write_bytes(whole[: len(whole) // 2])
    for read in (read_raster, raster_shape, read_mask_bands):
        with pytest.raises(SceneFormatError, match=r"frame\.png.*cut short"):
            read(path)


def test_read_raster__is_silent_about_missing_georeferences(tmp_path):
    path = save_tif(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_raster(path)
        write_geotiff(tmp_path / "b.tif", torch.zeros(4, 4), None, None)


def test_read_raster_mask__ignores_a_no_data_value_other_than_zero(tmp_path):
    values = np.array([[0, 1], [255, 1]], np.uint8)
    np.testing.assert_array_equal(read_raster_mask(save_tif(tmp_path / "a.tif", values[None], nodata=0)), values)
    np.testing.assert_array_equal(read_raster_mask(save_tif(tmp_path / "b.tif", values[None], nodata=255)), [[0, 1], [np.nan, 1]])


def test_write_geotiff__comes_back_as_it_was(tmp_path):
    scores = torch.randn(2, 300, 40)
    scores[:, 5, 5] = float("nan")
    crs = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    path = write_geotiff(tmp_path / "new" / "a.tif", scores, TRANSFORM, crs)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.image, scores.numpy())
    assert raster.transform == TRANSFORM
    assert raster.crs == crs
    assert np.argwhere(~raster.valid).tolist() == [[5, 5]]
    with rasterio.open(path) as dataset:
        assert dataset.profile["tiled"]
        assert dataset.compression.value == "DEFLATE"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert dataset.dtypes == ("float32", "float32")


def test_write_geotiff__writes_nan_as_the_no_data_value(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", np.array([[1.0, np.nan]]), None, None, nodata=-1.0)
    np.testing.assert_array_equal(read_raster(path).image, [[[1.0, -1.0]]])
    assert read_raster(path).valid.tolist() == [[True, False]]


def test_write_geotiff__leaves_the_old_file_when_it_fails(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", torch.ones(3, 3), None, None)
    before = path.read_bytes()
    with pytest.raises(Exception, match="WKT"):
        write_geotiff(path, torch.zeros(3, 3), None, "no such system")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4), (0, 4)])
def test_write_geotiff__refuses_other_shapes(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\(H, W\) or \(C, H, W\)"):
        write_geotiff(tmp_path / "a.tif", torch.zeros(shape), None, None)


def test_read_raster__reads_a_window_with_its_own_place(tmp_path):
    bands = CUBE.transpose(2, 0, 1).copy()
    bands[1, 2, 3] = -9999
    path = save_tif(tmp_path / "a.tif", bands, transform=rasterio.Affine(*TRANSFORM), nodata=-9999)
    part, whole = read_raster(path, (1, 2, 3, 2)), read_raster(path)
    np.testing.assert_array_equal(part.image, whole.image[:, 1:4, 2:4])
    np.testing.assert_array_equal(part.valid, whole.valid[1:4, 2:4])
    assert part.transform == (30.0, 0.0, 500060.0, 0.0, -30.0, 4599970.0)
    np.testing.assert_array_equal(read_mask_bands(path, (1, 2, 3, 2))[0], bands[:, 1:4, 2:4])


def test_raster_shape__is_that_of_what_is_read(tmp_path):
    for path in (
        save_tif(tmp_path / "a.tif", CUBE.transpose(2, 0, 1).copy()),
        save_envi(tmp_path / "b.hdr", bbl=[1, 0, 1]),
    ):
        assert raster_shape(path) == read_raster(path).image.shape
    assert read_raster(tmp_path / "a.tif", (0, 0, 2, 2)).transform is None


def test_read_mask_bands__tells_what_the_map_does_not_say(tmp_path):
    values = np.array([[[0.0, 1, np.nan, 7]]], np.float32)
    assert read_mask_bands(save_tif(tmp_path / "a.tif", values, nodata=7))[1].tolist() == [[True, True, False, False]]
    assert read_mask_bands(save_tif(tmp_path / "b.tif", values, nodata=0))[1].tolist() == [[True, True, False, True]]
    path = save_tif(tmp_path / "c.tif", np.array([[[0, 1, 1]]], np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.array([[255, 255, 0]], np.uint8))
    assert read_mask_bands(path)[1].tolist() == [[True, True, False]]
    assert read_mask_bands(path, (0, 1, 1, 2))[1].tolist() == [[True, False]]


def test_read_raster__says_that_a_place_by_control_points_is_lost(tmp_path):
    from rasterio.control import GroundControlPoint

    corners = [GroundControlPoint(row, column, 500000 + column, 4000000 - row) for row in (0, 9) for column in (0, 11)]
    path = tmp_path / "placed.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", width=12, height=10, count=1, dtype="uint8", gcps=corners, crs="EPSG:32618") as out:
            out.write(np.ones((1, 10, 12), np.uint8))
    with pytest.warns(UserWarning, match=r"placed\.tif.*gdalwarp"):
        found = read_raster(path)
    assert found.transform is None
