"""A fixed random net, in whose features images are compared: a perceptual distance that needs no published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.convolution import set_bias


class RandomFeatures(nn.Module):
    """Compute maps of a convolutional net of three stages whose weights are drawn once and never learnt.

    Args:
        in_channels: C.
        width: channels of the first stage, at least 1; each coarser one has twice as many.
        stages: at least 1, each half as fine as the one before.
        seed: of the weights.
    """

    def __init__(self, in_channels: int, width: int = 16, stages: int = 3, seed: int = 0) -> None:
        super().__init__()
        if min(in_channels, width, stages) < 1:
            raise ValueError(f"Expected in_channels, width and stages >= 1, but got {in_channels}, {width} and {stages}.")
        self.channels = [width << stage for stage in range(stages)]
        generator = torch.Generator().manual_seed(seed)
        convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip([in_channels, *self.channels], self.channels, strict=False)]
        for convolution in convolutions:
            # Kaiming's variance keeps the scale of standardised images through the stages.
            nn.init.kaiming_normal_(convolution.weight, a=0.2, generator=generator)
            set_bias(convolution, 0.0)
        self.stages = nn.ModuleList(convolutions)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Give (B, F, ⌈H / 2^s⌉, ⌈W / 2^s⌉) of stage s = 0, 1, ... of (B, C, H, W), finite."""
        maps, x = [], image
        for level, stage in enumerate(self.stages):
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) if level else x
            x = F.leaky_relu(stage(x), 0.2)
            maps.append(x)
        return maps


def feature_distance(a: list[Tensor], b: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Average the squared differences over channels and stages, brought to one size.

    Args:
        a: maps (B, F, h, w) of the stages.
        b: the same of another image.
        size: (H, W) of the result.

    Returns:
        (B, H, W) >= 0, float32.
    """
    maps = [(one.float() - other.float()).square().mean(1, keepdim=True) for one, other in zip(a, b, strict=True)]
    resized = [one if one.shape[-2:] == size else F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps]
    return torch.stack(resized).mean(0)[:, 0]
