"""Read pictures with their alpha channel, check that they are stored as they are shown, and fill polygons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomseg.data.raster_io import opened_raster
from anomseg.errors import SceneFormatError


def check_picture(path: Path) -> None:
    """Refuse a picture whose stored pixels are not what a viewer shows.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster, its values are indices of a palette of colours, or its EXIF entry turns it.
    """
    from rasterio.enums import ColorInterp

    with opened_raster(path) as dataset:
        turned = dataset.tags().get("EXIF_Orientation", "1").strip()
        table = dataset.colormap(1) if dataset.colorinterp[0] == ColorInterp.palette else {}
    if any(tuple(colour[:3]) != (index,) * 3 for index, colour in table.items()):
        raise SceneFormatError(f"Expected grey values or colours in '{path}', but got indices of a palette. Convert it to RGB.")
    if turned not in ("0", "1"):
        raise SceneFormatError(
            f"Expected the pixels of '{path}' as they are shown, but its EXIF orientation is {turned}: a viewer turns it, and a mask drawn "
            "on what it shows would not fit. Save it upright (PIL.ImageOps.exif_transpose)."
        )


def read_picture(path: Path) -> Tensor:
    """Read all bands of a picture, alpha included, as (C, H, W) float32 in [0, 1].

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster, or its values are no bytes.
    """
    with opened_raster(path) as dataset:
        pixels = dataset.read()
        table = dataset.colormap(1) if dataset.count == 1 and dataset.colorinterp[0].name == "palette" else None
    if pixels.dtype != np.uint8:
        raise SceneFormatError(f"Expected a picture of bytes in '{path}', but got {pixels.dtype}. Convert it to 8 bits.")
    if table is not None:
        colours = np.array([table.get(value, (0, 0, 0, 255)) for value in range(256)], np.uint8)
        pixels = colours[pixels[0]].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255


def rasterised(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Fill polygons.

    Args:
        polygons: x and y in turn, in pixels, three corners or more each.
        size: (height, width).

    Returns:
        (H, W) bool.
    """
    from rasterio.features import rasterize

    shapes = []
    for flat in polygons:
        corners = list(zip(flat[0::2], flat[1::2], strict=True))
        shapes.append({"type": "Polygon", "coordinates": [[*corners, corners[0]]]})
    return torch.from_numpy(rasterize(shapes, size, dtype="uint8")).bool()
