"""Check that files of rasters are whole, which GDAL does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from anomseg.errors import SceneFormatError

_PNG_TAIL = 4096  # bytes in which a PNG file must end; some programs write a little more after it


def check_length(dataset: Any, data: Path) -> None:
    """Refuse raw data that end too early: GDAL reads zeros past their end, so that a cut file would pass for a dark one.

    Args:
        dataset: the open ENVI raster.
        data: its data file.

    Raises:
        SceneFormatError: the file is shorter than its header says.
    """
    envi = dataset.tags(ns="ENVI")
    if envi.get("file_compression", "0").strip() != "0":
        return
    pixels = dataset.count * dataset.height * dataset.width
    expected = int(envi.get("header_offset", 0)) + pixels * np.dtype(dataset.dtypes[0]).itemsize
    found = data.stat().st_size
    if found < expected:
        raise SceneFormatError(
            f"Expected {expected} bytes in '{data}' for {dataset.count} bands of {dataset.height}x{dataset.width} {dataset.dtypes[0]}, "
            f"but got {found}. The file is cut short, or its header belongs to another: copy both again."
        )


def check_end(data: Path) -> None:
    """Refuse a PNG file without its end: GDAL reads the missing rows as anything.

    Raises:
        SceneFormatError: the file is cut short.
    """
    size = data.stat().st_size
    with data.open("rb") as file:
        file.seek(max(0, size - _PNG_TAIL))
        if b"IEND" not in file.read():
            raise SceneFormatError(f"Expected a PNG file with its end in '{data}' ({size} bytes), but it is cut short. Copy it again.")
