"""Describe every pixel by the 15 x 15 patch around it, all pixels at once, at several scales; or by the pyramid of a timm encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.errors import MissingDependencyError
from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.descriptor import Described, DescriptorNet, DescriptorSpec
from anomseg.nets.masked_norm import MaskedBatchNorm
from anomseg.sample import finite_pixels

PATCH = 15
HiddenNorm = Literal["batch", "none"]


class DensePatchNet(nn.Module):
    """Evaluate a small patch network around every pixel in one pass.

    On a patch of 15 x 15 pixels: conv 3 x 3, ReLU, max-pool 2, conv 3 x 3, ReLU, max-pool 2, conv 2 x 2, ReLU, conv 1 x 1. Over the
    zero-padded image, every stride of 2 becomes a dilation of what follows, which gives each pixel the value of its patch alone.

    Args:
        in_channels: C.
        latent: D.
        bias: whether convolutions have biases; plain Deep SVDD has none.

    Source: Li et al., AAAI 2023, whose dense evaluation shifts the poolings instead.
    """

    def __init__(self, in_channels: int, latent: int, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, bias=bias)
        self.second = nn.Conv2d(8, 16, 3, dilation=2, bias=bias)
        self.third = nn.Conv2d(16, 128, 2, dilation=4, bias=bias)
        self.last = nn.Conv2d(128, latent, 1, bias=bias)
        for layer in (self.first, self.second, self.third, self.last):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Describe (B, C, H, W): (B, D, H, W)."""
        height, width = image.shape[-2:]
        x = F.relu(self.first(F.pad(image, (PATCH // 2,) * 4)))
        x = F.relu(self.second(F.max_pool2d(x, 2, stride=1)))
        x = F.relu(self.third(F.max_pool2d(x, 2, stride=1, dilation=2)))
        described: Tensor = self.last(x[..., :height, :width])
        return described


class _Heads(nn.Module):
    """Make descriptor and reconstruction of gathered features."""

    def __init__(self, features: int, latent: int, channels: int, norm: HiddenNorm, bias: bool) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm(features) if norm == "batch" else None
        self.descriptor = nn.Conv2d(features, latent, 1, bias=bias)
        self.reconstruction = nn.Conv2d(features, channels, 1)

    def forward(self, features: Tensor, valid: Tensor | None) -> Described:
        normed = features if self.norm is None else self.norm(features, valid)
        return Described(self.descriptor(normed), self.reconstruction(normed))


@dataclass(frozen=True)
class PatchDescriptor(DescriptorSpec):
    """Describe pixels by 15 x 15 patches at several scales, each with weights of its own.

    Attributes:
        latent: D, at least 1; published 5, and 1 for a hyperspectral set.
        scales: factors of the image's size.
        norm: of the gathered scales; `batch` as published, with the statistics of valid pixels; `none` for plain Deep SVDD.
        bias: whether convolutions have biases; without them and without norm the net is that of plain Deep SVDD.
    """

    latent: int = 5
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    norm: HiddenNorm = "batch"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.latent < 1 or not self.scales or min(self.scales) <= 0 or self.norm not in ("batch", "none"):
            raise ValueError(f"Expected latent >= 1, scales above 0 and norm 'batch' or 'none', but got {self}.")

    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net; see `DescriptorSpec`."""
        return _PatchNets(in_channels, self)


class _PatchNets(DescriptorNet):
    def __init__(self, in_channels: int, spec: PatchDescriptor) -> None:
        super().__init__()
        self.scales = tuple(spec.scales)
        self.nets = nn.ModuleList(DensePatchNet(in_channels, spec.latent, spec.bias) for _ in self.scales)
        self.heads = _Heads(spec.latent * len(self.scales), spec.latent, in_channels, spec.norm, spec.bias)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        filled = torch.where(finite_pixels(image)[:, None], image, 0.0)
        size = image.shape[-2:]
        maps = []
        for scale, net in zip(self.scales, self.nets, strict=True):
            scaled = size if scale == 1 else tuple(max(1, round(scale * side)) for side in size)
            described = net(filled if scaled == size else F.interpolate(filled, scaled))
            maps.append(described if scaled == size else F.interpolate(described, size))
        out: Described = self.heads(torch.cat(maps, 1), valid)
        return out


@dataclass(frozen=True)
class TimmDescriptor(DescriptorSpec):
    """Describe pixels by the feature pyramid of a timm encoder, brought to the image's size.

    Attributes:
        name: of the encoder, such as `resnet18`.
        latent: D, at least 1.
        levels: indices of the pyramid, finest 0.
        pretrained: load published weights, which needs a network connection.
        norm: as `PatchDescriptor`.
    """

    name: str = "resnet18"
    latent: int = 16
    levels: tuple[int, ...] = (0, 1, 2)
    pretrained: bool = False
    norm: HiddenNorm = "batch"

    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net; see `DescriptorSpec`.

        Raises:
            MissingDependencyError: timm is not installed.
        """
        return _TimmNet(in_channels, self)


class _TimmNet(DescriptorNet):
    def __init__(self, in_channels: int, spec: TimmDescriptor) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise MissingDependencyError("Expected the package timm for TimmDescriptor, but it is missing: pip install timm.") from error
        self.encoder = timm.create_model(
            spec.name, pretrained=spec.pretrained, features_only=True, in_chans=in_channels, out_indices=tuple(spec.levels)
        )
        pyramid: Any = self.encoder.feature_info
        channels: Sequence[int] = pyramid.channels()
        self.multiple = max(pyramid.reduction())
        self.heads = _Heads(sum(channels), spec.latent, in_channels, spec.norm, True)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        filled = torch.where(finite_pixels(image)[:, None], image, 0.0)
        height, width = image.shape[-2:]
        padded = pad_to_multiple(filled, self.multiple)
        levels = [F.interpolate(level, padded.shape[-2:], mode="bilinear") for level in self.encoder(padded)]
        described: Described = self.heads(torch.cat(levels, 1)[..., :height, :width], valid)
        return described
