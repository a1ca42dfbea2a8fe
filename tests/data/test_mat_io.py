import sys

import numpy as np
import pytest
from scipy.io import savemat

from anomseg.data.mat_io import read_mat, read_mat_mask
from anomseg.errors import MissingDependencyError, SceneFormatError, SceneNotFoundError

CUBE = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) - 7
TRUTH = (np.arange(20).reshape(4, 5) > 17).astype(np.uint8)


def save_v73(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in arrays.items():
            file[key] = array.T
            file[key].attrs["MATLAB_class"] = np.bytes_({"u": "uint8", "i": "int16", "f": "double"}[array.dtype.kind])
        file.create_group("#refs#")
    return path


@pytest.mark.parametrize("save", [lambda path, **arrays: savemat(path, arrays), save_v73], ids=["v5", "v73"])
@pytest.mark.parametrize(("image_key", "mask_key"), [("data", "map"), ("hsi", "gt"), ("Sandiego", "PlaneGT"), ("cube7", "truth7")])
def test_read_mat__finds_image_and_truth_by_name_or_shape(tmp_path, save, image_key, mask_key):
    save(tmp_path / "a.mat", **{image_key: CUBE, mask_key: TRUTH, "wavelength": np.ones((1, 3)), "gain": np.ones((1, 1))})
    image, mask = read_mat(tmp_path / "a.mat")
    np.testing.assert_array_equal(image, CUBE)
    np.testing.assert_array_equal(mask, TRUTH)


def test_read_mat__prefers_explicit_keys(tmp_path):
    savemat(tmp_path / "a.mat", {"data": CUBE, "other": CUBE + 1, "map": TRUTH, "second": 1 - TRUTH})
    image, mask = read_mat(tmp_path / "a.mat", image_key="other", mask_key="second")
    np.testing.assert_array_equal(image, CUBE + 1)
    np.testing.assert_array_equal(mask, 1 - TRUTH)


def test_read_mat__prefers_a_cube_to_a_preview_of_a_known_name(tmp_path):
    savemat(tmp_path / "a.mat", {"img": CUBE[..., 0], "cube": CUBE, "gt": TRUTH})
    image, mask = read_mat(tmp_path / "a.mat")
    assert image.shape == CUBE.shape
    np.testing.assert_array_equal(mask, TRUTH)


def test_read_mat__reads_a_plane_as_the_image_where_there_is_no_cube(tmp_path):
    savemat(tmp_path / "a.mat", {"band": CUBE[..., 0], "map": TRUTH})
    image, mask = read_mat(tmp_path / "a.mat")
    np.testing.assert_array_equal(image, CUBE[..., 0])
    np.testing.assert_array_equal(mask, TRUTH)


def test_read_mat__returns_no_truth_where_there_is_none(tmp_path):
    savemat(tmp_path / "a.mat", {"data": CUBE})
    assert read_mat(tmp_path / "a.mat")[1] is None


def test_read_mat__leaves_a_truth_alone_that_is_not_asked_for(tmp_path):
    savemat(tmp_path / "a.mat", {"data": CUBE, "map": TRUTH[:3]})
    assert read_mat(tmp_path / "a.mat", with_mask=False)[1] is None


@pytest.mark.parametrize(
    ("arrays", "keys"),
    [
        ({"one": CUBE, "two": CUBE}, {}),
        ({"one": CUBE}, {"image_key": "cube"}),
        ({"one": CUBE}, {"mask_key": "truth"}),
        ({"one": CUBE, "map": TRUTH[:3]}, {}),
    ],
    ids=["two cubes", "wrong image key", "wrong mask key", "misfitting truth"],
)
def test_read_mat__lists_the_keys_and_shapes_it_found(tmp_path, arrays, keys):
    savemat(tmp_path / "a.mat", arrays)
    with pytest.raises(SceneFormatError, match=r"a\.mat.*'one' \(4, 5, 3\)"):
        read_mat(tmp_path / "a.mat", **keys)


def test_read_mat__refuses_a_file_without_numbers(tmp_path):
    savemat(tmp_path / "a.mat", {"text": "hello"})
    with pytest.raises(SceneFormatError, match="no numeric array"):
        read_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("save", [lambda path, **arrays: savemat(path, arrays), save_v73], ids=["v5", "v73"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_read_mat__names_a_file_that_is_cut_short(tmp_path, save, keep):
    path = tmp_path / "cut.mat"
    save(path, data=np.random.default_rng(0).normal(size=(20, 20, 30)), map=np.zeros((20, 20), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(SceneFormatError, match=r"cut\.mat") as caught:
        read_mat(path)
    assert keep == 0.0 or caught.value.__cause__ is not None


def test_read_mat__names_a_missing_file(tmp_path):
    with pytest.raises(SceneNotFoundError, match=r"none\.mat"):
        read_mat(tmp_path / "none.mat")


def test_read_mat__names_the_extra_that_reads_version_73(tmp_path, monkeypatch):
    save_v73(tmp_path / "a.mat", data=CUBE)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'anomseg\[hyperspectral\]'"):
        read_mat(tmp_path / "a.mat")


def test_read_mat_mask__finds_the_truth_alone(tmp_path):
    savemat(tmp_path / "named.mat", {"PlaneGT": TRUTH, "other": TRUTH + 1})
    savemat(tmp_path / "single.mat", {"im_gt": TRUTH})
    savemat(tmp_path / "two.mat", {"one": TRUTH, "two": TRUTH})
    np.testing.assert_array_equal(read_mat_mask(tmp_path / "named.mat"), TRUTH)
    np.testing.assert_array_equal(read_mat_mask(tmp_path / "single.mat"), TRUTH)
    np.testing.assert_array_equal(read_mat_mask(tmp_path / "two.mat", "two"), TRUTH)
    with pytest.raises(SceneFormatError, match="mask_key="):
        read_mat_mask(tmp_path / "two.mat")
