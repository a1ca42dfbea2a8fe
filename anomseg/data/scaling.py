"""Bring images and masks to another size, and stored integers to [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.functional.regions import label_regions
from anomseg.sample import ANOMALY


def largest_value(stored: np.dtype[Any]) -> float:
    """Give the stored value that becomes 1: the largest of an integer type, and 1 of floats, which are in [0, 1] already."""
    return float(np.iinfo(stored).max) if stored.kind in "iu" else 1.0


def scaled_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image smoothly, averaging where it shrinks; pixels without data stay so and do not bleed.

    Args:
        image: (C, H, W) float32, NaN where there is no data.
        size: (height, width) in pixels.

    Returns:
        (C, *size) float32.
    """
    valid = torch.isfinite(image).all(0)
    if bool(valid.all()):
        return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    weighed = torch.cat([torch.where(valid, image, 0.0), valid[None].float()])
    smooth = F.interpolate(weighed[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return torch.where(smooth[-1] >= 0.5, smooth[:-1] / smooth[-1].clamp_min(1e-6), torch.nan)


def scaled_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a mask by its nearest pixels; a region of defect that none of them hits takes the pixels that it touches.

    Args:
        mask: (H, W) int64 of 0, 1, 255.
        size: (height, width) in pixels.

    Returns:
        (*size) int64 of 0, 1, 255.
    """
    scaled = F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    regions, count = label_regions(mask == ANOMALY)
    hit = F.interpolate(regions[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    for number in sorted(set(range(1, count + 1)) - set(torch.unique(hit).tolist())):  # cost: one pass for each region that was missed
        touched = F.adaptive_max_pool2d((regions == number).float()[None], size)[0] > 0
        scaled[touched] = ANOMALY
    return scaled
