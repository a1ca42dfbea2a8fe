"""Calibrations that read quantiles of the normal scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.functional.score_curves import normal_quantile
from anomseg.functional.score_histogram import ScoreCounts, key_to_score

AT_LOW, AT_HIGH = 0.1, 0.5
HAIR = 2.0**-21  # 8 steps of float32 below 1: enough to tell scores on either side of a step apart
LAST_ROOM = 1e-3  # the last heats, half of them at least for scores above every normal one
HIGHEST_KEY = 0x7F7FFFFF  # of the highest finite score


def _distance_beside(counts: ScoreCounts, score: Tensor) -> Tensor:
    """Give the mean distance of the normal scores above a score; where there are none, of those below; else the size of the score, or 1."""
    apart = counts.thresholds().double() - score.double()
    for side in (apart.clamp_min(0.0), (-apart).clamp_min(0.0)):
        pixels = (counts.normal * (side > 0)).sum()
        if bool(pixels > 0):
            return (counts.normal * side).sum() / pixels
    return torch.where(score == 0, 1.0, score.abs()).double()


class QuantileCalibration(Calibration):
    """Map two quantiles of the normal scores to fixed heat values, linearly between them.

    With soft tails the lower quantile becomes 0.1 and the higher one 0.5; beyond them the map bends smoothly towards 0 and 1 and rises on:
    scores are merged only where their heats round to one float32 (6e-8 apart below 1). So far above the anchors as a million times their
    distance, that is a tenth of the score; at a thousand times, a ten-thousandth. With clipped tails the quantiles become 0 and 1, and
    everything outside is cut off.

    Where most normal pixels share one score, both quantiles are that score, and say nothing of how far apart scores lie. It then is the
    lower anchor, and the higher one stands above it by the mean distance of the normal scores above it (of those below, where none is
    above; by its own size, or 1, where all are equal).

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
        self.register_buffer("anchors", torch.full((2,), float("nan"), dtype=torch.float32))
        self.anchors: Tensor

    def _fit(self, counts: ScoreCounts) -> None:
        anchors = normal_quantile(counts, torch.tensor([self.low, self.high], dtype=torch.float64, device=counts.normal.device))
        smallest = (torch.finfo(torch.float32).eps * anchors.abs().max()).clamp_min(torch.finfo(torch.float32).tiny)
        if bool(anchors[1] <= anchors[0] + 2 * smallest):
            anchors[1] = anchors[0] + _distance_beside(counts, anchors[0]).float()
            anchors[1] = torch.maximum(anchors[1], anchors[0] + 2 * smallest)
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

    A heat of 0.99 says that 99 % of the normal pixels scored lower. Between the stored quantiles, which grow denser towards 1, the map is
    linear; a score that many normal pixels share is a step, and in a gap without normal scores the map is all but flat. It rises there by
    a hair (at most 5e-7), so that no anomaly ties with a normal pixel that scored higher. Below the lowest normal score it falls on
    towards 0.

    Above the highest normal score it rises on towards 1 instead of stopping, so that anomalies keep their order. Heat is the share itself
    up to 0.999; the last thousandth of the normal pixels is squeezed into 0.999 to 0.9995, so that 0.9995 to 1, some 8,000 values of
    float32, are left for what scored above all of them, however many normal pixels there were. Where more than a thousandth of the normal
    pixels share the highest score, that room begins in the middle of their step, and at 0.999 at the lowest.

    Args:
        knots: number of stored quantiles, at least 16.
    """

    def __init__(self, knots: int = 4096) -> None:
        super().__init__()
        if knots < 16:
            raise ValueError(f"Expected knots >= 16, but got {knots}. The default of 4096 costs 64 kB.")
        self.knots = knots
        unknown = torch.full((2 * knots,), float("nan"), dtype=torch.float32)
        self.register_buffer("scores", unknown)  # of each knot: where it begins, and where it ends
        self.register_buffer("shares", unknown.clone())  # of normal pixels below the knot, and with it
        self.register_buffer("spread", torch.full((), float("nan"), dtype=torch.float32))
        self.scores: Tensor
        self.shares: Tensor
        self.spread: Tensor

    def _fit(self, counts: ScoreCounts) -> None:
        total = counts.normal.sum().double()
        begin = normal_quantile(counts, self._levels(float(total)).to(total.device))
        cell = torch.searchsorted(counts.thresholds(), begin)
        end = key_to_score((counts.lower + counts.width - 1).clamp_max(HIGHEST_KEY))[cell]  # a cell may span several scores
        mass, reached = counts.normal[cell] / total, counts.normal.cumsum(0)[cell] / total
        below, reached = (torch.minimum(share, (share + 1 - LAST_ROOM) / 2) for share in (reached - mass, reached))
        below += (mass / 2).clamp_max(HAIR)
        reached = torch.minimum(reached, 1 - (mass[-1] / 2).clamp_max(LAST_ROOM))
        again = begin == torch.cat([begin.new_full((1,), float("nan")), begin[:-1]])  # later knots of one cell are its end
        self.scores.copy_(torch.stack([torch.where(again, end, begin), end], 1).flatten())
        self.shares.copy_(torch.stack([torch.where(again, reached, below), reached], 1).flatten())
        span = end[-1].double() - begin[0].double()
        self.spread.copy_(span if bool(span > 0) else _distance_beside(counts, begin[0]))

    def _levels(self, total: float) -> Tensor:
        half = self.knots // 2
        linear = torch.linspace(0, 1, self.knots - half + 1, dtype=torch.float64)[:-1]
        tail = 1 - torch.logspace(-1, -math.log10(max(total, 20.0)), half, dtype=torch.float64)
        tail[-1] = 1.0  # the highest normal score
        return torch.cat([linear, tail]).sort().values

    def _apply_map(self, score: Tensor) -> Tensor:
        right = torch.searchsorted(self.scores, score.contiguous()).clamp(1, len(self.scores) - 1)
        left = right - 1
        s0, s1, p0, p1 = self.scores[left], self.scores[right], self.shares[left], self.shares[right]
        part = ((score - s0) / (s1 - s0).clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
        inside = torch.minimum(p0 + part * (p1 - p0), p1)  # rounding must not lift it above the next knot
        bottom, top, room = self.scores[0], self.scores[-1], 1 - self.shares[-1]
        under = self.shares[0] / (1 + (bottom - score).clamp_min(0.0) / self.spread)
        beyond = (1 - room / (1 + (score - top).clamp_min(0.0) / self.spread)).clamp_min(self.shares[-1])
        return torch.where(score > top, beyond, torch.where(score < bottom, under, inside))
