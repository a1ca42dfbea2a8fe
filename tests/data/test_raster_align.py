import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.warp import transform as warp_points

from anomseg.data.raster_align import Grid, grid_of, read_mask_on_grid, read_on_grid, shared_window
from anomseg.data.raster_io import read_raster

UTM_33, UTM_32 = (rasterio.crs.CRS.from_epsg(code).to_wkt() for code in (32633, 32632))


def grid(size, left=500000.0, top=5000000.0, pixel=10.0, crs=UTM_33):
    return Grid(size, (pixel, 0.0, left, 0.0, -pixel, top), crs)


def save(path, array, where, **profile):
    bands = array[None] if array.ndim == 2 else array
    height, width = bands.shape[1:]
    options = {"driver": "GTiff", "count": len(bands), "height": height, "width": width, "dtype": bands.dtype, **profile}
    with rasterio.open(path, "w", transform=rasterio.Affine(*where.transform), crs=where.crs, **options) as file:
        file.write(bands)
    return path


def ramp(where):
    """Values that are their own map coordinates, in kilometres from a corner, so that any resampling can be checked."""
    a, _, c, _, e, f = where.transform
    columns, rows = np.meshgrid(np.arange(where.size[1]) + 0.5, np.arange(where.size[0]) + 0.5)
    return np.stack([c + a * columns - 500000, f + e * rows - 5000000]).astype(np.float32)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (grid((20, 30)), (0, 0, 20, 30)),
        (grid((20, 30), left=500050.0, top=4999980.0), (2, 5, 18, 25)),
        (grid((20, 30), left=499977.0, top=5000004.0), (0, 0, 19, 27)),  # not on whole pixels: those that are half covered fall away
        (grid((5, 5), left=500042.0, top=4999958.0, pixel=5.0), (5, 5, 1, 1)),
        (grid((20, 30), left=600000.0), None),
        (grid((20, 30), left=500300.0), None),  # they touch
    ],
)
def test_shared_window__holds_the_whole_pixels_that_both_cover(other, expected):
    assert shared_window(grid((20, 30)), other) == expected


def test_shared_window__follows_other_coordinate_systems():
    here = grid((40, 40))
    xs, ys = warp_points(UTM_33, UTM_32, [500100.0, 500300.0], [4999900.0, 4999700.0])
    there = Grid((20, 20), ((xs[1] - xs[0]) / 20, 0.0, xs[0], 0.0, (ys[1] - ys[0]) / 20, ys[0]), UTM_32)
    row, column, height, width = shared_window(here, there)
    assert abs(row - 10) <= 3
    assert abs(column - 10) <= 3
    assert 17 <= height <= 26
    assert 17 <= width <= 26


def test_grid__matches_by_size_and_place():
    assert grid((4, 5)).matches(grid((4, 5)))
    assert grid((4, 5)).matches(Grid((4, 5)))
    assert grid((4, 5)).matches(grid((4, 5), left=500000.0 + 1e-6))
    assert not grid((4, 5)).matches(grid((4, 5), left=500001.0))
    assert not grid((4, 5)).matches(grid((4, 5), crs=UTM_32))
    assert not grid((4, 5)).matches(grid((5, 5)))
    assert not grid((4, 5)).matches(grid((4, 5), pixel=10.01))


def test_check_same__refuses_another_place_and_says_both():
    here = grid((4, 5))
    for passing in (grid((4, 5), left=500000.0 + 1e-6), Grid((4, 5)), grid((9, 5), left=0.0)):
        here.check_same(passing, "b.tif", "a.tif")
    with pytest.raises(ValueError, match=r"'b\.tif' on the pixels of 'a\.tif', at .*500000.* in WGS 84 / UTM zone 33N, .*510000.*gdalwarp"):
        here.check_same(grid((4, 5), left=510000.0), "b.tif", "a.tif")
    with pytest.raises(ValueError, match=r"UTM zone 33N, but it lies at .* in WGS 84 / UTM zone 32N"):
        here.check_same(grid((4, 5), crs=UTM_32), "b.tif", "a.tif")
    with pytest.raises(ValueError, match=r"without a CRS in 'b\.tif'"):
        here.check_same(grid((4, 5), left=510000.0, crs=None), "b.tif", "a.tif")


def test_grid_of__reads_what_was_written(tmp_path):
    where = grid((6, 7))
    found, stored = grid_of(save(tmp_path / "a.tif", ramp(where), where))
    assert found.matches(where)
    assert found.transform == where.transform
    assert stored == np.float32


def test_read_on_grid__puts_every_value_where_it_lies(tmp_path):
    source, wanted = grid((60, 60), left=499950.0, top=5000053.0), grid((20, 30), left=500004.0, pixel=7.0)
    raster = read_on_grid(save(tmp_path / "a.tif", ramp(source), source), wanted)
    assert raster.transform == wanted.transform
    assert raster.valid.all()
    np.testing.assert_allclose(raster.image, ramp(wanted), atol=0.1)


def test_read_on_grid__follows_other_coordinate_systems(tmp_path):
    source = grid((80, 80), left=499800.0, top=5000200.0)
    xs, ys = warp_points(UTM_33, UTM_32, [500000.0], [5000000.0])
    wanted = Grid((12, 12), (10.0, 0.0, xs[0], 0.0, -10.0, ys[0]), UTM_32)
    raster = read_on_grid(save(tmp_path / "a.tif", ramp(source), source), wanted)
    columns, rows = np.meshgrid(np.arange(12) + 0.5, np.arange(12) + 0.5)
    back = warp_points(UTM_32, UTM_33, (xs[0] + 10 * columns).ravel(), (ys[0] - 10 * rows).ravel())
    expected = np.stack([np.array(back[0]) - 500000, np.array(back[1]) - 5000000]).reshape(2, 12, 12)
    np.testing.assert_allclose(raster.image, expected, atol=1.5)


@pytest.mark.parametrize("nodata", [None, -9.0])
def test_read_on_grid__marks_what_has_no_data(tmp_path, nodata):
    source, wanted = grid((10, 10)), grid((10, 10), left=500050.0)
    values = np.ones((1, 10, 10), np.float32)
    values[:, :4, 6] = -9.0
    raster = read_on_grid(save(tmp_path / "a.tif", values, source, nodata=nodata), wanted)
    expected = np.ones((10, 10), bool)
    expected[:, 5:] = False
    if nodata is not None:
        expected[:4, 1] = False
    assert np.array_equal(raster.valid, expected)


def test_read_on_grid__marks_what_an_alpha_band_hides(tmp_path):
    where = grid((10, 10))
    values = np.full((4, 10, 10), 7, np.uint8)
    values[3] = 255
    values[3, 2:4] = 0
    path = save(tmp_path / "a.tif", values, where, photometric="rgb", alpha="yes")
    raster = read_on_grid(path, grid((10, 10), left=500020.0))
    expected = np.ones((10, 10), bool)
    expected[:, 8:], expected[2:4] = False, False
    assert raster.image.shape == (3, 10, 10)
    assert np.array_equal(raster.valid, expected)


def test_read_on_grid__takes_the_no_data_value_of_each_band(tmp_path):
    where = grid((12, 12))
    values = np.random.default_rng(0).random((2, 12, 12)).astype(np.float32)
    values[0, 2, 3], values[1, 8, 9] = -1, -99
    values[0, 5, 5], values[1, 6, 6] = -99, -1  # data, each being the other's value
    save(tmp_path / "a.tif", values, where)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    first, *rest = (tmp_path / "a.vrt").read_text().split("<VRTRasterBand ")
    bands = [band.replace(">", f"><NoDataValue>{value}</NoDataValue>", 1) for band, value in zip(rest, (-1, -99), strict=True)]
    (tmp_path / "a.vrt").write_text("<VRTRasterBand ".join([first, *bands]))
    raster = read_on_grid(tmp_path / "a.vrt", grid((12, 12), left=500020.0))
    expected = np.ones((12, 12), bool)
    expected[:, 10:], expected[2, 1], expected[8, 7] = False, False, False
    assert np.array_equal(raster.valid, expected)
    assert np.array_equal(raster.image[:, expected], values[:, :, 2:][:, expected[:, :10]])


def test_read_mask_on_grid__takes_a_no_data_value_of_0_for_unchanged(tmp_path):
    where = grid((6, 6))
    bands, known = read_mask_on_grid(save(tmp_path / "m.tif", np.eye(6, dtype=np.uint8), where, nodata=0), where)
    assert known.all()
    assert np.array_equal(bands[0], np.eye(6))


def test_read_on_grid__reads_a_window_as_the_whole(tmp_path):
    source, wanted = grid((30, 30)), grid((20, 20), left=500033.0)
    path = save(tmp_path / "a.tif", np.random.default_rng(0).random((2, 30, 30)).astype(np.float32), source)
    whole, part = read_on_grid(path, wanted), read_on_grid(path, wanted, (3, 5, 9, 8))
    np.testing.assert_allclose(part.image, whole.image[:, 3:12, 5:13], rtol=1e-6)
    assert part.transform == wanted.part((3, 5, 9, 8)).transform


def test_read_on_grid__is_the_raster_itself_on_its_own_grid(tmp_path):
    where = grid((8, 9))
    path = save(tmp_path / "a.tif", ramp(where), where)
    np.testing.assert_array_equal(read_on_grid(path, where).image, read_raster(path).image)


def test_read_mask_on_grid__makes_no_values_between(tmp_path):
    source, wanted = grid((20, 20)), grid((20, 20), left=500034.0, top=4999987.0)
    values = (np.random.default_rng(0).random((20, 20)) > 0.5).astype(np.uint8) * 255
    bands, known = read_mask_on_grid(save(tmp_path / "m.tif", values, source), wanted)
    assert set(np.unique(bands[0][known])) == {0, 255}
    assert np.array_equal(bands[0][:18, :16], values[1:19, 3:19])
    assert not known[:, 17:].any()


def test_grid__without_a_place_cannot_be_aligned():
    with pytest.raises(ValueError, match="georeferenced grid"):
        shared_window(grid((4, 4)), Grid((4, 4)))


def test_read_on_grid__averages_finer_pixels(tmp_path):
    fine = grid((60, 60), pixel=2.5)
    values = np.indices((60, 60)).sum(0)[None].astype(np.float32) % 2  # a chessboard
    raster = read_on_grid(save(tmp_path / "a.tif", values, fine), grid((15, 15)))
    np.testing.assert_allclose(raster.image[0, 1:-1, 1:-1], 0.5, atol=0.02)
