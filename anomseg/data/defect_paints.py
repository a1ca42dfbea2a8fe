"""Synthetic defects that change a piece of an image by themselves: textures, blur, colours and holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anomseg.data.defect_base import Defect, Surface
from anomseg.data.defect_noise import drawn_texture, fractal_noise
from anomseg.data.defect_regions import blob_region, box_region, uniform, whole
from anomseg.functional.smoothing import gaussian


@dataclass(frozen=True)
class PerlinTexture(Defect):
    """Lay a drawn texture, or half of the time another image, over the highest places of smooth noise.

    Attributes:
        cells: fewest and most cells of the noise along the shorter side, at least 1: how many patches it falls into.

    Source:
        Zavrtanik et al., "DRAEM: A discriminatively trained reconstruction embedding for surface anomaly detection", ICCV 2021; without its
        folder of texture images.
    """

    size: tuple[float, float] = (0.01, 0.1)
    cells: tuple[int, int] = (2, 6)

    takes_others: ClassVar[bool] = True

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        field = fractal_noise(surface.size, whole(*self.cells, generator), generator, octaves=2)
        count = max(1, round(self._area(surface, generator)))
        window = torch.zeros(surface.size)  # within a part of the image, or the patches would always lie scattered over all of it
        window[box_region(surface.size, min(0.9 * field.numel(), 6.0 * count), generator)] = 10.0
        region = torch.zeros(field.numel(), dtype=torch.bool)
        region[(field + window).flatten().topk(count).indices] = True
        texture = drawn_texture(surface.size, surface.low, surface.high, generator)
        if others and whole(0, 1, generator):
            other = others[whole(0, len(others) - 1, generator)]
            shift = tuple(whole(0, length - 1, generator) for length in other.shape[-2:])
            tiled = torch.where(torch.isfinite(other), other, surface.mean[:, None, None]).roll(shift, (1, 2))
            repeats = [math.ceil(a / b) for a, b in zip(surface.size, other.shape[-2:], strict=True)]
            texture = tiled.repeat(1, *repeats)[:, : surface.size[0], : surface.size[1]]
        return texture, self.strength * region.view(surface.size)

    def _check(self) -> None:
        if not 1 <= self.cells[0] <= self.cells[1]:
            raise ValueError(f"Expected 1 <= cells[0] <= cells[1], but got {self.cells}.")


@dataclass(frozen=True)
class Blur(Defect):
    """Smooth a piece.

    Attributes:
        sigma: least and largest standard deviation in pixels, above 0.
    """

    size: tuple[float, float] = (0.02, 0.15)
    sigma: tuple[float, float] = (1.5, 4.0)

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = blob_region(surface.size, self._area(surface, generator), generator)
        valid = surface.valid.expand_as(surface.image)
        return gaussian(surface.image, uniform(*self.sigma, generator), valid), self.strength * region

    def _check(self) -> None:
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"Expected 0 < sigma[0] <= sigma[1], but got {self.sigma}.")


@dataclass(frozen=True)
class ColourShift(Defect):
    """Make a piece brighter, darker or, of several bands, of another colour, softly towards its border.

    Attributes:
        shift: least and largest shift at strength 1, in standard deviations of the band, above 0.
    """

    size: tuple[float, float] = (0.01, 0.1)
    shift: tuple[float, float] = (1.0, 3.0)

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = blob_region(surface.size, self._area(surface, generator), generator)
        bands = len(surface.image)
        one_sign = whole(0, 1, generator)
        signs = 2.0 * torch.randint(0, 2, (1 if one_sign else bands,), generator=generator) - 1
        shift = signs * uniform(*self.shift, generator) * surface.spread
        soft = gaussian(region[None].float(), 1.5)[0]
        return surface.image + shift[:, None, None], self.strength * soft * region

    def _check(self) -> None:
        if not 0 < self.shift[0] <= self.shift[1]:
            raise ValueError(f"Expected 0 < shift[0] <= shift[1], but got {self.shift}.")


@dataclass(frozen=True)
class Hole(Defect):
    """Fill boxes with one colour: the lowest, the mean or the highest of each band, or one between.

    Attributes:
        count: fewest and most boxes, at least 1; together they cover the drawn area.
    """

    size: tuple[float, float] = (0.005, 0.08)
    count: tuple[int, int] = (1, 3)

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        number, area = whole(*self.count, generator), self._area(surface, generator)
        region = torch.stack([box_region(surface.size, area / number, generator) for _ in range(number)]).any(0)
        between = surface.low + (surface.high - surface.low) * torch.rand(len(surface.low), generator=generator)
        colour = (surface.low, surface.mean, surface.high, between)[whole(0, 3, generator)]
        return colour[:, None, None].expand_as(surface.image), self.strength * region

    def _check(self) -> None:
        if not 1 <= self.count[0] <= self.count[1]:
            raise ValueError(f"Expected 1 <= count[0] <= count[1], but got {self.count}.")
