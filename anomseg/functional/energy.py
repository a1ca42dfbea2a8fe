"""Free energy of a closed-set segmentation net, and the terms that shape it where outliers are at hand.

Glossary: z logits of the K inlier classes, E = -T ln Σ_c exp(z_c / T) free energy in the units of z, m margin.

E is low where one of the classes fits and high where none does, so **E itself is the anomaly score**.

Source: Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020 (energy and hinge); Tian et al., "Pixel-wise energy-biased
abstention learning", ECCV 2022 (sparsity and smoothness). Smoothness is a mean here and a sum there, which grows with batch and crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.sample import ANOMALY, NORMAL


def free_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute -T ln Σ exp(z / T) in float32 at least.

    Args:
        logits: (B, K, H, W) of the inlier classes alone.
        temperature: T > 0.

    Returns:
        (B, H, W), higher is more anomalous, unbounded.

    Raises:
        ValueError: the temperature is not positive, or there is no class.
    """
    if temperature <= 0 or logits.ndim != 4 or logits.shape[1] < 1:
        raise ValueError(
            f"Expected logits (B, K, H, W) of one or more classes and temperature > 0, but got {tuple(logits.shape)} and {temperature}."
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -temperature * (wide / temperature).logsumexp(1)


def energy_hinge(energy: Tensor, mask: Tensor, inlier_margin: float = -12.0, outlier_margin: float = -6.0) -> Tensor:
    """Push the energy of inliers below one margin and that of outliers above another.

    mean over inliers of max(0, E - m_in)²; where there are outliers, half of that plus half the mean over outliers of max(0, m_out - E)².

    Args:
        energy: (B, H, W).
        mask: (B, H, W): 0 inlier, 1 outlier, 255 void, which takes no part.
        inlier_margin: m_in, in units of the logits; the default suits a WideResNet38, other nets want margins of their own.
        outlier_margin: m_out >= m_in.

    Returns:
        () loss >= 0, 0 where nothing counts.

    Raises:
        ValueError: the shapes differ, or the margins are the wrong way round.
    """
    if energy.shape != mask.shape or outlier_margin < inlier_margin:
        came = f"{tuple(energy.shape)}, {tuple(mask.shape)}, {inlier_margin} and {outlier_margin}"
        raise ValueError(f"Expected energy and mask of one shape and inlier_margin <= outlier_margin, but got {came}.")
    inside = mean_over((energy - inlier_margin).clamp_min(0.0).square(), mask == NORMAL)
    outside = mask == ANOMALY
    if not bool(outside.any()):
        return inside
    return 0.5 * (inside + mean_over((outlier_margin - energy).clamp_min(0.0).square(), outside))


def energy_sparsity(energy: Tensor, mask: Tensor) -> Tensor:
    """Compute the Euclidean norm of the outliers' energies, () >= 0, with a gradient of 0 where there are none or all are 0."""
    squares = torch.where(mask == ANOMALY, energy, 0.0).square().sum()
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0.0 * squares)


def energy_smoothness(energy: Tensor) -> Tensor:
    """Compute the mean over pixels of half the squared differences to the next pixel below and to the right; void pixels count too.

    Args:
        energy: (B, H, W).

    Returns:
        () >= 0 in squared units of the logits. The published weight of 3e-6 on the *sum* over 8 crops of 900 x 900 is one of 19.44 on this.
    """
    down, right = energy.diff(dim=1).square().sum(), energy.diff(dim=2).square().sum()
    return 0.5 * (down + right) / max(1, energy.numel())


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Average values over the chosen pixels, bool of the same shape: (); 0 with a gradient of 0 where there are none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
