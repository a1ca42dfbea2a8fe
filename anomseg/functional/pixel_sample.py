"""Draw a uniform sample of bounded size from any number of pixels, in parts that merge.

Every pixel draws a random key, and those with the smallest keys are kept. The smallest of two parts are the smallest of their union.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class PixelSample:
    """Hold the pixels with the smallest keys.

    Attributes:
        key: (N,) float64 in [0, 1), ascending.
        pixels: (N, C).
    """

    key: Tensor
    pixels: Tensor


def draw_pixels(pixels: Tensor, size: int, generator: torch.Generator) -> PixelSample:
    """Draw at most `size` of (N, C) pixels without replacement.

    Raises:
        ValueError: a wrong shape, or a size below 1.
    """
    if pixels.ndim != 2 or size < 1:
        raise ValueError(f"Expected pixels of shape (N, C) and size >= 1, but got {tuple(pixels.shape)} and {size}.")
    key = torch.rand(len(pixels), dtype=torch.float64, generator=generator)
    return _smallest(key, pixels, size)


def merge_samples(a: PixelSample, b: PixelSample, size: int) -> PixelSample:
    """Join the samples of two disjoint sets of pixels, each drawn with `size` and a generator of its own, to a sample of their union."""
    return _smallest(torch.cat([a.key, b.key]), torch.cat([a.pixels, b.pixels]), size)


def add_pixels(found: PixelSample | None, pixels: Tensor, size: int, generator: torch.Generator) -> PixelSample:
    """Draw from (N, C) further pixels, and join them to the sample of those before, None where there were none."""
    new = draw_pixels(pixels, size, generator)
    return new if found is None else merge_samples(found, new, size)


def join_samples(parts: Iterable[PixelSample], size: int) -> PixelSample:
    """Join the samples of several ranks, at least one; see `merge_samples`."""
    return reduce(lambda a, b: merge_samples(a, b, size), parts)


def _smallest(key: Tensor, pixels: Tensor, size: int) -> PixelSample:
    order = key.argsort(stable=True)[:size]
    return PixelSample(key[order], pixels[order.to(pixels.device)])
