"""The branch of edges beside a decoder: derivatives of both dates, their difference, and a selective scan after it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from anomseg.functional.edges import FirstOrder, SecondOrder, gradient_magnitude, second_order
from anomseg.nets.convolution import Bottleneck, MapNorm, halves
from anomseg.nets.vss import VSSBlock


class EdgeOperators(nn.Module):
    """Describe the edges of one date by few channels: fixed first- and second-order operators, then a 1 x 1 convolution.

    Args:
        channels: C of the date.
        edges: channels of the result.
        first: operator of first order, or None.
        second: operator of second order, or None.
    """

    def __init__(self, channels: int, edges: int, first: FirstOrder | None = "sobel", second: SecondOrder | None = "dog") -> None:
        super().__init__()
        self.first, self.second = first, second
        count = (first is not None) + (second is not None)
        self.squeeze = nn.Conv2d(count * channels, edges, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, edges, H, W)."""
        parts = []
        if self.first is not None:
            parts.append(gradient_magnitude(x, self.first))
        if self.second is not None:
            parts.append(second_order(x, self.second))
        return cast(Tensor, self.squeeze(torch.cat(parts, 1)))


class EDSSBranch(nn.Module):
    """Supply local detail: the edges of each date, what differs between them, fused with the difference features, then a VSS block.

    With the edges e_a, e_b of both dates and e = |e_a - e_b|,

        T = mix(difference, e, e_a + e_b, e_a e_b)        T ← T + T σ(w e)        result = VSS(T)

    where sum and product stand for the two dates whichever comes first. Edges are taken from each date before they are compared.

    Args:
        channels: C of the dates, of the difference and of the result.
        edges: channels of a date's edges.
        first: operator of first order, or None for none.
        second: operator of second order, or None for none; without either the branch is a scan of the difference.
        norm: see `MapNorm`.
        ratio: see `SelectiveScan2D`; 0 leaves the VSS block out.
        state: see `SelectiveScan2D`.
        mlp_ratio: see `Mlp`.
    """

    def __init__(
        self,
        channels: int,
        edges: int,
        first: FirstOrder | None = "sobel",
        second: SecondOrder | None = "dog",
        norm: MapNorm = "batch",
        ratio: float = 1.0,
        state: int = 1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        derives = first is not None or second is not None
        self.operators = EdgeOperators(channels, edges, first, second) if derives else None
        self.attend = nn.Conv2d(edges, 1, 1) if derives else None
        self.mix = Bottleneck(channels + (3 * edges if derives else 0), channels, norm)
        self.scan = VSSBlock(channels, norm, ratio, state, mlp_ratio) if ratio > 0 else nn.Identity()

    def forward(self, a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
        """Return (B, C, H, W) from both dates and their difference features, of that shape each."""
        if self.operators is None or self.attend is None:
            return cast(Tensor, self.scan(self.mix(difference)))
        edges_a, edges_b = halves(self.operators(torch.cat([a, b])))
        change = (edges_a - edges_b).abs()
        fused = self.mix(torch.cat([difference, change, edges_a + edges_b, edges_a * edges_b], 1))
        fused = fused + fused * torch.sigmoid(self.attend(change))
        return cast(Tensor, self.scan(fused))
