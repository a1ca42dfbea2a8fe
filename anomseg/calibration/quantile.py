"""Calibrations that read quantiles of the normal scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.functional.score_curves import normal_quantile
from anomseg.functional.score_histogram import ScoreCounts

AT_LOW, AT_HIGH = 0.1, 0.5


class QuantileCalibration(Calibration):
    """Map two quantiles of the normal scores to fixed heat values, linearly between them.

    With soft tails the lower quantile becomes 0.1 and the higher one 0.5; beyond them the map bends smoothly towards 0 and 1 and stays
    strictly increasing, so no two scores are merged. With clipped tails they become 0 and 1, and everything outside is cut off.

    Args:
        low: quantile level of the lower anchor, in [0, 1).
        high: quantile level of the higher anchor, in (low, 1].
        tails: `soft` or `clip`.

    Source: the two-quantile scaling of Batzner et al., "EfficientAD", WACV 2024 (0.9 and 0.995 there, unbounded; here it ends in [0, 1]).
    """

    def __init__(self, low: float = 0.9, high: float = 0.995, tails: Literal["soft", "clip"] = "soft") -> None:
        super().__init__()
        if not 0 <= low < high <= 1:
            raise ValueError(f"Expected 0 <= low < high <= 1, but got low={low}, high={high}. Give quantile levels, not percentages.")
        if tails not in ("soft", "clip"):
            raise ValueError(f"Expected tails to be 'soft' or 'clip', but got {tails!r}.")
        self.low, self.high, self.tails = low, high, tails
        self.register_buffer("anchors", torch.full((2,), float("nan")))
        self.anchors: Tensor

    def _fit(self, counts: ScoreCounts) -> None:
        anchors = normal_quantile(counts, torch.tensor([self.low, self.high], dtype=torch.float64, device=counts.normal.device))
        smallest = (torch.finfo(torch.float32).eps * anchors.abs().max()).clamp_min(torch.finfo(torch.float32).tiny)
        anchors[1] = torch.maximum(anchors[1], anchors[0] + 2 * smallest)  # a constant map still needs a slope
        self.anchors.copy_(anchors)

    def _apply_map(self, score: Tensor) -> Tensor:
        unit = (score - self.anchors[0]) / (self.anchors[1] - self.anchors[0])
        if self.tails == "clip":
            return unit.clamp(0.0, 1.0)
        rise = AT_HIGH - AT_LOW
        middle = AT_LOW + rise * unit.clamp(0.0, 1.0)
        below = AT_LOW / (1 + rise / AT_LOW * (-unit).clamp_min(0.0))
        above = 1 - (1 - AT_HIGH) / (1 + rise / (1 - AT_HIGH) * (unit - 1).clamp_min(0.0))
        return torch.where(unit < 0, below, torch.where(unit > 1, above, middle))


class RankCalibration(Calibration):
    """Map a score to the share of normal validation pixels below it.

    A heat of 0.99 says that 99 % of the normal pixels scored lower. Between 4,096 stored quantiles, which grow denser towards 1, the map is
    linear. Above the highest normal score it rises on towards 1 instead of stopping, so that anomalies keep their order.

    Args:
        knots: number of stored quantiles, at least 16.
    """

    def __init__(self, knots: int = 4096) -> None:
        super().__init__()
        if knots < 16:
            raise ValueError(f"Expected knots >= 16, but got {knots}. The default of 4096 costs 32 kB.")
        self.knots = knots
        self.register_buffer("scores", torch.full((knots,), float("nan")))
        self.register_buffer("shares", torch.full((knots,), float("nan")))
        self.scores: Tensor
        self.shares: Tensor

    def _fit(self, counts: ScoreCounts) -> None:
        total = counts.normal.sum()
        half = self.knots // 2
        linear = torch.linspace(0, 1, self.knots - half + 1, dtype=torch.float64)[:-1]
        tail = 1 - torch.logspace(-1, -math.log10(max(float(total), 20.0)), half, dtype=torch.float64)
        tail[-1] = 1.0  # the highest normal score
        levels = torch.cat([linear, tail]).sort().values
        scores = normal_quantile(counts, levels.to(total.device))
        before = torch.cat([counts.normal.new_zeros(1), counts.normal.cumsum(0)])
        below = before[torch.searchsorted(counts.thresholds(), scores)]
        self.scores.copy_(scores)
        self.shares.copy_(below.double() / total)

    def _apply_map(self, score: Tensor) -> Tensor:
        right = torch.searchsorted(self.scores, score.contiguous()).clamp(1, self.knots - 1)
        left = right - 1
        s0, s1, p0, p1 = self.scores[left], self.scores[right], self.shares[left], self.shares[right]
        part = ((score - s0) / (s1 - s0).clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
        inside = torch.minimum(p0 + part * (p1 - p0), p1)  # rounding must not lift it above the next knot
        top, spread = self.scores[-1], (self.scores[-1] - self.scores[0]).clamp_min(torch.finfo(torch.float32).tiny)
        room = 1 - self.shares[-1]
        beyond = (1 - room / (1 + (score - top).clamp_min(0.0) / spread)).clamp_min(self.shares[-1])
        return torch.where(score > top, beyond, inside)
