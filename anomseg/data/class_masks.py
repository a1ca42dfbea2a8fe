"""Read class masks as stored: ids, black and white, colours, or one file a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomseg.data.binary_mask import Coding, coding_of, marked_pixels
from anomseg.data.class_rule import NO_CLASS, ClassTable
from anomseg.data.hdf5_io import HDF5_SUFFIXES, hdf5_shape, read_hdf5
from anomseg.data.image_folders import Encoding
from anomseg.data.raster_io import raster_shape, read_mask_bands
from anomseg.errors import SceneFormatError
from anomseg.functional.windows import Window
from anomseg.sample import IGNORE

_ROWS = 1024
_BEYOND = 256
_ENDLESS = 2.0**53  # from here on, float64 has no fractions


def file_shape(path: Path, key: str | None = None, keep: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Read (bands, height, width) of an image or mask from its header.

    Args:
        path: a raster or HDF5 file.
        key: name of the array in an HDF5 file; None takes the only one.
        keep: indices from 0 of the bands that are to be read, which may name an alpha band; see `read_raster`.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: it is unreadable.
        MissingDependencyError: it is HDF5 and h5py is not installed.
    """
    return hdf5_shape(path, key) if path.suffix.lower() in HDF5_SUFFIXES else raster_shape(path, keep)


def read_class_ids(path: Path, table: ClassTable, encoding: Encoding, key: str | None = None, window: Window | None = None) -> Tensor:
    """Read a mask as class ids.

    Args:
        path: a raster or HDF5 file.
        table: the classes.
        encoding: what the stored values mean; see `FolderLayout`. 255 is ignored where the table has no class of that id.
        key: name of the array in an HDF5 file; None takes the only one.
        window: (row, column, height, width) in pixels; None reads all.

    Returns:
        (H, W) int64, `NO_CLASS` where a file's no-data value (other than 0), NaN, a negative value or the ignored 255 stands.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: it is unreadable, holds an id or colour outside the table, values that are no whole numbers, a picture where ids
            are expected, or ids where black and white is; see `coding_of`.
        MissingDependencyError: it is HDF5 and h5py is not installed.
    """
    bands, void = _stored(path, key, window)
    if encoding == "colour":
        if len(bands) != 3:
            raise SceneFormatError(
                f"Expected a picture of 3 bands in '{path}', but got {len(bands)}. Read it with encoding='index' if it holds ids."
            )
        return table.ids_of_colours(torch.from_numpy(bands.astype(np.int64)), path)
    plane = bands[0]
    if len(bands) > 1 and encoding == "index" and not (bands == plane).all():
        raise SceneFormatError(
            f"Expected class ids in one band in '{path}', but got {len(bands)} different bands. Read it with encoding='colour'."
        )
    values, ignored = _plane(bands, void, path), torch.from_numpy(void)
    if encoding == "binary":
        ids, unknown = _two_classes(values, path, key, window)
        ignored |= unknown
        ids = torch.tensor(table.class_ids[:2])[ids]
    else:
        ids = torch.from_numpy(values)
        if IGNORE not in table.class_ids:
            ignored |= ids == IGNORE
    ids = ids.masked_fill(ignored, NO_CLASS)
    table.check(ids, path)
    return ids


def read_layer(path: Path, window: Window | None = None) -> Tensor:
    """Read the mask of one class, or of the pixels that count.

    Args:
        path: a black and white raster, or one of 0 and 1.
        window: (row, column, height, width) in pixels; None reads all.

    Returns:
        (H, W) bool.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: it is unreadable, or neither of the two.
    """
    ids, _ = _two_classes(_plane(*_stored(path, None, window), path), path, None, window)
    return ids.bool()


def _two_classes(values: np.ndarray[Any, Any], path: Path, key: str | None, window: Window | None) -> tuple[Tensor, Tensor]:
    # A window of 0 and 1, of 0 and 255, or of greys may belong to either: what it means is for the file to say, and not for the window.
    whole = window is None
    coding = _binary_coding(path, lambda: _present(values)) if whole else _stored_coding(path, key, path.stat().st_mtime_ns)
    marked, known = marked_pixels(values, coding)
    return torch.from_numpy(marked & known).long(), torch.from_numpy(~known)


@lru_cache(maxsize=2**16)
def _stored_coding(path: Path, key: str | None, _changed: int) -> Coding:
    # One pass over the file in bands of rows, for it may be large; cached, because many windows of one file ask.
    _, height, width = file_shape(path, key)
    rows = [(row, 0, min(_ROWS, height - row), width) for row in range(0, height, _ROWS)]
    return _binary_coding(path, lambda: set().union(*(_present(_plane(*_stored(path, key, part), path)) for part in rows)))


def _present(values: np.ndarray[Any, Any]) -> set[int]:
    """List which of 0 to 255 occur, and 256 where anything beyond does."""
    return set(np.bincount(values.clip(0, _BEYOND).ravel(), minlength=_BEYOND + 1).nonzero()[0].tolist())


def _binary_coding(path: Path, values: Callable[[], set[int]]) -> Coding:
    """Tell how a mask is coded; class ids, which would all become background, are refused."""
    coding = coding_of(path, values)
    if coding == "numbers":
        raise SceneFormatError(
            f"Expected a mask of 0 and 1, or of black and white with values above 127, in '{path}', but got the values "
            f"{sorted(values())[:16]}. If they are class ids, take encoding='index' and a class table that names them; if not, store 0 and "
            "255."
        )
    return coding


def _plane(bands: np.ndarray[Any, Any], void: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
    """Give the largest value of the bands as int64, 0 where they say nothing."""
    values = np.where(void, 0, bands.max(axis=0))
    broken = values[(np.round(values) != values) | (np.abs(values) >= _ENDLESS)] if values.dtype.kind == "f" else values[:0]
    if broken.size:
        raise SceneFormatError(
            f"Expected whole numbers in the mask '{path}', but got {broken.size} others, such as {broken[:4].tolist()}. Class ids are "
            "integers: if the file holds probabilities or shares, store 1 where they lie above a threshold, else 0."
        )
    return values.astype(np.int64)


def _stored(path: Path, key: str | None, window: Window | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read the bands as stored, and where they say nothing: no data, NaN, or negative."""
    if path.suffix.lower() in HDF5_SUFFIXES:
        bands = read_hdf5(path, key, window)
        known = ~np.isnan(bands).any(axis=0) if bands.dtype.kind in "fc" else np.ones(bands.shape[1:], bool)
    else:
        bands, known = read_mask_bands(path, window)
    if bands.dtype.kind not in "biuf":
        raise SceneFormatError(f"Expected a real mask in '{path}', but got {bands.dtype}. Store class ids as integers.")
    return bands, ~known | (bands < 0).any(axis=0)
