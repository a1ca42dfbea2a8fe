"""DeepLabV3+ over any encoder of timm: atrous spatial pyramid pooling, a fine skip, and a decoder of two convolutions.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, arXiv 1802.02611; plain convolutions, as the driving
benchmarks use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.errors import MissingDependencyError
from anomseg.nets.convolution import ConvPair, ConvUnit, MapNorm, map_norm
from anomseg.nets.segmentation import SegmentationNet, SegmentationSpec


class AtrousPyramid(nn.Module):
    """See a map at several distances: its mean, each pixel, and 3 x 3 pixels at three dilations; concatenated and squeezed.

    Args:
        incoming: channels of the map.
        channels: of each branch and of the result.
        rates: dilations.
        norm: of the branches, see `MapNorm`; the mean has none, because a map of one pixel cannot be normalised in a batch of one.
    """

    def __init__(self, incoming: int, channels: int, rates: Sequence[int] = (6, 12, 18), norm: MapNorm = "group") -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(incoming, channels, 1), nn.ReLU())
        self.branches = nn.ModuleList([ConvUnit(incoming, channels, 1, norm)])
        for rate in rates:
            conv = nn.Conv2d(incoming, channels, 3, padding=rate, dilation=rate, bias=norm == "none")
            self.branches.append(nn.Sequential(conv, map_norm(norm, channels), nn.ReLU()))
        self.squeeze = nn.Conv2d((2 + len(rates)) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, h, w)."""
        whole = self.whole(x).expand(-1, -1, *x.shape[-2:])
        return cast(Tensor, self.squeeze(torch.cat([whole, *(branch(x) for branch in self.branches)], 1)))


@dataclass(frozen=True)
class DeepLabV3Plus(SegmentationSpec):
    """Describe a DeepLabV3+.

    Attributes:
        trunk: name of an encoder of timm that gives a pyramid of features.
        pretrained: begin with the encoder's published weights, which are downloaded before a first fit and not again.
        output_stride: 8, 16 or 32, pixels of the image along one of the coarsest features; encoders that cannot be dilated take 32 alone.
        reduction: channels of the pyramid and the decoder.
        fine: channels of the skip from the features at a quarter of the resolution.
        norm: of pyramid and decoder, see `MapNorm`; `group` does not care for the size of a batch, the encoder keeps its own.
    """

    trunk: str = "resnet18"
    pretrained: bool = False
    output_stride: int = 16
    reduction: int = 256
    fine: int = 48
    norm: MapNorm = "group"

    def __post_init__(self) -> None:
        if self.output_stride not in (8, 16, 32) or min(self.reduction, self.fine) < 2:
            raise ValueError(
                "Expected output_stride 8, 16 or 32, reduction and fine >= 2, "
                f"but got {self.output_stride}, {self.reduction} and {self.fine}."
            )

    def build(self, in_channels: int, outputs: int) -> DeepLabNet:
        """Build the net; see the base class.

        Raises:
            MissingDependencyError: timm is not installed.
            ValueError: timm knows no such encoder, or it gives no features at a quarter of the resolution.
        """
        return DeepLabNet(in_channels, outputs, self)

    def ready(self, net: SegmentationNet) -> tuple[Tensor, Tensor] | None:
        """Load the encoder's published weights; None, because the decoder is fresh and takes the bands of the training images."""
        if self.pretrained and isinstance(net, DeepLabNet):
            net.trunk.load_state_dict(_trunk(next(net.trunk.parameters()).shape[1], self, True).state_dict())
        return None


class DeepLabNet(SegmentationNet):
    """Encode by a trunk of timm, look around by an `AtrousPyramid`, and decode with the fine features.

    Args:
        in_channels: C.
        outputs: K.
        spec: see `DeepLabV3Plus`.
    """

    def __init__(self, in_channels: int, outputs: int, spec: DeepLabV3Plus) -> None:
        super().__init__()
        self.trunk = _trunk(in_channels, spec)
        strides, channels = self.trunk.feature_info.reduction(), self.trunk.feature_info.channels()
        if 4 not in strides:
            raise ValueError(f"Expected an encoder with features at a quarter of the resolution, but '{spec.trunk}' has {strides}.")
        self.fine_index = strides.index(4)
        scale = 16 / min(strides[-1], 16)
        self.pyramid = AtrousPyramid(channels[-1], spec.reduction, tuple(int(rate * scale) for rate in (6, 12, 18)), spec.norm)
        self.skip = nn.Conv2d(channels[self.fine_index], spec.fine, 1)
        self.final = ConvPair(spec.reduction + spec.fine, spec.reduction, spec.norm)
        self.head = nn.Conv2d(spec.reduction, outputs, 1)

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """Give the two convolutions before the head, which are what published fine-tunings train along."""
        return [self.final]

    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute the fine map and the pyramid's, both at a quarter of the resolution."""
        maps = self.trunk(image)
        fine = self.skip(maps[self.fine_index])
        return [fine, F.interpolate(self.pyramid(maps[-1]), fine.shape[-2:], mode="bilinear", align_corners=False)]

    def assemble(self, maps: Sequence[Tensor]) -> Tensor:
        """Join both maps by two convolutions: (B, reduction, H / 4, W / 4)."""
        return cast(Tensor, self.final(torch.cat(list(maps), 1)))


def _trunk(in_channels: int, spec: DeepLabV3Plus, pretrained: bool = False) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(f"Expected timm for the encoder '{spec.trunk}', but it is missing: pip install timm.") from error
    options: dict[str, Any] = {} if spec.output_stride == 32 else {"output_stride": spec.output_stride}
    try:
        return timm.create_model(spec.trunk, pretrained=pretrained, features_only=True, in_chans=in_channels, **options)
    # What timm raises by encoder: an unknown name, no `features_only`, no `output_stride`, a stride that a check inside does not know.
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"Expected an encoder of timm that gives features at output_stride={spec.output_stride}, but '{spec.trunk}' does not: {error}. "
            "Take output_stride=32, or another trunk."
        ) from error
