"""The base of synthetic defects: one call puts one into an image, and says which pixels it changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from anomseg.data.defect_regions import blob_region, uniform

CHANGED = 0.1
"""Share of the spread of its band by which a pixel must differ at least to count as changed."""
_DRAWS = 8
_LEAST_SHARE = 0.25  # of the smallest area, in changed pixels, or the defect is drawn again


@dataclass(frozen=True)
class Surface:
    """Describe an image that a defect is put into, so that defects fit its values whatever its bands measure.

    Attributes:
        image: (C, H, W) float32, finite: the mean of its band where there is no data.
        valid: (H, W) bool, True where there is data.
        low: (C,) lowest value of each band.
        high: (C,) highest value of each band.
        mean: (C,) mean of each band.
        spread: (C,) standard deviation of each band, above 0 also where a band is constant.
    """

    image: Tensor
    valid: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    spread: Tensor

    @staticmethod
    def of(image: Tensor) -> Surface:
        """Measure an image (C, H, W), NaN where there is no data, which must not be everywhere."""
        valid = torch.isfinite(image).all(0)
        pixels = image[:, valid]
        mean = pixels.mean(1)
        spread = torch.maximum(pixels.std(1, correction=0), 0.02 * mean.abs()).clamp_min(1e-3 if bool((pixels.abs() <= 1).all()) else 1e-6)
        return Surface(torch.where(valid, image, mean[:, None, None]), valid, pixels.amin(1), pixels.amax(1), mean, spread)

    @property
    def size(self) -> tuple[int, int]:
        """Give (height, width) in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


@dataclass(frozen=True)
class Defect(ABC):
    """Put a defect into an image.

    Attributes:
        strength: above 0 to 1: how far pixels go from what they are to what the defect makes of them.
        size: lowest and highest share of the image's area that it covers, above 0 to 0.5; those between are equally likely by their
            logarithm.
    """

    strength: float = 1.0
    size: tuple[float, float] = (0.005, 0.05)

    takes_others: ClassVar[bool] = False
    """Whether it takes pieces from other images, where there are any."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or len(self.size) != 2 or not 0 < self.size[0] <= self.size[1] <= 0.5:
            raise ValueError(
                f"Expected a strength above 0 to 1 and 0 < size[0] <= size[1] <= 0.5, but got {self.strength} and {tuple(self.size)}."
            )
        self._check()

    @abstractmethod
    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one.

        Args:
            surface: the image.
            generator: the only source of randomness.
            others: further images (C, h, w) of any size, NaN where they hold no data.

        Returns:
            What the image becomes where the defect covers it, (C, H, W), and how much it covers, (H, W) in [0, 1]; strength included.
        """

    @final
    def apply(self, image: Tensor, generator: torch.Generator, others: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Put one defect into an image.

        Pixels without data keep being so. Where all values lie in [0, 1], they still do. A draw that hardly changes anything, such as a
        blurred piece of a smooth surface, is drawn again; after eight, a piece of the surface is made brighter or darker instead.

        Args:
            image: (C, H, W) float32 of any bands, NaN where there is no data.
            generator: the only source of randomness: equal generators give equal defects.
            others: further images (C, h, w) to take pieces from; None where there are none.

        Returns:
            The changed image as a new tensor, and (H, W) bool: True where it differs by more than a tenth of the spread of some band,
            never everywhere False.

        Raises:
            ValueError: the image has no axis of bands, or no pixel with data.
        """
        if image.ndim != 3 or not bool(torch.isfinite(image).all(0).any()):
            raise ValueError(f"Expected an image (C, H, W) with data in some pixel, but got {tuple(image.shape)}. Leave empty images out.")
        surface = Surface.of(image)
        usable = [other for other in others or () if len(other) == len(image) and bool(torch.isfinite(other).any())]
        least = max(1.0, _LEAST_SHARE * self.size[0] * image.shape[-2] * image.shape[-1])
        for _ in range(_DRAWS):
            changed, mask = self._laid(image, surface, *self.paint(surface, generator, usable))
            if int(mask.sum()) >= least:
                return changed, mask
        for _ in range(_DRAWS):
            changed, mask = self._laid(image, surface, *self._plain(surface, generator))
            if int(mask.sum()) >= least:
                return changed, mask
        return self._laid(image, surface, self._plain(surface, generator)[0], torch.ones(surface.size))  # data in a few pixels alone

    def _check(self) -> None:
        """Check what a kind of defect adds; nothing here."""
        return

    def _area(self, surface: Surface, generator: torch.Generator) -> float:
        """Draw an area in pixels."""
        low, high = self.size
        return float(low * (high / low) ** uniform(0, 1, generator) * surface.size[0] * surface.size[1])

    def _plain(self, surface: Surface, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Make a blob brighter where the surface is dark, and darker where it is bright."""
        region = blob_region(surface.size, self._area(surface, generator), generator)
        middle = (surface.low + surface.high) / 2
        sign = torch.where(surface.mean > middle, -1.0, 1.0) if bool((surface.high > surface.low).any()) else 1 - 2 * (surface.mean > 0.5)
        shift = sign * surface.spread * (0.3 + 2 * self.strength)
        return surface.image + shift[:, None, None], region.float()

    @staticmethod
    def _laid(image: Tensor, surface: Surface, full: Tensor, cover: Tensor) -> tuple[Tensor, Tensor]:
        """Lay what was drawn over the image, and find what it changed."""
        laid = torch.lerp(surface.image, full, cover.clamp(0, 1))
        if bool((surface.low >= 0).all()) and bool((surface.high <= 1).all()):
            laid = laid.clamp(0, 1)
        mask = ((laid - surface.image).abs() > CHANGED * surface.spread[:, None, None]).any(0) & surface.valid
        return torch.where(mask, laid, image), mask
