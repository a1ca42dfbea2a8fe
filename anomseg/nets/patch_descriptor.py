"""Describe every pixel by the patch around it, all pixels at once, at several scales; or by the pyramid of a timm encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from anomseg.errors import MissingDependencyError
from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.descriptor import Described, DescriptorNet, DescriptorSpec
from anomseg.nets.masked_norm import MaskedBatchNorm
from anomseg.sample import finite_pixels

PATCH = 15
HiddenNorm = Literal["batch", "group", "none"]


def _initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of convolutions from the normal distribution of Kaiming, by their inputs, and set biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DensePatchNet(nn.Module):
    """Evaluate a small patch network around every pixel in one pass.

    On a patch of 15 x 15 pixels: conv 3 x 3, ReLU, max-pool 2, conv 3 x 3, ReLU, max-pool 2, conv 2 x 2, ReLU, conv 1 x 1. Over the
    zero-padded image, every stride of 2 becomes a dilation of what follows, which gives each pixel the value of its patch alone. The first
    pooling leaves out the last row and column of its 13 x 13 map, so a pixel sees 7 rows and columns before it and 6 after it.

    Args:
        in_channels: C.
        latent: D.
        bias: whether convolutions have biases; plain Deep SVDD has none.
        generator: draws the weights; None is torch's global one.

    Source: Li et al., AAAI 2023, whose dense evaluation shifts the poolings instead.
    """

    def __init__(self, in_channels: int, latent: int, bias: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, bias=bias)
        self.second = nn.Conv2d(8, 16, 3, bias=bias)
        self.third = nn.Conv2d(16, 128, 2, bias=bias)
        self.last = nn.Conv2d(128, latent, 1, bias=bias)
        _initialise(self, generator)

    def forward(self, image: Tensor, step: int = 1) -> Tensor:
        """Describe every step-th row and column.

        Args:
            image: (B, C, H, W), finite.
            step: k >= 1; even ones cost less, since their poolings keep the stride.

        Returns:
            (B, D, ⌈H / k⌉, ⌈W / k⌉), equal to the pixels [::k, ::k] of step 1.
        """
        before, after = PATCH // 2, PATCH // 2 - 1
        # Poolings and dilated convolutions run about twice as fast where a pixel's channels lie side by side.
        padded = F.pad(image, (before, after, before, after)).contiguous(memory_format=torch.channels_last)
        x, dilation = F.relu(self.first(padded), inplace=True), 1
        for conv in (self.second, self.third):
            stride = 2 if dilation == 1 and step % 2 == 0 else 1
            x = F.max_pool2d(x, 2, stride=stride, dilation=dilation)
            step, dilation = step // stride, dilation * 2 // stride
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, dilation=dilation), inplace=True)
        pixels = x[..., ::step, ::step].movedim(1, -1)
        # As a product of matrices, a quarter of a training step faster: with so few outputs the 1 x 1 convolution takes a slow path.
        return F.linear(pixels, self.last.weight[:, :, 0, 0], self.last.bias).movedim(-1, 1)


class PixelGroupNorm(nn.GroupNorm):
    """Normalise groups of the channels of each pixel by themselves: no pixel touches another, in training or after it."""

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise (B, C, H, W); which pixels are `valid` makes no difference."""
        pixels = input.movedim(1, -1)
        return super().forward(pixels.flatten(0, 2)).view(pixels.shape).movedim(-1, 1)


class DescriptorHeads(nn.Module):
    """Make descriptor and reconstruction of gathered features by a norm and two linear maps of each pixel.

    Args:
        features: channels of the input.
        latent: D.
        channels: C of the image to rebuild.
        norm: see `PatchDescriptor`.
        groups: of the `group` norm.
        bias: whether the way to the descriptor has offsets; the reconstruction always has.
    """

    def __init__(self, features: int, latent: int, channels: int, norm: HiddenNorm, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.norm: MaskedBatchNorm | PixelGroupNorm | None = None
        if norm != "none":
            self.norm = MaskedBatchNorm(features) if norm == "batch" else PixelGroupNorm(groups, features)
            self.norm.bias.requires_grad_(bias)
        self.descriptor = nn.Conv2d(features, latent, 1, bias=bias)
        self.reconstruction = nn.Conv2d(features, channels, 1)
        _initialise(self)

    def forward(self, features: Tensor, valid: Tensor) -> Described:
        """Give both maps of (B, features, H, W); in training, `valid` (B, H, W) bool chooses the pixels of the norm's statistics."""
        if self.norm is not None:
            features = self.norm(features.to(self.norm.weight.dtype), valid)  # statistics of bfloat16 features would be too coarse
        return Described(self.descriptor(features), self.reconstruction(features))


def filled_pixels(image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Set pixels without data to 0, the mean of normalised bands, and leave them out of the valid ones.

    Args:
        image: (B, C, H, W), NaN or infinity in any band where there is no data.
        valid: (B, H, W) bool, or None for all.

    Returns:
        The filled image, and (B, H, W) bool.
    """
    data = finite_pixels(image)
    return torch.where(data[:, None], image, 0.0), data if valid is None else data & valid


@dataclass(frozen=True)
class PatchDescriptor(DescriptorSpec):
    """Describe pixels by 15 x 15 patches at several scales, each with weights of its own.

    Pixels that are not valid leave the statistics of the norm alone, but their *values* lie in the patches of their neighbours and shape
    the descriptors of those. What must not do so is to be NaN, which counts as 0, the mean of a normalised band.

    Attributes:
        latent: D, at least 1; published 5, and 1 for a hyperspectral set.
        scales: factors of the image's size, > 0; a whole one costs little more than 1.
        norm: of the gathered scales; `batch` as published, with the statistics of valid pixels; `group` brings the D values of each scale
            at each pixel to mean 0 and deviation 1; `none` for plain Deep SVDD.
        bias: whether there are learnt offsets on the way to the descriptor; without them and without norm the net is that of plain Deep
            SVDD, and a constant descriptor is out of its reach but for 0.
        seed: of the patch nets' first weights, the same at all scales as published; None draws each from torch's global generator.
    """

    latent: int = 5
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    norm: HiddenNorm = "batch"
    bias: bool = True
    seed: int | None = 10

    def __post_init__(self) -> None:
        if self.latent < 1 or not self.scales or min(self.scales) <= 0 or self.norm not in get_args(HiddenNorm):
            raise ValueError(f"Expected latent >= 1, scales above 0 and a norm of {get_args(HiddenNorm)}, but got {self}.")
        if self.norm == "group" and self.latent < 3:
            raise ValueError(f"Expected latent >= 3 with norm 'group', which leaves no more than signs of fewer values, but got {self}.")

    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net; see `DescriptorSpec`."""
        return _PatchNets(in_channels, self)


class _PatchNets(DescriptorNet):
    def __init__(self, in_channels: int, spec: PatchDescriptor) -> None:
        super().__init__()
        self.scales = tuple(spec.scales)
        self.nets = nn.ModuleList()
        for _ in self.scales:
            generator = None if spec.seed is None else torch.Generator().manual_seed(spec.seed)
            self.nets.append(DensePatchNet(in_channels, spec.latent, spec.bias, generator))
        count = len(self.scales)
        self.heads = DescriptorHeads(spec.latent * count, spec.latent, in_channels, spec.norm, groups=count, bias=spec.bias)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        filled, valid = filled_pixels(image, valid)
        maps = [_described(net, filled, scale) for scale, net in zip(self.scales, self.nets, strict=True)]
        out: Described = self.heads(torch.cat(maps, 1), valid)
        return out


def _described(net: nn.Module, image: Tensor, scale: float) -> Tensor:
    """Resize, describe and resize back, by nearest pixels, which leave of a whole factor k only every k-th descriptor to be computed."""
    if scale == 1:
        described: Tensor = net(image)
        return described
    size = image.shape[-2:]
    scaled = F.interpolate(image, tuple(max(1, int(scale * side)) for side in size))
    return net(scaled, int(scale)) if scale == int(scale) else F.interpolate(net(scaled), size)


@dataclass(frozen=True)
class TimmDescriptor(DescriptorSpec):
    """Describe pixels by the feature pyramid of a convolutional timm encoder, brought to the image's size.

    The batch norms inside the encoder keep the statistics that they came with, in training too: those of a batch would carry pixels that
    do not count into all others, and one image at a time has poor ones. As in any net with wide receptive fields, the *values* of such
    pixels still shape the descriptors of their neighbours; those without data count as 0, the mean of a normalised band.

    Attributes:
        name: of the encoder, such as `resnet18`.
        latent: D, at least 1.
        levels: indices of the pyramid, finest 0.
        pretrained: begin with published weights, which needs a network connection, or timm's cache, whenever the net is built.
        norm: of the gathered levels; as `PatchDescriptor`, `group` over all of a pixel's features at once.
    """

    name: str = "resnet18"
    latent: int = 16
    levels: tuple[int, ...] = (0, 1, 2)
    pretrained: bool = False
    norm: HiddenNorm = "batch"

    def __post_init__(self) -> None:
        if self.latent < 1 or not self.levels or min(self.levels) < 0 or self.norm not in get_args(HiddenNorm):
            raise ValueError(f"Expected latent >= 1, levels of at least 0 and a norm of {get_args(HiddenNorm)}, but got {self}.")

    def build(self, in_channels: int) -> DescriptorNet:
        """Build the net; see `DescriptorSpec`.

        Raises:
            MissingDependencyError: timm is not installed.
            ValueError: the encoder has no such levels.
        """
        return _TimmNet(in_channels, self)


def _encoder(in_channels: int, spec: TimmDescriptor) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("Expected the package timm for TimmDescriptor, but it is missing: pip install timm.") from error
    levels = tuple(spec.levels)
    try:
        return timm.create_model(spec.name, pretrained=spec.pretrained, features_only=True, in_chans=in_channels, out_indices=levels)
    except (AssertionError, IndexError) as error:
        raise ValueError(f"Expected levels of the pyramid of '{spec.name}', but got {levels}. Leave out the highest.") from error


class _TimmNet(DescriptorNet):
    def __init__(self, in_channels: int, spec: TimmDescriptor) -> None:
        super().__init__()
        self.encoder = _encoder(in_channels, spec)
        pyramid = self.encoder.feature_info
        self.multiple = max(pyramid.reduction())
        self.heads = DescriptorHeads(sum(pyramid.channels()), spec.latent, in_channels, spec.norm)
        self.train()

    def train(self, mode: bool = True) -> _TimmNet:
        super().train(mode)
        for layer in self.encoder.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()
        return self

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Described:
        filled, valid = filled_pixels(image, valid)
        height, width = image.shape[-2:]
        padded = pad_to_multiple(filled, self.multiple)
        levels = [F.interpolate(level, padded.shape[-2:], mode="bilinear")[..., :height, :width] for level in self.encoder(padded)]
        described: Described = self.heads(torch.cat(levels, 1), valid)
        return described
