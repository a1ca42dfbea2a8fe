"""How well objects are found, not pixels: connected components of a thresholded map against those of the truth.

Glossary: k a component of the truth, p a predicted one, K̂(k) the union of the predicted components that touch k.

- sIoU(k) = |k ∩ K̂(k)| / (|K̂(k)| + |k| - |k ∩ K̂(k)| - A), A the pixels of K̂(k) in *other* components of the truth: a prediction that
  covers two objects is not blamed for the second;
- PPV(p) = |p ∩ truth| / |p|;
- at a threshold τ: TP counts k with sIoU >= τ, FN the other k, FP the p with PPV < τ; F1 = 2 TP / (2 TP + FN + FP). The mean over
  τ = 0.25, 0.30, ..., 0.75 is the figure that benchmarks rank by.

Components are 8-connected. Ignored pixels belong to none; predicted components below a size vanish, then components of the truth below a
size become ignored, and what was predicted there is not counted: in this order, as the benchmark does it.

Source: Chan et al., "SegmentMeIfYouCan", NeurIPS 2021, arXiv 2104.14812, appendix B; its evaluation code for the size rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomseg.functional.regions import label_regions
from anomseg.sample import ANOMALY, IGNORE

TAUS = tuple(0.25 + 0.05 * step for step in range(11))
ANOMALY_TRACK, OBSTACLE_TRACK = (500, 100), (50, 10)
"""Smallest predicted component and smallest component of the truth, in pixels, of the two tracks of SegmentMeIfYouCan."""


@dataclass(frozen=True)
class ComponentFigures:
    """Hold figures of components.

    Attributes:
        siou: mean sIoU over the components of the truth, in [0, 1]; NaN where there is none.
        ppv: mean PPV over the predicted components, in [0, 1]; NaN where there is none.
        f1: F1 averaged over the eleven thresholds, in [0, 1]; NaN where there is neither.
    """

    siou: float
    ppv: float
    f1: float


def component_scores(flagged: Tensor, mask: Tensor, sizes: tuple[int, int] = OBSTACLE_TRACK) -> tuple[Tensor, Tensor]:
    """Measure the components of one map.

    Args:
        flagged: (H, W) bool, what is predicted anomalous.
        mask: (H, W) of 0, 1 and 255.
        sizes: smallest predicted component and smallest component of the truth that count, in pixels.

    Returns:
        sIoU of each component of the truth and PPV of each predicted one, float64 1-D on the CPU.

    Raises:
        ValueError: shapes differ, or a size is below 1.
    """
    if flagged.shape != mask.shape or flagged.ndim != 2 or min(sizes) < 1:
        raise ValueError(f"Expected maps (H, W) of one shape and sizes >= 1, but got {tuple(flagged.shape)}, {tuple(mask.shape)}, {sizes}.")
    truth, found = (label_regions(marked)[0].numpy() for marked in (mask == ANOMALY, flagged.bool() & (mask != IGNORE)))
    area = np.bincount(truth.ravel())
    small = (area < sizes[1])[truth] & (truth > 0)
    found[(np.bincount(found.ravel()) < sizes[0])[found] | small] = 0
    truth[small] = 0
    # Number what is left from 1, then count how many pixels each pair of a true and a predicted component shares.
    truth_ids, truth = np.unique(truth, return_inverse=True)
    found_ids, found = np.unique(found, return_inverse=True)
    truth, found = truth.ravel() + int(truth_ids[0] != 0), found.ravel() + int(found_ids[0] != 0)
    true_area, predicted_area = np.bincount(truth), np.bincount(found)
    rows, columns = len(true_area), len(predicted_area)
    both = (truth > 0) & (found > 0)
    pairs, overlap = np.unique(truth[both] * columns + found[both], return_counts=True)  # only those that touch
    of_truth, of_found = pairs // columns, pairs % columns
    hit = np.bincount(of_truth, overlap, rows)
    on_truth = np.bincount(of_found, overlap, columns)
    joined = np.bincount(of_truth, predicted_area[of_found], rows)  # |K̂|
    elsewhere = np.bincount(of_truth, on_truth[of_found], rows) - hit  # pixels of K̂ in other components of the truth
    siou = hit[1:] / (joined + true_area - hit - elsewhere)[1:]
    ppv = on_truth[1:] / predicted_area[1:]
    return torch.from_numpy(siou), torch.from_numpy(ppv)


def component_counts(siou: Tensor, ppv: Tensor) -> Tensor:
    """Count TP, FN and FP at the eleven thresholds: (11, 3) int64."""
    taus = torch.tensor(TAUS, dtype=torch.float64)[:, None] - 1e-12
    hits = (siou >= taus).sum(1)
    return torch.stack([hits, len(siou) - hits, (ppv < taus).sum(1)], 1)


def component_figures(counts: Tensor, siou_sum: float, ppv_sum: float, predicted: int) -> ComponentFigures:
    """Compute the figures of a data set from the sums over its maps.

    Args:
        counts: (11, 3), sum of `component_counts`.
        siou_sum: sum of all sIoU.
        ppv_sum: sum of all PPV.
        predicted: number of predicted components.
    """
    hits, missed, false = counts.double().unbind(1)
    true = int(counts[0, 0] + counts[0, 1])
    f1 = 2 * hits / (2 * hits + missed + false)
    return ComponentFigures(
        siou_sum / true if true else float("nan"), ppv_sum / predicted if predicted else float("nan"), float(f1.nanmean())
    )
