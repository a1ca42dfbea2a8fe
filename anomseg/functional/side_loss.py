"""Deep supervision: one weighted cross-entropy over the side outputs of a network, from the finest to the coarsest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.sample import ANOMALY, IGNORE, check_mask

PAPER_SIDE_WEIGHTS = (1.0, 0.8, 0.8, 0.5, 0.5, 0.5)
"""Weights of six side outputs, finest first."""


def side_loss(
    side_logits: Sequence[Tensor],
    mask: Tensor,
    positive_weight: float = 1.0,
    negative_weight: float = 0.1,
    side_weights: Sequence[float] = PAPER_SIDE_WEIGHTS,
) -> Tensor:
    """Sum the weighted binary cross-entropies of the side outputs against the mask at their resolution.

    The mask is halved to a coarser output by keeping every second row and column (nearest), so that a target that lies between them
    is not seen there. Pixels that a coarse output keeps with mask 255 touch neither its loss nor its gradient, whatever their logit,
    NaN included. An output is averaged over its counted pixels, not over their weights: with 0.1 on the background the loss of a mask
    without anomalies is a tenth of the plain one. Without a counted pixel an output adds 0 with zero (not absent) gradients.

    Args:
        side_logits: (B, 1, h, w) logits each (no sigmoid applied), higher is more anomalous, finest first; h and w are H and W divided
            by a power of two and rounded up.
        mask: (B, H, W) integers, 0 normal, 1 anomaly, 255 ignored.
        positive_weight: weight of an anomalous pixel, >= 0.
        negative_weight: weight of a normal pixel, >= 0.
        side_weights: one weight >= 0 for every output, finest first; 0.0 leaves an output out.

    Returns:
        () float32 (float64 for float64 logits) in nats, >= 0.

    Raises:
        ValueError: no output, not one weight each, a negative weight, a wrong shape or mask value, or an output whose size no halving
            of the mask gives.

    Source:
        Li et al., "One-Step Detection Paradigm for Hyperspectral Anomaly Detection via Spectral Deviation Relationship Learning",
        IEEE TGRS 2024, arXiv 2303.12342: its weights are the defaults. Ignored pixels are ours.
    """
    _check(side_logits, mask, (positive_weight, negative_weight, *side_weights), len(side_weights))
    losses = []
    for logits, weight in zip(side_logits, side_weights, strict=True):
        target = _halved_to(mask, (logits.shape[-2], logits.shape[-1]))
        counted = (target != IGNORE) & (weight > 0)
        values = logits[:, 0][counted]  # gathered, not multiplied by 0: a NaN outside stays outside
        values = values if values.dtype == torch.float64 else values.float()
        anomalous = (target[counted] == ANOMALY).to(values)
        pixel_weight = negative_weight + (positive_weight - negative_weight) * anomalous
        total = (pixel_weight * F.binary_cross_entropy_with_logits(values, anomalous, reduction="none")).sum()
        losses.append(weight * total / max(values.numel(), 1))
    return torch.stack(losses).sum()


def _halved_to(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep every second row and column of (B, H, W) until its size is (h, w)."""
    target = mask
    while target.shape[1:] != size:
        if max(target.shape[1:]) <= 1:
            raise ValueError(
                f"Expected side outputs of {tuple(mask.shape[1:])} pixels, halved and rounded up any number of times, but got {size}. "
                "Crop the outputs to the part that covers the mask."
            )
        target = target[:, ::2, ::2]
    return target


def _check(side_logits: Sequence[Tensor], mask: Tensor, weights: tuple[float, ...], count: int) -> None:
    if not side_logits or len(side_logits) != count:
        raise ValueError(f"Expected one side weight for every output, but got {count} for {len(side_logits)}. Pass side_weights.")
    if not all(weight >= 0 for weight in weights):
        raise ValueError(f"Expected weights >= 0, but got {weights}. A weight of 0.0 leaves a class or an output out.")
    for logits in side_logits:
        if logits.ndim != 4 or mask.ndim != 3 or logits.shape[:2] != (len(mask), 1):
            came = f"{tuple(logits.shape)} and {tuple(mask.shape)}"
            raise ValueError(f"Expected side outputs (B, 1, h, w) and a mask (B, H, W), but got {came}. Add or drop a channel axis.")
    check_mask(mask)
