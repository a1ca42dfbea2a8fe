"""The front of a change network: each date at a coarser resolution, and the raw difference that a gate needs."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.convolution import ConvUnit, MapNorm, halves, map_norm

StemKind = Literal["convolution", "space_to_depth"]


class ConvolutionStem(nn.Module):
    """Halve the resolution of one date once or twice by 3 x 3 convolutions with a GELU between them.

    Args:
        bands: of the date.
        channels: of the result.
        stride: 2 or 4.
        norm: see `MapNorm`.

    Raises:
        ValueError: another stride.
    """

    def __init__(self, bands: int, channels: int, stride: int = 4, norm: MapNorm = "batch") -> None:
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"Expected a stem stride of 2 or 4 with stem='convolution', but got {stride}. space_to_depth takes others.")
        inner = max(channels // 2, 2)
        bias = norm == "none"
        self.body = nn.Sequential(
            nn.Conv2d(bands, inner, 3, 2, 1, bias=bias),
            map_norm(norm, inner),
            nn.GELU(),
            nn.Conv2d(inner, channels, 3, stride // 2, 1, bias=bias),
            map_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H / stride, W / stride)."""
        return cast(Tensor, self.body(x))


class SpaceToDepthStem(nn.Module):
    """Fold blocks of pixels into channels, which loses nothing, then convolve: most of the cost of full resolution is saved.

    Args:
        bands: of the input.
        channels: of the result.
        stride: side of a block in pixels, a power of two; 1 is a plain convolution.
        norm: see `MapNorm`.
    """

    def __init__(self, bands: int, channels: int, stride: int = 4, norm: MapNorm = "batch") -> None:
        super().__init__()
        self.stride = stride
        self.body = ConvUnit(bands * stride * stride, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H / stride, W / stride)."""
        return cast(Tensor, self.body(F.pixel_unshuffle(x, self.stride)))


class PairStem(nn.Module):
    """Bring both dates to the encoder's width, with weights of their own or shared.

    Args:
        bands: of a date.
        channels: of the result.
        kind: see `ConvolutionStem` and `SpaceToDepthStem`.
        stride: pixels of the image along one of the result.
        shared: one stem for both dates.
        difference: each date's stem sees |after - before| as further bands.
        norm: see `MapNorm`.

    Raises:
        ValueError: an unknown kind, or a stride that is no power of two.
    """

    def __init__(
        self,
        bands: int,
        channels: int,
        kind: StemKind = "convolution",
        stride: int = 4,
        shared: bool = False,
        difference: bool = False,
        norm: MapNorm = "batch",
    ) -> None:
        super().__init__()
        if kind not in get_args(StemKind) or stride < 1 or stride & (stride - 1):
            raise ValueError(f"Expected a stem of {get_args(StemKind)} and a stride of 1, 2, 4, 8, ..., but got {kind!r} and {stride}.")
        incoming = bands * (2 if difference else 1)
        stem = ConvolutionStem if kind == "convolution" else SpaceToDepthStem
        self.stems = nn.ModuleList(stem(incoming, channels, stride, norm) for _ in range(1 if shared else 2))
        self.difference = difference

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return both dates, (B, channels, H / stride, W / stride) each, from (B, bands, H, W)."""
        if self.difference:
            apart = (after - before).abs()
            before, after = torch.cat([before, apart], 1), torch.cat([after, apart], 1)
        if len(self.stems) == 1:
            return halves(self.stems[0](torch.cat([before, after])))
        return self.stems[0](before), self.stems[1](after)
