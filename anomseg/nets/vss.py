"""Visual state space blocks: selective scans over the pixels of a map (spatial) and over its channels.

Vectors that must not decay (A, D, biases of the step) are kept with one axis, so that an optimiser that decays only parameters with two
or more axes leaves them alone. The scan runs in float32, under autocast and in a network of half precision alike.

Source: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166; initial values of Gu and Dao, "Mamba", 2023,
arXiv 2312.00752. The scan over channels is ours.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.functional.scan import cross_selective_scan, selective_scan
from anomseg.nets.convolution import ChannelNorm, MapNorm, map_norm

_SLOWEST, _FASTEST, _LEAST = 1e-3, 1e-1, 1e-4  # range of the first steps Δ, and the least of them


class StateSpace(nn.Module):
    """Hold the parameters of K selective scans over D channels, and compute the operands from the scanned map.

    Args:
        channels: D.
        directions: K.
        state: N, numbers that a channel remembers.
    """

    def __init__(self, channels: int, directions: int, state: int) -> None:
        super().__init__()
        self.channels, self.directions, self.state = channels, directions, state
        self.rank = math.ceil(channels / 16)
        self.project = nn.Conv1d(channels, directions * (self.rank + 2 * state), 1, bias=False)
        self.step = nn.Parameter(torch.empty(directions, channels, self.rank).uniform_(-1, 1) * self.rank**-0.5)
        first = torch.empty(directions * channels).uniform_(math.log(_SLOWEST), math.log(_FASTEST)).exp().clamp_min(_LEAST)
        self.step_bias = nn.Parameter(first + torch.log(-torch.expm1(-first)))  # softplus gives back the first step
        self.log_rate = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(directions * channels))
        self.skip = nn.Parameter(torch.ones(directions * channels))

    def rates(self) -> Tensor:
        """Give A = -exp(log rate) < 0, (K D, N)."""
        return -torch.exp(self.log_rate.view(-1, self.state))

    def operands(self, tokens: Tensor) -> Tensor:
        """Project (B, D, L) to the K operands (B, K, R + 2N, L): low-rank steps, then B, then C."""
        projected = F.conv1d(tokens, self.project.weight.to(tokens.dtype))
        return projected.view(tokens.shape[0], self.directions, self.rank + 2 * self.state, tokens.shape[-1])

    def steps(self, low_rank: Tensor) -> Tensor:
        """Widen low-rank steps (B, K, R, L) to (B, K, D, L)."""
        return torch.einsum("bkrl,kdr->bkdl", low_rank, self.step.to(low_rank.dtype))


class SelectiveScan2D(nn.Module):
    """Let every pixel see every other one along rows and columns, both ways round.

    Expand to D channels, mix 3 x 3 neighbours channel by channel, scan in four directions, normalise, project back.

    Args:
        channels: of the map.
        ratio: D / channels, > 0.
        state: N >= 1.
    """

    def __init__(self, channels: int, ratio: float = 1.0, state: int = 1) -> None:
        super().__init__()
        inner = max(round(ratio * channels), 1)
        self.expand = nn.Conv2d(channels, inner, 1, bias=False)
        self.neighbours = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.space = StateSpace(inner, 4, state)
        self.norm = ChannelNorm(inner)
        self.reduce = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        u = F.silu(self.neighbours(self.expand(x)))
        with torch.autocast(x.device.type, enabled=False):
            y = self._scan(u.to(torch.promote_types(u.dtype, torch.float32)))
        return cast(Tensor, self.reduce(self.norm(y.to(self.norm.norm.weight.dtype)).to(u.dtype)))

    def _scan(self, u: Tensor) -> Tensor:
        space, (height, width) = self.space, u.shape[-2:]
        operands = space.operands(u.flatten(2))
        operands = operands.view(*operands.shape[:3], height, width)
        # Directions 0 and 2 read rows, 1 and 3 columns; the scan itself turns 2 and 3 round.
        rows, columns = operands[:, 0::2].flatten(3), operands[:, 1::2].transpose(3, 4).flatten(3)
        read = torch.stack([rows, columns], 2).flatten(1, 2)
        low_rank, enter, leave = torch.split(read, [space.rank, space.state, space.state], dim=2)
        return cross_selective_scan(u, space.steps(low_rank), space.rates(), enter, leave, space.skip, space.step_bias, delta_softplus=True)


class Mlp(nn.Sequential):
    """Mix the channels of every pixel through a wider layer.

    Args:
        channels: of the map.
        ratio: hidden channels for each channel.
    """

    def __init__(self, channels: int, ratio: float = 4.0) -> None:
        hidden = max(round(ratio * channels), 1)
        super().__init__(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))


class VSSBlock(nn.Module):
    """Add a selective scan to a map, then an MLP, each after a norm.

    Args:
        channels: of the map.
        norm: before each part, see `MapNorm`.
        ratio: see `SelectiveScan2D`.
        state: see `SelectiveScan2D`.
        mlp_ratio: see `Mlp`; 0 leaves it out.
    """

    def __init__(self, channels: int, norm: MapNorm = "batch", ratio: float = 1.0, state: int = 1, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.scan = nn.Sequential(map_norm(norm, channels), SelectiveScan2D(channels, ratio, state))
        self.mlp = nn.Sequential(map_norm(norm, channels), Mlp(channels, mlp_ratio)) if mlp_ratio > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = x + self.scan(x)
        return x if self.mlp is None else x + cast(Tensor, self.mlp(x))


class ChannelScan(nn.Module):
    """Weigh channels by a gate from a scan over the channels, forward and in reverse; each is described by its means on a grid.

    Args:
        channels: C, the tokens of the scan.
        grid: the map is averaged to grid x grid cells, the features of a token.
        width: channels inside of the scan.
        state: see `SelectiveScan2D`.
    """

    def __init__(self, channels: int, grid: int = 8, width: int = 64, state: int = 1) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        self.enter = nn.Sequential(nn.LayerNorm(grid * grid), nn.Linear(grid * grid, width))
        self.space = StateSpace(width, 2, state)
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + x * gate, (B, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            means = F.adaptive_avg_pool2d(wide, self.grid).flatten(2).to(self.leave.weight.dtype)
            tokens = F.silu(self.enter(means)).transpose(1, 2)
            gate = torch.sigmoid(self.leave(self._scan(tokens.to(wide.dtype)).to(tokens.dtype).transpose(1, 2)))
        return x + x * gate.unsqueeze(-1).to(x.dtype)

    def _scan(self, tokens: Tensor) -> Tensor:
        space, width = self.space, tokens.shape[1]
        low_rank, enter, leave = torch.split(space.operands(tokens), [space.rank, space.state, space.state], dim=2)
        delta, rates = space.steps(low_rank), space.rates()
        total = torch.zeros_like(tokens)
        for direction, reverse in ((0, False), (1, True)):
            own = slice(direction * width, (direction + 1) * width)
            pair = slice(direction, direction + 1)
            total = total + selective_scan(
                tokens,
                delta[:, direction],
                rates[own],
                enter[:, pair],
                leave[:, pair],
                space.skip[own],
                None,
                space.step_bias[own],
                delta_softplus=True,
                reverse=reverse,
            )
        return total
