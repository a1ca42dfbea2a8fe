"""Frozen encoders whose features describe patches: a timm encoder, a random net, the filter bank, or a method that was trained before."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.checkpoint_file import read_checkpoint
from anomseg.config import locate, size_empty_buffers
from anomseg.errors import CheckpointError, MissingDependencyError
from anomseg.functional.filter_bank import filter_bank
from anomseg.functional.seeded import seeded
from anomseg.nets.autoencoder_features import RandomFeatures
from anomseg.sample import fill_nodata, finite_pixels


class EncoderNet(nn.Module, ABC):
    """Turn images into maps of features. Nothing is learnt: weights have no gradient, and training mode changes nothing.

    Attributes:
        multiple: images are padded to a multiple of it before.
        reads_raw: whether it scales bands itself; else they come with mean 0 and deviation 1 over the training images.
    """

    multiple: int = 1
    reads_raw: bool = False

    @abstractmethod
    def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
        """Give the levels of features.

        Args:
            image: (B, C, H, W), sides a multiple of `multiple`, NaN where there is no data.
            valid: (B, H, W) bool, False where there is no data and in the padding.

        Returns:
            Maps (B, F, h, w), finite, of any number of grids, each over the whole image.
        """

    def train(self, mode: bool = True) -> EncoderNet:
        """Stay in evaluation mode, and keep weights from being learnt."""
        for module in self.modules():
            module.training = False
        self.requires_grad_(False)
        return self


class FeatureEncoder(ABC):
    """Describe an encoder without knowing the bands of the images."""

    @abstractmethod
    def build(self, in_channels: int) -> EncoderNet:
        """Build the net, frozen."""


@dataclass(frozen=True)
class TimmFeatures(FeatureEncoder):
    """Take levels of the pyramid of a timm encoder.

    Attributes:
        name: of the encoder, such as `resnet18` or `wide_resnet50_2`.
        levels: indices of its pyramid, finest 0; the second and third block of a ResNet are 2 and 3.
        pretrained: begin with published weights, which needs a network connection, or timm's cache, whenever the net is built.
        seed: of random weights.
    """

    name: str = "resnet18"
    levels: tuple[int, ...] = (2, 3)
    pretrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def build(self, in_channels: int) -> EncoderNet:
        """Build the net; see `FeatureEncoder`.

        Raises:
            MissingDependencyError: timm is not installed.
            ValueError: the encoder has no such levels.
        """
        return _TimmNet(in_channels, self)


@dataclass(frozen=True)
class RandomPyramid(FeatureEncoder):
    """Take levels of a convolutional net of random weights, drawn once: no download, any bands, the same on every machine.

    Attributes:
        width: channels of the finest stage; each coarser one has twice as many.
        levels: indices of the stages, finest 0, each half as fine as the one before.
        seed: of the weights.
    """

    width: int = 32
    levels: tuple[int, ...] = (2, 3)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def build(self, in_channels: int) -> EncoderNet:
        """Build the net; see `FeatureEncoder`."""
        return _RandomNet(in_channels, self)


@dataclass(frozen=True)
class FilterBankFeatures(FeatureEncoder):
    """Take colour and texture at several scales; see `anomseg.functional.filter_bank.filter_bank`.

    Attributes:
        sigmas: scales in pixels, each at least 0.5.
        log_floor: noise floor of its logarithms, in standard deviations of the bands; 0 for none.
        step: side in pixels of the cells that features are averaged over, at least 1.
    """

    sigmas: tuple[float, ...] = (1.0, 2.0, 4.0)
    log_floor: float = 0.05
    step: int = 4

    def __post_init__(self) -> None:
        if self.step < 1 or not self.sigmas:
            raise ValueError(f"Expected step >= 1 and one or more sigmas, but got {self}.")

    def build(self, in_channels: int) -> EncoderNet:
        """Build the net, which has no weights; see `FeatureEncoder`."""
        return _FilterBankNet(self)


@dataclass(frozen=True)
class TrainedFeatures(FeatureEncoder):
    """Take the `features(image)` of a method that was trained before, such as a `Reconstruction`.

    A method that pads images itself says so by `feature_multiple`, so that each feature is known to lie where it does.

    Attributes:
        checkpoint: its file. It is needed until the library is fitted: checkpoints of the library hold the weights as well.
        method: class and arguments, read from the file where they are not given, so that a checkpoint of the library loads without it.
    """

    checkpoint: str
    method: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", dict(read_checkpoint(self.checkpoint)["hyper_parameters"]))

    def build(self, in_channels: int) -> EncoderNet:
        """Build the method and load its weights if the file is there; see `FeatureEncoder`.

        Raises:
            CheckpointError: the method gives no features.
        """
        return _TrainedNet(self)


def _check_levels(levels: Sequence[int]) -> None:
    if not levels or min(levels) < 0:
        raise ValueError(f"Expected one or more levels of at least 0, but got {tuple(levels)}. 2 and 3 are usual.")


def _pyramid(in_channels: int, spec: TimmFeatures) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("Expected the package timm for TimmFeatures, but it is missing: pip install timm.") from error
    levels = tuple(spec.levels)
    with seeded(spec.seed):
        try:
            return timm.create_model(spec.name, pretrained=spec.pretrained, features_only=True, in_chans=in_channels, out_indices=levels)
        except (AssertionError, IndexError) as error:
            raise ValueError(f"Expected levels of the pyramid of '{spec.name}', but got {levels}. Leave out the highest.") from error


class _TimmNet(EncoderNet):
    def __init__(self, in_channels: int, spec: TimmFeatures) -> None:
        super().__init__()
        self.net = _pyramid(in_channels, spec)
        self.multiple = max(self.net.feature_info.reduction())
        self.train()

    def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
        return list(self.net(_without_nan(image)))


class _RandomNet(EncoderNet):
    def __init__(self, in_channels: int, spec: RandomPyramid) -> None:
        super().__init__()
        self.levels = tuple(spec.levels)
        with torch.random.fork_rng(devices=[]):  # layers draw weights from the global generator before they are given theirs
            self.net = RandomFeatures(in_channels, spec.width, max(self.levels) + 1, spec.seed)
        self.multiple = 1 << max(self.levels)
        self.train()

    def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
        maps = self.net(_without_nan(image))
        return [maps[level] for level in self.levels]


class _FilterBankNet(EncoderNet):
    def __init__(self, spec: FilterBankFeatures) -> None:
        super().__init__()
        self.spec = spec
        self.multiple = spec.step

    def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
        features = filter_bank(torch.where(valid[:, None], image, torch.nan), self.spec.sigmas, self.spec.log_floor)
        weight = F.avg_pool2d(valid[:, None].float(), self.spec.step)
        total = F.avg_pool2d(torch.where(valid[:, None], features, 0.0), self.spec.step)
        return [total / weight.clamp_min(torch.finfo(weight.dtype).tiny)]


class _TrainedNet(EncoderNet):
    reads_raw = True

    def __init__(self, spec: TrainedFeatures) -> None:
        super().__init__()
        arguments = dict(spec.method or {})
        self.net: Any = locate(arguments.pop("_class_path"))(**arguments)
        if not callable(getattr(self.net, "features", None)):
            raise CheckpointError(
                f"Expected a method with features(image), such as Reconstruction, in '{spec.checkpoint}', but it holds a "
                f"{type(self.net).__name__}. Train a Reconstruction, or take TimmFeatures."
            )
        self.multiple = math.lcm(*(int(getattr(self.net, name, 1)) for name in ("size_multiple", "feature_multiple")))
        if Path(spec.checkpoint).is_file():
            state = read_checkpoint(spec.checkpoint)["state_dict"]
            size_empty_buffers(self.net, state)
            self.net.load_state_dict(state)
        self.train()

    def forward(self, image: Tensor, valid: Tensor) -> list[Tensor]:
        features: Tensor = self.net.features(fill_nodata(image)[0])
        return [features]


def _without_nan(image: Tensor) -> Tensor:
    """Set pixels without data to 0, the mean of a normalised band."""
    return torch.where(finite_pixels(image)[:, None], image, 0.0)


def fingerprint(net: nn.Module) -> Tensor:
    """Condense all weights and buffers into one number, which differs for nets that differ: (1,) int64."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return torch.tensor([int.from_bytes(digest.digest()[:8], "little", signed=True)])


def joined_levels(levels: Sequence[Tensor], patch: int) -> Tensor:
    """Average every level over patches of its grid, bring all to the finest grid and join them.

    Args:
        levels: maps (B, F, h, w).
        patch: side of the patches in cells, odd; cells beyond the border weigh nothing.

    Returns:
        (B, sum of F, h, w) float32 at the size of the finest.

    Raises:
        ValueError: an even patch.

    Source:
        Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, whose patches at the border hold zeros.
    """
    if patch < 1 or patch % 2 == 0:
        raise ValueError(f"Expected an odd patch of at least 1 cell, but got {patch}. 3 is usual.")
    size = max((level.shape[-2:] for level in levels), key=lambda shape: shape[0] * shape[1])
    maps = []
    for level in levels:
        pooled = F.avg_pool2d(level.float(), patch, 1, patch // 2, count_include_pad=False)
        maps.append(pooled if pooled.shape[-2:] == size else F.interpolate(pooled, size, mode="bilinear", align_corners=False))
    return torch.cat(maps, 1)


def covered_cells(valid: Tensor, size: tuple[int, int], patch: int = 1) -> tuple[Tensor, Tensor]:
    """Find the cells of a grid whose patch holds valid pixels alone, and those that hold any themselves.

    Args:
        valid: (B, H, W) bool.
        size: (h, w) of the grid.
        patch: side of the patches in cells, odd.

    Returns:
        (B, h, w) bool each: whole patches, and cells with a valid pixel.
    """
    missing = F.adaptive_max_pool2d((~valid).float()[:, None], size)
    missing = F.max_pool2d(missing, patch, 1, patch // 2)[:, 0] > 0
    return ~missing, F.adaptive_max_pool2d(valid.float()[:, None], size)[:, 0] > 0
