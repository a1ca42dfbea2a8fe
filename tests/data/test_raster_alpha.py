import os
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image

from anomseg.data.raster_align import Grid, read_on_grid
from anomseg.data.raster_alpha import colour_bands, is_alpha_mistaken
from anomseg.data.raster_io import raster_shape, read_mask_bands, read_raster

UTM_33 = rasterio.crs.CRS.from_epsg(32633).to_wkt()
PLACE = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)


def chip(fourth, size=(12, 10)):
    bands = np.random.default_rng(0).integers(1, 255, (4, *size), np.uint8)
    bands[3] = fourth
    return bands


def save(path, bands, **profile):
    count, height, width = bands.shape
    options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, **profile}
    with rasterio.open(path, "w", crs=UTM_33, transform=rasterio.Affine(*PLACE), **options) as file:
        file.write(bands)
    return path


def near_infrared(size=(12, 10)):
    values = np.random.default_rng(1).integers(1, 255, size, np.uint8)
    values[:4] = 0  # water
    return values


def alpha(size=(12, 10)):
    values = np.full(size, 255, np.uint8)
    values[:4] = 0
    return values


def test_read_raster__keeps_near_infrared_that_gdal_takes_for_alpha(tmp_path):
    path = save(tmp_path / "a.tif", chip(near_infrared()))
    raster = read_raster(path)
    assert raster_shape(path) == (4, 12, 10)
    assert np.array_equal(raster.image, chip(near_infrared()))
    assert raster.valid.all()
    assert read_raster(path, keep=(0, 1, 2)).valid.all()
    part = read_raster(path, (0, 0, 4, 5), keep=(3, 0))
    assert np.array_equal(part.image, chip(near_infrared())[[3, 0], :4, :5])
    assert part.valid.all()


def test_read_raster__takes_alpha_of_no_and_full_for_validity(tmp_path):
    path = save(tmp_path / "a.tif", chip(alpha()))
    raster = read_raster(path)
    assert raster_shape(path) == (3, 12, 10)
    assert np.array_equal(raster.valid, alpha() > 0)


def test_read_raster__takes_alpha_for_a_band_where_it_is_asked_for(tmp_path):
    raster = read_raster(save(tmp_path / "a.tif", chip(alpha())), keep=(0, 1, 2, 3))
    assert np.array_equal(raster.image, chip(alpha()))
    assert raster.valid.all()
    with pytest.raises(ValueError, match=r"band indices of 0 to 2 in .* but got 4"):
        read_raster(tmp_path / "a.tif", keep=(0, 4))


def test_read_raster__takes_alpha_of_16_bits_for_validity(tmp_path):
    bands = chip(alpha()).astype(np.uint16)
    bands[3] *= 257
    raster = read_raster(save(tmp_path / "a.tif", bands, photometric="rgb", alpha="yes"))
    assert raster.image.shape == (3, 12, 10)
    assert np.array_equal(raster.valid, bands[3] > 0)


def test_read_raster__takes_partial_transparency_of_a_picture_for_alpha(tmp_path):
    Image.fromarray(chip(near_infrared()).transpose(1, 2, 0), "RGBA").save(tmp_path / "a.png")
    raster = read_raster(tmp_path / "a.png")
    assert raster.image.shape == (3, 12, 10)
    assert np.array_equal(raster.valid, near_infrared() > 0)


def test_read_raster__honours_no_data_beside_near_infrared(tmp_path):
    bands = chip(near_infrared())
    bands[:, 7, 7] = 255
    path = save(tmp_path / "a.tif", bands, nodata=255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raster = read_raster(path)
    assert raster.image.shape == (4, 12, 10)
    assert np.argwhere(~raster.valid).tolist() == [[7, 7]]


def test_read_mask_bands__keeps_a_fourth_band_of_many_values(tmp_path):
    bands, known = read_mask_bands(save(tmp_path / "a.tif", chip(near_infrared())))
    assert np.array_equal(bands, chip(near_infrared()))
    assert known.all()


def test_read_on_grid__warps_near_infrared_that_gdal_takes_for_alpha(tmp_path):
    bands = chip(near_infrared())
    path = save(tmp_path / "a & b.tif", bands)
    wanted = Grid((11, 9), (10.0, 0.0, 500005.0, 0.0, -10.0, 4999995.0), UTM_33)
    between = bands.astype(np.float64)
    between = (between[:, :-1, :-1] + between[:, 1:, :-1] + between[:, :-1, 1:] + between[:, 1:, 1:]) / 4
    for keep in (None, (0, 1, 2), (3, 1)):
        raster = read_on_grid(path, wanted, keep=keep)
        assert raster.valid.all()
        np.testing.assert_allclose(raster.image, between if keep is None else between[list(keep)], rtol=1e-6)


def test_colour_bands__reads_a_band_once_for_each_state_of_its_file(tmp_path):
    path = save(tmp_path / "a.tif", chip(alpha((3000, 8)), (3000, 8)))
    reads = []

    def counted(file):
        class Counted:
            def __getattr__(self, name):
                return getattr(file, name)

            def read(self, *args, **kwargs):
                reads.append(args)
                return file.read(*args, **kwargs)

        return Counted()

    for expected in ([1, 2, 3], [1, 2, 3, 4]):
        with rasterio.open(path) as file:
            assert colour_bands(counted(file)) == expected
            searched = len(reads)
            assert colour_bands(counted(file)) == expected
            assert is_alpha_mistaken(counted(file)) == (len(expected) == 4)
            assert len(reads) == searched > 0
        late = chip(alpha((3000, 8)), (3000, 8))
        late[3, 2900, 3] = 17
        save(path, late)
        os.utime(path, ns=(1, 1))
