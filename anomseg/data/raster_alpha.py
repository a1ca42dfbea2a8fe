"""Tell an alpha band, which says where there is data, from a fourth band that GDAL takes for one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ROWS = 1024  # rows that are searched at a time, which bounds the memory of the search
_PICTURES = ("PNG", "WEBP")  # their fourth channel is alpha by definition, partly transparent or not
_found: dict[tuple[str, int, int], bool] = {}  # by path, time of change and band: many windows of one file ask


def colour_bands(dataset: Any, keep: Sequence[int] | None = None) -> list[int]:
    """List the bands of a raster, from 1, that are no alpha; all of them where there is nothing else.

    GDAL labels the fourth band of a GeoTIFF of bytes as alpha unless its writer said otherwise, near infrared too. So a band of that label
    is alpha where it holds nothing but 0 and 255 (or the largest value of its type), and else a band like the others. That of a PNG or
    WebP picture is alpha whatever it holds.

    Args:
        dataset: an open raster. A band of that label is read up to its first other value, once for each state of its file.
        keep: indices from 0 of the bands that are asked for. Where they name the alpha band, it is a band and hides nothing.

    Source: GDAL, GTiff driver, creation options PHOTOMETRIC and ALPHA.
    """
    bands = [band for band in dataset.indexes if not _is_alpha(dataset, band)]
    asked = keep is not None and any(len(bands) <= index < dataset.count for index in keep)
    return list(dataset.indexes) if asked or not bands else bands


def is_alpha_mistaken(dataset: Any, keep: Sequence[int] | None = None) -> bool:
    """Say whether GDAL would hide pixels by a band that `colour_bands` takes for one like the others."""
    return any(_is_labelled(dataset, band) for band in colour_bands(dataset, keep))


def valid_pixels(pixels: Any, bands: Sequence[int], window: Any, alpha_mistaken: bool) -> np.ndarray[Any, Any]:
    """Read where all bands hold data by the no-data value, the mask or the alpha band.

    Args:
        pixels: an open raster, or a warped view of it.
        bands: from 1.
        window: of rasterio; None reads all.
        alpha_mistaken: see `is_alpha_mistaken`; the alpha band then hides nothing.

    Returns:
        (H, W) bool.
    """
    hidden = [band for band in bands if not (alpha_mistaken and _is_hidden_by_alpha(pixels, band))]
    if hidden:
        with warnings.catch_warnings():
            if alpha_mistaken:  # it says that a no-data value wins over alpha, of which there is none
                warnings.filterwarnings("ignore", message="The dataset's nodata attribute is shadowing")
            return np.asarray((pixels.read_masks(hidden, window=window) > 0).all(axis=0))
    size = (pixels.height, pixels.width) if window is None else (window.height, window.width)
    return np.ones(size, bool)


def _is_labelled(dataset: Any, band: int) -> bool:
    return bool(dataset.colorinterp[band - 1].name == "alpha")


def _is_hidden_by_alpha(pixels: Any, band: int) -> bool:
    return any(flag.name == "alpha" for flag in pixels.mask_flag_enums[band - 1])


def _is_alpha(dataset: Any, band: int) -> bool:
    if not _is_labelled(dataset, band):
        return False
    if dataset.driver in _PICTURES:
        return True
    key = (dataset.name, Path(dataset.name).stat().st_mtime_ns, band)
    if key not in _found:
        _found[key] = _says_yes_or_no(dataset, band)
    return _found[key]


def _says_yes_or_no(dataset: Any, band: int) -> bool:
    kind = np.dtype(dataset.dtypes[band - 1])
    full = np.iinfo(kind).max if kind.kind in "iu" else 1
    for row in range(0, dataset.height, _ROWS):
        values = dataset.read(band, window=((row, min(row + _ROWS, dataset.height)), (0, dataset.width)))
        if not np.isin(values, (0, 255, full)).all():
            return False
    return True
