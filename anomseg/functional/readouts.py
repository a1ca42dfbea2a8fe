"""Read an anomaly score out of the logits of a closed-set segmentation net, without further training.

Glossary: z logits of K classes, p their softmax, ŷ the class of the largest logit. All scores are higher where the pixel is more
anomalous, and are computed in float32 at least.

Source: Hendrycks and Gimpel, ICLR 2017 (largest probability); Hendrycks et al., ICML 2022 (largest logit); Chan, Rottmann and Gottschalk,
ICCV 2021 (entropy); Jung et al., "Standardized Max Logits", ICCV 2021. For the free energy see `anomseg.functional.energy`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _wide(logits: Tensor) -> Tensor:
    if logits.ndim != 4 or logits.shape[1] < 2:
        raise ValueError(f"Expected logits (B, K, H, W) of two or more classes, but got {tuple(logits.shape)}. Drop no class axis.")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def largest_probability(logits: Tensor) -> Tensor:
    """Compute 1 - max p: (B, H, W) in [0, 1 - 1/K] from logits (B, K, H, W)."""
    z = _wide(logits)
    return -torch.expm1(z.amax(1) - z.logsumexp(1))


def largest_logit(logits: Tensor) -> Tensor:
    """Compute -max z: (B, H, W), unbounded, from logits (B, K, H, W)."""
    return -_wide(logits).amax(1)


def softmax_entropy(logits: Tensor) -> Tensor:
    """Compute -Σ p ln p / ln K: (B, H, W) in [0, 1] from logits (B, K, H, W)."""
    log_p = _wide(logits).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) / math.log(log_p.shape[1])


def standardized_max_logit(logits: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute -(max z - μ_ŷ) / σ_ŷ with the statistics of the predicted class.

    Args:
        logits: (B, K, H, W).
        mean: (K,) mean of the largest logit over the training pixels that are predicted as a class.
        std: (K,) its standard deviation, > 0.

    Returns:
        (B, H, W), in standard deviations.

    Raises:
        ValueError: the statistics do not fit the classes.
    """
    z = _wide(logits)
    if mean.shape != (z.shape[1],) or std.shape != mean.shape or not bool((std > 0).all()):
        raise ValueError(f"Expected mean and std > 0 of {z.shape[1]} classes, but got {tuple(mean.shape)} and {tuple(std.shape)}.")
    top, predicted = z.max(1)
    return -(top - mean[predicted]) / std[predicted]
