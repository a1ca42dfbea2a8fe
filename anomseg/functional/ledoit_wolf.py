"""Ledoit-Wolf shrinkage of a covariance from moments that are gathered in one pass and merge exactly.

With deviations y from the mean μ of n pixels, S = Σ y yᵀ / n and m = tr S / D, the covariance is drawn towards the sphere m I:

    Σ* = (1 − λ) S + λ m I,    λ = min(1, β / δ),    β = (Σ ‖y‖⁴ / n − ‖S‖²) / (D n),    δ = (‖S‖² − D m²) / D,

‖·‖ of a matrix being Frobenius'. The fourth moment Σ ‖y‖⁴ is about the mean of *all* pixels, which is not known while they pass. With the
third moment t = Σ ‖y‖² y beside it, both can be moved to another mean: for y → y + e, by expansion and Σ y = 0,

    t        → t + (tr M I + 2 M) e + n ‖e‖² e,                                        M = Σ y yᵀ
    Σ ‖y‖⁴   → Σ ‖y‖⁴ + 4 tᵀe + 4 eᵀM e + 2 tr M ‖e‖² + n ‖e‖⁴

Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", J. Multivar. Anal. 88(2), 2004, as in
``sklearn.covariance.ledoit_wolf``; the merge is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.rx import BackgroundStatistics, merge_statistics, pixel_statistics


@dataclass(frozen=True)
class FourthMoments:
    """Moments of a set of pixels about their mean that merge exactly over batches and ranks; u is the unit of the pixels.

    Attributes:
        count: () float64, n pixels.
        mean: (D,) float64 μ, in u.
        scatter: (D, D) float64 M = Σ y yᵀ, in u².
        third: (D,) float64 Σ ‖y‖² y, in u³.
        fourth: () float64 Σ ‖y‖⁴, in u⁴.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    third: Tensor
    fourth: Tensor

    def second(self) -> BackgroundStatistics:
        """Give the moments up to the second, which `covariance` of RX takes."""
        return BackgroundStatistics(self.count, self.mean, self.scatter)


@dataclass(frozen=True)
class ShrunkCovariance:
    """A covariance drawn towards a sphere.

    Attributes:
        covariance: (D, D) float64 Σ*, about n (not n − 1) pixels.
        shrinkage: () float64 λ in [0, 1].
    """

    covariance: Tensor
    shrinkage: Tensor

    def precision(self) -> Tensor:
        """Invert the covariance: (D, D) float64; the pseudo-inverse where it is singular, which needs λ = 0 or equal pixels."""
        inverse: Tensor = torch.linalg.pinv(self.covariance, hermitian=True)
        return inverse


def fourth_moments(pixels: Tensor) -> FourthMoments:
    """Take the moments of pixels in float64.

    Args:
        pixels: (N, D) finite; N = 0 gives the neutral element of `merge_moments`.

    Raises:
        ValueError: ``pixels`` is not two-dimensional.
    """
    second = pixel_statistics(pixels)
    deviation = pixels.double() - second.mean
    square = deviation.square().sum(1)
    return FourthMoments(second.count, second.mean, second.scatter, deviation.T @ square, square @ square)


def merge_moments(a: FourthMoments, b: FourthMoments) -> FourthMoments:
    """Join the moments of two disjoint sets of pixels: the result is that of their union, up to rounding."""
    joined = merge_statistics(a.second(), b.second())
    moved = [_about(part, joined.mean) for part in (a, b)]
    third, fourth = (x + y for x, y in zip(*moved, strict=True))
    return FourthMoments(joined.count, joined.mean, joined.scatter, third, fourth)


def _about(moments: FourthMoments, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Move the third and the fourth moment to another mean; see the module."""
    e = moments.mean - mean
    square, trace, push = e @ e, moments.scatter.trace(), moments.scatter @ e
    third = moments.third + trace * e + 2 * push + moments.count * square * e
    fourth = moments.fourth + 4 * moments.third @ e + 4 * e @ push + 2 * trace * square + moments.count * square.square()
    return third, fourth


def ledoit_wolf(moments: FourthMoments) -> ShrunkCovariance:
    """Shrink the covariance by the weight that minimises the expected squared error.

    Args:
        moments: of at least 2 pixels.

    Raises:
        ValueError: fewer than 2 pixels were counted.
    """
    if float(moments.count) < 2:
        raise ValueError(f"Expected moments of at least 2 pixels, but got {int(moments.count)}. Check the masks of normal pixels.")
    empirical = moments.scatter / moments.count
    size = len(empirical)
    level = empirical.trace() / size
    norm = empirical.square().sum()
    noise = (moments.fourth / moments.count - norm) / (size * moments.count)
    distance = (norm - size * level.square()) / size
    # Equal variances without any correlation are the sphere already, and rounding may make the distance from it negative.
    weight = torch.where(distance > 0, noise.clamp_min(0.0) / distance, 0.0).clamp_max(1.0)
    sphere = level * torch.eye(size, dtype=torch.float64, device=empirical.device)
    return ShrunkCovariance((1 - weight) * empirical + weight * sphere, weight)
