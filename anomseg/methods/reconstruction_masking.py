"""Predict every pixel from images that hide it: whoever cannot see a defect cannot copy it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.nets.autoencoder_contract import Rebuilt, ReconstructionNet


@dataclass(frozen=True)
class MaskedPrediction:
    """Hide square cells in several disjoint masks that together cover the image once.

    Attributes:
        cells: sides of the cells in pixels. A training step draws one of them, a score is the mean over all.
        masks: how many share the image, at least 2; each hides the same share of it.

    Source: Zavrtanik et al., "Reconstruction by Inpainting for Visual Anomaly Detection", Pattern Recognition 112, 2021 (RIAD), which
        also takes 3 masks and cells of 2, 4, 8 and 16.
    """

    cells: tuple[int, ...] = (2, 4, 8, 16)
    masks: int = 3

    def __post_init__(self) -> None:
        if not self.cells or min(self.cells) < 1 or self.masks < 2:
            raise ValueError(f"Expected cells of at least 1 pixel and two or more masks, but got {self.cells} and {self.masks}.")

    def draw(self, images: int, size: tuple[int, int], cell: int, generator: torch.Generator) -> Tensor:
        """Draw the masks of some images: (masks, B, H, W) bool, True where hidden; every pixel in exactly one."""
        rows, columns = -(-size[0] // cell), -(-size[1] // cell)
        rank = torch.rand(images, rows * columns, generator=generator).argsort(1).argsort(1)
        owner = (rank % self.masks).view(images, rows, columns).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        return owner[:, : size[0], : size[1]] == torch.arange(self.masks).view(-1, 1, 1, 1)

    def predict(self, net: ReconstructionNet, image: Tensor, place: Tensor | None, hidden: Tensor) -> Rebuilt:
        """Rebuild a batch (B, C, H, W), each pixel from the image in which it is 0, the mean of its band.

        Args:
            net: sees as many images at once as there are masks, times B.
            image: standardised.
            place: (B, P, H, W) that the net is told, or None.
            hidden: (masks, B, H, W) of `draw`, or (masks, 1, H, W) for the same masks in all images.

        Returns:
            The image put together; the features are those of the first mask.
        """
        seen = image.masked_fill(hidden[:, :, None], 0.0)
        rebuilt = net(seen.flatten(0, 1), None if place is None else place.repeat(len(hidden), 1, 1, 1))
        parts = rebuilt.image.unflatten(0, seen.shape[:2])
        return Rebuilt(torch.where(hidden[:, :, None], parts, 0.0).sum(0), rebuilt.features[: len(image)])
