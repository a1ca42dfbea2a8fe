"""Cut images that all show a defect into patches, so that those away from it are normal images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.windows import Window, tile_windows
from anomseg.sample import ANOMALY, IGNORE


@dataclass(frozen=True)
class PatchRule:
    """Cut square patches, and sort them into normal and anomalous ones.

    Patches that are neither, because a defect passes close by or only its end reaches in, are left out, and so are those of which more than
    half is void.

    Attributes:
        size: side of a patch in pixels of the file.
        stride: pixels from one patch to the next, 1 to `size`.
        max_anomalous: anomalous pixels that a normal patch, grown by the margin, may hold.
        margin: pixels that a normal patch is grown by on each side before its anomalous pixels are counted.
        min_pixels: fewest anomalous pixels of an anomalous patch, above `max_anomalous`.
    """

    size: int = 96
    stride: int = 48
    max_anomalous: int = 0
    margin: int = 8
    min_pixels: int = 40

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size or min(self.max_anomalous, self.margin) < 0 or self.min_pixels <= self.max_anomalous:
            raise ValueError(
                "Expected 1 <= stride <= size, max_anomalous >= 0, margin >= 0 and min_pixels > max_anomalous, but got "
                f"{self.stride}, {self.size}, {self.max_anomalous}, {self.margin} and {self.min_pixels}."
            )

    def patches(self, mask: Tensor) -> tuple[list[Window], list[Window]]:
        """Sort the patches of an image.

        Args:
            mask: (H, W) int64 of 0, 1, 255.

        Returns:
            Windows (row, column, height, width) of normal and of anomalous patches, row by row; those of an image smaller than a patch are
            as small.
        """
        height, width = int(mask.shape[0]), int(mask.shape[1])
        total, void = _counts(mask == ANOMALY), _counts(mask == IGNORE)
        normal, anomalous = [], []
        for window in tile_windows((height, width), self.size, self.size - self.stride):
            row, column, rows, columns = window
            if 2 * _count(void, row, column, row + rows, column + columns) > rows * columns:
                continue
            if _count(total, row, column, row + rows, column + columns) >= self.min_pixels:
                anomalous.append(window)
            elif (
                _count(total, row - self.margin, column - self.margin, row + rows + self.margin, column + columns + self.margin)
                <= self.max_anomalous
            ):
                normal.append(window)
        return normal, anomalous


def _counts(marked: Tensor) -> Tensor:
    """Count the marked pixels above and left of each corner, (H + 1, W + 1)."""
    total = torch.zeros(marked.shape[0] + 1, marked.shape[1] + 1, dtype=torch.int64)
    total[1:, 1:] = marked.long().cumsum(0).cumsum(1)
    return total


def _count(total: Tensor, top: int, left: int, bottom: int, right: int) -> int:
    top, left = max(0, top), max(0, left)
    bottom, right = min(bottom, total.shape[0] - 1), min(right, total.shape[1] - 1)
    return int(total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left])
