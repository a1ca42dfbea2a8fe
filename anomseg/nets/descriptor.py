"""Describe every pixel by a vector: the interface of descriptor nets, and the one that reads a pixel's own values alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomseg.sample import finite_pixels


class Described(NamedTuple):
    """Hold what a descriptor net makes of a batch.

    Attributes:
        descriptor: (B, D, H, W).
        reconstruction: (B, C, H, W) the image rebuilt from what the descriptor is made of.
    """

    descriptor: Tensor
    reconstruction: Tensor


class DescriptorNet(nn.Module, ABC):
    """Turn (B, C, H, W) normalised images, NaN where there is no data, into `Described`, finite everywhere."""

    @abstractmethod
    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        """Describe every pixel; the statistics of normalisation layers come from the `valid` ones, (B, H, W) bool, in training."""


class DescriptorSpec(ABC):
    """Describe a descriptor net without knowing the bands of the images."""

    @abstractmethod
    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net with fresh weights, drawn from torch's global generator."""


@dataclass(frozen=True)
class PixelDescriptor(DescriptorSpec):
    """Describe each pixel by its own values: 1 x 1 convolutions, for spectra, or for features that hold the surroundings already.

    Attributes:
        latent: D, at least 1.
        hidden: channels of the hidden layers.
        dropout: chance to drop a hidden value in training, in [0, 1).
        clip: values beyond this many standard deviations are cut, > 0.
    """

    latent: int = 16
    hidden: tuple[int, ...] = (64, 64)
    dropout: float = 0.1
    clip: float = 6.0

    def __post_init__(self) -> None:
        if self.latent < 1 or not all(width > 0 for width in self.hidden) or not 0 <= self.dropout < 1 or self.clip <= 0:
            raise ValueError(f"Expected latent >= 1, positive widths, dropout in [0, 1) and clip > 0, but got {self}.")

    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net; see `DescriptorSpec`."""
        return _PixelNet(in_channels, self)


class _PixelNet(DescriptorNet):
    def __init__(self, in_channels: int, spec: PixelDescriptor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for wider in spec.hidden:
            layers += [nn.Conv2d(width, wider, 1), nn.GELU(), nn.Dropout(spec.dropout)]
            width = wider
        self.body = nn.Sequential(*layers)
        self.descriptor_head = nn.Conv2d(width, spec.latent, 1)
        self.reconstruction_head = nn.Conv2d(width, in_channels, 1)
        self.clip = spec.clip

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        filled = torch.where(finite_pixels(image)[:, None], image, 0.0).clamp(-self.clip, self.clip)
        features = self.body(filled)
        return Described(self.descriptor_head(features), self.reconstruction_head(features))
