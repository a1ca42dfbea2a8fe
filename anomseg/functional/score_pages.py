"""Fold any number of scores into bounded memory without depending on the order in which they came.

The 65,536 values of a key's upper 16 bits are pages (128 for each power of two). Pages that hold at least one pixel get 2^d cells each,
with the largest d that fits. A new page can only lower d, and lowering d adds neighbouring cells, so the result is a function of the
pixels alone: folding in parts and merging, in any order, on any number of ranks, gives the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.score_histogram import ScoreCounts, score_to_key

PAGE_CELLS = 1 << 21
_HALF = 1 << 15  # pages are numbered from -2^15 to 2^15 - 1


@dataclass(frozen=True)
class ScorePages:
    """Hold counts on the cells of the pages that occur.

    Attributes:
        pages: (n,) int64, ascending.
        normal: (n, 2^d) int64 pixels of class 0.
        anomalous: (n, 2^d) float64 pixels of class 1, or their summed weights.
    """

    pages: Tensor
    normal: Tensor
    anomalous: Tensor

    @property
    def depth(self) -> int:
        """Give d: a page has 2^d cells."""
        return int(self.normal.shape[1]).bit_length() - 1

    def counts(self) -> ScoreCounts:
        """Lay the cells out as one ascending list."""
        bits = 16 - self.depth
        lower = (self.pages[:, None] << 16) + (torch.arange(1 << self.depth, device=self.pages.device) << bits)
        filled = (self.normal > 0) | (self.anomalous > 0)
        lower = lower[filled]
        return ScoreCounts(lower, torch.full_like(lower, 1 << bits), self.normal[filled], self.anomalous[filled])

    def pack(self) -> Tensor:
        """Write everything into one 1-D float32 tensor of bit patterns, so that packed pages of several ranks can be concatenated."""
        head = torch.tensor([len(self.pages), self.depth], device=self.pages.device)
        body = (head, self.pages, self.normal.flatten(), self.anomalous.flatten().view(torch.int64))
        return torch.cat(body).view(torch.float32)


def unpack_pages(packed: Tensor) -> list[ScorePages]:
    """Read the pages back from the concatenation of any number of `ScorePages.pack`."""
    words, found, start = packed.contiguous().view(torch.int64), [], 0
    while start < len(words):
        n, depth = int(words[start]), int(words[start + 1])
        size = n << depth
        first = start + 2 + n
        normal, anomalous = words[first : first + size], words[first + size : first + 2 * size].view(torch.float64)
        found.append(ScorePages(words[start + 2 : first], normal.view(n, -1), anomalous.view(n, -1)))
        start = first + 2 * size
    return found


def page_depth(pages: int, cells: int = PAGE_CELLS) -> int:
    """Give the largest depth, at most 16, at which that many pages fit into that many cells."""
    return max(0, min(16, (cells // max(pages, 1)).bit_length() - 1))


def fold_scores(
    scores: Sequence[Tensor], anomalous: Sequence[Tensor], weights: Sequence[Tensor] | None = None, *, cells: int = PAGE_CELLS
) -> ScorePages:
    """Count scores on pages.

    Args:
        scores: 1-D float32 tensors with the finite scores of **all** pixels; at least one pixel.
        anomalous: 1-D float32 tensors with the scores of the anomalous pixels once more.
        weights: one weight for each anomalous score; 1 by default.
        cells: the memory, in cells of 16 bytes.

    Returns:
        The pages.
    """
    keys = score_to_key(torch.cat(list(scores)))
    anomalous_keys = score_to_key(torch.cat(list(anomalous))) if anomalous else keys[:0]
    occupied = torch.bincount((keys >> 16) + _HALF, minlength=2 * _HALF)
    pages = occupied.nonzero()[:, 0] - _HALF
    depth = page_depth(len(pages), cells)
    first = torch.zeros(2 * _HALF, dtype=torch.int32, device=keys.device)
    first[pages + _HALF] = torch.arange(len(pages), dtype=torch.int32, device=keys.device) << depth
    size = len(pages) << depth

    def cell(key: Tensor) -> Tensor:
        return first.index_select(0, (key >> 16) + _HALF) + ((key >> (16 - depth)) & ((1 << depth) - 1))

    anomalous_cell = cell(anomalous_keys)
    count = torch.bincount(anomalous_cell, minlength=size)
    normal = torch.bincount(cell(keys), minlength=size) - count
    mass = count.double()
    if weights:
        mass = torch.bincount(anomalous_cell, weights=torch.cat(list(weights)).double(), minlength=size)
    return ScorePages(pages, normal.view(len(pages), -1), mass.view(len(pages), -1))


def merge_pages(parts: Sequence[ScorePages], *, cells: int = PAGE_CELLS) -> ScorePages:
    """Add up pages that were folded apart.

    Args:
        parts: at least one.
        cells: the memory, in cells; as it was when they were folded.

    Returns:
        The pages that folding all their pixels at once would give.
    """
    if len(parts) == 1:
        return parts[0]
    pages = torch.unique(torch.cat([p.pages for p in parts]))
    depth = min(page_depth(len(pages), cells), *(p.depth for p in parts))
    normal = parts[0].normal.new_zeros(len(pages), 1 << depth)
    anomalous = parts[0].anomalous.new_zeros(len(pages), 1 << depth)
    for part in parts:  # one pass over at most `cells` cells each
        row = torch.searchsorted(pages, part.pages)
        normal[row] += part.normal.view(len(row), 1 << depth, -1).sum(-1)
        anomalous[row] += part.anomalous.view(len(row), 1 << depth, -1).sum(-1)
    return ScorePages(pages, normal, anomalous)
