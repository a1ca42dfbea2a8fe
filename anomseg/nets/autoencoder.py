"""Rebuild an image by a U-Net whose skips are a choice, and judge by a second one where input and reconstruction differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.autoencoder_contract import Rebuilt, ReconstructionNet, ReconstructionSpec
from anomseg.nets.convolution import MapNorm, map_norm, set_bias

Skips = Literal["all", "first", "none"]
Activation = Literal["gelu", "leaky_relu"]
NORMS = ("group", "batch", "none")
DEFECT_PRIOR = -3.0  # logit at which the head of defects starts: few pixels are defects


@dataclass(frozen=True)
class AutoencoderSpec(ReconstructionSpec):
    """Describe a `UNetAutoencoder`.

    Attributes:
        width: channels at full resolution, at least 2; each coarser stage has twice as many, up to `widest` times.
        depth: halvings of the resolution, at least 1.
        skips: stages of the encoder that the decoder sees: `all`, the `first` (finest) alone, or `none`. With `all` the net can copy its
            input, so it wants corrupted inputs or masked prediction; without any, what is rebuilt is blurred.
        bottleneck: channels of the code, at least 1; None for those of the coarsest stage.
        dropout: chance to drop a number of the code in training, in [0, 1).
        norm: `group` treats each image alone, `batch` wants large batches, `none`.
        activation: neither of both can die as ReLU does.
        widest: at least 1.
        defect_head: whether a second net gives logits of defects from input and reconstruction; it learns from the synthetic masks.
    """

    width: int = 24
    depth: int = 4
    skips: Skips = "none"
    bottleneck: int | None = None
    dropout: float = 0.0
    norm: MapNorm = "group"
    activation: Activation = "gelu"
    widest: int = 8
    defect_head: bool = False

    def __post_init__(self) -> None:
        if self.skips not in get_args(Skips) or self.norm not in NORMS or self.activation not in get_args(Activation):
            raise ValueError(
                f"Expected skips of {get_args(Skips)}, norm of {NORMS} and activation of {get_args(Activation)}, "
                f"but got {self.skips!r}, {self.norm!r} and {self.activation!r}."
            )
        if (
            self.width < 2
            or min(self.depth, self.widest, 1 if self.bottleneck is None else self.bottleneck) < 1
            or not 0 <= self.dropout < 1
        ):
            raise ValueError(f"Expected width >= 2, depth, widest and bottleneck >= 1 and dropout in [0, 1), but got {self}.")

    @property
    def judges(self) -> bool:
        """Tell whether there is a head of defects."""
        return self.defect_head

    @property
    def copies(self) -> bool:
        """Tell whether all skips are open."""
        return self.skips == "all"

    def build(self, in_channels: int, places: int = 0) -> UNetAutoencoder:
        """Build the net; see the base class."""
        return UNetAutoencoder(in_channels, self, places)


class UNetAutoencoder(ReconstructionNet):
    """Rebuild an image of any size; the last layer is linear, since standardised images are negative as often as not.

    Args:
        in_channels: C.
        spec: see `AutoencoderSpec`.
        places: further maps of the input, which are not rebuilt.

    Source: Ronneberger et al., "U-Net", MICCAI 2015, arXiv 1505.04597; the head of defects after Zavrtanik et al., "DRAEM", ICCV 2021,
        arXiv 2108.07610.
    """

    def __init__(self, in_channels: int = 3, spec: AutoencoderSpec | None = None, places: int = 0) -> None:
        super().__init__()
        self.spec = spec = spec or AutoencoderSpec()
        self.multiple = 1 << spec.depth
        self.net = _UNet(in_channels + places, in_channels, spec, spec.skips, spec.bottleneck, spec.dropout)
        self.head = _UNet(2 * in_channels + places, 1, spec, "all", None, 0.0) if spec.defect_head else None
        if self.head is not None:
            set_bias(self.head.last, DEFECT_PRIOR)

    def forward(self, image: Tensor, place: Tensor | None = None, clean: Tensor | None = None) -> Rebuilt:
        """Rebuild a batch; see the base class."""
        rebuilt, code = self.net(image if place is None else torch.cat([image, place], 1))
        return Rebuilt(rebuilt, code)

    def encoded(self, image: Tensor, place: Tensor | None = None) -> list[Tensor]:
        """Give the stages of the encoder, finest first; see the base class."""
        return self.net.encode(image if place is None else torch.cat([image, place], 1))

    def judge(self, image: Tensor, rebuilt: Tensor, place: Tensor | None = None) -> Tensor | None:
        """Give logits of defects; see the base class."""
        if self.head is None:
            return None
        logits: Tensor = self.head(torch.cat([image, rebuilt, *([] if place is None else [place])], 1))[0]
        return logits[:, 0]


class _UNet(nn.Module):
    def __init__(self, incoming: int, outgoing: int, spec: AutoencoderSpec, skips: Skips, code: int | None, dropout: float) -> None:
        super().__init__()
        widths = [spec.width * min(1 << level, spec.widest) for level in range(spec.depth + 1)]
        self.carried = [skips == "all" or (skips == "first" and level == 0) for level in range(spec.depth)]
        self.stages = nn.ModuleList(_pair(i, o, spec) for i, o in zip([incoming, *widths], widths, strict=False))
        # No norm and no activation on the code: what it tells of an image is not squeezed, and one number is enough of it.
        self.code = nn.Conv2d(widths[-1], code or widths[-1], 1)
        self.dropout = nn.Dropout(dropout)
        below = [*widths[1:-1], code or widths[-1]]
        self.decoder = nn.ModuleList(
            _pair(under + (width if carried else 0), width, spec)
            for under, width, carried in zip(below, widths, self.carried, strict=False)
        )
        self.last = nn.Conv2d(widths[0], outgoing, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        x, stages = pad_to_multiple(x, 1 << len(self.carried)), []
        for level, stage in enumerate(self.stages):
            x = stage(F.avg_pool2d(x, 2) if level else x)
            stages.append(x)
        return stages

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stages = self.encode(x)
        code = self.code(stages[-1])
        y = self.dropout(code)
        for level in reversed(range(len(self.decoder))):
            y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
            y = self.decoder[level](torch.cat([stages[level], y], 1) if self.carried[level] else y)
        return self.last(y)[..., : x.shape[-2], : x.shape[-1]], code


def _pair(incoming: int, outgoing: int, spec: AutoencoderSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (incoming, outgoing):
        activation = nn.GELU() if spec.activation == "gelu" else nn.LeakyReLU(0.1)
        convolution = nn.Conv2d(width, outgoing, 3, padding=1, bias=spec.norm == "none")
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, map_norm(spec.norm, outgoing), activation]
    return nn.Sequential(*layers)
