"""Where maps meet: attentional fusion of a main line with a side branch, and the skip connections of two dates."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.convolution import ConvUnit, MapNorm, SqueezeExcitation, map_norm

FusionGate = Literal["one_sided", "soft", "dai", "tanh"]
SkipFusion = Literal["cat", "se", "none"]


def fuse_gated(main: Tensor, side: Tensor, attention: Tensor, gate: FusionGate) -> Tensor:
    """Join two maps by an attention logit w.

    Args:
        main: any shape.
        side: the same shape.
        attention: w, the same shape.
        gate: with s = σ(w) and t = tanh(w): `one_sided` main + (1 - s) side, which leaves the main line alone; `soft`
            s main + (1 - s) side; `dai` twice that; `tanh` (1 + t) main + (1 - t) side.

    Raises:
        ValueError: an unknown gate.

    Source: `dai` is Dai et al., "Attentional Feature Fusion", WACV 2021, arXiv 2009.14082, as its code has it. (1 + t) / 2 = σ(2w), so
        that `tanh` is `dai` with a doubled logit.
    """
    if gate == "tanh":
        tilt = torch.tanh(attention)
        return (1 + tilt) * main + (1 - tilt) * side
    share = torch.sigmoid(attention)
    if gate == "one_sided":
        return main + (1 - share) * side
    if gate == "soft":
        return share * main + (1 - share) * side
    if gate == "dai":
        return 2 * (share * main + (1 - share) * side)
    raise ValueError(f"Expected a gate of {get_args(FusionGate)}, but got {gate!r}. Take 'one_sided'.")


class AttentionalFusion(nn.Module):
    """Join a main line with a side branch by attention from their sum: channel by channel, from each pixel and from the whole map.

    Args:
        channels: C of both.
        gate: see `fuse_gated`.
        norm: of the local branch, see `MapNorm`; the global one has none, because one number per channel cannot be normalised in a batch
            of one.
        reduction: channels for each hidden channel.
    """

    def __init__(self, channels: int, gate: FusionGate = "one_sided", norm: MapNorm = "batch", reduction: int = 4) -> None:
        super().__init__()
        if gate not in get_args(FusionGate):
            raise ValueError(f"Expected a gate of {get_args(FusionGate)}, but got {gate!r}. Take 'one_sided'.")
        self.gate = gate
        hidden = max(channels // reduction, 2)
        self.local = nn.Sequential(
            ConvUnit(channels, hidden, 1, norm), nn.Conv2d(hidden, channels, 1, bias=False), map_norm(norm, channels)
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, main: Tensor, side: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        both = main + side
        return fuse_gated(main, side, self.local(both) + self.whole(both), self.gate)


class SkipUnit(nn.Module):
    """Join the two dates of an encoder level with the decoder's map from below.

    Args:
        channels: C of the level and of the result.
        below: channels of the map from below, 0 at the deepest level.
        skip: `cat` all; `se` weigh the joined channels first; `none` drops the dates at all but the deepest level.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, below: int, skip: SkipFusion = "cat", norm: MapNorm = "batch") -> None:
        super().__init__()
        if skip not in get_args(SkipFusion):
            raise ValueError(f"Expected skip of {get_args(SkipFusion)}, but got {skip!r}. Take 'cat'.")
        self.takes_dates = skip != "none" or not below
        incoming = (2 * channels if self.takes_dates else 0) + below
        inner = max(channels // 2, 2)
        self.weigh = SqueezeExcitation(incoming) if skip == "se" else nn.Identity()
        self.mix = nn.Sequential(ConvUnit(incoming, inner, 1, norm), ConvUnit(inner, channels, 3, norm))

    def forward(self, a: Tensor, b: Tensor, below: Tensor | None) -> Tensor:
        """Return (B, C, H, W); the map from below is brought to that size."""
        parts = [a, b] if self.takes_dates else []
        if below is not None:
            parts.append(F.interpolate(below, a.shape[-2:], mode="bilinear", align_corners=False))
        return cast(Tensor, self.mix(self.weigh(torch.cat(parts, 1))))
