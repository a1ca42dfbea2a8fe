"""Rebuild the features of a frozen encoder through a noisy bottleneck: what the decoder cannot rebuild was not in the normal images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.errors import MissingDependencyError
from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.autoencoder_contract import Rebuilt, ReconstructionNet, ReconstructionSpec, on_grid
from anomseg.nets.autoencoder_features import RandomFeatures
from anomseg.nets.convolution import ConvUnit, ResidualUnit

RANDOM = "random"
Decoder = Literal["linear_attention", "convolution"]


@dataclass(frozen=True)
class FeatureReconstructionSpec(ReconstructionSpec):
    """Describe a `FeatureReconstructionNet`.

    Attributes:
        encoder: name of a timm encoder, such as `resnet18`; or `random`, a small fixed net of ours (`RandomFeatures`) of four stages.
        levels: indices of its pyramid, finest 0, ascending.
        groups: how many of the levels, from the finest on, share one direction; they add up to the levels. None for all in one group.
        grid: which of the levels gives the grid that all are brought to, by its place in `levels`.
        width: channels of the bottleneck and the decoder, a multiple of `heads`.
        depth: blocks of the decoder, at least 1.
        heads: of the attention.
        decoder: `linear_attention`, which sees the whole image and hardly single places, or `convolution`.
        dropout: chance to drop a number of the bottleneck in training, in [0, 1): the noise that keeps from copying.
        pretrained: begin with published weights, which needs a network connection, or timm's cache, whenever the net is built.
        seed: of the random encoder's weights.
    """

    rebuilds_features: ClassVar[bool] = True

    encoder: str = RANDOM
    levels: tuple[int, ...] = (1, 2, 3)
    groups: tuple[int, ...] | None = None
    grid: int = 1
    width: int = 64
    depth: int = 2
    heads: int = 4
    decoder: Decoder = "linear_attention"
    dropout: float = 0.2
    pretrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        levels, groups = self.levels, (len(self.levels),) if self.groups is None else self.groups
        if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or not 0 <= self.grid < len(levels):
            raise ValueError(f"Expected ascending levels >= 0 and the place of one of them as grid, but got {levels}, {self.grid}.")
        if not groups or min(groups) < 1 or sum(groups) != len(levels):
            raise ValueError(f"Expected groups of one or more levels that add up to {len(levels)}, but got {groups}.")
        if self.decoder not in get_args(Decoder) or min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"Expected a decoder of {get_args(Decoder)}, depth >= 1 and width a multiple of heads, but got {self}.")
        if self.width % 4 or not 0 <= self.dropout < 1:
            raise ValueError(f"Expected width to be a multiple of 4 and dropout in [0, 1), but got {self.width} and {self.dropout}.")

    def build(self, in_channels: int, places: int = 0) -> FeatureReconstructionNet:
        """Build the net; see the base class.

        Raises:
            MissingDependencyError: timm is not installed.
            ValueError: the encoder has no such levels.
        """
        return FeatureReconstructionNet(in_channels, self, places)


class FeatureReconstructionNet(ReconstructionNet):
    """Rebuild the standardised features of a frozen encoder, and from what was rebuilt an image to look at.

    The image is read from the rebuilt features by one linear layer and shapes no other weight.

    Args:
        in_channels: C.
        spec: see `FeatureReconstructionSpec`.
        places: maps that the bottleneck is told beside the features.

    Source: Guo et al., "Dinomaly", CVPR 2025, arXiv 2405.14325 (noisy bottleneck, linear attention, groups of levels); encoders with a
        pyramid in the place of a transformer, features of deviation 1, places and the image are ours.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, in_channels: int = 3, spec: FeatureReconstructionSpec | None = None, places: int = 0) -> None:
        super().__init__()
        self.spec = spec = spec or FeatureReconstructionSpec()
        self.encoder, channels, strides = _encoder(in_channels, spec)
        self.encoder.requires_grad_(False)
        self.stride, self.multiple = strides[spec.grid], max(strides)
        counts = (len(channels),) if spec.groups is None else spec.groups
        ends = [sum(counts[:index]) for index in range(len(counts) + 1)]
        self.sections = [sum(channels[a:b]) for a, b in pairwise(ends)]
        total = sum(channels)
        self.register_buffer("feature_mean", torch.zeros(total))
        self.register_buffer("feature_std", torch.ones(total))
        self.bottleneck = nn.Sequential(ConvUnit(total + places, 2 * spec.width, 1, "group"), nn.Conv2d(2 * spec.width, spec.width, 1))
        self.noise = nn.Dropout(spec.dropout)
        attention = spec.decoder == "linear_attention"
        self.decoder = nn.Sequential(
            *(LinearAttentionBlock(spec.width, spec.heads) if attention else ResidualUnit(spec.width, "group") for _ in range(spec.depth))
        )
        self.levels = nn.Conv2d(spec.width, total, 1)
        self.picture = nn.Conv2d(total, in_channels * self.stride**2, 1)
        self.train()

    def train(self, mode: bool = True) -> FeatureReconstructionNet:
        """Change the mode of all but the encoder, whose norms keep the statistics that they came with."""
        self.training = mode
        for name, child in self.named_children():
            child.train(mode and name != "encoder")
        return self

    def raw_features(self, image: Tensor) -> Tensor:
        """Give all levels of (B, C, H, W) at the grid, (B, F, g, g'), as the encoder has them."""
        with torch.no_grad():
            return _gathered(self.encoded(image), self.spec.grid)

    def covers(self, valid: Tensor, grid: tuple[int, int]) -> Tensor:
        """Find the points of the grid whose pixels are all valid: (B, H, W) bool to (B, g, g') bool."""
        return on_grid(valid, grid, self.stride) >= 1

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and deviation (F,) of `raw_features` over normal images."""
        self.feature_mean, self.feature_std = mean.to(self.feature_mean), std.to(self.feature_std)

    def forward(self, image: Tensor, place: Tensor | None = None, clean: Tensor | None = None) -> Rebuilt:
        """Rebuild a batch; see the base class."""
        seen = self._standardised(image)
        target = seen if clean is None else self._standardised(clean)
        told = [] if place is None else [F.adaptive_avg_pool2d(pad_to_multiple(place, self.multiple), (seen.shape[-2], seen.shape[-1]))]
        code = self.bottleneck(torch.cat([seen, *told], 1))
        rebuilt: Tensor = self.levels(self.decoder(self.noise(code)))
        picture = F.pixel_shuffle(self.picture(rebuilt.detach()), self.stride)[..., : image.shape[-2], : image.shape[-1]]
        return Rebuilt(picture, code, torch.split(target, self.sections, 1), torch.split(rebuilt, self.sections, 1))

    def encoded(self, image: Tensor, place: Tensor | None = None) -> list[Tensor]:
        """Give the chosen levels of the encoder, finest first; see the base class."""
        maps = self.encoder(pad_to_multiple(image, self.multiple))
        return list(maps) if self.spec.encoder != RANDOM else [maps[level] for level in self.spec.levels]

    def _standardised(self, image: Tensor) -> Tensor:
        return (self.raw_features(image) - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]


class LinearAttentionBlock(nn.Module):
    """Add attention whose cost is linear in the pixels, then a net of each pixel, to a map (B, width, h, w).

    With φ = elu + 1, pixel i gets φ(q_i) Σ_j φ(k_j)ᵀ v_j / φ(q_i) Σ_j φ(k_j): smooth in place, so that no pixel can attend to itself alone.

    Args:
        width: channels, a multiple of `heads`.
        heads: at least 1.

    Source: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv 2006.16236.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.ask = nn.Conv2d(width, 3 * width, 1)
        self.merge = nn.Conv2d(width, width, 1)
        self.each = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        attended: Tensor = x + self.merge(self._attended(self.before(x)))
        mapped: Tensor = self.each(self.between(attended))
        return attended + mapped

    def _attended(self, x: Tensor) -> Tensor:
        asked = self.ask(x)
        # Sums over all pixels lose too much in half precision.
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = (one.float().reshape(len(x), self.heads, -1, x[0, 0].numel()) for one in asked.chunk(3, 1))
            q, k = F.elu(q) + 1, F.elu(k) + 1
            mixed = torch.einsum("bhdp,bhep->bhde", k, v)
            norm = torch.einsum("bhdp,bhd->bhp", q, k.sum(-1))
            return (torch.einsum("bhdp,bhde->bhep", q, mixed) / norm[:, :, None]).reshape(x.shape)


def _gathered(maps: Sequence[Tensor], grid: int) -> Tensor:
    """Bring levels to the grid of one: finer ones by means, coarser ones by interpolation."""
    size = (maps[grid].shape[-2], maps[grid].shape[-1])
    resized = [
        one
        if tuple(one.shape[-2:]) == size
        else F.adaptive_avg_pool2d(one, size)
        if one.shape[-1] > size[1]
        else F.interpolate(one, size, mode="bilinear", align_corners=False)
        for one in maps
    ]
    return torch.cat([one.float() for one in resized], 1)


def _encoder(in_channels: int, spec: FeatureReconstructionSpec) -> tuple[Any, list[int], list[int]]:
    """Build the encoder; give the channels and strides of the chosen levels too."""
    if spec.encoder == RANDOM:
        fixed = RandomFeatures(in_channels, stages=4, seed=spec.seed)
        if spec.levels[-1] >= len(fixed.channels):
            raise ValueError(f"Expected levels of the random pyramid, 0 to {len(fixed.channels) - 1}, but got {spec.levels}.")
        return fixed, [fixed.channels[level] for level in spec.levels], [1 << level for level in spec.levels]
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("Expected the package timm for a named encoder, but it is missing: pip install timm.") from error
    levels = tuple(spec.levels)
    try:
        net: Any = timm.create_model(spec.encoder, pretrained=spec.pretrained, features_only=True, in_chans=in_channels, out_indices=levels)
    except (AssertionError, IndexError) as error:
        raise ValueError(f"Expected levels of the pyramid of '{spec.encoder}', but got {levels}. Leave out the highest.") from error
    return net, list(net.feature_info.channels()), list(net.feature_info.reduction())
