import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.binary_mask import coding_of, marked_pixels
from anomseg.data.change_folders import PairFiles
from anomseg.data.change_truth import TruthReading
from anomseg.data.class_masks import read_class_ids
from anomseg.data.class_rule import BINARY, NO_CLASS
from anomseg.data.raster_align import Grid
from anomseg.data.read_scene import read_mask
from anomseg.errors import SceneFormatError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def save(path, values):
    array = np.array([values] * 16)
    if path.suffix == ".tif":
        with rasterio.open(path, "w", driver="GTiff", count=1, height=16, width=len(values), dtype="int16") as file:
            file.write(array[None].astype(np.int16))
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def of_scene(path):
    return read_mask(path)


def of_folder(path):
    ids = read_class_ids(path, BINARY, "binary")
    assert torch.equal(read_class_ids(path, BINARY, "binary", window=(1, 0, 4, ids.shape[1])), ids[1:5])
    return torch.where(ids == NO_CLASS, 255, ids)


def of_pair(path, threshold=None):
    with rasterio.open(path) as file:
        grid = Grid((file.height, file.width))
    files = PairFiles("p", ("b.tif",), ("a.tif",), path)
    return TruthReading(threshold).measured(files, grid, grid).read(files, grid, (0, 0), (0, 0, *grid.size))


READERS = [of_scene, of_folder, of_pair]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 0, 0], [0, 0, 0]),
        ([0, 1, 1], [0, 1, 1]),
        ([1, 1, 1], [1, 1, 1]),
        ([0, 255, 255], [0, 1, 1]),
        ([255, 255, 255], [1, 1, 1]),
        ([0, 1, 255], [0, 1, 255]),
        ([1, 255, 255], [1, 255, 255]),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_readers__agree_on_masks_of_two_values(tmp_path, reader, stored, expected, suffix):
    mask = reader(save(tmp_path / f"m{suffix}", stored))
    assert mask.dtype == torch.int64
    assert mask.tolist() == [expected] * 16


@pytest.mark.parametrize("reader", READERS)
def test_readers__agree_that_negative_values_say_nothing(tmp_path, reader):
    assert reader(save(tmp_path / "m.tif", [-3, 0, 1])).tolist() == [[255, 0, 1]] * 16


@pytest.mark.parametrize("reader", READERS)
def test_readers__agree_on_the_noise_of_a_jpeg(tmp_path, reader):
    plane = np.zeros((32, 32), np.uint8)
    plane[9:21, 5:14] = 255
    Image.fromarray(plane).save(tmp_path / "m.jpg", quality=60)
    assert len(np.unique(np.array(Image.open(tmp_path / "m.jpg")))) > 2
    assert torch.equal(reader(tmp_path / "m.jpg"), torch.from_numpy(plane > 127).long())
    Image.fromarray(np.full((16, 16), 5, np.uint8)).save(tmp_path / "n.jpg")
    assert not reader(tmp_path / "n.jpg").any()


@pytest.mark.parametrize("reader", READERS)
def test_readers__refuse_pictures_of_numbers(tmp_path, reader):
    with pytest.raises(SceneFormatError, match=r"m\.png'.* but got .*\[0, 2\]"):
        reader(save(tmp_path / "m.png", [0, 2, 2]))


def test_readers__differ_in_greys_and_numbers_as_the_rule_says(tmp_path):
    grey, numbers = save(tmp_path / "g.png", [0, 100, 255]), save(tmp_path / "n.tif", [0, 2, 200])
    assert of_scene(grey)[0].tolist() == of_folder(grey)[0].tolist() == of_pair(grey, 127)[0].tolist() == [0, 0, 1]
    with pytest.raises(SceneFormatError, match="threshold=127 for greys"):
        of_pair(grey)
    assert of_scene(numbers)[0].tolist() == [0, 1, 1]
    assert of_folder(numbers)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("values", "coding"),
    [([], "unmarked"), ([0], "unmarked"), ([0, 1, 255], "ids"), ([255], "black_white"), ([0, 1, 128], "grey"), ([0, 127], "numbers")],
)
def test_coding_of__follows_its_table(values, coding):
    assert coding_of("m.png", lambda: values) == coding


def test_coding_of__needs_no_values_of_a_jpeg():
    assert coding_of("m.JPEG", lambda: pytest.fail("it looked")) == "grey"


def test_marked_pixels__marks_numbers_above_0():
    marked, known = marked_pixels(np.array([0, 2, 255]), "numbers")
    assert marked.tolist() == [False, True, True]
    assert known.all()
