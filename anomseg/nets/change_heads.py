"""What a change network gives: logits at full resolution, and those of its decoder levels while it learns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.convolution import ConvUnit, MapNorm, set_bias


class ChangeOutput(NamedTuple):
    """Hold what a change network gives.

    Attributes:
        logits: (B, H, W).
        auxiliary: (B, h, w) logits of the decoder levels, finest first, in training mode; empty in evaluation mode.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


class LevelHead(nn.Sequential):
    """Give the logits of one decoder level at its own resolution, for supervision in training."""

    def __init__(self, channels: int, norm: MapNorm = "batch") -> None:
        inner = max(channels // 2, 2)
        super().__init__(ConvUnit(channels, inner, 3, norm), nn.Conv2d(inner, 1, 1))


class UpsamplingHead(nn.Module):
    """Bring a map to full resolution in steps of two with a convolution each, then to logits.

    Args:
        channels: C of the map.
        stride: pixels of the image along one of the map, a power of two.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, stride: int, norm: MapNorm = "batch") -> None:
        super().__init__()
        inner = max(channels // 2, 2)
        count = stride.bit_length() - 1
        self.steps = nn.ModuleList(ConvUnit(channels if i == 0 else inner, inner, 3, norm) for i in range(count))
        self.last = nn.Conv2d(inner if count else channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1, H, W)."""
        for step in self.steps:
            x = step(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
        return cast(Tensor, self.last(x))


class ShuffleHead(nn.Module):
    """Compute the logits of a block of pixels from the one map pixel that stands for them, and lay them out.

    It costs nothing at full resolution, and can be sharp where the features know the block's pixels (see `SpaceToDepthStem`).

    Args:
        channels: C of the map.
        stride: side of the block in pixels.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, stride: int, norm: MapNorm = "batch") -> None:
        super().__init__()
        self.mix = ConvUnit(channels, channels, 3, norm)
        self.last = nn.Conv2d(channels, stride * stride, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1, H, W)."""
        return F.pixel_shuffle(self.last(self.mix(x)), self.stride)


class DetailHead(nn.Module):
    """Weigh each pixel's raw bands by what the map says about it, and decide at full resolution.

    A coarse map cannot carry every pixel of its block; the dates themselves are at hand, so the map need only say what to make of them.
    Each pixel gets a few numbers from the map pixel that stands for it (as in `ShuffleHead`), which multiply as many features of both
    dates and |after - before| around it: change is what differs here *and* lies where the map expects it.

    Args:
        channels: C of the map.
        stride: side of the block in pixels.
        bands: of a date.
        norm: see `MapNorm`.
        detail: numbers that the map gives for each pixel, and features of its bands.
    """

    def __init__(self, channels: int, stride: int, bands: int, norm: MapNorm = "batch", detail: int = 8) -> None:
        super().__init__()
        self.mix = ConvUnit(channels, channels, 3, norm)
        self.spread = nn.Conv2d(channels, detail * stride * stride, 1)
        self.see = nn.Conv2d(3 * bands, detail, 3, padding=1)
        self.last = nn.Conv2d(detail, 1, 1)
        self.stride = stride

    def forward(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return (B, 1, H, W) from the map (B, C, H / stride, W / stride) and both dates (B, bands, H, W)."""
        said = F.pixel_shuffle(self.spread(self.mix(x)), self.stride)
        seen = F.relu(self.see(torch.cat([before, after, (after - before).abs()], 1)))
        return cast(Tensor, self.last(said * seen))


def set_biases(layers: Iterable[nn.Module], share: float) -> None:
    """Set the biases of last layers to the logit of a share.

    Raises:
        ValueError: the share does not lie in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"Expected a share in (0, 1), but got {share}. Use 0.05 where it is not known.")
    for layer in layers:
        set_bias(cast(nn.Conv2d, layer), math.log(share / (1 - share)))


def upsampled(logits: Tensor, multiple: int, size: tuple[int, int]) -> Tensor:
    """Enlarge coarse logits (B, h, w) to the padded image they stand for, and crop to its size (H, W).

    Args:
        logits: (B, h, w).
        multiple: what the sides of the image were padded to a multiple of.
        size: (H, W) of the image in pixels.

    Returns:
        (B, H, W).
    """
    padded = tuple(side + -side % multiple for side in size)
    return F.interpolate(logits[:, None], padded, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
