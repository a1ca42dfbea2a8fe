"""Scores of pixel descriptors against the sphere, or the normal distribution, of the normal ones.

All scores follow one direction, **higher is more anomalous**, are finite, and are 0.0 where a descriptor holds NaN or infinity.

Whether anomalies lie farther from the centre than normal pixels, or nearer to it, depends on the data: a class that is plainer than its
surroundings lies on a shell, and what is not of it may fall inside. `dist` and `mahalanobis` miss those, `abs` finds both where R is the
radius of the shell, and `two_sided_score` finds both from held-out normal pixels, without a radius. It spends half of its false alarms
on each side, and therefore loses to the right one-sided score where there is one.

Glossary: z descriptor, d = ‖z − c‖² its squared distance from the centre c, R radius, μ and Σ* mean and shrunk covariance of normal
descriptors, F share of held-out normal distances at or below one.

Source: Li et al., AAAI 2023, arXiv 2301.13422 (`mahalanobis`); the others are those of its first version. The two-sided score is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.functional.ledoit_wolf import FourthMoments, ledoit_wolf
from anomseg.functional.rx import mahalanobis
from anomseg.functional.score_histogram import ScoreCounts, key_to_score, score_to_key
from anomseg.functional.svdd import squared_distance
from anomseg.sample import finite_pixels

DescriptorScore = Literal["dist", "dist_r2", "abs", "abs_inner_half", "recenter", "mahalanobis"]


@dataclass(frozen=True)
class NormalDescriptors:
    """What is known of normal descriptors after training.

    Attributes:
        centre: (D,) c, that of the losses.
        radius: () R >= 0, in units of the descriptors.
        mean: (D,) μ of the normal descriptors of the training set, which the centre need not be.
        precision: (D, D) inverse covariance of the normal descriptors, in inverse squared units of the descriptors.
    """

    centre: Tensor
    radius: Tensor
    mean: Tensor
    precision: Tensor

    @classmethod
    def of(cls, centre: Tensor, radius: Tensor | float, moments: FourthMoments) -> NormalDescriptors:
        """Fit mean and precision by Ledoit-Wolf shrinkage.

        Args:
            centre: (D,).
            radius: () >= 0.
            moments: of at least 2 normal descriptors of the training set.

        Raises:
            ValueError: fewer than 2 descriptors were counted.
        """
        return cls(centre, torch.as_tensor(radius), moments.mean, ledoit_wolf(moments).precision())


def _inner_half(d: Tensor, square: Tensor) -> Tensor:
    return (d - square).abs() * torch.where(d < square, 0.5, 1.0)


_SPHERE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dist": lambda d, square: d,
    "dist_r2": lambda d, square: d - square,
    "abs": lambda d, square: (d - square).abs(),
    "abs_inner_half": _inner_half,
}


@torch.no_grad()
def descriptor_score(descriptors: Tensor, normal: NormalDescriptors, rule: DescriptorScore = "mahalanobis") -> Tensor:
    """Score every pixel by its descriptor.

    Args:
        descriptors: (B, D, H, W) z.
        normal: sphere and distribution of the normal descriptors.
        rule: `dist` is d; `dist_r2` is d − R², the same order with 0 on the sphere; `abs` is |d − R²|; `abs_inner_half` halves it inside,
            where normal pixels are dense; `recenter` is ‖z − μ‖²; `mahalanobis` is √((z − μ)ᵀ Σ*⁻¹ (z − μ)).

    Returns:
        (B, H, W) float32: squared units of the descriptors, `mahalanobis` without unit. >= 0, except >= −R² for `dist_r2`.

    Raises:
        ValueError: ``rule`` is none of these, or the shapes do not fit each other.
    """
    if rule not in get_args(DescriptorScore):
        raise ValueError(f"Expected a rule of {get_args(DescriptorScore)}, but got {rule!r}.")
    if rule == "mahalanobis":
        return mahalanobis(descriptors, normal.mean, normal.precision).sqrt()
    if rule == "recenter":
        score = squared_distance(descriptors, normal.mean)
    else:
        score = _SPHERE[rule](squared_distance(descriptors, normal.centre), normal.radius.float().square())
    return torch.where(finite_pixels(descriptors), score.float(), 0.0)


@torch.no_grad()
def two_sided_score(distance: Tensor, counts: ScoreCounts) -> Tensor:
    """Score by how rarely a held-out normal pixel lies as near **or** as far: −log(2 min(p_near, p_far)).

    Of n held-out distances let k_near be those at or below d and k_far those at or above it. The tails p = (k + 1) / (n + 2) are never 0,
    and on exact counts p_near is the mean of a Beta posterior under a flat prior. 2 min(p) is cut at 1. Beyond the lowest and the highest
    held-out distance the p-value cannot fall any more; there log(1 + gap / range) is added, which keeps the order of what lies outside.

    Args:
        distance: any shape, distances or another one-dimensional score, higher or lower being anomalous.
        counts: counted distances of **held-out** normal pixels; those of training are too near. Within a cell wider than one value, a
            distance takes the larger p of both sides.

    Returns:
        float32 of the same shape, >= 0: 0 at the median, log((n + 2) / 2) at both ends, and beyond them more. 0.0 where the distance is NaN
        or infinite.

    Raises:
        ValueError: nothing was counted.
    """
    held = counts.normal > 0
    normal, lower, width = counts.normal[held], counts.lower[held], counts.width[held]
    if not len(normal):
        raise ValueError("Expected counted distances of normal pixels, but got none. Hold out normal pixels, such as validation blocks.")
    finite = torch.isfinite(distance)
    value = torch.where(finite, distance, 0.0).float()
    key = score_to_key(value.contiguous()).long()
    above = torch.searchsorted(lower, key, right=True)  # cells that begin at or below
    cell = (above - 1).clamp_min(0)
    inside = (above > 0) & (key < lower[cell] + width[cell])
    cumulated = torch.nn.functional.pad(normal.cumsum(0), (1, 0))
    total = cumulated[-1].double()
    near = (cumulated[above] + 1) / (total + 2)
    far = (total - cumulated[above - inside.long()] + 1) / (total + 2)
    surprise = -(2 * torch.minimum(near, far)).clamp_max(1.0).log()
    return torch.where(finite, surprise + _beyond(value.double(), counts, held), 0.0).float()


def _beyond(value: Tensor, counts: ScoreCounts, held: Tensor) -> Tensor:
    """Measure how far values lie outside the counted range: log(1 + gap / range), 0 inside."""
    low = key_to_score(counts.lower[held][0]).double()
    high = key_to_score((counts.lower + counts.width)[held][-1] - 1).double()
    gap = torch.maximum(low - value, value - high).clamp_min(0.0)
    return torch.log1p(gap / (high - low).clamp_min(torch.finfo(torch.float32).tiny))
