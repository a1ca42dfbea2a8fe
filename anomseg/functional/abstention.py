"""Abstention: a net may put off its answer at a price that the energy of the pixel sets.

Glossary: K inlier classes and one more output, abstain; p softmax over all K + 1; a penalty > 0; y true class.

The probability of a class becomes q_c = p_c + p_abstain / a, and an inlier costs -ln q_y. An outlier has no class; it costs the mean of
-ln q_c over all K, which asks for a uniform answer. Where energies are low a = E² is large and abstaining is useless.

As published the penalty takes part in the gradient and nothing bounds it, so a small net lowers its energies towards 0, where p_abstain / a
explains everything: it collapses. `energy_penalty` therefore detaches and bounds it unless told otherwise.

Source: Liu et al., "Deep gamblers", NeurIPS 2019; Tian et al., ECCV 2022. In log space here, which needs no clamp but a floor of ln 1e-7
that the published code has on outliers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.functional.energy import free_energy, mean_over
from anomseg.sample import IGNORE

FLOOR = math.log(1e-7)


def energy_penalty(energy: Tensor, floor: float = 1.0, *, detach: bool = True) -> Tensor:
    """Make the penalty: squared energy, blurred by a Gaussian of σ = 1 over 7 x 7 pixels (mirrored edges), at least the floor.

    Args:
        energy: (B, H, W); sides of at least 4 pixels.
        floor: smallest penalty; 0 and ``detach=False`` are the published choice.
        detach: keep gradients of the loss from flowing into the energy through the penalty.

    Returns:
        (B, H, W), no unit.

    Raises:
        ValueError: a negative floor, or an image too small for the blur.
    """
    if floor < 0 or energy.ndim != 3 or min(energy.shape[-2:]) < 4:
        raise ValueError(
            f"Expected energy (B, H, W) with sides of at least 4 pixels and floor >= 0, but got {tuple(energy.shape)} and {floor}."
        )
    place = torch.arange(-3.0, 4.0, dtype=torch.float64)
    kernel = torch.exp(-place.square() / 2)
    weights = (kernel / kernel.sum()).tolist()
    blurred = F.pad((energy.detach() if detach else energy).square()[:, None], (3, 3, 3, 3), mode="reflect")[:, 0]
    for dim in (1, 2):  # sums of shifted maps: a convolution of one channel takes several times as long
        size = blurred.shape[dim] - 6
        total = weights[0] * blurred.narrow(dim, 0, size)
        for shift, weight in enumerate(weights[1:], 1):
            total = torch.add(total, blurred.narrow(dim, shift, size), alpha=weight)
        blurred = total
    return blurred.clamp_min(floor) if floor else blurred


def abstention_log_probability(logits: Tensor, penalty: Tensor) -> Tensor:
    """Compute ln q_c = ln(p_c + p_abstain / a).

    Args:
        logits: (B, K + 1, H, W), the last one to abstain.
        penalty: (B, H, W), a > 0.

    Returns:
        (B, K, H, W) in float32 at least.

    Raises:
        ValueError: shapes that do not fit, or no class beside the abstention.
    """
    _check_outputs(logits, penalty)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return torch.logaddexp(log_p[:, :-1], log_p[:, -1:] - penalty[:, None].to(log_p.dtype).log())


def abstention_loss(
    logits: Tensor, penalty: Tensor, label: Tensor, outlier: Tensor, outlier_weight: float = 0.1, energy: Tensor | None = None
) -> Tensor:
    """Compute the loss of a batch in which clean images and images with outliers are mixed.

    Mean of -ln q_y over the inlier pixels of images without outliers, plus the same over those of images with outliers, plus
    ``outlier_weight`` times the mean of -ln q_c over outliers and classes. A part without pixels is left out. Only q of the true class is
    computed for inliers, and all q for outliers alone.

    Args:
        logits: (B, K + 1, H, W), the last one to abstain.
        penalty: (B, H, W); see `energy_penalty`.
        label: (B, H, W) class 0 to K - 1, or 255 for void; not looked at where there is an outlier.
        outlier: (B, H, W) bool.
        outlier_weight: at least 0.
        energy: (B, H, W) free energy of the K classes, in float32 at least, where it is at hand; None computes it.

    Returns:
        () loss; void pixels have no gradient.

    Raises:
        ValueError: shapes that do not fit, or a label that is no class; the message lists those found.
    """
    _check_outputs(logits, penalty)
    classes = logits.shape[1] - 1
    if label.shape != penalty.shape or outlier.shape != penalty.shape:
        raise ValueError(
            f"Expected label and outlier of shape {tuple(penalty.shape)}, but got {tuple(label.shape)} and {tuple(outlier.shape)}."
        )
    known = (label != IGNORE) & ~outlier
    wrong = known & ((label < 0) | (label >= classes))
    if bool(wrong.any()):
        found = torch.unique(label[wrong])[:8].tolist()
        raise ValueError(f"Expected labels 0 to {classes - 1}, or 255 for void, but got {found}. Map ids to classes first.")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    energy = free_energy(wide[:, :-1]) if energy is None else energy
    true, abstain = wide.gather(1, torch.where(known, label, 0)[:, None])[:, 0], wide[:, -1]
    paid = abstain - penalty.to(wide.dtype).log()
    cost = F.softplus(abstain + energy) - energy - F.softplus(paid - true) - true  # ln(e^u + e^v) = u + softplus(v - u)
    rows = wide.movedim(1, -1)[outlier][..., None, None]
    uniform = -abstention_log_probability(rows, penalty[outlier][:, None, None]).clamp_min(FLOOR).mean(1)
    mixed = outlier.flatten(1).any(1)[:, None, None]
    # An empty part adds 0 with a gradient of 0: the mean of nothing would be NaN.
    parts = [mean_over(cost, chosen) for chosen in (known & ~mixed, known & mixed)]
    return parts[0] + parts[1] + outlier_weight * uniform.sum() / outlier.sum().clamp_min(1)


def _check_outputs(logits: Tensor, penalty: Tensor) -> None:
    if logits.ndim != 4 or logits.shape[1] < 2 or penalty.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"Expected logits (B, K + 1, H, W) and penalty (B, H, W), but got {tuple(logits.shape)} and {tuple(penalty.shape)}. "
            "Give the head one output more than there are classes."
        )
