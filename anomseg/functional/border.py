"""Where a pixel lies against the border of its image: the rim of a part is a place of its own, with statistics of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def border_distance(length: int, device: torch.device | str | None = None) -> Tensor:
    """Count the pixels between each pixel of a row and the nearer end of the row: (length,) int64, 0 at both ends."""
    index = torch.arange(length, device=device)
    return torch.minimum(index, length - 1 - index)


def bin_count(cuts: Sequence[int]) -> int:
    """Count the bins of `border_bins`."""
    return (len(cuts) + 1) ** 2


def border_bins(size: tuple[int, int], cuts: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Sort the pixels of an image by their distance to the nearer border of each axis.

    A pixel of distance d lies in the bin that counts the cuts <= d, for rows and for columns on its own, so that the four corners share a
    bin, and so do opposite edges: a part that is turned by 180 degrees keeps its bins.

    Args:
        size: (height, width) in pixels.
        cuts: increasing distances in pixels at which a new bin begins, the first at least 1; none puts all pixels into one bin.
        device: of the result.

    Returns:
        (H, W) int64 in [0, (len(cuts) + 1)²): row bin x (len(cuts) + 1) + column bin.

    Raises:
        ValueError: the cuts are not increasing from 1.
    """
    if any(b <= a for a, b in zip((0, *cuts), cuts, strict=False)):
        raise ValueError(f"Expected increasing cuts of at least 1 pixel, but got {tuple(cuts)}. Sort them, and drop those that repeat.")
    edges = torch.tensor(tuple(cuts), dtype=torch.int64, device=device)
    rows, columns = (torch.bucketize(border_distance(length, device), edges, right=True) for length in size)
    return rows[:, None] * (len(cuts) + 1) + columns[None]
