"""Vary frames of a street as a camera would: mirrored, nearer, in another light; never upside down."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.data.augment import Augmentation
from anomseg.sample import IGNORE


class MirrorZoom(Augmentation):
    """Mirror half of the frames left to right, enlarge a random part to the whole frame, and change gain and offset of the colours.

    Example:
        >>> augment = MirrorZoom(zoom=1.5, light=0.2)
    """

    def __init__(self, zoom: float = 1.5, light: float = 0.2) -> None:
        """Store the arguments.

        Args:
            zoom: largest enlargement, at least 1.
            light: gain and offset of each frame, and half as much of each band, vary by as much, at least 0.

        Raises:
            ValueError: an argument is out of its range.
        """
        if not zoom >= 1 or not light >= 0:
            raise ValueError(f"Expected zoom >= 1 and light >= 0, but got {zoom} and {light}.")
        self.zoom = zoom
        self.light = light

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change image (C, H, W) in [0, 1] and mask (H, W); see the base class."""
        height, width = image.shape[-2:]
        draw = torch.rand(4, generator=generator).tolist()
        bands = torch.rand(2, 1 + len(image), 1, 1, generator=generator) * 2 - 1
        if draw[0] < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        share = 1 / (1 + (self.zoom - 1) * draw[1])
        rows, columns = max(1, round(share * height)), max(1, round(share * width))
        top, left = round(draw[2] * (height - rows)), round(draw[3] * (width - columns))
        if (rows, columns) != (height, width):
            place = (..., slice(top, top + rows), slice(left, left + columns))
            image = F.interpolate(image[place][None], (height, width), mode="bilinear", align_corners=False)[0]
            mask = F.interpolate(mask[place][None, None].double(), (height, width), mode="nearest-exact")[0, 0].to(mask.dtype)
        gain, offset = self.light * (bands[:, :1] + 0.5 * bands[:, 1:])
        lost = ~torch.isfinite(image).all(dim=0)  # more pixels than before: what is interpolated lacks data where one of its pixels does
        return (image * (1 + gain) + 0.5 * offset).clamp(0, 1).masked_fill(lost, torch.nan), mask.masked_fill(lost, IGNORE)
