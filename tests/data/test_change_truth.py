import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from anomseg.data.change_folders import PairFiles
from anomseg.data.change_truth import TruthReading
from anomseg.data.raster_align import Grid
from anomseg.errors import SceneFormatError

PLANE = np.zeros((12, 14), bool)
PLANE[3:8, 5:11] = True


def read(path, reading=None, window=(0, 0, 12, 14), origin=(0, 0), size=(12, 14), **files):
    pair = PairFiles("p", ("b.tif",), ("a.tif",), **(files or {"mask": path}))
    grid = Grid(size)
    measured = (reading or TruthReading()).measured(pair, Grid((12, 14)), grid)
    return measured.read(pair, grid, origin, window)


def save(path, values):
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def expected(plane=PLANE):
    return torch.from_numpy(plane.astype(np.int64))


@pytest.mark.parametrize("factor", [1, 255])
def test_truth__reads_0_and_1_and_black_and_white_alike(tmp_path, factor):
    assert torch.equal(read(save(tmp_path / "m.png", PLANE * factor)), expected())


def test_truth__reads_255_beside_0_and_1_as_ignored(tmp_path):
    values = PLANE.astype(np.uint8)
    values[0] = 255
    mask = read(save(tmp_path / "m.png", values))
    assert bool((mask[0] == 255).all())
    assert torch.equal(mask[1:], expected()[1:])


def test_truth__gives_a_window_the_meaning_of_the_whole_mask(tmp_path):
    values = PLANE.astype(np.uint8)
    values[0] = 255
    path = save(tmp_path / "m.png", values)
    assert read(path, window=(0, 0, 2, 14)).unique().tolist() == [0, 255]  # without a 1 in sight
    assert torch.equal(read(path, window=(2, 4, 5, 6)), expected()[2:7, 4:10])


def test_truth__reads_the_greys_of_a_jpeg_at_a_threshold(tmp_path):
    smooth = np.zeros((48, 48), bool)
    smooth[13:35, 5:42] = True
    path = tmp_path / "m.jpg"
    Image.fromarray((smooth * 255).astype(np.uint8)).save(path, quality=60)
    pair = PairFiles("p", ("b",), ("a",), path)
    reading = TruthReading().measured(pair, Grid((48, 48)), Grid((48, 48)))
    assert len(np.unique(np.array(Image.open(path)))) > 2
    assert torch.equal(reading.read(pair, Grid((48, 48)), (0, 0), (0, 0, 48, 48)), expected(smooth))


def test_truth__shows_the_values_of_a_mask_of_more_than_two(tmp_path):
    values = PLANE * 255
    values[0, :3] = 20, 128, 130
    path = save(tmp_path / "m.png", values)
    with pytest.raises(SceneFormatError, match=r"got 5: \[0, 20, 128, 130, 255\].*threshold=127"):
        read(path)
    grey = expected()
    grey[0, 1:3] = 1
    assert torch.equal(read(path, TruthReading(127)), grey)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_truth__reads_masks_of_one_value(tmp_path, value):
    assert read(save(tmp_path / "m.png", np.full((12, 14), value))).unique().tolist() == [int(value > 0)]


def test_truth__takes_any_colour_but_one_for_change(tmp_path):
    colours = np.full((12, 14, 3), 255)
    colours[PLANE] = 255, 0, 255
    colours[0, 0] = 254, 255, 255
    wanted = expected()
    wanted[0, 0] = 1
    assert torch.equal(read(save(tmp_path / "m.png", colours), TruthReading(unchanged=(255, 255, 255))), wanted)
    with pytest.raises(SceneFormatError, match="3 colours"):
        read(save(tmp_path / "n.png", PLANE * 255), TruthReading(unchanged=(255, 255, 255)))


def test_truth__of_samples_leaves_the_rest_unknown(tmp_path):
    changed, unchanged = PLANE.copy(), np.zeros_like(PLANE)
    unchanged[9:, :4] = True
    paths = {"changed": save(tmp_path / "c.bmp", changed * 255), "unchanged": save(tmp_path / "u.bmp", unchanged * 255)}
    mask = read(None, **paths)
    assert torch.equal(mask == 1, expected(changed).bool())
    assert torch.equal(mask == 0, expected(unchanged).bool())
    assert bool((mask[~torch.from_numpy(changed | unchanged)] == 255).all())
    unchanged[3, 5] = True
    save(tmp_path / "u.bmp", unchanged * 255)
    with pytest.raises(SceneFormatError, match="both mark 1"):
        read(None, **paths)


def test_truth__is_cut_to_the_pixels_of_the_pair(tmp_path):
    path = save(tmp_path / "m.png", PLANE)
    assert torch.equal(read(path, size=(10, 9), origin=(1, 4), window=(0, 0, 10, 9)), expected()[1:11, 4:13])


def test_truth__refuses_masks_of_other_images(tmp_path):
    with pytest.raises(ValueError, match=r"12 x 14 pixels in '.*m\.png' as in 'b\.tif', but got 5 x 5"):
        read(save(tmp_path / "m.png", PLANE[:5, :5]))


def test_truth__knows_nothing_where_a_float_mask_holds_nan(tmp_path):
    values = np.where(PLANE, 1.0, 0.0).astype(np.float32)
    values[9:] = np.nan
    profile = {"driver": "GTiff", "count": 1, "height": 12, "width": 14, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(tmp_path / "m.tif", "w", **profile) as file:
        file.write(values[None])
    for reading in (None, TruthReading(threshold=0.5)):
        mask = read(tmp_path / "m.tif", reading)
        assert bool((mask[9:] == 255).all())
        assert torch.equal(mask[:9], expected()[:9])
