import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.class_masks import file_shape, read_class_ids, read_layer
from anomseg.data.class_rule import BINARY, NO_CLASS, ClassTable
from anomseg.errors import SceneFormatError

TABLE = ClassTable(("none", "road", "roof"), colours=((0, 0, 0), (255, 255, 255), (10, 20, 30)))


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def test_read_class_ids__reads_ids_of_grey_palette_and_threefold_masks(tmp_path):
    ids = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    expected = [[0, 1, 2], [2, 1, NO_CLASS]]
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "palette.png")
    for path in (save(tmp_path / "grey.png", ids), tmp_path / "palette.png", save(tmp_path / "rgb.png", np.stack([ids] * 3, -1))):
        assert read_class_ids(path, TABLE, "index").tolist() == expected


def test_read_class_ids__keeps_255_where_it_is_a_class(tmp_path):
    path = save(tmp_path / "a.png", [[0, 255]])
    assert read_class_ids(path, ClassTable(("a", "b"), ids=(0, 255)), "index").tolist() == [[0, 255]]


def test_read_class_ids__reads_colours(tmp_path):
    path = save(tmp_path / "a.png", [[[10, 20, 30], [255, 255, 255]], [[0, 0, 0], [10, 20, 30]]])
    assert read_class_ids(path, TABLE, "colour").tolist() == [[2, 1], [0, 2]]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([[0, 1]], [[0, 1]]), ([[0, 255]], [[0, 1]]), ([[0, 0]], [[0, 0]]), ([[127, 128]], [[0, 1]]), ([[0, 1, 255]], [[0, 1, NO_CLASS]])],
)
def test_read_class_ids__tells_black_and_white_from_zero_and_one(tmp_path, stored, expected):
    assert read_class_ids(save(tmp_path / "a.png", stored), BINARY, "binary").tolist() == expected


def test_read_class_ids__thresholds_lossy_masks_even_where_they_are_nearly_black(tmp_path):
    truth = np.zeros((32, 32), np.uint8)
    truth[8:20, 4:13] = 255
    Image.fromarray(truth).save(tmp_path / "a.jpg", quality=70)
    assert torch.equal(read_class_ids(tmp_path / "a.jpg", BINARY, "binary"), torch.from_numpy(truth > 127).long())
    Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / "b.jpg")
    assert not read_class_ids(tmp_path / "b.jpg", BINARY, "binary").any()


def test_read_class_ids__ignores_no_data_nan_and_negative_values(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = np.array([[[0, 1, 2, -3, np.nan, -9999]]], np.float32)
    profile = {"driver": "GTiff", "count": 1, "height": 1, "width": 6, "dtype": "float32", "nodata": 2}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(values)
    assert read_class_ids(tmp_path / "a.tif", TABLE, "index").tolist() == [[0, 1, *[NO_CLASS] * 4]]


def test_read_class_ids__reads_a_window_as_the_whole_holds_it(tmp_path):
    ids = np.random.default_rng(0).integers(0, 3, (9, 8))
    path = save(tmp_path / "a.png", ids)
    assert torch.equal(read_class_ids(path, TABLE, "index", window=(2, 3, 4, 5)), read_class_ids(path, TABLE, "index")[2:6, 3:8])


@pytest.mark.parametrize(("elsewhere", "expected"), [(1, NO_CLASS), (0, 1), (200, 1)])
def test_read_class_ids__takes_what_255_means_in_a_window_from_the_whole_file(tmp_path, elsewhere, expected):
    stored = np.zeros((1500, 8), np.uint8)
    stored[2, 3], stored[1400, 5] = 255, elsewhere
    path = save(tmp_path / "a.png", stored)
    ids = read_class_ids(path, BINARY, "binary")
    assert ids[2, 3] == expected
    assert torch.equal(read_class_ids(path, BINARY, "binary", window=(0, 0, 8, 8)), ids[:8])
    stored[1400, 5] = 201 - elsewhere if elsewhere else 1  # the file is written anew with the other meaning
    save(path, stored)
    assert torch.equal(read_class_ids(path, BINARY, "binary", window=(0, 0, 8, 8)), read_class_ids(path, BINARY, "binary")[:8])


def test_read_class_ids__lists_what_lies_outside_the_table(tmp_path):
    path = save(tmp_path / "a.png", [[0, 9, 17]])
    with pytest.raises(SceneFormatError, match=r"a\.png', but got also \[9, 17\]"):
        read_class_ids(path, TABLE, "index")
    with pytest.raises(SceneFormatError, match=r"picture of 3 bands in .*got 1"):
        read_class_ids(path, TABLE, "colour")
    with pytest.raises(SceneFormatError, match="encoding='colour'"):
        read_class_ids(save(tmp_path / "b.png", [[[0, 1, 2]]]), TABLE, "index")


@pytest.mark.parametrize("stored", [[[0, 1, 2, 6]], [[0, 7]], [[127, 127]], [[1, 2]]])
def test_read_class_ids__refuses_class_ids_where_black_and_white_is_expected(tmp_path, stored):
    path = save(tmp_path / "a.png", stored)
    found = ", ".join(map(str, sorted({value for row in stored for value in row})))
    with pytest.raises(SceneFormatError, match=rf"a\.png', but got the values \[{found}\].*encoding='index'"):
        read_class_ids(path, BINARY, "binary")
    with pytest.raises(SceneFormatError, match=rf"got the values \[{found}\]"):
        read_layer(path)


def test_read_class_ids__takes_grey_for_a_smooth_edge_where_white_is_there(tmp_path):
    path = save(tmp_path / "a.png", [[0, 1, 40, 127, 128, 255]])
    assert read_class_ids(path, BINARY, "binary").tolist() == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("inside", [0, 1, 90])
def test_read_class_ids__takes_what_a_window_means_from_the_whole_file(tmp_path, inside):
    stored = np.zeros((1500, 8), np.uint8)
    stored[2, 3], stored[1400, 5] = inside, 200
    path = save(tmp_path / "picture.png", stored)
    assert not read_class_ids(path, BINARY, "binary", window=(0, 0, 8, 8)).any()
    stored[1400, 5] = 6
    path = save(tmp_path / "ids.png", stored)
    for window in ((0, 0, 8, 8), (1396, 0, 8, 8)):
        with pytest.raises(SceneFormatError, match=r"ids\.png', but got the values \[0, .*6"):
            read_class_ids(path, BINARY, "binary", window=window)


def test_read_class_ids__does_not_take_no_data_for_a_class(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    stored = np.array([[[0, 1, -9999, 7]]], np.int16)
    profile = {"driver": "GTiff", "count": 1, "height": 1, "width": 4, "dtype": "int16", "nodata": 7}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(stored)
    whole = read_class_ids(tmp_path / "a.tif", BINARY, "binary")
    assert whole.tolist() == [[0, 1, NO_CLASS, NO_CLASS]]
    assert torch.equal(read_class_ids(tmp_path / "a.tif", BINARY, "binary", window=(0, 1, 1, 3)), whole[:, 1:])


def test_read_layer__reads_black_and_white(tmp_path):
    assert read_layer(save(tmp_path / "a.png", [[0, 255, 0]])).tolist() == [[False, True, False]]
    assert read_layer(save(tmp_path / "b.png", [[0, 1, 0]])).tolist() == [[False, True, False]]


def test_file_shape__reads_rasters_and_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = np.zeros((4, 6, 5))
    assert file_shape(tmp_path / "a.h5") == (5, 4, 6)
    assert file_shape(save(tmp_path / "a.png", np.zeros((4, 6, 3)))) == (3, 4, 6)


@pytest.mark.parametrize("encoding", ["index", "binary"])
def test_read_class_ids__refuses_values_that_are_no_whole_numbers(tmp_path, encoding):
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "count": 1, "height": 1, "width": 4, "dtype": "float32"}
    for values in ([0, 0.999, 0, 1], [1.6, 0, 1, 1], [0, 1, np.inf, 0]):
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
            file.write(np.array([[values]], np.float32))
        with pytest.raises(SceneFormatError, match=r"whole numbers in the mask '.*a\.tif', but got 1 others.*threshold"):
            read_class_ids(tmp_path / "a.tif", TABLE if encoding == "index" else BINARY, encoding)
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(np.array([[[0, 1, np.nan, -0.5]]], np.float32))
    assert read_class_ids(tmp_path / "a.tif", BINARY, encoding).tolist() == [[0, 1, NO_CLASS, NO_CLASS]]
