"""Split and integrate: one selective scan over both dates of a scene, in arrangements that let them see each other; and their difference.

| arrangement | how a and b (B, C, H, W) are joined | who is next to whom |
|---|---|---|
| `split` | left half a, right half b: (B, C, H, 2W) | each date is read whole, then the other |
| `interleave` | columns of a and b in turn: (B, C, H, 2W) | a pixel and itself at the other date |
| `cat` | channels, projected back: (B, C, H, W) | both dates are one token |

Source: the three arrangements are those of Chen et al., "ChangeMamba", IEEE TGRS 2024, arXiv 2404.03425, where they stand in the decoder;
here they are blocks of the encoder, share the scan's weights, and give their results back to the dates.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from anomseg.nets.convolution import Bottleneck, ConvUnit, MapNorm, halves, map_norm
from anomseg.nets.vss import Mlp, SelectiveScan2D

Arrangement = Literal["split", "interleave", "cat"]
Dates = tuple[Tensor, Tensor]


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Put the columns of two maps (B, C, H, W) side by side in turn: (B, C, H, 2W)."""
    return torch.stack([a, b], dim=-1).flatten(-2)


def deinterleave(joined: Tensor) -> Dates:
    """Undo `interleave`."""
    a, b = joined.view(*joined.shape[:-1], joined.shape[-1] // 2, 2).unbind(-1)
    return a, b


class SISSBlock(nn.Module):
    """Scan both dates together, hand the result back to each, then mix channels.

    a ← a + mean of its returned maps + g_a M, M = ReLU(norm(1 x 1 convolution of all returned maps)), then a ← a + MLP(norm(a)); b alike.
    The gains g start at 0.01.

    Args:
        channels: C of each date.
        arrangements: at least one of `split`, `interleave` and `cat`.
        shared: one scan for all arrangements, or one for each.
        norm: see `MapNorm`.
        ratio: see `SelectiveScan2D`.
        state: see `SelectiveScan2D`.
        mlp_ratio: see `Mlp`.

    Raises:
        ValueError: no, an unknown or a repeated arrangement.
    """

    def __init__(
        self,
        channels: int,
        arrangements: tuple[Arrangement, ...] = ("split", "interleave"),
        shared: bool = True,
        norm: MapNorm = "batch",
        ratio: float = 1.0,
        state: int = 1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        known = get_args(Arrangement)
        if not arrangements or any(one not in known for one in arrangements) or len(set(arrangements)) < len(arrangements):
            raise ValueError(f"Expected one or more of the arrangements {known}, each once, but got {arrangements}.")
        self.arrangements = arrangements
        self.norm = map_norm(norm, channels)
        self.scans = nn.ModuleList(SelectiveScan2D(channels, ratio, state) for _ in range(1 if shared else len(arrangements)))
        self.join = nn.Conv2d(2 * channels, channels, 1, bias=False) if "cat" in arrangements else None
        returned = sum(1 if one == "cat" else 2 for one in arrangements)
        self.integrate = ConvUnit(returned * channels, channels, 1, norm)
        self.gain_a = nn.Parameter(torch.full((channels,), 0.01))
        self.gain_b = nn.Parameter(torch.full((channels,), 0.01))
        self.mlp = nn.Sequential(map_norm(norm, channels), Mlp(channels, mlp_ratio))

    def forward(self, a: Tensor, b: Tensor) -> Dates:
        """Return both dates, (B, C, H, W) each."""
        normed_a, normed_b = halves(self.norm(torch.cat([a, b])))
        pairs = [self._seen(index, normed_a, normed_b) for index in range(len(self.arrangements))]
        maps = [one for kind, pair in zip(self.arrangements, pairs, strict=True) for one in (pair[:1] if kind == "cat" else pair)]
        merged = self.integrate(torch.cat(maps, 1))
        a = a + torch.stack([pair[0] for pair in pairs]).mean(0) + self.gain_a[:, None, None] * merged
        b = b + torch.stack([pair[1] for pair in pairs]).mean(0) + self.gain_b[:, None, None] * merged
        both = torch.cat([a, b])
        return halves(both + self.mlp(both))

    def _seen(self, index: int, a: Tensor, b: Tensor) -> Dates:
        """Join two dates, scan them, and part them again."""
        kind, scan = self.arrangements[index], self.scans[index % len(self.scans)]
        if kind == "split":
            return halves(scan(torch.cat([a, b], -1)), -1)
        if kind == "interleave":
            return deinterleave(scan(interleave(a, b)))
        assert self.join is not None
        both = scan(self.join(torch.cat([a, b], 1)))
        return both, both


class DifferenceBlock(nn.Module):
    """Turn two dates into features of their difference: a squeezed 3 x 3 convolution of |a - b| and a b, and a - b where it is signed.

    Args:
        channels: C of each date and of the result.
        signed: whether the sign of the change is kept; then the order of the dates matters.
        norm: see `MapNorm`.
    """

    def __init__(self, channels: int, signed: bool = False, norm: MapNorm = "batch") -> None:
        super().__init__()
        self.signed = signed
        self.mix = Bottleneck((3 if signed else 2) * channels, channels, norm)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        difference = a - b
        parts = [difference.abs(), a * b, *([difference] if self.signed else [])]
        return cast(Tensor, self.mix(torch.cat(parts, 1)))
