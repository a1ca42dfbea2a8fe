"""The plain baseline of change detection: a U-Net whose encoder sees each date, and whose skips join them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.change_heads import ChangeOutput, LevelHead, ShuffleHead, set_biases
from anomseg.nets.convolution import ConvPair, MapNorm, halves

DateFusion = Literal["concatenate", "difference", "both", "early"]


@dataclass(frozen=True)
class SiameseUNetSpec:
    """Describe a `SiameseConvUNet`.

    Attributes:
        width: channels of the first stage; each further stage has twice as many.
        levels: stages, at least 1.
        fusion: what a skip carries: both dates, their absolute difference, all three; or `early`: one encoder of the dates and their
            difference stacked.
        fold: blocks of fold x fold pixels become channels before the first stage, and logits after the last; 1 for full resolution.
        norm: see `MapNorm`.
    """

    width: int = 16
    levels: int = 4
    fusion: DateFusion = "both"
    fold: int = 1
    norm: MapNorm = "group"

    def __post_init__(self) -> None:
        if self.fusion not in get_args(DateFusion):
            raise ValueError(f"Expected fusion of {get_args(DateFusion)}, but got {self.fusion!r}. Take 'both'.")
        if min(self.width, self.levels, self.fold) < 1:
            raise ValueError(f"Expected width, levels and fold >= 1, but got {self.width}, {self.levels} and {self.fold}.")

    @property
    def multiple(self) -> int:
        """Give the pixels along one pixel of the coarsest stage."""
        return self.fold << (self.levels - 1)


class SiameseConvUNet(nn.Module):
    """Map two dates of a scene to a logit of change for each pixel.

    Args:
        bands: of a date.
        spec: see `SiameseUNetSpec`.

    Source: Daudt, Le Saux and Boulch, "Fully Convolutional Siamese Networks for Change Detection", ICIP 2018, arXiv 1810.08462 (early,
        concatenated and differing skips); norms, supervision of the levels and the folding of pixels are ours.
    """

    def __init__(self, bands: int = 3, spec: SiameseUNetSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or SiameseUNetSpec()
        widths = [spec.width << index for index in range(spec.levels)]
        incoming = bands * spec.fold**2 * (3 if spec.fusion == "early" else 1)
        self.stages = nn.ModuleList(ConvPair(i, o, spec.norm) for i, o in zip([incoming, *widths], widths, strict=False))
        carried = {"concatenate": 2, "difference": 1, "both": 3, "early": 1}[spec.fusion]
        below = [*widths[1:], 0]
        self.levels = nn.ModuleList(ConvPair(carried * o + u, o, spec.norm) for o, u in zip(widths, below, strict=True))
        self.heads = nn.ModuleList(LevelHead(channels, spec.norm) for channels in widths[1:])
        self.head = ShuffleHead(widths[0], spec.fold, spec.norm)

    def set_prior(self, share: float) -> None:
        """Start all outputs at the logit of a share of change in (0, 1)."""
        set_biases([self.head.last, *(cast(nn.Sequential, head)[-1] for head in self.heads)], share)

    def forward(self, before: Tensor, after: Tensor) -> ChangeOutput:
        """Compute logits of two dates (B, bands, H, W) of any size; see `ChangeOutput`."""
        height, width = before.shape[-2:]
        before, after = (pad_to_multiple(date, self.spec.multiple) for date in (before, after))
        skips = self._skips(before, after)
        auxiliary: list[Tensor] = []
        x = self.levels[-1](skips[-1])
        for index in reversed(range(len(skips) - 1)):
            if self.training:
                auxiliary.insert(0, self.heads[index](x)[:, 0])
            x = F.interpolate(x, skips[index].shape[-2:], mode="bilinear", align_corners=False)
            x = self.levels[index](torch.cat([skips[index], x], 1))
        return ChangeOutput(self.head(x)[:, 0, :height, :width], tuple(auxiliary))

    def _skips(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Encode both dates and join them at every stage, finest first."""
        early = self.spec.fusion == "early"
        x = torch.cat([before, after, (after - before).abs()], 1) if early else torch.cat([before, after])
        x, skips = F.pixel_unshuffle(x, self.spec.fold), []
        for index, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if index else x)
            skips.append(x if early else self._joined(x))
        return skips

    def _joined(self, x: Tensor) -> Tensor:
        a, b = halves(x)
        if self.spec.fusion == "concatenate":
            return torch.cat([a, b], 1)
        return (a - b).abs() if self.spec.fusion == "difference" else torch.cat([a, b, (a - b).abs()], 1)
