"""Draw where a synthetic defect lies: boxes, bars and blobs of a given area."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number between two others, each place as likely."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def whole(low: int, high: int, generator: torch.Generator) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def box_region(size: tuple[int, int], area: float, generator: torch.Generator, longest: float = 3.0) -> Tensor:
    """Draw an upright box.

    Args:
        size: (height, width) of the image in pixels.
        area: of the box in pixels, met as nearly as whole sides allow.
        generator: the only source of randomness.
        longest: largest ratio of its sides, at least 1; those between are equally likely by their logarithm, either way.

    Returns:
        (H, W) bool.
    """
    ratio = longest ** uniform(-1, 1, generator)
    height = min(size[0], max(1, round(math.sqrt(area * ratio))))
    width = min(size[1], max(1, round(area / height)))
    height = min(size[0], max(1, round(area / width)))  # where the image was too narrow
    top, left = whole(0, size[0] - height, generator), whole(0, size[1] - width, generator)
    region = torch.zeros(size, dtype=torch.bool)
    region[top : top + height, left : left + width] = True
    return region


def bar_region(size: tuple[int, int], area: float, generator: torch.Generator, thinnest: float = 16.0) -> Tensor:
    """Draw a straight bar at any angle, cut by the border of the image.

    Args:
        size: (height, width) of the image in pixels.
        area: of the bar in pixels, roughly.
        generator: the only source of randomness.
        thinnest: largest ratio of length to width, at least 4; the smallest is 4.

    Returns:
        (H, W) bool.
    """
    ratio = 4.0 * (thinnest / 4.0) ** uniform(0, 1, generator)
    width = max(1.5, math.sqrt(area / ratio))
    length = area / width
    angle = uniform(0, math.pi, generator)
    rows = torch.arange(size[0])[:, None] - uniform(0, size[0] - 1, generator)
    columns = torch.arange(size[1])[None] - uniform(0, size[1] - 1, generator)
    along, across = rows * math.sin(angle) + columns * math.cos(angle), rows * math.cos(angle) - columns * math.sin(angle)
    return (along.abs() <= length / 2) & (across.abs() <= width / 2)


def blob_region(size: tuple[int, int], area: float, generator: torch.Generator) -> Tensor:
    """Draw a smooth irregular shape of exactly so many pixels.

    Args:
        size: (height, width) of the image in pixels.
        area: of the shape in pixels, rounded.
        generator: the only source of randomness.

    Returns:
        (H, W) bool.
    """
    count = min(max(1, round(area)), size[0] * size[1])
    side = math.ceil(1.6 * math.sqrt(count)) + 1
    height, width = min(size[0], side), min(size[1], side)
    height = min(size[0], max(height, math.ceil(1.6 * count / width)))
    width = min(size[1], max(width, math.ceil(1.6 * count / height)))
    coarse = torch.randn(1, 1, 5, 5, generator=generator)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0, 0]
    away = torch.linspace(-1, 1, height)[:, None].square() + torch.linspace(-1, 1, width).square()
    kept = (0.5 * field - away).flatten().topk(count).indices
    shape = torch.zeros(height * width, dtype=torch.bool)
    shape[kept] = True
    top, left = whole(0, size[0] - height, generator), whole(0, size[1] - width, generator)
    region = torch.zeros(size, dtype=torch.bool)
    region[top : top + height, left : left + width] = shape.view(height, width)
    return region


def bounds(region: Tensor) -> tuple[int, int, int, int]:
    """Give (row, column, height, width) of the box around a region (H, W) bool, which must not be empty."""
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
