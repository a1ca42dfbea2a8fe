"""Read masks of change: 0 and 1, black and white, greys of a JPEG, colours, or sampled maps of what is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from anomseg.data.binary_mask import Coding, coding_of, is_lossy, marked_pixels
from anomseg.data.change_folders import Colour, PairFiles
from anomseg.data.raster_align import Grid, grid_of, read_mask_on_grid
from anomseg.data.raster_io import read_mask_bands
from anomseg.errors import SceneFormatError
from anomseg.functional.windows import Window
from anomseg.sample import IGNORE

TruthCoding = Coding | Literal["threshold", "colour"]
_SHOWN = 8
_ROWS = 1024  # rows of a mask that are searched for values at a time, which bounds the memory of the search


@dataclass(frozen=True)
class TruthReading:
    """Say what the values of a mask mean.

    Attributes:
        threshold: value above which a pixel is change; None reads 0 and 1 (and 255 beside them as ignored, also where another mask of the
            part holds the 1), 0 and 255, or, of a JPEG, greys above 127.
        unchanged: colour of unchanged pixels; any other is change. None reads no colours.
        codings: what the values of each file mean; filled in by `measured`.
        warped: whether each file lies on other pixels than the first date; filled in by `measured`.
    """

    threshold: float | None = None
    unchanged: Colour | None = None
    codings: tuple[TruthCoding, ...] = ()
    warped: tuple[bool, ...] = ()

    def measured(self, files: PairFiles, first: Grid, shared: Grid) -> TruthReading:
        """Read the masks of a pair once, to know what their values mean and where they lie.

        Args:
            files: the pair.
            first: the pixels of its first date.
            shared: the pixels of the pair.

        Raises:
            SceneNotFoundError: a file is missing.
            SceneFormatError: a mask is unreadable, or holds more than two values; the message shows them.
            ValueError: a mask has another size than its images, and no georeference to align it.
        """
        warped = []
        for path in files.truths:
            grid, _ = grid_of(path)
            first.check_place(grid, path, files.before[0])
            if not first.matches(grid) and not (grid.is_georeferenced and shared.is_georeferenced):
                raise ValueError(
                    f"Expected {first.size[0]} x {first.size[1]} pixels in '{path}' as in '{files.before[0]}', but got {grid.size[0]} x "
                    f"{grid.size[1]}. Is it the mask of another pair, or of an uncropped one?"
                )
            warped.append(not first.matches(grid))
        return replace(self, codings=tuple(self._coding(path) for path in files.truths), warped=tuple(warped))

    def read(self, files: PairFiles, grid: Grid, origin: tuple[int, int], window: Window) -> Tensor:
        """Read the truth of a pair.

        Args:
            files: the pair.
            grid: its pixels.
            origin: (row, column) of these in the files of the first date.
            window: (row, column, height, width) in the grid.

        Returns:
            (H, W) int64: 1 changed, 0 unchanged, 255 unknown.

        Raises:
            SceneFormatError: a file is unreadable, or pixels are said to be both changed and unchanged.
        """
        layers = [self._layer(index, path, grid, origin, window) for index, path in enumerate(files.truths)]
        if files.mask is not None:
            changed, known = layers[0]
            return torch.from_numpy(np.where(known, changed, IGNORE).astype(np.int64))
        (changed, seen), (unchanged, seen_too) = layers
        changed, unchanged = changed & seen, unchanged & seen_too
        both = int((changed & unchanged).sum())
        if both:
            raise SceneFormatError(
                f"Expected pixels changed or unchanged, but '{files.changed}' and '{files.unchanged}' both mark {both}. Correct them."
            )
        return torch.from_numpy(np.where(changed, 1, np.where(unchanged, 0, IGNORE)).astype(np.int64))

    def _coding(self, path: Path) -> TruthCoding:
        if self.unchanged is not None:
            return "colour"
        if self.threshold is not None:
            return "threshold"
        coding = coding_of(path, lambda: _values(path))
        if coding in ("unmarked", "ids", "black_white") or is_lossy(path):
            return coding
        values = _values(path)
        raise SceneFormatError(
            f"Expected two values in the mask '{path}', 0 and 1 or 0 and 255, but got {len(values)}: {values[:_SHOWN]}"
            f"{', ...' if len(values) > _SHOWN else ''}. Set threshold=127 for greys, or give a mask of change instead of one of classes."
        )

    def _layer(
        self, index: int, path: Path, grid: Grid, origin: tuple[int, int], window: Window
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Read which pixels are marked, and which are known."""
        row, column, height, width = window
        if self.warped[index]:
            bands, known = read_mask_on_grid(path, grid, window)
        else:
            bands, known = read_mask_bands(path, (origin[0] + row, origin[1] + column, height, width))
        coding, values = self.codings[index], bands.max(axis=0)
        if coding == "colour":
            wanted = np.array(self.unchanged)[:, None, None]
            if len(bands) != 3:
                raise SceneFormatError(f"Expected a mask of 3 colours in '{path}', but got {len(bands)} bands. Leave out unchanged=.")
            return (bands != wanted).any(axis=0), known
        if coding == "threshold":
            return values > (self.threshold or 0.0), known
        marked, counted = marked_pixels(values, coding)
        return marked, known & counted & (values >= 0)


def _values(path: Path) -> list[Any]:
    bands, known = read_mask_bands(path)
    found: set[Any] = set()
    for start in range(0, bands.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        values = bands[:, rows].max(axis=0)
        found.update(np.unique(values[known[rows] & (values >= 0)]).tolist())
    return sorted(found)
