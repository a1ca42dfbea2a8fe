"""DeepLabV3+ over the WideResNet38 of the driving benchmarks, with the layer names of its published checkpoints.

The trunk is pre-activated: y = convolutions(BN ReLU x) + shortcut, at an output stride of 8 by dilation. Upsampling aligns corners, as the
published weights expect. Weights of an NVIDIA checkpoint (`cityscapes_best.pth`, or the `cv0` split, whose training leaves the validation
cities out) are loaded by `load_published`.

Source: Wu, Shen and van den Hengel, "Wider or Deeper", 2016, arXiv 1611.10080 (trunk); Zhu et al., CVPR 2019 (net and checkpoints).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.errors import CheckpointError
from anomseg.nets.segmentation import SegmentationNet, SegmentationSpec

# (blocks, channels of a block's convolutions, stride of the first block, dilation, dropout) of mod2 to mod7
_STAGES = (
    (3, (128, 128), 1, 1, 0.0),
    (3, (256, 256), 1, 1, 0.0),
    (6, (512, 512), 2, 1, 0.0),
    (3, (512, 1024), 1, 2, 0.0),
    (1, (512, 1024, 2048), 1, 4, 0.3),
    (1, (1024, 2048, 4096), 1, 4, 0.5),
)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _activated(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class _Block(nn.Module):
    """Add two 3 x 3 convolutions, or a bottleneck of three, to a map; a projection where channels or stride change."""

    def __init__(self, incoming: int, channels: Sequence[int], stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = _activated(incoming)
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = incoming
        for index, (outgoing, kernel) in enumerate(zip(channels, kernels, strict=True), 1):
            if index > 1:
                layers[f"bn{index}"] = _activated(before)
            if index == len(channels) and dropout:
                layers["dropout"] = nn.Dropout2d(dropout)
            spread = dilation if kernel == 3 else 1
            step = stride if index == 1 else 1
            layers[f"conv{index}"] = nn.Conv2d(before, outgoing, kernel, step, spread * (kernel // 2), spread, bias=False)
            before = outgoing
        self.convs = nn.Sequential(layers)
        self.proj_conv = nn.Conv2d(incoming, before, 1, stride, bias=False) if stride != 1 or before != incoming else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(active)
        out: Tensor = self.convs(active) + shortcut
        return out


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling under the names of the published checkpoints; the pooled image comes first."""

    def __init__(self, incoming: int, channels: int, rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()

        def branch(kernel: int, rate: int) -> nn.Sequential:
            conv = nn.Conv2d(incoming, channels, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

        self.features = nn.ModuleList([branch(1, 1), *(branch(3, rate) for rate in rates)])
        self.img_conv = nn.Sequential(nn.Conv2d(incoming, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.img_conv(F.adaptive_avg_pool2d(x, 1))
        pooled = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=True)
        return torch.cat([pooled, *(feature(x) for feature in self.features)], 1)


@dataclass(frozen=True)
class WideResNet38(SegmentationSpec):
    """Describe the DeepLabV3+ over a WideResNet38.

    It trains on batches of two images and more: the mean over an image, one number for each channel, passes a batch norm.

    Attributes:
        divisor: divides all inner channels, for small experiments; 1 is the published net of 137 million parameters.
        checkpoint: file of a published checkpoint; its weights are loaded before a first fit. None for fresh weights.
    """

    divisor: int = 1
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.divisor < 1 or 48 % self.divisor or 64 % self.divisor:
            raise ValueError(f"Expected a divisor of 1, 2, 4, 8 or 16, but got {self.divisor}.")

    def build(self, in_channels: int, outputs: int) -> WideResNetNet:
        """Build the net; see the base class."""
        return WideResNetNet(in_channels, outputs, self.divisor)

    def ready(self, net: SegmentationNet) -> tuple[Tensor, Tensor] | None:
        """Load the published weights; they expect the mean and deviation of ImageNet on images in [0, 1].

        Raises:
            TypeError: another net was given.
            FileNotFoundError: there is no such file.
            CheckpointError: it does not fit.
        """
        if self.checkpoint is None:
            return None
        if not isinstance(net, WideResNetNet):
            raise TypeError(f"Expected a net that WideResNet38 built, but got {type(net).__name__}.")
        load_published(net, self.checkpoint)
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


class WideResNetNet(SegmentationNet):
    """The net; attributes are named as in the published checkpoints, and `head` is `final.6`.

    Args:
        in_channels: C.
        outputs: K.
        divisor: see `WideResNet38`.
    """

    def __init__(self, in_channels: int, outputs: int, divisor: int = 1) -> None:
        super().__init__()
        before = 64 // divisor
        self.mod1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(in_channels, before, 3, padding=1, bias=False)))
        for number, (blocks, channels, stride, dilation, dropout) in enumerate(_STAGES, 2):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            own = [size // divisor for size in channels]
            for index in range(blocks):
                stage[f"block{index + 1}"] = _Block(before, own, stride if index == 0 else 1, dilation, dropout)
                before = own[-1]
            setattr(self, f"mod{number}", nn.Sequential(stage))
        reduction, fine = 256 // divisor, 48 // divisor
        self.aspp = _Pyramid(before, reduction)
        self.bot_fine = nn.Conv2d(128 // divisor, fine, 1, bias=False)
        self.bot_aspp = nn.Conv2d(5 * reduction, reduction, 1, bias=False)
        self.final = nn.Sequential(
            nn.Conv2d(fine + reduction, reduction, 3, padding=1, bias=False),
            nn.BatchNorm2d(reduction),
            nn.ReLU(),
            nn.Conv2d(reduction, reduction, 3, padding=1, bias=False),
            nn.BatchNorm2d(reduction),
            nn.ReLU(),
            nn.Conv2d(reduction, outputs, 1, bias=False),
        )
        for layer in self.final:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    @property
    def head(self) -> nn.Conv2d:  # type: ignore[override]  # read-only: `replace_head` sets it
        """Give the last layer."""
        layer = self.final[6]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def replace_head(self, layer: nn.Conv2d) -> None:
        """Put a layer in the place of `final.6`."""
        self.final[6] = layer

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """Give the block `final` without the head."""
        return list(self.final[:6])

    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute the fine map and the pyramid's, both at half of the resolution."""
        fine: Tensor = self.get_submodule("mod2")(F.max_pool2d(self.mod1(image), 3, 2, 1))
        x = F.max_pool2d(fine, 3, 2, 1)
        for number in range(3, 8):
            x = self.get_submodule(f"mod{number}")(x)
        coarse = self.bot_aspp(self.aspp(x))
        return [self.bot_fine(fine), F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True)]

    def assemble(self, maps: Sequence[Tensor]) -> Tensor:
        """Join both maps by two convolutions: (B, 256, H / 2, W / 2)."""
        joined: Tensor = self.final[:6](torch.cat(list(maps), 1))
        return joined

    def decide(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute logits (B, K, H, W), corners aligned."""
        return F.interpolate(self.head(features), size, mode="bilinear", align_corners=True)


def load_published(net: WideResNetNet, path: str | Path) -> None:
    """Load weights whose names are those of the published checkpoints, `module.` before them or not.

    The file has as many outputs as the net was built with; rows that `widen_head` added stay as they are.

    Args:
        net: changed in place, only if all names and shapes fit.
        path: of the checkpoint; weights lie under `state_dict` or at the top.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: names are missing or strange, or shapes differ; the message lists them.
    """
    stored: Any = torch.load(path, weights_only=True, map_location="cpu")
    stored = stored.get("state_dict", stored) if isinstance(stored, Mapping) else {}
    weights = {str(name).removeprefix("module."): value for name, value in stored.items() if isinstance(value, Tensor)}
    own = net.state_dict()
    key = "final.6.weight"
    classes = len(own[key]) - net.added
    if key in weights and len(weights[key]) != classes:
        raise CheckpointError(
            f"Expected a WideResNet38 of {classes} classes in '{path}', but it has {len(weights[key])}. Set classes to what it was trained "
            "for; methods add their own outputs."
        )
    if key in weights and weights[key].shape[1:] == own[key].shape[1:]:
        weights[key] = torch.cat([weights[key].to(own[key]), own[key][classes:]])
    missing, strange = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    unlike = [f"{n}: {tuple(weights[n].shape)} for {tuple(own[n].shape)}" for n in own if n in weights and weights[n].shape != own[n].shape]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or strange or unlike:
        raise CheckpointError(
            f"Expected the weights of a WideResNet38 DeepLabV3+ in '{path}', but {missing[:4]} are missing, {strange[:4]} are strange, "
            f"and shapes differ: {unlike[:4]}. Take the checkpoint of the variant without 'dsn' head."
        )
    net.load_state_dict(weights, strict=False)
