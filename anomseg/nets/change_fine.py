"""Convolutions above the scans: what is small keeps its pixels there, while the scans below see far at a fraction of the tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.change_siss import Dates
from anomseg.nets.convolution import ConvPair, MapNorm, halves


class FineStage(nn.Module):
    """Encode each date by two convolutions with shared weights.

    Args:
        incoming: channels of each date.
        channels: of the result.
        norm: see `MapNorm`.
    """

    def __init__(self, incoming: int, channels: int, norm: MapNorm = "batch") -> None:
        super().__init__()
        self.body = ConvPair(incoming, channels, norm)

    def forward(self, a: Tensor, b: Tensor) -> Dates:
        """Return both dates, (B, channels, H, W) each."""
        return halves(self.body(torch.cat([a, b])))


class FineLevel(nn.Module):
    """Decode at the resolution of a `FineStage`: both dates, their absolute difference and the map from below, by two convolutions.

    Args:
        channels: of each date and of the result.
        below: channels of the map from below, which has half the side.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, below: int, norm: MapNorm = "batch") -> None:
        super().__init__()
        self.body = ConvPair(3 * channels + below, channels, norm)

    def forward(self, a: Tensor, b: Tensor, below: Tensor) -> Tensor:
        """Return (B, channels, H, W)."""
        below = F.interpolate(below, a.shape[-2:], mode="bilinear", align_corners=False)
        return cast(Tensor, self.body(torch.cat([a, b, (a - b).abs(), below], 1)))
