"""Figures of pixel descriptors: where their centre lies, and whether they have collapsed.

Pixels that are not valid are never read: whatever their descriptor holds, NaN and infinity included, no figure changes.

Glossary: z descriptor, c centre, λ eigenvalues of the covariance, p = λ / Σ λ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.functional.ledoit_wolf import FourthMoments, fourth_moments


def valid_pixels(descriptors: Tensor, valid: Tensor) -> list[Tensor]:
    """Gather the valid pixels of each image, with gradients, which are exactly 0 at all others.

    Args:
        descriptors: (B, D, H, W).
        valid: (B, H, W) bool, True for the pixels that count.

    Returns:
        B tensors (D, N), at least float32, in the order of the image; N = 0 where nothing is valid.

    Raises:
        ValueError: a shape is not as above.
    """
    if descriptors.ndim != 4 or valid.shape != (len(descriptors), *descriptors.shape[2:]) or valid.dtype != torch.bool:
        came = f"{tuple(descriptors.shape)} and {tuple(valid.shape)} {valid.dtype}"
        raise ValueError(f"Expected descriptors (B, D, H, W) and valid (B, H, W) bool, but got {came}. Pass a mask such as mask == 0.")
    dtype = torch.promote_types(descriptors.dtype, torch.float32)
    return [image[:, keep].to(dtype) for image, keep in zip(descriptors, valid, strict=True)]


@torch.no_grad()
def descriptor_moments(descriptors: Tensor, valid: Tensor) -> FourthMoments:
    """Gather the moments of the valid descriptors of a batch; join batches and ranks with `merge_moments`.

    Args:
        descriptors: (B, D, H, W).
        valid: (B, H, W) bool, True for the pixels that count.

    Returns:
        Moments in float64: their mean is the mean normal descriptor, `covariance` and `ledoit_wolf` take the rest.

    Raises:
        ValueError: a shape is not as above.
    """
    return fourth_moments(torch.cat(valid_pixels(descriptors, valid), dim=1).T)


@torch.no_grad()
def image_means(descriptors: Tensor, valid: Tensor) -> Tensor:
    """Average the valid descriptors of each image. Their mean over a training set is a centre in which every image weighs the same.

    Args:
        descriptors: (B, D, H, W).
        valid: (B, H, W) bool, True for the pixels that count.

    Returns:
        (M, D) float64, one row for each image that has a valid pixel.

    Raises:
        ValueError: a shape is not as above.

    Source:
        Li et al., AAAI 2023, arXiv 2301.13422, whose centre takes all pixels, those of other classes included.
    """
    means = [pixels.double().mean(1) for pixels in valid_pixels(descriptors, valid) if pixels.numel()]
    return torch.stack(means) if means else descriptors.new_empty(0, descriptors.shape[1], dtype=torch.float64)


def push_from_zero(centre: Tensor, epsilon: float = 0.1) -> Tensor:
    """Move entries nearer to 0 than epsilon to -epsilon or epsilon: a centre at 0 is reached by a network whose weights are all 0.

    Args:
        centre: (D,).
        epsilon: smallest distance from 0, >= 0; 0 changes nothing.

    Returns:
        (D,); an entry that is exactly 0 becomes +epsilon.

    Source:
        Ruff et al., "Deep One-Class Classification", ICML 2018, in its public implementation.
    """
    return torch.where(centre < 0, centre.clamp_max(-epsilon), centre.clamp_min(epsilon))


def spread(covariance: Tensor) -> Tensor:
    """Compute the standard deviation of the descriptors, as root mean square over channels: √(tr Σ / D).

    Args:
        covariance: (D, D) of the valid descriptors.

    Returns:
        () >= 0 in units of the descriptors; near 0 when they have collapsed onto a point.
    """
    return (covariance.trace() / len(covariance)).clamp_min(0.0).sqrt()


def effective_rank(covariance: Tensor) -> Tensor:
    """Count the directions in which the descriptors vary: exp(−Σ p log p) over the normalised eigenvalues of the covariance.

    Args:
        covariance: (D, D) of the valid descriptors.

    Returns:
        () float64 in [1, D]: 1 on a line, D for equal variances in all directions. 0 where all descriptors are equal.

    Source:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, for eigenvalues of the covariance.
    """
    values: Tensor = torch.linalg.eigvalsh(covariance.double()).clamp_min(0.0)
    total = values.sum()
    if not bool(total > 0):
        return total
    entropy: Tensor = torch.special.entr(values / total).sum()
    return entropy.exp()
