"""Change without learning: how far apart the two dates of a pixel lie, and a gate that keeps a map to where they differ at all."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.sample import finite_pixels

ChangeNorm = Literal["mean", "euclidean", "largest", "angle"]
"""How band differences become one number: mean |d|, √Σd² (change vector), max |d|, or the angle between the two spectra."""


def standardise_dates(image: Tensor) -> Tensor:
    """Give every band of every date mean 0 and deviation 1 over the pixels with data, which takes out linear changes of light.

    Args:
        image: (B, 2, C, H, W), NaN where there is no data.

    Returns:
        The same shape; NaN stays; a constant band becomes 0.
    """
    keep = finite_pixels(image)[:, None, None]
    count = keep.sum((-2, -1), keepdim=True).clamp_min(1)
    mean = torch.where(keep, image, 0.0).sum((-2, -1), keepdim=True) / count
    centred = torch.where(keep, image - mean, 0.0)
    deviation = (centred.square().sum((-2, -1), keepdim=True) / count).sqrt()
    scaled = torch.where(deviation > 0, centred / deviation, 0.0)
    return torch.where(keep, scaled, torch.nan)


def change_magnitude(before: Tensor, after: Tensor, norm: ChangeNorm = "euclidean") -> Tensor:
    """Measure how far the two dates of every pixel lie apart.

    Args:
        before: (B, C, H, W).
        after: (B, C, H, W).
        norm: see `ChangeNorm`.

    Returns:
        (B, H, W) >= 0; NaN where an input is. An angle is in radians, and 0 where a spectrum is 0.

    Raises:
        ValueError: shapes differ, or an unknown norm.

    Source: Malila, "Change vector analysis", LARS Symposia, 1980 (Euclidean); Kruse et al., Remote Sens. Environ. 44, 1993 (angle).
    """
    if before.shape != after.shape or before.ndim != 4:
        came = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise ValueError(f"Expected two dates of one shape (B, C, H, W), but got {came}. Register them onto one grid.")
    if norm == "angle":
        return _angle(before, after)
    difference = after - before
    if norm == "mean":
        return difference.abs().mean(1)
    if norm == "largest":
        return difference.abs().amax(1)
    if norm != "euclidean":
        raise ValueError(f"Expected a norm of mean, euclidean, largest and angle, but got {norm!r}. Take 'euclidean'.")
    return difference.square().sum(1).sqrt()


def _angle(before: Tensor, after: Tensor) -> Tensor:
    """Compute the angle as 2 atan2(‖u - v‖, ‖u + v‖) of unit vectors, which is exact for small angles where acos is not."""
    u, v = (F.normalize(x, dim=1) for x in (before, after))
    angle = 2 * torch.atan2((u - v).square().sum(1).sqrt(), (u + v).square().sum(1).sqrt())
    return torch.where((u.square().sum(1) == 0) | (v.square().sum(1) == 0), 0.0 * angle, angle)


def smallest_change(before: Tensor, after: Tensor, reach: int, norm: ChangeNorm = "euclidean") -> Tensor:
    """Compare every pixel with the other date's pixels within a reach, both ways round, and keep what no shift explains.

    Args:
        before: (B, C, H, W).
        after: (B, C, H, W).
        reach: largest shift in pixels along each axis, >= 0; (2 reach + 1)² shifts are tried.
        norm: see `ChangeNorm`.

    Returns:
        (B, H, W): the larger of min over shifts |after(x) - before(x + s)| and min over shifts |before(x) - after(x + s)|, so that
        both what appeared and what vanished is kept. Shifts that leave the image or meet no data do not count; a pixel without data
        is NaN. 0 changes nothing.

    Raises:
        ValueError: a negative reach.

    Source: the idea of a robust difference under misregistration: Gong et al., "A spatially adaptive change vector", 2008; the two
        directions are ours.
    """
    if reach < 0:
        raise ValueError(f"Expected a reach of at least 0 pixels, but got {reach}. Use 0 for registered dates.")
    own = change_magnitude(before, after, norm)
    appeared, vanished = own.nan_to_num(nan=math.inf), own.nan_to_num(nan=math.inf)
    padded = [F.pad(x, (reach,) * 4, value=math.nan) for x in (before, after)]
    height, width = own.shape[-2:]
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):  # (2 reach + 1)² passes over the image, no memory beyond one of them
            was, now = (x[..., down : down + height, right : right + width] for x in padded)
            appeared = torch.minimum(appeared, change_magnitude(was, after, norm).nan_to_num(nan=math.inf))
            vanished = torch.minimum(vanished, change_magnitude(before, now, norm).nan_to_num(nan=math.inf))
    return torch.where(own.isnan(), torch.nan, torch.maximum(appeared, vanished))


def difference_gate(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """Open a gate where the two dates differ: g = min(max_c |after - before| / scale, 1).

    Args:
        before: (B, C, H, W).
        after: (B, C, H, W).
        scale: difference in the units of the images, > 0, at which the gate is fully open.

    Returns:
        (B, H, W) in [0, 1].

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"Expected a scale > 0, but got {scale}. Use about half the contrast of what may change.")
    return (change_magnitude(before, after, "largest") / scale).clamp_max(1.0)


def gated_logits(logits: Tensor, gate: Tensor, floor: float = 1e-6) -> Tensor:
    """Multiply probabilities by a gate, in logits: logit(g σ(z)).

    Args:
        logits: z, any shape.
        gate: g in [0, 1], the same shape.
        floor: least gate, > 0, so that the result is finite; a closed gate gives about ln(floor).

    Returns:
        Logits of the same shape; z itself where the gate is 1, exactly.

    Note: logit(gσ) = ln gσ - ln(1 - gσ), and 1 - gσ(z) = σ(-z) + (1 - g) σ(z): with e = (1 - g) exp(z), it is z + ln g - ln(1 + e).
    """
    g = gate.clamp(floor, 1.0)
    closed = torch.log1p(-g)  # -inf where the gate is open, and then softplus is 0
    return logits + torch.log(g) - F.softplus(logits + closed)
