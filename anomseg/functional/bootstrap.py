"""Intervals of figures by drawing images anew: pixels of one image are no independent evidence, images (or groups of them) are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """Hold the ends of an interval; NaN where it is undefined."""

    low: float
    high: float


def resampling_weights(labels: Tensor, replicates: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Draw how often each image takes part in each replicate.

    Groups are drawn with replacement among the groups of their kind (normal images alone, anomalous ones alone, both, ...), so that no
    replicate is without a class and the share of anomalous groups stays as it was designed.

    Args:
        labels: (n,) int64 classes of the images.
        replicates: R >= 1.
        seed: of the draw.
        groups: (n,) int64: images of one group are drawn together, such as the pieces of one part; by default each is its own group.

    Returns:
        (R, n) int64 on the labels' device.
    """
    of, kinds = _groups(labels.cpu(), groups)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(replicates, len(kinds), dtype=torch.int64)
    for kind in torch.unique(kinds):  # at most 7 kinds
        members = (kinds == kind).nonzero()[:, 0]
        drawn = members[torch.randint(len(members), (replicates, len(members)), generator=generator)]
        weights.scatter_add_(1, drawn, torch.ones_like(drawn))
    return weights[:, of].to(labels.device)


def _groups(labels: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number the groups (n,), and give each its kind (G,): a bit for each class that it holds."""
    of = torch.arange(len(labels)) if groups is None else torch.unique(groups.cpu(), return_inverse=True)[1]
    kinds = torch.zeros(int(of.max()) + 1 if len(of) else 0, dtype=torch.int64)
    for bit, label in enumerate(torch.unique(labels)):
        kinds[of[labels == label]] |= 1 << bit
    return of, kinds


def weighted_auroc(scores: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> Tensor:
    """Compute AUROC for many weightings of the same images, ties counting half.

    With groups, an image is compared with those of other groups alone: a group that is drawn w times would otherwise meet itself w² times,
    and the mean of the replicates would not be the figure of the images.

    Args:
        scores: (n,) finite, higher is more anomalous.
        labels: (n,) 0 normal, 1 anomalous.
        weights: (R, n) >= 0.
        groups: (n,) int64, images that belong together; none by default.

    Returns:
        (R,) float64 in [0, 1], NaN where no pair weighs anything.
    """
    _, cell = torch.unique(scores, return_inverse=True)
    cells = int(cell.max()) + 1 if len(cell) else 0
    empty = torch.zeros(len(weights), cells, dtype=torch.float64, device=scores.device)
    normal = empty.index_add(1, cell, (weights * (labels == 0)).double())
    anomalous = empty.index_add(1, cell, (weights * (labels == 1)).double())
    below = normal.cumsum(1) - 0.5 * normal
    ordered, pairs = (anomalous * below).sum(1), anomalous.sum(1) * normal.sum(1)
    if groups is not None:
        ill, well = (labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
        i, j = (groups[ill][:, None] == groups[well]).nonzero().unbind(1)
        i, j = ill[i], well[j]
        own = weights[:, i].double() * weights[:, j].double()
        ordered = ordered - (own * ((scores[i] > scores[j]).double() + 0.5 * (scores[i] == scores[j]).double())).sum(1)
        pairs = pairs - own.sum(1)
    return ordered / torch.where(pairs > 0, pairs, torch.nan)


def percentile_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Give the interval that holds the middle share of the replicates.

    It is a little too narrow where images are few: by about 3 % for 20 of a class.

    Args:
        values: (R,) a figure of each replicate; NaN is left out.
        level: the share, in (0, 1).

    Returns:
        The interval, NaN where no replicate defines the figure.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13.
    """
    _check_level(level)
    kept = values[~values.isnan()].double().cpu()
    if not kept.numel():
        return Interval(float("nan"), float("nan"))
    # the k-th smallest of R has a share of k / (R + 1) below it on average; torch.quantile's own positions make 50 replicates too narrow
    position = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64) * (len(kept) + 1) - 1
    share = (position / max(len(kept) - 1, 1)).clamp(0, 1)
    low, high = torch.quantile(kept, share).tolist()
    return Interval(low, high)


def bootstrap_auroc(
    scores: Tensor, labels: Tensor, replicates: int = 200, seed: int = 0, level: float = 0.95, groups: Tensor | None = None
) -> Interval:
    """Give an interval of image AUROC by the bootstrap over images.

    Where the classes are separated without a fault, every replicate is 1 however few the images are. The low end is then the lowest true
    AUROC that is not refuted: k disjoint pairs of independent groups are all in order with a chance of at most AUROC^k, so that the end is
    ((1 - level) / 2)^(1/k): 0.29 for 3 against 3 images, 0.83 for 20 against 20. Likewise where they are separated the wrong way round.

    Args:
        scores: (n,) one finite score for each image, higher is more anomalous.
        labels: (n,) 0 normal, 1 anomalous.
        replicates: how often images are drawn anew.
        seed: of the draw.
        level: how often the interval is to hold the truth, in (0, 1).
        groups: (n,) int64, images that belong together and are not compared with one another; by default each is its own group.

    Returns:
        The interval within [0, 1]; NaN where a class is missing, or where one group holds all images.

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    _check(scores, labels, groups)
    _check_level(level)
    estimate = float(weighted_auroc(scores, labels, torch.ones_like(labels)[None], groups))
    if estimate in (0.0, 1.0):
        end = ((1 - level) / 2) ** (1 / disjoint_pairs(labels, groups))
        return Interval(end, 1.0) if estimate else Interval(0.0, 1 - end)
    return percentile_interval(weighted_auroc(scores, labels, resampling_weights(labels, replicates, seed, groups), groups), level)


def disjoint_pairs(labels: Tensor, groups: Tensor | None = None) -> int:
    """Count how many pairs of a normal and an anomalous image can be formed so that no group takes part in two.

    Args:
        labels: (n,) 0 normal, 1 anomalous.
        groups: (n,) int64; by default each image is its own group.
    """
    _, cell = torch.unique(torch.arange(len(labels)) if groups is None else groups.cpu(), return_inverse=True)
    with_normal, with_anomalous = (int(torch.unique(cell[labels.cpu() == label]).numel()) for label in (0, 1))
    both = int(torch.unique(cell).numel()) // 2 if with_normal and with_anomalous else 0
    return min(with_normal, with_anomalous, both)


def _check(scores: Tensor, labels: Tensor, groups: Tensor | None) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape or (groups is not None and groups.shape != labels.shape):
        shapes = [tuple(t.shape) for t in (scores, labels, groups) if t is not None]
        raise ValueError(f"Expected scores, labels and groups of one shape (n,), but got {shapes}. Give one of each for every image.")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("Expected finite scores, but got NaN or infinity. Leave out the images without a score.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        found = torch.unique(labels)[:8].tolist()
        raise ValueError(f"Expected labels 0 (normal) and 1 (anomalous), but got {found}. Leave out images with an unknown label.")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Expected argument `level` in (0, 1), but got {level}. Give a share such as 0.95.")
