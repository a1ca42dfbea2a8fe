"""Losses of a binary map that survive a rare class: focal, Lovász hinge and Dice.

All take **logits, higher is more anomalous**, and a mask of 0 normal, 1 anomaly, 255 `IGNORE`. Ignored pixels touch neither a loss nor
a gradient, whatever their logit, NaN included: they are left out before anything is computed. Where nothing is left to average, a loss
is 0 with zero (not absent) gradients. Arithmetic is float32, or float64 where the logits are, also under autocast.

Glossary: z logit, y truth in {0, 1}, s = 2y - 1, p = σ(z), p_t = σ(s z) the probability of the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.sample import ANOMALY, IGNORE, check_mask


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Average -α_t (1 - p_t)^γ ln p_t over the counted pixels.

    Args:
        logits: (B, H, W).
        mask: (B, H, W) integers.
        gamma: γ >= 0, how much pixels that are right already count less; 0 is cross-entropy.
        alpha: weight of anomalous pixels in [0, 1], normal ones weigh 1 - α; None weighs both 1.

    Returns:
        () in nats, >= 0, finite for logits of any size.

    Raises:
        ValueError: shapes differ, a mask value is unknown, or an argument is out of its range.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002; an average, where it divides by the
        number of anomalous anchors.
    """
    if gamma < 0 or (alpha is not None and not 0 <= alpha <= 1):
        raise ValueError(f"Expected gamma >= 0 and alpha in [0, 1] or None, but got {gamma} and {alpha}. Use 2.0 and None.")
    z, y = _counted(logits, mask)
    signed = torch.where(y, z, -z)
    loss = -F.logsigmoid(signed)
    if gamma:
        loss = loss * torch.exp(gamma * F.logsigmoid(-signed))  # (1 - p_t)^γ without the rounding of 1 - p_t
    if alpha is not None:
        loss = loss * torch.where(y, alpha, 1 - alpha)
    return loss.sum() / max(loss.numel(), 1)


def dice_loss(logits: Tensor, mask: Tensor, per_image: bool = False, smooth: float = 1.0) -> Tensor:
    """Compute 1 - (2 Σ p y + ε) / (Σ p + Σ y + ε) over the counted pixels.

    Args:
        logits: (B, H, W).
        mask: (B, H, W) integers.
        per_image: average the loss of each image that has a counted pixel, instead of one sum over the batch.
        smooth: ε > 0 in pixels: an image without anomalies costs little once its Σ p is small beside it.

    Returns:
        () in [0, 1).

    Raises:
        ValueError: shapes differ, a mask value is unknown, or ``smooth`` is not positive.

    Source: Milletari et al., "V-Net", 3DV 2016, arXiv 1606.04797; sums without squares, and ε above and below.
    """
    if not smooth > 0:
        raise ValueError(f"Expected smooth > 0 pixels, but got {smooth}. Use 1.0.")
    losses = []
    for z, y in _groups(logits, mask, per_image):
        p, truth = torch.sigmoid(z), y.to(z.dtype)
        losses.append(1 - (2 * (p * truth).sum() + smooth) / (p.sum() + truth.sum() + smooth))
    return torch.stack(losses).mean() if losses else _zero(logits)


def lovasz_gradient(truth: Tensor) -> Tensor:
    """Differentiate the Lovász extension of the Jaccard loss, at errors in descending order.

    With I true pixels that are still right and U pixels in the union, both after k pixels are wrong, the loss 1 - I / U has grown by 1 / U
    at a true pixel and by I / (U (U - 1)) at another one: counts, and no differences of numbers near 1, which would cancel in millions of
    pixels.

    Args:
        truth: (P,) of 0 and 1, floating, in the order of descending errors.

    Returns:
        (P,) J_k - J_{k-1}, J_k the Jaccard loss when the first k pixels are wrong; >= 0, the sum is J_P = 1 where a pixel is true.
    """
    true = truth > 0.5
    total = true.sum()
    right = (total - true.cumsum(0)).to(truth.dtype)
    union = total + (~true).cumsum(0)
    before = (union - 1).clamp_min(1).to(truth.dtype)
    first = (union == 1) & ~true  # the first wrong pixel where none is true takes the loss from 0 to 1
    step = torch.where(true, 1.0, right / before) / union.to(truth.dtype)
    return torch.where(first, 1.0, step)


def lovasz_hinge(
    logits: Tensor,
    mask: Tensor,
    per_image: bool = True,
    max_pixels: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the Lovász hinge: the convex extension of 1 - IoU of the anomalous class, at the hinge errors 1 - s z.

    Args:
        logits: (B, H, W).
        mask: (B, H, W) integers.
        per_image: average the losses of the images that have a counted pixel, instead of one over all pixels of the batch. An image
            without anomalies costs its largest error, as the IoU does.
        max_pixels: sort at most as many pixels of an image (or batch), drawn evenly; sorting costs P log P. None for all.
        generator: draws them; needed with ``max_pixels``.

    Returns:
        () >= 0.

    Raises:
        ValueError: shapes differ, a mask value is unknown, or ``max_pixels`` is not positive or lacks its generator.

    Source: Berman, Rannen Triki and Blaschko, "The Lovász-Softmax Loss", CVPR 2018, arXiv 1705.08790, algorithm 1 and section 2.2.
    """
    if max_pixels is not None and (max_pixels < 1 or generator is None):
        raise ValueError(f"Expected max_pixels >= 1 and a generator that draws them, but got {max_pixels} and {generator}.")
    losses = []
    for z, y in _groups(logits, mask, per_image):
        if max_pixels is not None and z.numel() > max_pixels:
            chosen = torch.randperm(z.numel(), generator=generator)[:max_pixels].to(z.device)
            z, y = z[chosen], y[chosen]
        errors, order = torch.sort(1 - torch.where(y, z, -z), descending=True)
        losses.append((F.relu(errors) * lovasz_gradient(y[order].to(z.dtype))).sum())
    return torch.stack(losses).mean() if losses else _zero(logits)


def _zero(logits: Tensor) -> Tensor:
    return logits.flatten()[:0].sum()


def _counted(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the counted logits (P,), float32 or float64, and their truth (P,) bool."""
    if logits.ndim != 3 or logits.shape != mask.shape:
        came = f"{tuple(logits.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"Expected logits and mask of one shape (B, H, W), but got {came}. Drop the channel axis, or resize the logits.")
    check_mask(mask)
    counted = mask != IGNORE
    values = logits[counted]  # gathered, not multiplied by 0: a NaN outside stays outside
    return values if values.dtype == torch.float64 else values.float(), mask[counted] == ANOMALY


def _groups(logits: Tensor, mask: Tensor, per_image: bool) -> list[tuple[Tensor, Tensor]]:
    """Gather the counted pixels of the batch, or of each image, without the groups that have none."""
    images = [slice(i, i + 1) for i in range(len(logits))] if per_image else [slice(None)]
    groups = [_counted(logits[one], mask[one]) for one in images]
    return [group for group in groups if group[0].numel()]
