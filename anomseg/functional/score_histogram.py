"""Count unbounded scores so that every curve, threshold and quantile can be read from the counts.

A float32 score is mapped to an integer key that keeps its order, so no range has to be known and nothing is squashed. Few pixels are
counted exactly, one cell for each distinct score. More are counted on the finest dyadic grid of keys that fits, and cells that hold
enough of both classes to matter are split again, down to single float32 values. What has been counted depends on the pixels alone,
never on how they were divided into batches, ranks or files.

Scores point one way: **higher is more anomalous**. Keys, cells and curves are ascending.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_PIXELS = 1 << 18
GRID_CELLS = 1 << 19
_MAX_SPLIT = 1 << 14
_BLOCK = 1 << 19


@dataclass(frozen=True)
class ScoreCounts:
    """Hold how many normal and anomalous pixels fall into each cell of scores.

    Attributes:
        lower: (K,) int64 keys, ascending: the lowest score of each cell (see `key_to_score`).
        width: (K,) int64 number of float32 values that a cell spans; 1 means that all its pixels have the same score.
        normal: (K,) int64 pixels of class 0.
        anomalous: (K,) float64 pixels of class 1, or their summed weights where weights were given.
    """

    lower: Tensor
    width: Tensor
    normal: Tensor
    anomalous: Tensor

    def thresholds(self) -> Tensor:
        """Give the lowest score of each cell, (K,) float32: flagging `score >= threshold` flags that cell and all above it."""
        return key_to_score(self.lower)


def score_to_key(score: Tensor) -> Tensor:
    """Map float32 scores to int32 keys that keep their order; -0 and +0 share a key.

    Args:
        score: any shape, float32, finite.

    Returns:
        int32 keys of the same shape; `a < b` exactly where `score_a < score_b`.
    """
    bits = (score + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def key_to_score(key: Tensor) -> Tensor:
    """Invert `score_to_key`; takes int32 or int64 keys."""
    bits = key.to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def count_scores(
    scores: Sequence[Tensor],
    anomalous: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    exact_pixels: int = EXACT_PIXELS,
    grid_cells: int = GRID_CELLS,
) -> ScoreCounts:
    """Count scores that are all at hand.

    Args:
        scores: 1-D float32 tensors with the finite scores of **all** pixels, normal and anomalous.
        anomalous: 1-D float32 tensors with the scores of the anomalous pixels once more.
        weights: one weight for each anomalous score (in the same order); 1 by default.
        exact_pixels: up to this many pixels, every distinct score gets its own cell.
        grid_cells: cells of the grid that counts more pixels than that.

    Returns:
        The counts. Cells that are wider than one score and hold too few pixels to move AUROC by 6e-8, or average precision or a
        false-positive rate by 5e-5, stay unsplit; `auroc_bound` says how much they can hide.
    """
    device = scores[0].device if scores else torch.device("cpu")
    anomalous_keys = score_to_key(_joined(anomalous, device))
    weight = _joined(weights, device).double() if weights is not None else None
    if sum(s.numel() for s in scores) <= exact_pixels:
        keys, counts = torch.unique(score_to_key(_joined(scores, device)), return_counts=True)
        cell = torch.searchsorted(keys, anomalous_keys)
        normal = counts - torch.bincount(cell, minlength=keys.numel())
        mass = _mass(cell, weight, keys.numel())
        return ScoreCounts(keys.long(), torch.ones_like(counts), normal, mass)
    return _count_on_grid(scores, anomalous_keys, weight, grid_cells)


def _joined(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, device=device)


def _mass(cell: Tensor, weight: Tensor | None, cells: int) -> Tensor:
    counted = torch.bincount(cell, weights=weight, minlength=cells)
    return counted if weight is not None else counted.double()


def grid_shift(low: int, high: int, cells: int) -> int:
    """Give the smallest shift that maps the keys `low` to `high` onto at most `cells` dyadic cells, of which there are at least 2."""
    shift = max(0, (high - low).bit_length() - cells.bit_length())
    while (high >> shift) - (low >> shift) >= cells:
        shift += 1
    return shift


def _cell_blocks(scores: Sequence[Tensor], positive: bool, shift: int, base: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield keys and their grid cells in blocks, in memory that the next block uses again: fresh pages cost more than the arithmetic."""
    like = scores[0]
    joined = torch.empty(min(_BLOCK, sum(s.numel() for s in scores)), device=like.device)
    cell = torch.empty_like(joined, dtype=torch.int32)
    group: list[Tensor] = []
    filled = 0
    for part in [*(view for s in scores for view in torch.split(s, _BLOCK)), None]:
        if group and (part is None or filled + part.numel() > _BLOCK):
            block = torch.cat(group, out=joined[:filled]) if len(group) > 1 else group[0]
            key = block.view(torch.int32) if positive else score_to_key(block)  # positive floats order as their bits do
            yield key, torch.bitwise_right_shift(key, shift, out=cell[:filled]).sub_(base)
            group, filled = [], 0
        if part is not None:
            group.append(part)
            filled += part.numel()


def _count_on_grid(scores: Sequence[Tensor], anomalous: Tensor, weight: Tensor | None, cells: int) -> ScoreCounts:
    extremes = torch.stack([torch.stack(torch.aminmax(s)) for s in scores if s.numel()])
    low, high = score_to_key(torch.stack([extremes[:, 0].min(), extremes[:, 1].max()])).tolist()
    shift = grid_shift(low, high, cells)
    base, size = low >> shift, (high >> shift) - (low >> shift) + 1
    lower = torch.arange(base, base + size, device=anomalous.device) << shift
    blocks: Iterable[tuple[Tensor, Tensor]] = _cell_blocks(scores, low > 0, shift, base)
    cell, done = (anomalous >> shift).sub_(base), list[ScoreCounts]()
    above, pixels = lower[:0], (0.0, 0.0)  # pixels, and anomalous pixels, in higher cells
    while True:  # each pass splits fewer pixels; at most four lead down to single float32 values
        totals = torch.zeros(size, dtype=torch.int64, device=lower.device)
        for _, c in blocks:
            totals += torch.bincount(c, minlength=size)
        count = torch.bincount(cell, minlength=size)
        normal = totals - count
        width = torch.full((), 1 << shift, device=lower.device).expand(size)
        counts = ScoreCounts(lower, width, normal, count.double() if weight is None else _mass(cell, weight, size))
        if not done:
            both = torch.stack([totals, count])
            above, pixels = both.sum(1, keepdim=True) - both.cumsum(1), (float(normal.sum()), float(count.sum()))
        split = _worth_splitting(normal, count, above, pixels) if shift else lower[:0]
        if not split.numel():
            return _joined_counts([*done, counts])
        keep = (totals > 0).index_fill_(0, split, False)
        done.append(ScoreCounts(*(t[keep] for t in (lower, counts.width, normal, counts.anomalous))))
        finer = min(shift, max(1, (cells // split.numel()).bit_length() - 1))
        rank = torch.full((size,), -1, dtype=torch.int32, device=lower.device)
        rank[split] = torch.arange(split.numel(), dtype=torch.int32, device=lower.device)
        if len(done) == 1:
            blocks = _cell_blocks(scores, low > 0, shift, base)
        blocks = [_descend(k, c, rank, shift, finer) for k, c in blocks]
        if weight is not None:
            weight = weight[rank.index_select(0, cell) >= 0]
        anomalous, cell = _descend(anomalous, cell, rank, shift, finer)
        shift, size = shift - finer, split.numel() << finer
        lower = (lower[split][:, None] + (torch.arange(1 << finer, device=lower.device) << shift)).flatten()
        above = above[:, split].repeat_interleave(1 << finer, dim=1)


def _descend(key: Tensor, cell: Tensor, rank: Tensor, shift: int, finer: int) -> tuple[Tensor, Tensor]:
    """Keep the keys whose cell is split, and number the cells below it."""
    parent = rank.index_select(0, cell)
    inside = parent >= 0
    key, parent = key[inside], parent[inside]
    return key, (parent << finer) | ((key >> (shift - finer)) & ((1 << finer) - 1))


def _worth_splitting(normal: Tensor, anomalous: Tensor, above: Tensor, pixels: tuple[float, float]) -> Tensor:
    """Find the cells (ascending) whose inner order matters.

    One cell may hide 6e-8 of AUROC, or 5e-5 of a false-positive rate or of average precision. Ties also shift precision to one side, by
    half of what the cell changes it; those shifts may add up to 5e-5.
    """
    held = anomalous.nonzero()[:, 0]
    n, p, all_above, hits_above = (t.index_select(0, held).float() for t in (normal, anomalous, *above))
    n_total, p_total = max(pixels[0], 1.0), max(pixels[1], 1.0)
    flagged = all_above + n + p
    share = p / (flagged * p_total)
    hits_first = share * n * ((hits_above + p) / (all_above + p))  # how far the mean precision in the cell can rise, and fall
    hits_last = share * (p - 1) * ((flagged - p - hits_above) / (flagged - p + 1))
    precision, drift = torch.maximum(hits_first, hits_last), (hits_first - hits_last).abs_().mul_(0.5)
    limit = 5e-5
    while limit > 1e-12 and float(drift.masked_fill(precision > limit, 0.0).sum()) > 5e-5:
        limit /= 4
    effect = torch.maximum(precision / limit, n / n_total * (p / p_total / 1.2e-7).clamp_min(2e4))
    matters = effect > 1
    held, effect = held[matters], effect[matters]
    if held.numel() > _MAX_SPLIT:
        held = held[effect.topk(_MAX_SPLIT).indices]
    return held.sort().values


def _joined_counts(parts: Sequence[ScoreCounts]) -> ScoreCounts:
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    filled = (last.normal > 0) | (last.anomalous > 0)
    parts = [*parts[:-1], ScoreCounts(*(t[filled] for t in (last.lower, last.width, last.normal, last.anomalous)))]
    joined = [torch.cat([getattr(p, f) for p in parts]) for f in ("lower", "width", "normal", "anomalous")]
    order = joined[0].argsort()
    return ScoreCounts(*(t[order] for t in joined))
