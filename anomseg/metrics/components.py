"""Figures of components over a data set, as a metric of torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from anomseg.functional.components import (
    ANOMALY_TRACK,
    OBSTACLE_TRACK,
    TAUS,
    ComponentFigures,
    component_counts,
    component_figures,
    component_scores,
)
from anomseg.functional.kept_dtype import keeping_dtype
from anomseg.functional.score_curves import f1_max
from anomseg.functional.score_histogram import count_scores
from anomseg.metrics.score_state import check_scores, state_name, state_parts
from anomseg.sample import ANOMALY, IGNORE, check_mask

__all__ = ["ANOMALY_TRACK", "OBSTACLE_TRACK", "ComponentF1"]


class ComponentF1(Metric):
    """Compute the mean component F1 at a threshold of the score; `figures` gives sIoU and PPV as well. See `component_scores`.

    With a threshold, which is honest where it comes from validation, the state is a few sums. Benchmarks take the threshold of the best
    pixel F1 on the very data that are tested: ``threshold=None`` finds it, and keeps all maps until then, 5 bytes for each pixel.

    Args:
        threshold: a pixel is predicted anomalous where its score is at least that; None is that of the best pixel F1 of all frames.
        sizes: smallest predicted component and smallest component of the truth, in pixels; `OBSTACLE_TRACK` or `ANOMALY_TRACK`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: the threshold is not finite.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    scores: list[Tensor]
    masks: list[Tensor]
    shapes: list[Tensor]

    def __init__(self, threshold: float | None = None, sizes: tuple[int, int] = OBSTACLE_TRACK, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"Expected a finite threshold or None, but got {threshold}. Take it from validation.")
        self.threshold, self.sizes = threshold, sizes
        self._state = state_name("counts", math.inf if threshold is None else threshold, *sizes)
        self.add_state(self._state, torch.zeros(len(TAUS), 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        for state in ("scores", "masks", "shapes"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    @property
    def counts(self) -> Tensor:
        """Give the sum of `component_counts` over the frames, (11, 3) int64; zeros while maps are kept."""
        return cast(Tensor, getattr(self, self._state))

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores of whole frames; components end at the border of what is given.
            mask: (B, H, W) of 0, 1 and 255.
            name: the B scene names, for messages.

        Raises:
            ValueError: shapes differ, a counted score is not finite, or a mask value is unknown.
        """
        check_scores(score, mask, name)
        check_mask(mask, name)
        if self.threshold is None:
            self.scores = [*state_parts(self.scores), score.detach().to(torch.float32, copy=True).flatten()]
            self.masks = [*state_parts(self.masks), mask.to(torch.uint8, copy=True).flatten()]
            self.shapes = [*state_parts(self.shapes), torch.tensor(score.shape[1:], device=score.device).expand(len(score), 2)]
            return
        counts, sums = _measured(score, mask, self.threshold, self.sizes)
        setattr(self, self._state, self.counts + counts.to(self.counts.device))
        self.sums = self.sums + sums.to(self.sums.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move to another device as any metric does, but keep the types: scores and sums would be rounded."""
        return Metric._apply(self, keeping_dtype(fn), exclude_state)

    def best_threshold(self) -> float:
        """Find the threshold of the best pixel F1 over the maps that are kept; NaN where no pixel is anomalous."""
        if not state_parts(self.scores):
            return math.nan
        score, mask = torch.cat(state_parts(self.scores)), torch.cat(state_parts(self.masks))
        return float(f1_max(count_scores([score[mask != IGNORE]], [score[mask == ANOMALY]]))[1])

    def figures(self) -> ComponentFigures:
        """Compute mean sIoU, mean PPV and mean F1 of all frames."""
        counts, sums = self.counts.cpu(), self.sums.cpu()
        threshold = self.best_threshold() if self.threshold is None else math.nan
        if not math.isnan(threshold):
            shapes = torch.cat(state_parts(self.shapes)).tolist()
            maps = [torch.split(torch.cat(state_parts(state)), [h * w for h, w in shapes]) for state in (self.scores, self.masks)]
            for score, mask, shape in zip(*maps, shapes, strict=True):
                found = _measured(score.view(1, *shape), mask.view(1, *shape), threshold, self.sizes)
                counts, sums = counts + found[0], sums + found[1]
        siou, ppv, predicted = sums.tolist()
        return component_figures(counts, siou, ppv, int(predicted))

    def compute(self) -> Tensor:
        """Return () float64, NaN where there is neither an object nor a prediction, or no object to find a threshold by."""
        return torch.tensor(self.figures().f1, dtype=torch.float64)


def _measured(score: Tensor, mask: Tensor, threshold: float, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Count the components of a batch, (11, 3) int64, and sum sIoU, PPV and predicted components, (3,) float64."""
    counts, sums = torch.zeros(len(TAUS), 3, dtype=torch.int64), torch.zeros(3, dtype=torch.float64)
    for one, truth in zip(score, mask, strict=True):
        siou, ppv = component_scores(one >= threshold, truth, sizes)
        counts += component_counts(siou, ppv)
        sums += torch.tensor([float(siou.sum()), float(ppv.sum()), float(len(ppv))], dtype=torch.float64)
    return counts, sums
