"""Iteratively reweighted multivariate alteration detection (IR-MAD): change as what linear combinations of two dates do not share.

Find a_i, b_i such that U_i = a_iᵀ(x - μ_x) and V_i = b_iᵀ(y - μ_y) have unit variance and correlations ρ_i that are as large as can be,
one orthogonal to the other. The variates M_i = U_i - V_i have variance 2 (1 - ρ_i), and without change

    Z = Σ_i M_i² / (2 (1 - ρ_i))    is chi-square distributed with as many degrees of freedom as there are pairs.

Pixels then count by their chance of no change, Q(Z) = P(χ² > Z), and all is found anew, until ρ rests. Any invertible affine map of the
bands of either date (gain, offset, mixing of bands) leaves Z as it is: no radiometric normalisation is needed.

These weights favour small Z, so that variances under them are too small: where nothing changed, E[M_i² Q] / E[Q] is not 2 (1 - ρ_i) but

    c_k = E[Z Q(Z)] / (k E[Q(Z)]) = 2 P(χ²_{k+2} < χ²_k) = 1 - 2^{2-k} / (k Beta(k/2, k/2))

of it, .36, .5, .58 and .63 for k = 1 to 4 pairs; U_i + V_i, which is independent of M_i in normal data, keeps its variance. From the first
reweighting on, Z is therefore multiplied by c_k. It stays chi-square where nothing changed, and the weights rest instead of shrinking,
round by round, to the few pixels that fit best.

Source: Nielsen, Conradsen and Simpson, Remote Sens. Environ. 64, 1998 (MAD); Nielsen, IEEE TIP 16(2), 2007 (reweighting). c_k is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 16  # pixels that exist in float64 at once


@dataclass(frozen=True)
class AlterationMap:
    """Hold the result of IR-MAD.

    Attributes:
        distance: (H, W) float32 Z >= 0; NaN where there is no data.
        correlations: (k,) float64 ρ in [0, 1] under the last weights, descending; higher than over all pixels, as pixels that differ
            count less.
        rounds: reweightings that were done.
    """

    distance: Tensor
    correlations: Tensor
    rounds: int


@dataclass(frozen=True)
class _Transform:
    """Means (Cx,), (Cy,), combinations (Cx, k), (Cy, k) and correlations (k,), float64."""

    mean_x: Tensor
    mean_y: Tensor
    a: Tensor
    b: Tensor
    correlations: Tensor


@torch.no_grad()
def irmad(before: Tensor, after: Tensor, rounds: int = 50, tolerance: float = 1e-6, ridge: float = 0.0) -> AlterationMap:
    """Run IR-MAD on one pair of images, in float64, a chunk of pixels at a time.

    Args:
        before: (Cx, H, W), NaN where there is no data.
        after: (Cy, H, W), NaN where there is no data; its bands may be others than those of ``before``.
        rounds: reweightings at most, >= 0; 0 is plain MAD.
        tolerance: largest move of a correlation at which it rests.
        ridge: share of the mean variance added to the diagonals of both covariances, >= 0: helps with few pixels for many bands, and
            gives up exact invariance.

    Returns:
        See `AlterationMap`. Where either date is constant there are no pairs, and Z is 0.

    Raises:
        ValueError: shapes do not fit, an argument is out of range, or fewer than 2 pixels hold data at both dates.
    """
    if before.ndim != 3 or after.ndim != 3 or before.shape[1:] != after.shape[1:]:
        came = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise ValueError(f"Expected two dates (C, H, W) of one size, but got {came}. Register them onto one grid.")
    if rounds < 0 or tolerance < 0 or ridge < 0:
        raise ValueError(f"Expected rounds, tolerance and ridge >= 0, but got {rounds}, {tolerance} and {ridge}.")
    valid = torch.isfinite(before).all(0) & torch.isfinite(after).all(0)
    x, y = before[:, valid].T, after[:, valid].T
    if len(x) < 2:
        raise ValueError(f"Expected at least 2 pixels with data at both dates, but got {len(x)}. Check the overlap of the two images.")
    weight = torch.ones(len(x), dtype=torch.float64, device=x.device)
    origin = (_mean(x), _mean(y))
    transform = _canonical(x, y, weight, origin, ridge)
    z, done, resting = _distance(x, y, transform), 0, False
    while done < rounds and not resting:
        weight = _no_change(z, len(transform.correlations))
        renewed = _canonical(x, y, weight, origin, ridge)
        resting = _moved(renewed.correlations, transform.correlations) <= tolerance
        transform = renewed
        z = _distance(x, y, transform) * _shrinkage(len(transform.correlations))
        done += 1
    result = torch.full(valid.shape, torch.nan, device=x.device)
    result[valid] = z.float()
    return AlterationMap(result, transform.correlations, done)


def _moved(new: Tensor, old: Tensor) -> float:
    if new.shape != old.shape:
        return float("inf")
    return float((new - old).abs().max()) if new.numel() else 0.0


def _mean(x: Tensor) -> Tensor:
    total: Tensor = torch.stack([part.double().sum(0) for part in torch.split(x, CHUNK)]).sum(0) / len(x)
    return total


def _no_change(z: Tensor, freedom: int) -> Tensor:
    """Compute P(χ² > Z) with as many degrees of freedom; 1 where there are none."""
    if not freedom:
        return torch.ones_like(z)
    chance: Tensor = torch.special.gammaincc(torch.full_like(z, freedom / 2), z / 2)
    return chance


def _shrinkage(freedom: int) -> float:
    """Compute c_k, the share of a variance that is left under the weights Q; see the module."""
    if not freedom:
        return 1.0
    half = freedom / 2
    beta = math.exp(2 * math.lgamma(half) - math.lgamma(freedom))
    return 1 - 2.0 ** (2 - freedom) / (freedom * beta)


def _canonical(x: Tensor, y: Tensor, weight: Tensor, origin: tuple[Tensor, Tensor], ridge: float) -> _Transform:
    """Find the canonical correlations of weighted pixels (P, Cx) and (P, Cy); ``origin`` lies near the means, against rounding."""
    size = x.shape[1] + y.shape[1]
    first = torch.zeros(size, dtype=torch.float64, device=x.device)
    second = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    shift = torch.cat(origin)
    for px, py, w in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), torch.split(weight, CHUNK), strict=True):
        both = torch.cat([px, py], 1).double() - shift
        weighted = both * w[:, None]
        first += weighted.sum(0)
        second += weighted.T @ both
    total = weight.sum()
    mean = first / total
    covariance = second / total - torch.outer(mean, mean)
    bands = x.shape[1]
    white_x = _whitener(covariance[:bands, :bands], ridge)
    white_y = _whitener(covariance[bands:, bands:], ridge)
    left, rho, right = torch.linalg.svd(white_x.T @ covariance[:bands, bands:] @ white_y, full_matrices=False)
    mean = mean + shift
    return _Transform(mean[:bands], mean[bands:], white_x @ left, white_y @ right.T, rho.clamp(0.0, 1.0))


def _whitener(covariance: Tensor, ridge: float) -> Tensor:
    """Find W (C, r) with Wᵀ Σ W = 1, over the r directions that vary by more than rounding.

    Bands are brought to unit variance first, so that what counts as rounding does not depend on their units.
    """
    scale = covariance.diagonal().clamp_min(0.0).sqrt()
    inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)
    correlation = covariance * torch.outer(inverse, inverse)
    correlation = correlation + ridge * torch.diag((scale > 0).to(correlation))
    values, vectors = torch.linalg.eigh(correlation)
    kept = values > len(values) * 1e-12
    whitener: Tensor = inverse[:, None] * vectors[:, kept] * values[kept].rsqrt()
    return whitener


def _distance(x: Tensor, y: Tensor, transform: _Transform) -> Tensor:
    """Compute Z (P,) float64."""
    # Bands that are the same at both dates up to rounding have ρ = 1 and variates of rounding: they must not be blown up.
    variance = (2 * (1 - transform.correlations)).clamp_min(1e-9)
    parts = []
    for px, py in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        u = (px.double() - transform.mean_x) @ transform.a
        v = (py.double() - transform.mean_y) @ transform.b
        parts.append(((u - v).square() / variance).sum(1))
    return torch.cat(parts)
