"""Region-level figures: every anomalous region counts the same, however large it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anomseg.functional import score_curves
from anomseg.functional.regions import region_weights
from anomseg.metrics.pixel import warn_if_class_is_missing
from anomseg.metrics.score_state import ScoreState, one_thread, select_pixels


class PerRegionOverlap(ScoreState):
    """Compute AUPRO: the mean share of each anomalous region that is found, integrated over false-positive rates up to a limit.

    Regions are 8-connected within a sample: tiles cut regions, so feed whole scenes where that matters.

    Args:
        limit: the highest false-positive rate, in (0, 1]; the area is divided by it.
        kwargs: passed to `torchmetrics.Metric`.

    Source: Bergmann et al., IJCV 2021.
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    region_weight: list[Tensor]

    def __init__(self, limit: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < limit <= 1:
            raise ValueError(f"Expected argument `limit` in (0, 1], but got {limit}. Give a share, not a percentage.")
        self.limit = limit
        self.add_state("region_weight", default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None) -> None:
        """Count a batch; arguments as `ScoreState.update`."""
        kept, found = select_pixels(score, mask, name)
        if found.numel():
            self.region_weight = [*self._weights(), region_weights(mask)]
        self._append(kept, found)

    def _weights(self) -> list[Tensor]:
        state = self.region_weight
        return ([state] if state.numel() else []) if isinstance(state, Tensor) else state

    def _forget_weights(self) -> None:
        self.region_weight = []

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64 in [0, 1], NaN with a warning where a class is missing."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "AUPRO")
        return score_curves.per_region_overlap(counts, self.limit)
