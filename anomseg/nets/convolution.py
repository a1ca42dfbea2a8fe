"""Building blocks of the change networks: norms by name, and a convolution with its norm and activation."""

from __future__ import annotations

import math
from typing import Literal, cast

from torch import Tensor, nn

MapNorm = Literal["batch", "group", "layer", "none"]
"""`batch` needs several pixels to train on; `group` and `layer` treat each image alone, so that a batch of one is no different."""


def halves(joined: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Undo `torch.cat([a, b], dim)` of two tensors of one size; unlike `torch.chunk` it exports with a size that is not known yet."""
    size = joined.shape[dim] // 2
    return joined.narrow(dim, 0, size), joined.narrow(dim, size, size)


class ChannelNorm(nn.Module):
    """Bring the channels of every pixel to mean 0 and deviation 1, then scale and shift them: a layer norm of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


def map_norm(kind: MapNorm, channels: int) -> nn.Module:
    """Build a norm of (B, C, H, W) maps.

    Args:
        kind: see `MapNorm`; up to 8 groups of at least two channels, so that a map of one pixel has something to compare.
        channels: C; with one alone, `group` needs a map of several pixels.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = math.gcd(8, channels)
        return nn.GroupNorm(max(groups // 2, 1) if groups == channels else groups, channels)
    if kind == "layer":
        return ChannelNorm(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"Expected a norm of batch, group, layer and none, but got {kind!r}. Take 'batch', or 'group' for small batches.")


def set_bias(layer: nn.Conv2d, value: float) -> None:
    """Set all biases of a convolution.

    Raises:
        ValueError: it has none.
    """
    if layer.bias is None:
        raise ValueError(f"Expected a convolution with biases to set to {value}, but got {layer}. Build it with bias=True.")
    nn.init.constant_(layer.bias, value)


class ConvUnit(nn.Sequential):
    """Convolve, normalise, apply ReLU; the convolution has a bias only where no norm follows it.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        kernel: side in pixels, odd.
        norm: see `MapNorm`.
        stride: pixels from one output to the next.
    """

    def __init__(self, incoming: int, outgoing: int, kernel: int = 3, norm: MapNorm = "batch", stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(incoming, outgoing, kernel, stride, kernel // 2, bias=norm == "none"), map_norm(norm, outgoing), nn.ReLU()
        )


class ConvPair(nn.Sequential):
    """Convolve twice, 3 x 3, each with its norm and ReLU.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output, and between.
        norm: see `MapNorm`.
    """

    def __init__(self, incoming: int, outgoing: int, norm: MapNorm = "batch") -> None:
        super().__init__(ConvUnit(incoming, outgoing, 3, norm), ConvUnit(outgoing, outgoing, 3, norm))


class Bottleneck(nn.Sequential):
    """Squeeze by a 1 x 1 convolution, then widen by a 3 x 3 one: a quarter of what a 3 x 3 convolution of all channels costs.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output; half as many lie between, at least 2.
        norm: see `MapNorm`.
    """

    def __init__(self, incoming: int, outgoing: int, norm: MapNorm = "batch") -> None:
        inner = max(outgoing // 2, 2)
        super().__init__(ConvUnit(incoming, inner, 1, norm), ConvUnit(inner, outgoing, 3, norm))


class ResidualUnit(nn.Module):
    """Add two 3 x 3 convolutions to a map.

    Args:
        channels: of the map.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, norm: MapNorm = "batch") -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.body = nn.Sequential(ConvUnit(channels, channels, 3, norm), last, map_norm(norm, channels))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return cast(Tensor, self.activation(x + self.body(x)))


class SqueezeExcitation(nn.Module):
    """Weigh channels by a gate in (0, 1) that is computed from their means over the image.

    Args:
        channels: of the map.
        reduction: channels for each hidden unit.

    Source: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return x * cast(Tensor, self.gate(x))
