"""Decide what the values of a mask of two classes mean: one rule for scenes, folders of images and pairs of two dates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anomseg.sample import IGNORE

Coding = Literal["unmarked", "ids", "black_white", "grey", "numbers"]
_LOSSY_SUFFIXES = (".jpg", ".jpeg")
_WHITE = 127  # values above it are white


def coding_of(path: str | Path, values: Callable[[], Collection[float]]) -> Coding:
    """Tell how a mask is coded from all values that it holds.

    The first rule that fits counts:

    ============================  ===============  ======================================================================
    values                        coding           meaning
    ============================  ===============  ======================================================================
    any, of a JPEG                ``grey``         above 127 marked
    nothing but 0                 ``unmarked``     nothing marked
    0, 1, 255 with a 1            ``ids``          1 marked, 255 ignored
    0, 255                        ``black_white``  255 marked, also where it stands alone
    others, some of above 127     ``grey``         above 127 marked: a picture with smooth edges
    others                        ``numbers``      no mask of two classes: what numbers mean is for the reader to say
    ============================  ===============  ======================================================================

    Readers differ in two points. The truth of a scene in a format of numbers (MATLAB, NumPy, TIFF, ENVI) commonly numbers its objects, so
    `as_mask` marks all above 0 where a picture would be ``grey`` or ``numbers``. Masks of change are often derived from maps of classes,
    which look like greys, so `TruthReading` takes ``grey`` from a JPEG alone and asks for a threshold elsewhere.

    Args:
        path: of the mask, for its format.
        values: lists the different values that the whole file holds where it says something; not called for a JPEG.
    """
    if is_lossy(path):
        return "grey"
    found = set(values())
    if found <= {0, 1, IGNORE}:
        return "ids" if 1 in found else "black_white" if IGNORE in found else "unmarked"
    return "grey" if max(found) > _WHITE else "numbers"


def is_lossy(path: str | Path) -> bool:
    """Say whether a format changes the values that it stores."""
    return Path(path).suffix.lower() in _LOSSY_SUFFIXES


def marked_pixels(values: np.ndarray[Any, Any], coding: Coding) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read which pixels are marked, and which are not ignored.

    Args:
        values: of any shape, as stored.
        coding: of the whole mask.

    Returns:
        Two arrays of bool of that shape: marked, and known.
    """
    if coding in ("unmarked", "ids"):
        return values == 1, values != IGNORE
    return values > (0 if coding == "numbers" else _WHITE), np.ones(values.shape, bool)
