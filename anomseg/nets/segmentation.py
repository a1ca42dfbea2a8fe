"""Closed-set segmentation nets: what they promise to methods, and a compact one that trains on a CPU in minutes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.convolution import ConvUnit, MapNorm, ResidualUnit


class SegmentationNet(nn.Module, ABC):
    """Give logits of K outputs for every pixel of an image of any size.

    The last layer is `head`, a 1 x 1 convolution with K outputs, so that outputs can be added by `widen_head`; what it reads are
    `features`, and `decoder` names the modules before it that a fine-tuning may train along. `features` is `assemble` of `encode`, and
    `assemble` uses the modules of the decoder alone.

    Attributes:
        added: outputs that `widen_head` added to the K ones that it was built with.
    """

    head: nn.Conv2d
    added: int = 0

    @abstractmethod
    def encode(self, image: Tensor) -> Sequence[Tensor]:
        """Compute what the decoder reads from (B, C, H, W), finite; the features alone where no decoder is named."""

    def assemble(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute the features, (B, F, h, w), by the decoder from what `encode` gives; as they are where no decoder is named."""
        return maps[0]

    def features(self, image: Tensor) -> Tensor:
        """Compute what the head reads, (B, F, h, w), from (B, C, H, W), finite."""
        return self.assemble(self.encode(image))

    @property
    @abstractmethod
    def decoder(self) -> Sequence[nn.Module]:
        """Give the modules between encoder and head."""

    def replace_head(self, layer: nn.Conv2d) -> None:
        """Put another layer in the place of the head; nets whose head is a property must say where (torch passes setters by)."""
        self.head = layer

    def decide(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute logits (B, K, H, W) of an image of a size from its features."""
        return F.interpolate(self.head(features), size, mode="bilinear", align_corners=False)

    def revise(self, image: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the logits of an image, and those after a change of what the head reads, (B, K, H, W) each."""
        features, size = self.features(image), (image.shape[-2], image.shape[-1])
        return self.decide(features, size), self.decide(change(features), size)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        return self.decide(self.features(image), (image.shape[-2], image.shape[-1]))


class SegmentationSpec(ABC):
    """Describe a segmentation net without knowing bands and classes."""

    @abstractmethod
    def build(self, in_channels: int, outputs: int) -> SegmentationNet:
        """Build the net with fresh weights, drawn from torch's global generator."""

    def ready(self, net: SegmentationNet) -> tuple[Tensor, Tensor] | None:
        """Load the ready weights that a description names into a net that it built, before a first fit; checkpoints hold them later.

        Returns:
            Mean and standard deviation (C,) of the bands that the weights expect; None where there are no ready weights, as here.
        """
        return None


@torch.no_grad()
def widen_head(net: SegmentationNet, rows: int = 1) -> None:
    """Add outputs to a net's head: what it gave stays, the new rows are drawn by Kaiming's rule and their biases are 0.

    Args:
        net: changed in place.
        rows: outputs to add, at least 1.

    Raises:
        ValueError: there is no row to add.
    """
    if rows < 1:
        raise ValueError(f"Expected one or more outputs to add, but got {rows}.")
    old = net.head
    new = nn.Conv2d(old.in_channels, old.out_channels + rows, 1, bias=old.bias is not None).to(old.weight)
    nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
    new.weight[: old.out_channels] = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias.zero_()
        new.bias[: old.out_channels] = old.bias
    net.replace_head(new)
    net.added += rows


def second_decoder(net: SegmentationNet) -> SegmentationNet:
    """Copy decoder and head of a net, without the outputs that were added; what stands before the decoder is left out.

    Args:
        net: one that names its decoder; not changed.

    Returns:
        A net that can `assemble` and `decide` what `net` encodes, by weights of its own.

    Raises:
        ValueError: the net names no decoder.
    """
    if not net.decoder:
        raise ValueError(f"Expected a net that names its decoder, but {type(net).__name__} names none. Do without a second one.")
    own = {id(module) for part in (*net.decoder, net.head) for module in part.modules()}
    before = [child for child in net.children() if own.isdisjoint(map(id, child.modules()))]
    copied = copy.deepcopy(net, {id(child): nn.Identity() for child in before})
    wide, outputs = copied.head, copied.head.out_channels - net.added
    head = nn.Conv2d(wide.in_channels, outputs, 1, bias=wide.bias is not None).to(wide.weight)
    head.load_state_dict({name: value[:outputs] for name, value in wide.state_dict().items()})
    copied.replace_head(head)
    copied.added = 0
    return copied


@dataclass(frozen=True)
class CompactSegmenter(SegmentationSpec):
    """Describe a residual encoder-decoder for small images and CPUs.

    Attributes:
        width: channels at half of the resolution, at least 2; twice and four times as many below.
        levels: halvings of the resolution, at least 2.
        norm: see `MapNorm`; `group` does not care for the size of a batch.
    """

    width: int = 24
    levels: int = 4
    norm: MapNorm = "group"

    def __post_init__(self) -> None:
        if self.width < 2 or self.levels < 2:
            raise ValueError(f"Expected width and levels >= 2, but got {self.width} and {self.levels}.")

    def build(self, in_channels: int, outputs: int) -> CompactNet:
        """Build the net; see the base class."""
        return CompactNet(in_channels, outputs, self)


class CompactNet(SegmentationNet):
    """Encode an image in residual stages, spread the mean of the coarsest one, and decode by sums with the stages.

    Args:
        in_channels: C.
        outputs: K.
        spec: see `CompactSegmenter`.
    """

    def __init__(self, in_channels: int, outputs: int, spec: CompactSegmenter) -> None:
        super().__init__()
        widths = [spec.width * min(1 << level, 4) for level in range(spec.levels)]
        self.multiple = 1 << spec.levels
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(i, o, 3, spec.norm, stride=2), ResidualUnit(o, spec.norm))
            for i, o in zip([in_channels, *widths], widths, strict=False)
        )
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], widths[-1], 1), nn.ReLU())
        self.lateral = nn.ModuleList(nn.Conv2d(o, widths[0] * 2, 1) for o in widths)
        # At the finest level convolutions would cost as much as all of the others together, and the head sees its skip anyway.
        self.refine = nn.ModuleList([nn.ReLU(), *(ResidualUnit(widths[0] * 2, spec.norm) for _ in widths[1:])])
        self.head = nn.Conv2d(widths[0] * 2, outputs, 1)
        if spec.norm == "batch":  # a step takes a quarter less time on a CPU; group norms in bfloat16 would take more
            self.to(memory_format=torch.channels_last)

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """Give the lateral and refining convolutions."""
        return [self.context, self.lateral, self.refine]

    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute the maps of all stages, the finest first; the sides of the image are rounded up to whole strides."""
        x: Tensor = pad_to_multiple(image, self.multiple)
        skips: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips

    def assemble(self, maps: Sequence[Tensor]) -> Tensor:
        """Spread the mean of the coarsest map, and add the others from coarse to fine: (B, 2 width, H / 2, W / 2)."""
        x: Tensor = self.lateral[-1](maps[-1] + self.context(maps[-1]))
        x = self.refine[-1](x)
        for level in reversed(range(len(maps) - 1)):
            x = F.interpolate(x, maps[level].shape[-2:], mode="bilinear", align_corners=False) + self.lateral[level](maps[level])
            x = self.refine[level](x)
        return x

    def decide(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute logits (B, K, H, W); the padded border is cropped."""
        padded = (features.shape[-2] * 2, features.shape[-1] * 2)
        return F.interpolate(self.head(features), padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
