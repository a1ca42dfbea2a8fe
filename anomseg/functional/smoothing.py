"""Smooth and centre maps of scores without letting pixels that have none take part."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian(score: Tensor, sigma: float, valid: Tensor | None = None) -> Tensor:
    """Smooth a map by a Gaussian that knows no data: each pixel is the weighted mean of the valid pixels within 4 sigma.

    Args:
        score: (B, H, W) finite where valid.
        sigma: standard deviation in pixels, at least 0; 0 changes no valid pixel.
        valid: (B, H, W) bool, False for pixels that have no score; None for none.

    Returns:
        (B, H, W) float32; 0.0 where a pixel is not valid.

    Raises:
        ValueError: ``sigma`` is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"Expected a smoothing of at least 0 pixels, but got {sigma}. 0.5 is usual, 0 switches it off.")
    keep = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    stack = torch.stack((torch.where(keep, score.float(), 0.0), keep.float()), 1)
    radius = math.ceil(4 * sigma)
    if radius:
        offsets = torch.arange(-radius, radius + 1, device=score.device, dtype=torch.float32)
        kernel = torch.softmax(-0.5 * (offsets / sigma).square(), 0)
        for axis in (2, 3):
            shape = [1, 1, 1, 1]
            shape[axis] = len(kernel)
            padding = (radius, 0) if axis == 2 else (0, radius)
            with torch.autocast(score.device.type, enabled=False):  # a map of few values would be left
                stack = torch.nn.functional.conv2d(stack.flatten(0, 1)[:, None], kernel.view(shape), padding=padding).view_as(stack)
    return torch.where(keep, stack[:, 0] / stack[:, 1].clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def centre(score: Tensor, valid: Tensor) -> Tensor:
    """Subtract from each map its mean over the valid pixels.

    Args:
        score: (B, H, W) finite where valid.
        valid: (B, H, W) bool, False for pixels that have no score.

    Returns:
        (B, H, W) float32; 0.0 where a pixel is not valid.
    """
    kept = torch.where(valid, score.float(), 0.0)
    mean = kept.sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True).clamp_min(1)
    return torch.where(valid, kept - mean, 0.0)
