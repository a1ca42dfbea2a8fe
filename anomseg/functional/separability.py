"""How far a map keeps anomalies apart from the background: exact percentiles of both, and the gap between them.

Every number is taken over the counted pixels, those of mask 0 and 1: what a map holds where the mask is 255 has no influence, NaN included.
Everything is sorted in memory (about 40 bytes a counted pixel), so the percentiles are exact; count larger scenes with `count_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.sample import ANOMALY, IGNORE, NORMAL, check_mask

Normalisation = Literal["min-max", "rank"]
"""How a map is brought to [0, 1]: (s - min) / (max - min), which follows the scores, or the same of -log10 of `share_at_or_above`, which
follows their order alone and spreads its top, where anomalies lie."""

BOX = (0.1, 0.9)
"""Quantiles that a box spans."""


@dataclass(frozen=True)
class ScoreBox:
    """Describe the normalised scores of one class; every value is in [0, 1], NaN where there is no such pixel or no contrast.

    Attributes:
        lowest: the lower whisker.
        lower: 10 % quantile, the lower end of the box.
        median: 50 % quantile.
        upper: 90 % quantile, the upper end of the box.
        highest: the upper whisker.
        pixels: how many there are.
    """

    lowest: float
    lower: float
    median: float
    upper: float
    highest: float
    pixels: int


@dataclass(frozen=True)
class Separability:
    """Hold the two boxes of one map.

    Attributes:
        background: of the normal pixels.
        anomaly: of the anomalous pixels.
    """

    background: ScoreBox
    anomaly: ScoreBox

    @property
    def gap(self) -> float:
        """Give Q10(anomaly) - Q90(background), in [-1, 1]: above 0 the boxes do not touch; NaN where a class or contrast is missing."""
        return self.anomaly.lower - self.background.upper


def separability(score: Tensor, mask: Tensor, normalisation: Normalisation = "min-max") -> Separability:
    """Normalise a map over its counted pixels and give the percentiles of its background and of its anomalies.

    With "min-max" one extreme pixel moves both boxes, and a map and its square differ: compare maps of one detector, or see how much room a
    fixed threshold has. With "rank" any increasing transform of the map gives the same boxes: compare detectors. A gap g then says that
    nine tenths of N counted pixels' anomalies are, in powers of ten, g · log10 N further up the map than nine tenths of the background.

    Args:
        score: (H, W) or any shape, finite where counted, no unit, higher is more anomalous.
        mask: same shape, integers: 0 normal, 1 anomaly, 255 ignored.
        normalisation: what brings the scores to [0, 1]; see `Normalisation`.

    Returns:
        The boxes. Quantiles interpolate linearly between the two nearest pixels.

    Raises:
        ValueError: the shapes differ, the mask holds other values, a counted score is not finite, or `normalisation` is none of these.

    Source: the separability maps of the hyperspectral detection literature, boxes of 10 to 90 %; the gap is their distance as a number.
    """
    if normalisation not in get_args(Normalisation):
        raise ValueError(f"Expected a normalisation of {get_args(Normalisation)}, but got {normalisation!r}.")
    counted = _counted(score, mask)
    values = score[counted].double()
    if normalisation == "rank":
        values = -_share_at_or_above(values).log10()
    truth = mask[counted]
    if values.numel():
        low, high = values.min(), values.max()
        values = (values - low) / (high - low)  # a map without contrast becomes NaN
    return Separability(_box(values[truth == NORMAL]), _box(values[truth == ANOMALY]))


def share_at_or_above(score: Tensor, mask: Tensor) -> Tensor:
    """Give for each counted pixel the share of the counted pixels that score at least as high, which no increasing transform changes.

    Thresholding it at 0.01 flags the highest percent. Equal scores get equal shares.

    Args:
        score: (H, W) or any shape, finite where counted, higher is more anomalous.
        mask: same shape, integers: 0 normal, 1 anomaly, 255 ignored.

    Returns:
        Same shape, float64 in (0, 1]; NaN where the mask is 255.

    Raises:
        ValueError: as `separability`.
    """
    counted = _counted(score, mask)
    share = torch.full(score.shape, torch.nan, dtype=torch.float64, device=score.device)
    share[counted] = _share_at_or_above(score[counted].double())
    return share


def _share_at_or_above(values: Tensor) -> Tensor:
    """Do so for (N,) values."""
    below = torch.searchsorted(values.sort().values, values, right=False)
    return (values.numel() - below).double() / max(1, values.numel())


def _counted(score: Tensor, mask: Tensor) -> Tensor:
    """Check the inputs and mark the pixels that count."""
    if score.shape != mask.shape:
        raise ValueError(
            f"Expected score and mask of one shape, but got {tuple(score.shape)} and {tuple(mask.shape)}. Drop batch and channel axes."
        )
    check_mask(mask.reshape(1, -1))
    counted = mask != IGNORE
    wrong = int((~torch.isfinite(score[counted])).sum())
    if wrong:
        raise ValueError(
            f"Expected finite scores where the mask is 0 or 1, but got {wrong} that are not. Set the mask to 255 where there is no data."
        )
    return counted


def _box(values: Tensor) -> ScoreBox:
    """Describe (N,) values in [0, 1]; torch.quantile refuses more than 16 million of them."""
    ordered = values.sort().values
    lowest, lower, median, upper, highest = (_quantile(ordered, share) for share in (0.0, BOX[0], 0.5, BOX[1], 1.0))
    return ScoreBox(lowest, lower, median, upper, highest, ordered.numel())


def _quantile(ordered: Tensor, share: float) -> float:
    """Read a quantile from (N,) ascending values, interpolated linearly at place (N - 1) · share."""
    if not ordered.numel():
        return float("nan")
    place = (ordered.numel() - 1) * share
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, ordered.numel() - 1)])
    return low + (place - below) * (high - low)
