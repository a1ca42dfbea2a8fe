"""Read class masks as stored: ids, black and white, colours, or one file a class."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomseg.data.class_rule import NO_CLASS, ClassTable
from anomseg.data.hdf5_io import HDF5_SUFFIXES, hdf5_shape, read_hdf5
from anomseg.data.image_folders import Encoding
from anomseg.data.raster_io import raster_shape, read_mask_bands
from anomseg.errors import SceneFormatError
from anomseg.functional.windows import Window
from anomseg.sample import IGNORE

LOSSY_SUFFIXES = (".jpg", ".jpeg")
_ROWS = 1024
_THRESHOLD = 127
_BEYOND = 256


def file_shape(path: Path, key: str | None = None) -> tuple[int, int, int]:
    """Read (bands, height, width) of an image or mask from its header.

    Args:
        path: a raster or HDF5 file.
        key: name of the array in an HDF5 file; None takes the only one.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: it is unreadable.
        MissingDependencyError: it is HDF5 and h5py is not installed.
    """
    return hdf5_shape(path, key) if path.suffix.lower() in HDF5_SUFFIXES else raster_shape(path)


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
        SceneFormatError: it is unreadable, holds an id or colour outside the table, a picture where ids are expected, or ids where black
            and white is.
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
    values, ignored = _plane(bands, void), torch.from_numpy(void)
    if encoding == "binary":
        ids, unknown = _two_classes(values, path, key, window)
        ignored |= unknown
        ids = torch.tensor(table.class_ids[:2])[ids]
    else:
        ids = values
        if IGNORE not in table.class_ids:
            ignored |= values == IGNORE
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
    ids, unknown = _two_classes(_plane(*_stored(path, None, window)), path, None, window)
    return ids.bool() & ~unknown


def _two_classes(values: Tensor, path: Path, key: str | None, window: Window | None) -> tuple[Tensor, Tensor]:
    # Lossless 0 and 1 are ids, with 255 beside them ignored; whatever else holds white is a picture, whose smooth edges are grey.
    # A window of 0 and 1, of 0 and 255, or of greys may belong to either: what it means is for the file to say, and not for the window.
    ids = False
    if path.suffix.lower() not in LOSSY_SUFFIXES:
        ids = _are_ids(_present(values), path) if window is None else _stores_ids(path, key, path.stat().st_mtime_ns)
    if ids:
        unknown = values == IGNORE
        return values.masked_fill(unknown, 0), unknown
    return (values > _THRESHOLD).long(), torch.zeros_like(values, dtype=torch.bool)


@lru_cache(maxsize=2**16)
def _stores_ids(path: Path, key: str | None, _changed: int) -> bool:
    # One pass over the file in bands of rows, for it may be large; cached, because many windows of one file ask.
    _, height, width = file_shape(path, key)
    present = torch.zeros(_BEYOND + 1, dtype=torch.bool)
    for row in range(0, height, _ROWS):
        present |= _present(_plane(*_stored(path, key, (row, 0, min(_ROWS, height - row), width))))
    return _are_ids(present, path)


def _present(values: Tensor) -> Tensor:
    """Tell which of 0 to 255 occur, and at the last place whether anything beyond does."""
    return torch.bincount(values.flatten().clamp(0, _BEYOND), minlength=_BEYOND + 1) > 0


def _are_ids(present: Tensor, path: Path) -> bool:
    """Tell 0 and 1 from black and white; class ids, which are neither, would all become background and are refused."""
    strange = present.clone()
    strange[[0, 1, IGNORE]] = False
    if not strange.any():
        return bool(present[1])
    if not present[_THRESHOLD + 1 :].any():
        found = present.nonzero()[:, 0].tolist()
        raise SceneFormatError(
            f"Expected a mask of 0 and 1, or of black and white with values above {_THRESHOLD}, in '{path}', but got the values "
            f"{found[:16]}. If they are class ids, take encoding='index' and a class table that names them; if not, store 0 and 255."
        )
    return False


def _plane(bands: np.ndarray[Any, Any], void: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.where(void, 0, bands.max(axis=0)).astype(np.int64))


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
