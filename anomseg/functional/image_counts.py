"""Count the scores of each image apart and sparsely, so that figures over any weighting of the images can be read again.

Scores become order-preserving keys without their lowest bits. As many bits are dropped as it takes to hold all counts in bounded memory,
and no more: what is held depends on the images alone, not on how they were divided into batches or ranks, or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anomseg.functional.score_histogram import ScoreCounts, score_to_key

ENTRIES = 1 << 20  # 34 MB
CELLS = 1 << 16


@dataclass(frozen=True)
class ImageCounts:
    """Hold the counts of n images in E entries, each the pixels of one image in one cell of scores.

    Attributes:
        shift: lowest bits of the keys that were dropped.
        score: (n,) float32 score of each image; NaN where it has none.
        label: (n,) int64 0 normal, 1 anomalous, 255 where the image counts in pixel figures alone.
        image: (E,) int64 index of the image, ascending.
        key: (E,) int64 key >> shift, ascending within an image.
        normal: (E,) int64 normal pixels.
        anomalous: (E,) int64 anomalous pixels.
        mass: (E,) float64 summed weights of the anomalous pixels, such as 1 / (size of their region).
    """

    shift: int
    score: Tensor
    label: Tensor
    image: Tensor
    key: Tensor
    normal: Tensor
    anomalous: Tensor
    mass: Tensor

    def coarser(self, shift: int) -> ImageCounts:
        """Drop the keys' bits below `shift`, which is at least that of these counts."""
        if shift == self.shift or not len(self.key):
            return replace(self, shift=shift)
        key = self.key >> (shift - self.shift)
        cell = _starts(self.image, key).cumsum(0) - 1
        first = _starts(self.image, key).nonzero()[:, 0]
        sums = (value.new_zeros(len(first)).index_add(0, cell, value) for value in (self.normal, self.anomalous, self.mass))
        return ImageCounts(shift, self.score, self.label, self.image[first], key[first], *sums)

    def fitting(self, entries: int = ENTRIES) -> ImageCounts:
        """Drop as few bits as it takes to have at most that many entries; one for each image in the end."""
        shift = self.shift
        while shift < 32 and int(_starts(self.image, self.key >> (shift - self.shift)).sum()) > entries:
            shift += 1
        return self.coarser(shift)

    def pack(self) -> Tensor:
        """Write everything into one 1-D float32 tensor of bit patterns, so that packed counts of several ranks can be concatenated."""
        head = torch.tensor([self.shift, len(self.score), len(self.key)], device=self.key.device)
        per_image = (self.score.double().view(torch.int64), self.label)
        pixels = (self.normal << 32) | self.anomalous  # an image has fewer than 2^31 pixels
        place = (self.image << 32) | (self.key + (1 << 31))
        return torch.cat([head, *per_image, place, pixels, self.mass.view(torch.int64)]).view(torch.float32)


def _starts(image: Tensor, key: Tensor) -> Tensor:
    """Mark the first entry of each cell of each image, (E,) bool."""
    start = torch.ones_like(key, dtype=torch.bool)
    start[1:] = (key[1:] != key[:-1]) | (image[1:] != image[:-1])
    return start


def unpack_image_counts(packed: Tensor) -> list[ImageCounts]:
    """Read the counts back from the concatenation of any number of `ImageCounts.pack`."""
    words, found, at = packed.contiguous().view(torch.int64), [], 0
    while at < len(words):
        shift, images, entries = words[at : at + 3].tolist()
        score, label, place, pixels, mass = torch.split(words[at + 3 : at + 3 + 2 * images + 3 * entries], [images] * 2 + [entries] * 3)
        low = (1 << 32) - 1
        of = (place >> 32, (place & low) - (1 << 31), pixels >> 32, pixels & low, mass.contiguous().view(torch.float64))
        found.append(ImageCounts(shift, score.contiguous().view(torch.float64).float(), label, *of))
        at += 3 + 2 * images + 3 * entries
    return found


def count_image(score: Tensor, label: int, normal: Tensor, anomalous: Tensor, weights: Tensor | None = None, shift: int = 0) -> ImageCounts:
    """Count the pixels of one image.

    Args:
        score: () score of the image.
        label: 0, 1, or 255 where it has no score.
        normal: 1-D float32 scores of its normal pixels.
        anomalous: 1-D float32 scores of its anomalous pixels.
        weights: one for each anomalous pixel; 1 by default.
        shift: lowest bits of the keys that are dropped.
    """
    keys = score_to_key(torch.cat([normal, anomalous])).long() >> shift
    low, high = (int(end) for end in torch.aminmax(keys)) if len(keys) else (0, -1)
    if high - low < 4 * len(keys):  # a narrow range is counted several times as fast as it is sorted
        cell = keys - low
        filled = torch.bincount(cell, minlength=high - low + 1) > 0
        key, cell = filled.nonzero()[:, 0] + low, (filled.cumsum(0) - 1)[cell]
    else:
        key, cell = torch.unique(keys, return_inverse=True)
    hit, mass = cell[len(normal) :], (torch.ones_like(anomalous) if weights is None else weights).double()
    of = (torch.bincount(cell[: len(normal)], minlength=len(key)), torch.bincount(hit, minlength=len(key)))
    summed = torch.bincount(hit, weights=mass, minlength=len(key))
    return ImageCounts(shift, score.float()[None], torch.tensor([label], device=key.device), torch.zeros_like(key), key, *of, summed)


def join_image_counts(parts: Sequence[ImageCounts], entries: int = ENTRIES) -> ImageCounts:
    """Put the images of several counts one after the other, with at most that many entries.

    Args:
        parts: at least one.
        entries: the memory, in entries of 32 bytes.
    """
    shift, first, images = max(part.shift for part in parts), 0, []
    coarse = [part.coarser(shift) for part in parts]
    for part in coarse:
        images.append(part.image + first)
        first += len(part.score)
    names = ("score", "label", "key", "normal", "anomalous", "mass")
    columns = {name: torch.cat([getattr(part, name) for part in coarse]) for name in names}
    return ImageCounts(shift=shift, image=torch.cat(images), **columns).fitting(entries)


def canonical_order(counts: ImageCounts) -> Tensor:
    """Order the images by what they hold, so that what is drawn for each does not depend on the order in which they came.

    Returns:
        (n,) int64 indices of the images. Only images with the same score, label and pixels may change places.
    """
    mixed = (counts.key * 0x9E3779B97F4A7C1 + 0x7F4A7C15) ^ (counts.key << 17)  # integers wrap around
    mixed = mixed * (2 * counts.normal + 1) + mixed.bitwise_not() * (counts.anomalous * 0x2545F491)
    signature = torch.zeros_like(counts.label).index_add(0, counts.image, mixed)
    order = signature.argsort(stable=True)
    order = order[counts.score[order].nan_to_num(-torch.inf).argsort(stable=True)]
    return order[counts.label[order].argsort(stable=True)]


class WeightedCounts:
    """Add up the counts of images under one weighting after the other.

    Args:
        counts: of the images.
        cells: bits of the keys are dropped until at most so many distinct ones are left.
    """

    def __init__(self, counts: ImageCounts, cells: int = CELLS) -> None:
        distinct, shift = torch.unique(counts.key), counts.shift
        while len(distinct) > cells:
            distinct, shift = torch.unique_consecutive(distinct >> 1), shift + 1
        self.counts = counts.coarser(shift)
        self.cell = torch.searchsorted(distinct, self.counts.key)
        self.lower = distinct << shift
        self.width = torch.full_like(distinct, 1 << shift)

    def weighted(self, weights: Tensor) -> tuple[ScoreCounts, ScoreCounts]:
        """Sum the images.

        Args:
            weights: (n,) int64 >= 0, how often each image counts.

        Returns:
            The counts with anomalous pixels, and with their summed weights in the place of these.
        """
        weight = weights[self.counts.image].double()
        sums = [
            torch.bincount(self.cell, weights=weight * value, minlength=len(self.lower))
            for value in (self.counts.normal, self.counts.anomalous, self.counts.mass)
        ]
        normal = sums[0].long()
        return ScoreCounts(self.lower, self.width, normal, sums[1]), ScoreCounts(self.lower, self.width, normal, sums[2])
