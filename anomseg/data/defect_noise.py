"""Smooth random fields and random textures made of them, which need no folder of texture images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomseg.data.defect_regions import uniform, whole


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw gradient noise: a random unit vector at each corner of a lattice, and its dot product with the offset, blended smoothly.

    Args:
        size: (height, width) in pixels.
        cells: of the lattice down and across, each at least 1; more give finer noise.
        generator: the only source of randomness.

    Returns:
        (H, W) float32 between -0.71 and 0.71, 0 at the corners of the lattice.

    Source:
        K. Perlin, "Improving noise", SIGGRAPH 2002; with random unit vectors in the place of a table.
    """
    angle = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1, generator=generator)
    vectors = torch.stack([angle.cos(), angle.sin()])
    places = [torch.arange(length) * count / length for length, count in zip(size, cells, strict=True)]
    corners = [place.long() for place in places]
    down, right = (place - corner for place, corner in zip(places, corners, strict=True))
    weights = [part**3 * (part * (6 * part - 15) + 10) for part in (down, right)]  # first and second derivative vanish at the corners
    total = torch.zeros(size)
    for row in (0, 1):
        for column in (0, 1):
            vector = vectors[:, corners[0] + row][:, :, corners[1] + column]
            dot = vector[0] * (down - row)[:, None] + vector[1] * (right - column)
            weight_down, weight_right = (w if side else 1 - w for w, side in zip(weights, (row, column), strict=True))
            total += weight_down[:, None] * weight_right * dot
    return total


def fractal_noise(size: tuple[int, int], cells: int, generator: torch.Generator, octaves: int = 3) -> Tensor:
    """Sum Perlin noise of doubling fineness and halving height.

    Args:
        size: (height, width) in pixels.
        cells: of the coarsest lattice along the shorter side, at least 1.
        generator: the only source of randomness.
        octaves: number of terms, at least 1.

    Returns:
        (H, W) float32 of mean 0 and standard deviation 1.
    """
    shorter = min(size)
    total = torch.zeros(size)
    for octave in range(octaves):
        down, right = (max(1, min(length, round(cells * 2**octave * length / shorter))) for length in size)
        total += perlin_noise(size, (down, right), generator) / 2**octave
    total -= total.mean()
    return total / total.square().mean().sqrt().clamp_min(1e-6)


def drawn_texture(size: tuple[int, int], low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a texture of two colours: stripes, checks, clouds or grains.

    Args:
        size: (height, width) in pixels.
        low: (C,) lowest value of each band.
        high: (C,) highest value of each band.
        generator: the only source of randomness.

    Returns:
        (C, H, W) float32 between `low` and `high`.
    """
    first, second = (low + (high - low) * torch.rand(len(low), generator=generator) for _ in range(2))
    kind, turn, period = whole(0, 3, generator), uniform(0, math.pi, generator), uniform(3, 14, generator)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    along = torch.sin(2 * math.pi * (rows * math.sin(turn) + columns * math.cos(turn)) / period)
    across = torch.sin(2 * math.pi * (rows * math.cos(turn) - columns * math.sin(turn)) / period)
    if kind == 0:
        field = along
    elif kind == 1:
        field = along * across
    elif kind == 2:
        field = fractal_noise(size, whole(3, 8, generator), generator)
    else:
        field = fractal_noise(size, max(1, min(size) // 3), generator, octaves=1)
    share = torch.sigmoid(3 * field)
    return first[:, None, None] + (second - first)[:, None, None] * share
