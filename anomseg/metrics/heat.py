"""Figures of heat maps, read as probabilities of an anomaly; raw scores must not come here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anomseg.functional.reliability import reliability
from anomseg.metrics.pixel import warn_if_class_is_missing
from anomseg.metrics.score_state import ScoreState, one_thread


class PixelBCE(ScoreState):
    """Compute the binary cross-entropy between heat maps and truth over all counted pixels, in nats; see `reliability`.

    Raises:
        ValueError: in `compute`, where heat outside [0, 1] was counted.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Cross-entropy", ["normal"])
        return reliability(counts)["bce"]


class CalibrationError(ScoreState):
    """Compute the expected calibration error of heat maps, in [0, 1]; see `reliability`.

    Args:
        bins: of equal width.
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        ValueError: in `compute`, where heat outside [0, 1] was counted.
    """

    higher_is_better = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ValueError(f"Expected bins >= 1, but got {bins}.")
        self.bins = bins

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "The calibration error", ["normal"])
        return reliability(counts, bins=self.bins)["ece"]
