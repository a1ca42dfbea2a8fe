"""Virtually anomalous copies of images, whose descriptors are to differ from those of the images.

Each object changes a batch (B, C, H, W) of **normalised** floats, of which 0 is about the mean, with any number of bands, and draws anew
for each image. The pixel-wise ones leave every pixel where it is; the two shuffles move whole pixels and thereby break texture and place.
Results are not clipped.

A pixel without data (NaN or infinity in any band) is returned as it came, and nothing else depends on what it holds: where the input is
finite the result is finite, and only there. Draws come from the generator alone, on its device: one on the processor gives the same
copies on every device.

Source: Li et al., AAAI 2023, arXiv 2301.13422, which applies noise, channel shuffle, brightness, contrast and solarisation in this order,
and the shuffles in its first version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.sample import finite_pixels


class VirtualAnomaly(ABC):
    """Turn images into virtually anomalous copies."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch.

        Args:
            image: (B, C, H, W) normalised float, NaN where there is no data; left as it is.
            generator: draws everything.

        Returns:
            (B, C, H, W) of the same dtype, finite exactly at the pixels where the image is.

        Raises:
            ValueError: ``image`` is not a (B, C, H, W) float.
        """


def _where_data(image: Tensor, changed: Tensor) -> Tensor:
    """Give pixels without data back as they came."""
    return torch.where(finite_pixels(image)[:, None], changed, image)


def _signed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one number in [-1, 1] for each image: (B, 1, 1, 1)."""
    return 2 * torch.rand(len(image), 1, 1, 1, generator=generator, device=generator.device).to(image) - 1


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or not image.is_floating_point():
        came = f"{tuple(image.shape)} {image.dtype}"
        raise ValueError(f"Expected a normalised float image (B, C, H, W), but got {came}. Add the batch axis with image[None].")


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"Expected {name} >= 0, but got {value}. It is a strength; its sign is drawn.")


@dataclass(frozen=True)
class GaussianNoise(VirtualAnomaly):
    """Add independent Gaussian noise to every value.

    Attributes:
        std: its standard deviation >= 0, in units of the normalised image. The publication draws variances that were meant for images of
            0 to 255 on images of -1 to 1, which leaves little of the image: a std of 3 to 7.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        _check_not_negative("std", self.std)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise; see `VirtualAnomaly`."""
        _check_image(image)
        noise = torch.randn(image.shape, generator=generator, device=generator.device)
        return _where_data(image, image + self.std * noise.to(image))


@dataclass(frozen=True)
class ChannelShuffle(VirtualAnomaly):
    """Permute the bands of each image, never leaving all in place; with a single band this is the **identity**."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Permute bands; see `VirtualAnomaly`."""
        _check_image(image)
        bands = image.shape[1]
        shuffled = []
        for scene in image:  # an order of bands for each image
            order = torch.randperm(bands, generator=generator, device=generator.device)
            if bool((order == torch.arange(bands, device=order.device)).all()):
                order = order.roll(1)
            shuffled.append(scene[order.to(image.device)])
        return _where_data(image, torch.stack(shuffled)) if shuffled else image.clone()


@dataclass(frozen=True)
class BrightnessShift(VirtualAnomaly):
    """Add one value, uniform in [-limit, limit], to all bands of an image.

    Attributes:
        limit: >= 0, in units of the normalised image.
    """

    limit: float = 0.2

    def __post_init__(self) -> None:
        _check_not_negative("limit", self.limit)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Shift brightness; see `VirtualAnomaly`."""
        _check_image(image)
        return _where_data(image, image + self.limit * _signed(image, generator))


@dataclass(frozen=True)
class ContrastChange(VirtualAnomaly):
    """Multiply an image by 1 + u, u uniform in [-limit, limit], about the 0 of the normalised image.

    Attributes:
        limit: >= 0, without unit.
    """

    limit: float = 0.2

    def __post_init__(self) -> None:
        _check_not_negative("limit", self.limit)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Change contrast; see `VirtualAnomaly`."""
        _check_image(image)
        return _where_data(image, image * (1 + self.limit * _signed(image, generator)))


@dataclass(frozen=True)
class Solarise(VirtualAnomaly):
    """Replace each value x from a threshold on by 1 - x, as if 1 were white. Nothing is drawn.

    Attributes:
        threshold: in units of the normalised image.
    """

    threshold: float = 0.2

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Invert what is bright; see `VirtualAnomaly`."""
        _check_image(image)
        return _where_data(image, torch.where(image >= self.threshold, 1 - image, image))


@dataclass(frozen=True)
class PixelShuffle(VirtualAnomaly):
    """Permute the pixels with data of each image: the same spectra without their texture."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Permute pixels; see `VirtualAnomaly`."""
        _check_image(image)
        shuffled = image.clone()
        for scene, keep in zip(shuffled, finite_pixels(image), strict=True):  # a permutation for each image
            pixels = scene[:, keep]
            order = torch.randperm(pixels.shape[1], generator=generator, device=generator.device)
            scene[:, keep] = pixels[:, order.to(image.device)]
        return shuffled


@dataclass(frozen=True)
class ImageShuffle(VirtualAnomaly):
    """Take the pixels of another image of the batch: real texture in the wrong place.

    One cyclic shift is drawn for the batch, so that every image serves once and none stays. A single image is shifted by half its height,
    half its width or both, with wrap-around, which swaps its quadrants. Where the other pixel has no data, a pixel keeps its own value.
    """

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Exchange images; see `VirtualAnomaly`."""
        _check_image(image)
        batch, _, height, width = image.shape
        if batch > 1:
            step = int(torch.randint(1, batch, (), generator=generator, device=generator.device))
            other = image.roll(step, 0)
        else:
            half = ((0, width // 2), (height // 2, 0), (height // 2, width // 2))
            shifts = [shift for shift in half if shift != (0, 0)] or [(0, 0)]
            other = image.roll(shifts[int(torch.randint(len(shifts), (), generator=generator, device=generator.device))], (2, 3))
        return torch.where((finite_pixels(image) & finite_pixels(other))[:, None], other, image)


PUBLISHED: tuple[VirtualAnomaly, ...] = (GaussianNoise(), ChannelShuffle(), BrightnessShift(), ContrastChange(), Solarise())
"""The publication's transformations in its order; the strength of the noise is ours."""


def apply_all(transforms: Sequence[VirtualAnomaly], image: Tensor, generator: torch.Generator) -> Tensor:
    """Apply transformations one after the other.

    Args:
        transforms: any number; none returns a copy.
        image: (B, C, H, W) normalised float, NaN where there is no data.
        generator: draws everything.

    Returns:
        (B, C, H, W), finite exactly at the pixels where the image is.

    Raises:
        ValueError: ``image`` is not a (B, C, H, W) float.
    """
    _check_image(image)
    changed = image.clone()
    for transform in transforms:
        changed = transform(changed, generator)
    return changed
