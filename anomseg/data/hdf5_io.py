"""Read arrays from HDF5 files, whole or a window of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anomseg.errors import MissingDependencyError, SceneFormatError, SceneNotFoundError
from anomseg.functional.windows import Window

HDF5_SUFFIXES = (".h5", ".hdf5")


def hdf5_shape(path: Path, key: str | None) -> tuple[int, int, int]:
    """Read (bands, height, width) of an array without its values.

    Args:
        path: a .h5 or .hdf5 file.
        key: name of the array, (H, W) or (H, W, C); None takes the only one.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: the file is unreadable or holds no such array; the message lists what it holds.
        MissingDependencyError: h5py is not installed.
    """
    with _array(path, key) as array:
        height, width, *bands = array.shape
        return (bands[0] if bands else 1), int(height), int(width)


def read_hdf5(path: Path, key: str | None, window: Window | None = None) -> np.ndarray[Any, Any]:
    """Read an array with its bands first.

    Args:
        path: a .h5 or .hdf5 file.
        key: name of the array, (H, W) or (H, W, C); None takes the only one.
        window: (row, column, height, width) in pixels; None reads all.

    Returns:
        (C, H, W) in the stored dtype.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: the file is unreadable or holds no such array; the message lists what it holds.
        MissingDependencyError: h5py is not installed.
    """
    with _array(path, key) as array:
        row, column, height, width = window or (0, 0, *array.shape[:2])
        values: np.ndarray[Any, Any] = array[row : row + height, column : column + width]
        return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)


@contextmanager
def _array(path: Path, key: str | None) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"'{path}' is an HDF5 file, and h5py is not installed. Install it with: pip install 'anomseg[hyperspectral]'."
        ) from error
    if not path.is_file():
        raise SceneNotFoundError(f"Expected an HDF5 file at '{path}', but there is none. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            shapes = {name: tuple(item.shape) for name, item in file.items() if hasattr(item, "shape")}
            chosen = key if key is not None or len(shapes) != 1 else next(iter(shapes))
            if chosen not in shapes or len(shapes[chosen]) not in (2, 3):
                raise SceneFormatError(
                    f"Expected an array (H, W) or (H, W, C) under key {chosen!r} in '{path}', but found {shapes}. "
                    "Name the key in the layout (image_key=, mask_key=)."
                )
            yield file[chosen]
    except (OSError, KeyError) as error:
        raise SceneFormatError(
            f"Expected a readable HDF5 file at '{path}' ({path.stat().st_size} bytes), but reading failed with {error}. Is it cut short?"
        ) from error
