"""One Gaussian for each bin of pixels, such as bins of the distance to the border, with moments that merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BinnedMoments:
    """Hold what the Gaussians of K bins of D features are made of.

    Attributes:
        count: (K,) float64 pixels.
        total: (K, D) float64 sums.
        square: (K, D, D) float64 sums of outer products.
    """

    count: Tensor
    total: Tensor
    square: Tensor


@torch.no_grad()
def binned_moments(features: Tensor, bins: Tensor, valid: Tensor, count: int) -> BinnedMoments:
    """Sum up the features of each bin.

    Args:
        features: (B, D, H, W); values where `valid` is False play no part.
        bins: (H, W) int64 in [0, count).
        valid: (B, H, W) bool.
        count: bins.

    Returns:
        Moments on the processor. Features far from 0 lose digits: bring them near it first.
    """
    dimension = features.shape[1]
    moments = BinnedMoments(
        torch.zeros(count, dtype=torch.float64),
        torch.zeros(count, dimension, dtype=torch.float64),
        torch.zeros(count, dimension, dimension, dtype=torch.float64),
    )
    rows, place = features.movedim(1, -1)[valid].double(), bins.expand(valid.shape)[valid]
    order = place.argsort()
    sizes = torch.bincount(place, minlength=count).tolist()
    for index, part in enumerate(torch.split(rows[order], sizes)):  # K products of what lies in each bin: the pixels are visited once
        moments.count[index] = len(part)
        moments.total[index] = part.sum(0).cpu()
        moments.square[index] = (part.mT @ part).cpu()
    return moments


def merge_binned(a: BinnedMoments, b: BinnedMoments) -> BinnedMoments:
    """Join the moments of two sets of pixels."""
    return BinnedMoments(a.count + b.count, a.total + b.total, a.square + b.square)


def binned_gaussians(moments: BinnedMoments, pooled: float = 0.05, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Turn moments into means and precisions: the correlations of each bin are drawn towards those within all bins.

        C_k <- (1 - pooled) C_k + pooled S_k R S_k,  R the correlations of Σ_k n_k C_k,  S_k the standard deviations of bin k

    The variances of a bin stay its own: a share of the pooled *covariance*, which a rough rim dominates, would hide what is small beside
    the rim and large in the calm middle. A bin without a pixel, or with too few to tell anything else (at most D), takes the mean and
    covariance over all pixels.

    Args:
        moments: of K bins.
        pooled: weight of the pooled correlations, in (0, 1].
        ridge: added to the variances, relative to the mean variance of the bin.

    Returns:
        (K, D) float64 means and (K, D, D) float64 precisions.

    Raises:
        ValueError: there is no pixel at all, or an argument is out of its range.
    """
    if not moments.count.sum() > 0:
        raise ValueError("Expected pixels to fit Gaussians to, but got none. Are all pixels of the training data void or without data?")
    if not 0 < pooled <= 1 or ridge < 0:
        raise ValueError(f"Expected 0 < pooled <= 1 and ridge >= 0, but got {pooled} and {ridge}.")
    dimension = moments.total.shape[1]
    n = moments.count.clamp_min(1)
    mean = moments.total / n[:, None]
    scatter = moments.square - n[:, None, None] * mean[:, :, None] * mean[:, None]
    within = scatter.sum(0) / moments.count.sum()
    all_mean = moments.total.sum(0) / moments.count.sum()
    overall = moments.square.sum(0) / moments.count.sum() - all_mean[:, None] * all_mean
    few = moments.count <= dimension
    mean = torch.where(few[:, None], all_mean, mean)
    covariance = torch.where(few[:, None, None], overall, scatter / n[:, None, None])
    deviation = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    typical = within.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    correlation = within / (typical[:, None] * typical)
    covariance = (1 - pooled) * covariance + pooled * deviation[:, :, None] * correlation * deviation[:, None]
    level = deviation.square().mean(1) + torch.finfo(torch.float64).tiny
    covariance = covariance + (max(ridge, 1e-12) * level)[:, None, None] * torch.eye(dimension, dtype=torch.float64)
    return mean, torch.linalg.inv(covariance)


@torch.no_grad()
def binned_mahalanobis(features: Tensor, bins: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Compute the squared Mahalanobis distance of every pixel from the Gaussian of its bin.

    Args:
        features: (B, D, H, W), finite.
        bins: (H, W) int64 in [0, K).
        mean: (K, D).
        precision: (K, D, D).

    Returns:
        (B, H, W) float32, >= 0.
    """
    batch = features.shape[0]
    pixels = features.flatten(2).movedim(1, 2)
    flat = bins.flatten()
    order = flat.argsort()
    result = pixels.new_zeros(batch, len(flat))
    held, sizes = torch.unique_consecutive(flat[order], return_counts=True)
    for index, places in zip(held.tolist(), torch.split(order, sizes.tolist()), strict=True):  # a product for each bin of the image
        offset = pixels[:, places] - mean[index].to(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            result[:, places] = ((offset @ precision[index].to(pixels)) * offset).sum(-1)
    return result.clamp_min(0.0).view(batch, *bins.shape).float()
