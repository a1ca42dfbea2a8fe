"""A frozen segmentation net and a small one that adds a residual to what its head reads.

Source: Liu et al., "Residual Pattern Learning for Pixel-wise Out-of-Distribution Detection in Semantic Segmentation", ICCV 2023. There the
residual is made from the coarsest features and added before the last two convolutions; here from what the head reads, in any net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomseg.nets.convolution import MapNorm, set_bias
from anomseg.nets.deeplab import AtrousPyramid
from anomseg.nets.segmentation import SegmentationNet


class ResidualPattern(nn.Module):
    """Look around each place at several distances, and give a change of its features; a fresh one changes nothing.

    Args:
        features: channels of the map.
        channels: of the branches of its `AtrousPyramid`.
        rates: dilations of the branches.
        norm: see `MapNorm`.
    """

    def __init__(self, features: int, channels: int = 32, rates: Sequence[int] = (3, 6, 12), norm: MapNorm = "group") -> None:
        super().__init__()
        self.pyramid = AtrousPyramid(features, channels, rates, norm)
        self.out = nn.Conv2d(channels, features, 1)
        nn.init.zeros_(self.out.weight)
        set_bias(self.out, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, features, h, w)."""
        change: Tensor = self.out(self.pyramid(features).relu())
        return change


class ResidualPatternNet(SegmentationNet):
    """Give the K logits of a frozen net as they are, and K more from features to which a residual was added, by the same head.

    Args:
        base: the net; it is frozen, and stays in evaluation mode.
        channels: see `ResidualPattern`.
    """

    def __init__(self, base: SegmentationNet, channels: int = 32) -> None:
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        self.pattern = ResidualPattern(base.head.in_channels, channels)

    @property
    def head(self) -> nn.Conv2d:  # type: ignore[override]  # read-only: it is that of the frozen net
        """Give the frozen head."""
        return self.base.head

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """Give the residual pattern, the one part that learns."""
        return [self.pattern]

    def train(self, mode: bool = True) -> ResidualPatternNet:
        """Change the mode of the pattern alone: norms and dropouts of the frozen net must not drift."""
        super().train(mode)
        self.base.eval()
        return self

    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute what the head reads, without the residual."""
        with torch.no_grad():
            return [self.base.features(image)]

    def decide(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute logits (B, 2 K, H, W): first those of the frozen net, then those with the residual."""
        return torch.cat([self.base.decide(features, size), self.base.decide(self._changed(features), size)], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 2 K, H, W), all that the frozen net does after its head included."""
        return torch.cat(self.base.revise(image, self._changed), 1)

    def _changed(self, features: Tensor) -> Tensor:
        changed: Tensor = features + self.pattern(features)
        return changed
