"""What is learnt from: images as scaled bands or their filter bank, standardised by the normal training pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from anomseg.functional.filter_bank import filter_bank, filter_bank_channels
from anomseg.functional.rx import BackgroundStatistics, merge_statistics, pixel_statistics
from anomseg.methods.training_data import gathered_objects
from anomseg.sample import NORMAL, finite_pixels


@dataclass(frozen=True)
class Texture:
    """Describe the filter bank that stands before the net; see `anomseg.functional.filter_bank.filter_bank`.

    Attributes:
        sigmas: scales in pixels, each at least 0.5.
        log_floor: noise floor of its logarithms, in standard deviations of the bands; 0 for none.
    """

    sigmas: tuple[float, ...] = (1.0, 4.0, 16.0)
    log_floor: float = 0.05


class Inputs(nn.Module):
    """Turn images into what the net sees: bands of unit deviation, or their filter bank, of unit deviation again; NaN without data.

    Args:
        bands: of the images.
        texture: the filter bank, or None.
        standardise: bands by the statistics of the `training` pixels, or of each `image`.
    """

    band_mean: Tensor
    band_std: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, bands: int, texture: Texture | None, standardise: Literal["training", "image"]) -> None:
        super().__init__()
        self.bands, self.texture, self.standardise = bands, texture, standardise
        self.channels = bands if texture is None else filter_bank_channels(bands, len(texture.sigmas))
        for name, size in (("band_mean", bands), ("band_std", bands), ("mean", self.channels), ("std", self.channels)):
            self.register_buffer(name, torch.zeros(size))

    @property
    def fitted(self) -> bool:
        """Tell whether the statistics are known."""
        return bool(self.std.any())

    def fit(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], device: torch.device) -> None:
        """Take mean and deviation over normal pixels, in one pass over (image, normal) batches for the bands and one for the features.

        Raises:
            ValueError: the images have another band count, or no pixel is normal.
        """
        self.band_mean, self.band_std = (value.to(device) for value in channel_statistics(batches(), self.bands))
        features = ((self.features(image), normal) for image, normal in batches())
        self.mean, self.std = (value.to(device) for value in channel_statistics(features, self.channels))

    def features(self, image: Tensor) -> Tensor:
        """Compute the filter bank of (B, C, H, W), or the scaled bands: (B, F, H, W), NaN where there is no data."""
        data = finite_pixels(image)[:, None]
        mean, std = self.band_mean[:, None, None], self.band_std[:, None, None]
        if self.standardise == "image":
            count = data.sum((2, 3), keepdim=True).clamp_min(1)
            mean = torch.where(data, image, 0.0).sum((2, 3), keepdim=True) / count
            std = (torch.where(data, image - mean, 0.0).square().sum((2, 3), keepdim=True) / count).sqrt()
        scaled = torch.where(data, (image - mean) / std.clamp_min(1e-6), torch.nan)
        return scaled if self.texture is None else filter_bank(scaled, self.texture.sigmas, self.texture.log_floor)

    def forward(self, image: Tensor) -> Tensor:
        """Give (B, F, H, W) of mean 0 and deviation 1 over normal training pixels, in the type of the image, NaN where there is no data."""
        scaled: Tensor = (self.features(image) - self.mean[:, None, None]) / self.std[:, None, None]
        return scaled.to(image.dtype)  # that of the net where all is in half precision


def channel_statistics(batches: Iterable[tuple[Tensor, Tensor]], channels: int) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (C,) over the normal pixels of all ranks.

    Args:
        batches: images (B, C, H, W) and their normal pixels (B, H, W) bool, which hold data.
        channels: C.

    Raises:
        ValueError: an image has another number of channels, or no pixel is normal.
    """
    total: BackgroundStatistics | None = None
    for image, normal in batches:
        if image.shape[1] != channels:
            raise ValueError(
                f"Expected training images of in_channels={channels} bands, but got {image.shape[1]}. Set in_channels to that."
            )
        new = pixel_statistics(image.movedim(1, -1)[normal].cpu())
        total = new if total is None else merge_statistics(total, new)
    parts = [part for part in gathered_objects(total) if part is not None]
    merged = reduce(merge_statistics, parts) if parts else None
    if merged is None or float(merged.count) < 2:
        raise ValueError(
            f"Expected normal pixels (mask {NORMAL}, with data) in the training images, but there are none. Check which classes are normal."
        )
    deviation = (merged.scatter.diagonal() / merged.count).clamp_min(0.0).sqrt()
    return merged.mean.float(), torch.where(deviation > 0, deviation, 1.0).float()
