"""Synthetic defects that are lines: cracks, scratches, hairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.data.defect_base import Defect, Surface
from anomseg.data.defect_regions import uniform, whole

_MEMORY = 0.9  # of the deviation from the main direction, over one pixel of the line
_SLENDER = 12.0  # a small line is thinned until it is so many times as long as wide
_LONGEST = 4.0  # diagonals of the image: what is longer would leave it


@dataclass(frozen=True)
class Crack(Defect):
    """Draw a thin line that wanders and may fork, darker or brighter than the surface: a crack, a scratch, a hair.

    Width and depth vary along the line, and half of the texture under it is lost.

    Attributes:
        width: least and largest width in pixels, at least 0.5; a small line is thinner.
        contrast: least and largest shift at strength 1, in standard deviations of the band, above 0.
        wander: how far the direction may swing about the main one: standard deviation in radians, at least 0; each line draws its own
            between 0, a straight scratch, and this.
        dark: share of the lines that are darker than the surface, in [0, 1].
        forks: most side lines, at least 0; each number is as likely.
    """

    size: tuple[float, float] = (0.003, 0.04)
    width: tuple[float, float] = (1.0, 4.0)
    contrast: tuple[float, float] = (1.0, 4.0)
    wander: float = 0.8
    dark: float = 0.7
    forks: int = 2

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        area = self._area(surface, generator)
        width = min(uniform(*self.width, generator), max(0.5, math.sqrt(area / _SLENDER)))
        # Borders are one pixel soft.
        length = min(area / (width + 1), _LONGEST * math.hypot(*surface.size))
        forks, swing = whole(0, self.forks, generator), uniform(0, self.wander, generator)
        main = _line(length / (1 + 0.5 * forks), uniform(0, math.pi, generator), swing, generator)
        centre = torch.tensor([uniform(0, side - 1, generator) for side in surface.size])
        main += centre - main[len(main) // 2]
        lines = [main]
        for _ in range(forks):
            start = whole(0, len(main) - 1, generator)
            ahead = main[min(start + 3, len(main) - 1)] - main[max(start - 3, 0)]
            turn = (1.0, -1.0)[whole(0, 1, generator)] * uniform(0.3, 1.2, generator)
            side = _line(0.5 * len(main), math.atan2(float(ahead[0]), float(ahead[1])) + turn, swing, generator)
            lines.append(side + main[start])
        cover = torch.stack([drawn_line(surface.size, line, *_profile(width, len(line), generator)) for line in lines]).amax(0)
        shift = uniform(*self.contrast, generator) * (-1.0 if uniform(0, 1, generator) < self.dark else 1.0)
        mean, spread = surface.mean[:, None, None], surface.spread[:, None, None]
        return mean + 0.5 * (surface.image - mean) + shift * spread, self.strength * cover

    def _check(self) -> None:
        if not 0.5 <= self.width[0] <= self.width[1] or not 0 < self.contrast[0] <= self.contrast[1]:
            raise ValueError(f"Expected 0.5 <= width[0] <= width[1] and 0 < contrast[0] <= contrast[1], but got {self}.")
        if not 0 <= self.wander < math.inf or not 0 <= self.dark <= 1 or self.forks < 0:
            raise ValueError(f"Expected wander >= 0, dark in [0, 1] and forks >= 0, but got {self}.")


def drawn_line(size: tuple[int, int], points: Tensor, widths: Tensor, depths: Tensor) -> Tensor:
    """Draw discs along a path, with borders one pixel soft.

    Args:
        size: (height, width) of the image in pixels.
        points: (N, 2) rows and columns, a pixel or less apart for a line without gaps; those outside of the image draw what reaches in.
        widths: (N,) diameters in pixels.
        depths: (N,) how much each covers, in [0, 1].

    Returns:
        (H, W) float32: the deepest cover of each pixel, 0 away from the line.
    """
    reach = math.ceil(float(widths.max()) / 2 + 1)
    steps = torch.arange(-reach, reach + 1)
    around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(-1, 2)
    pixels = points.round().long()[:, None] + around
    distance = (pixels - points[:, None]).square().sum(-1).sqrt()
    cover = (widths[:, None] / 2 + 0.5 - distance).clamp(0, 1) * depths[:, None]
    inside = (pixels >= 0).all(-1) & (pixels < torch.tensor(size)).all(-1)
    flat = pixels[..., 0] * size[1] + pixels[..., 1]
    return torch.zeros(size[0] * size[1]).scatter_reduce(0, flat[inside], cover[inside], "amax").view(size)


def _line(length: float, angle: float, swing: float, generator: torch.Generator) -> Tensor:
    """Walk in steps of one pixel about a direction: (N, 2) rows and columns from (0, 0)."""
    headings = angle + swing * _wandering(max(2, round(length)), generator)
    path = torch.stack([headings.sin(), headings.cos()], 1).cumsum(0)
    return path - path[0]


def _profile(width: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the widths and depths along a line, (N,) each."""
    widths = width * (1 + 0.3 * _wandering(count, generator)).clamp(0.4, 1.6)
    return widths, (0.8 + 0.2 * _wandering(count, generator)).clamp(0.3, 1.0)


def _wandering(count: int, generator: torch.Generator) -> Tensor:
    """Draw a sequence of unit variance in which neighbours are alike: (N,)."""
    noise = torch.randn(count, generator=generator)
    found = [float(noise[0])]
    for drawn in (noise[1:] * math.sqrt(1 - _MEMORY**2)).tolist():
        found.append(_MEMORY * found[-1] + drawn)
    return torch.tensor(found)
