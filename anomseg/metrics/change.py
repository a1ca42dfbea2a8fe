"""Figures of change maps at a threshold that was chosen elsewhere, as torchmetrics that hold a few counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from anomseg.functional.boundary import boundary_matches
from anomseg.functional.confusion import ChangeFigures, change_figures, confusion
from anomseg.metrics.score_state import check_scores, state_name
from anomseg.sample import check_mask


class ChangeConfusion(Metric):
    """Compute precision, recall, F1 and IoU of the change class, overall accuracy and kappa, from one confusion of all pixels.

    The threshold is an argument and never fitted here: take it from validation, such as `F1Max` on validation scores. The best threshold
    of the very scores that are judged is what `F1Max` and `OracleIoU` report, under names that say so.

    Args:
        threshold: flags `score >= threshold`; 0 is even odds where the score is a logit.
        kwargs: passed to `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, threshold: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = _check_threshold(threshold)
        self._state = state_name("outcomes", threshold)
        self.add_state(self._state, default=torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores, higher is more changed.
            mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored.
            name: the B scene names, for messages.

        Raises:
            ValueError: shapes differ, a counted score is not finite, or the mask holds another value.
        """
        check_scores(score, mask, name)
        check_mask(mask, name)
        setattr(self, self._state, self.outcomes + confusion(score >= self.threshold, mask))

    @property
    def outcomes(self) -> Tensor:
        """Give the counts: (4,) int64 of true positives, false positives, false negatives and true negatives."""
        return cast(Tensor, getattr(self, self._state))

    def figures(self) -> ChangeFigures:
        """Give the figures of this rank's pixels as one object."""
        return change_figures(self.outcomes)

    def compute(self) -> dict[str, Tensor]:
        """Return () float64 each: `change_precision`, `change_recall`, `change_f1`, `change_iou`, `change_accuracy`, `change_kappa`."""
        figures = dataclasses.asdict(change_figures(self.outcomes))
        return {f"change_{name}": torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}


class BoundaryF1(Metric):
    """Compute F1 of the outlines: the harmonic mean of the shares of either boundary that lie near the other, in [0, 1].

    Boundary pixels of all images are pooled. With tiles, outlines end at their borders: feed whole pairs where that matters.

    Args:
        threshold: flags `score >= threshold`; from validation, as for `ChangeConfusion`.
        tolerance: distance in pixels up to which boundaries match.
        kwargs: passed to `torchmetrics.Metric`.

    Source: see `anomseg.functional.boundary.boundary_matches`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, threshold: float = 0.0, tolerance: float = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if tolerance < 0:
            raise ValueError(f"Expected argument `tolerance` of at least 0 pixels, but got {tolerance}. The usual one is 3.")
        self.threshold = _check_threshold(threshold)
        self.tolerance = tolerance
        self._state = state_name("matches", threshold, tolerance)
        self.add_state(self._state, default=torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> None:
        """Count a batch; arguments as `ChangeConfusion.update`."""
        check_scores(score, mask, name)
        check_mask(mask, name)
        setattr(self, self._state, self.matches + boundary_matches(score >= self.threshold, mask, self.tolerance))

    @property
    def matches(self) -> Tensor:
        """Give the counts of `boundary_matches`, (4,) int64."""
        return cast(Tensor, getattr(self, self._state))

    def compute(self) -> Tensor:
        """Return () float64; NaN where neither map has a boundary, 0 where one of them has none."""
        hits, predicted, found, true = self.matches.double()
        if predicted + true == 0:
            return torch.full_like(hits, torch.nan)
        precision, recall = hits / predicted.clamp_min(1), found / true.clamp_min(1)
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else torch.zeros_like(hits)


def _check_threshold(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ValueError(f"Expected a finite argument `threshold`, but got {threshold}. Take it from validation, such as F1Max gives it.")
    return threshold
