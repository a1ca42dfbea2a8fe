import sys

import numpy as np
import pytest

from anomseg.data.hdf5_io import hdf5_shape, read_hdf5
from anomseg.errors import MissingDependencyError, SceneFormatError, SceneNotFoundError

h5py = pytest.importorskip("h5py")
CUBE = np.arange(4 * 5 * 3, dtype=np.float64).reshape(4, 5, 3)


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = CUBE
        file["plane"] = CUBE[..., 0]
    return tmp_path / "a.h5"


def test_read_hdf5__puts_the_bands_first(path):
    assert hdf5_shape(path, "img") == (3, 4, 5)
    np.testing.assert_array_equal(read_hdf5(path, "img"), CUBE.transpose(2, 0, 1))
    assert hdf5_shape(path, "plane") == (1, 4, 5)
    assert read_hdf5(path, "plane").shape == (1, 4, 5)


def test_read_hdf5__reads_a_window_as_the_whole_holds_it(path):
    np.testing.assert_array_equal(read_hdf5(path, "img", (1, 2, 2, 3)), read_hdf5(path, "img")[:, 1:3, 2:5])


def test_read_hdf5__takes_the_only_array_and_lists_them_otherwise(path, tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["mask"] = CUBE[..., 0]
    assert hdf5_shape(tmp_path / "b.h5", None) == (1, 4, 5)
    for key in (None, "image"):
        with pytest.raises(SceneFormatError, match=r"'img': \(4, 5, 3\).*image_key="):
            read_hdf5(path, key)


def test_read_hdf5__says_what_is_wrong_with_a_file(path, tmp_path, monkeypatch):
    with pytest.raises(SceneNotFoundError, match=r"none\.h5"):
        read_hdf5(tmp_path / "none.h5", None)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SceneFormatError, match="cut short"):
        read_hdf5(path, "img")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"anomseg\[hyperspectral\]"):
        read_hdf5(path, "img")
