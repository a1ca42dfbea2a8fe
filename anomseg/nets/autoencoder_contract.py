"""What a net promises that rebuilds images or their features, and what of an image it is told beside the bands."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLACES = 3
"""Maps of `place_maps`."""


class Rebuilt(NamedTuple):
    """Hold what a net makes of a batch.

    Attributes:
        image: (B, C, H, W) rebuilt.
        features: (B, D, h, w) of the bottleneck.
        targets: groups of features of the clean image, (B, F, g, g') each, where a net rebuilds features; else empty.
        levels: the same groups, rebuilt.
    """

    image: Tensor
    features: Tensor
    targets: tuple[Tensor, ...] = ()
    levels: tuple[Tensor, ...] = ()


class ReconstructionNet(nn.Module, ABC):
    """Rebuild standardised images (B, C, H, W) of any size, finite, 0 where there is no data.

    Attributes:
        stride: pixels along one point of `Rebuilt.levels`.
        multiple: images are padded to a multiple of it inside, so that `Rebuilt.features` cover that many pixels.
    """

    stride: int = 1
    multiple: int = 1

    @abstractmethod
    def forward(self, image: Tensor, place: Tensor | None = None, clean: Tensor | None = None) -> Rebuilt:
        """Rebuild a batch.

        Args:
            image: what the net sees, perhaps corrupted or with holes.
            place: (B, `PLACES`, H, W), where it was built for them.
            clean: the image whose features are the targets; None for `image`.
        """

    @abstractmethod
    def encoded(self, image: Tensor, place: Tensor | None = None) -> list[Tensor]:
        """Give the maps of the encoder, finest first: what a distance in features compares."""

    def judge(self, image: Tensor, rebuilt: Tensor, place: Tensor | None = None) -> Tensor | None:
        """Give logits (B, H, W) of defects from an image and its reconstruction; None without such a head, as here."""
        return None

    def follower(self) -> ReconstructionNet:
        """Copy the net to an average of its weights: without gradients, and sharing what is frozen."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        return copy.deepcopy(self, shared).requires_grad_(False).eval()


class ReconstructionSpec(ABC):
    """Describe a reconstruction net without knowing bands."""

    rebuilds_features: ClassVar[bool] = False  # whether the net has targets and levels

    @property
    def judges(self) -> bool:
        """Tell whether the net has a head of defects."""
        return False

    @property
    def copies(self) -> bool:
        """Tell whether the net could pass its input through unchanged."""
        return False

    @abstractmethod
    def build(self, in_channels: int, places: int = 0) -> ReconstructionNet:
        """Build the net with fresh weights, drawn from torch's global generator; `places` is 0 or `PLACES`."""


def place_maps(size: tuple[int, int], reach: float, window: tuple[int, int] = (0, 0), whole: tuple[int, int] | None = None) -> Tensor:
    """Tell every pixel where it is: column and row in [-1, 1], and how near the border of the whole image is.

    Args:
        size: (height, width) of the part at hand, pixels.
        reach: pixels from the border at which it is no longer felt, > 0.
        window: first row and column of the part.
        whole: (height, width) of the whole image; None where the part is the whole.

    Returns:
        (3, height, width) float32; the last is 1 - d / reach, at least 0, with d the distance to the nearest side, 0 at its pixels.
    """
    height, width = whole or size
    row = torch.arange(window[0], window[0] + size[0], dtype=torch.float32)[:, None].expand(size)
    column = torch.arange(window[1], window[1] + size[1], dtype=torch.float32).expand(size)
    across, down = (2 * (one + 0.5) / side - 1 for one, side in ((column, width), (row, height)))
    distance = torch.minimum(torch.minimum(row, height - 1 - row), torch.minimum(column, width - 1 - column))
    return torch.stack([across, down, (1 - distance / reach).clamp(0.0, 1.0)])


def on_grid(valid: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Compute which share of each grid point of stride x stride pixels is valid: (B, H, W) bool to (B, g, g'), 0 beyond the image."""
    below, right = grid[0] * stride - valid.shape[-2], grid[1] * stride - valid.shape[-1]
    return F.avg_pool2d(F.pad(valid.float(), (0, right, 0, below))[:, None], stride)[:, 0]


def at_pixels(points: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Bring a map (B, g, g') of grid points to the pixels (B, H, W), bilinearly; points beyond the image are cropped."""
    if stride == 1:
        return points[:, : size[0], : size[1]]
    fine = F.interpolate(points[:, None], scale_factor=float(stride), mode="bilinear", align_corners=False)[:, 0]
    return fine[:, : size[0], : size[1]]
