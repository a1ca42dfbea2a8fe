"""Standardise a score by the place it has on a part, so that a noisy rim does not set the maximum of every map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anomseg.errors import NotFittedError
from anomseg.functional.binned_gaussian import BinnedMoments, binned_moments, merge_binned
from anomseg.functional.border import bin_count, border_bins
from anomseg.methods.training_data import gathered_objects

PlaceLevel = Literal["peak", "mean"]
"""What a score is measured against: the highest normal pixels of images, or all of them."""


def peaks_of_places(score: Tensor, valid: Tensor, cuts: Sequence[int]) -> Tensor:
    """Find the highest pixel of every place in each image.

    Args:
        score: (B, H, W).
        valid: (B, H, W) bool, which pixels count.
        cuts: see `BorderStatistics`.

    Returns:
        (B, H, W) bool, True at the highest valid pixel of a place, and at the first of them where several are as high.
    """
    count = bin_count(cuts)
    bins = border_bins((score.shape[-2], score.shape[-1]), cuts, score.device).flatten().expand(len(score), -1)
    values = torch.where(valid, score, -torch.inf).flatten(1)
    highest = values.new_full((len(score), count), -torch.inf).scatter_reduce(1, bins, values, "amax")
    order = torch.arange(bins.shape[1], device=bins.device).expand_as(bins)
    rank = torch.where(valid.flatten(1) & (values == highest.gather(1, bins)), order, bins.shape[1])
    first = rank.new_full((len(score), count), bins.shape[1]).scatter_reduce(1, bins, rank, "amin")
    return valid & (order == first.gather(1, bins)).view_as(valid)


class BorderStatistics(nn.Module):
    """Subtract the mean of a score's place and divide by its deviation, both over normal pixels; places as in `border_bins`.

    Deviations are drawn towards that of all places, with the weight of `prior` pixels.

    Args:
        cuts: distances from the border in pixels at which a new bin begins.
        prior: pixels, at least 1.

    Raises:
        ValueError: an argument is out of its range; in fitting, no pixel is normal.
        NotFittedError: used before fitting.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, cuts: Sequence[int] = (2, 4, 7, 12, 20, 32), prior: float = 100.0) -> None:
        super().__init__()
        border_bins((1, 1), cuts)
        if prior < 1:
            raise ValueError(f"Expected prior >= 1 pixel, but got {prior}.")
        self.cuts, self.prior = list(cuts), prior
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("deviation", torch.empty(0))

    def fit(self, maps: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Gather the statistics of every place, on all ranks.

        Args:
            maps: (B, H, W) scores and (B, H, W) bool, True where a pixel is normal and has data; of `peaks_of_places`, for the level of
                an image's highest normal pixel instead of that of all.
        """
        fit_together([self], ([one] for one in maps))

    def moments(self, score: Tensor, valid: Tensor) -> BinnedMoments:
        """Gather the moments of every place from (B, H, W) scores; see `fit`."""
        bins = border_bins((score.shape[-2], score.shape[-1]), self.cuts, score.device)
        return binned_moments(score[:, None], bins, valid, bin_count(self.cuts))

    def take(self, total: BinnedMoments) -> None:
        """Take the statistics from merged moments.

        Raises:
            ValueError: no pixel counted.
        """
        if not total.count.sum() > 0:
            raise ValueError("Expected normal pixels to fit the statistics of places to, but got none.")
        device = self.mean.device
        n, first, second = total.count, total.total[:, 0], total.square[:, 0, 0]
        overall = first.sum() / n.sum()
        variance = (second.sum() / n.sum() - overall.square()).clamp_min(torch.finfo(torch.float32).tiny)
        mean = (first + self.prior * overall) / (n + self.prior)
        scatter = (second - 2 * mean * first + n * mean.square()).clamp_min(0.0)
        self.mean = mean.float().to(device)
        self.deviation = ((scatter + self.prior * variance) / (n + self.prior)).sqrt().float().to(device)

    def forward(self, score: Tensor, valid: Tensor) -> Tensor:
        """Standardise (B, H, W) scores; 0 where `valid` (B, H, W) is False."""
        if not self.mean.numel():
            raise NotFittedError("Expected fitted statistics of places, but there are none. Call `trainer.fit` first.")
        bins = border_bins((score.shape[-2], score.shape[-1]), self.cuts, score.device)
        return torch.where(valid, (score - self.mean[bins]) / self.deviation[bins], 0.0)


def fit_together(places: Sequence[BorderStatistics], maps: Iterable[Sequence[tuple[Tensor, Tensor]]]) -> None:
    """Fit the statistics of several scores in one pass over images, on all ranks.

    Args:
        places: one for each score.
        maps: for each batch, every score and which of its pixels count, (B, H, W) and (B, H, W) bool; see `BorderStatistics.fit`.

    Raises:
        ValueError: no pixel is normal.
    """
    totals = gathered_moments([place.moments(*one) for place, one in zip(places, scores, strict=True)] for scores in maps)
    for place, total in zip(places, totals, strict=True):
        place.take(total)


def on_whole_images(score: Tensor, valid: Tensor, batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Lay the scores of crops where they were cut from, so that the border that their places count from is that of the whole image.

    Args:
        score: (B, H, W).
        valid: (B, H, W) bool, which pixels count.
        batch: tells by `window` and `scene_size` what was cut; without them samples are whole images.

    Yields:
        Scores (N, H', W') of whole images, and which of their pixels count, none of them outside of a crop. A batch without crops comes
        as it is.
    """
    cut = list(zip(batch["window"], batch["scene_size"], strict=True)) if {"window", "scene_size"} <= set(batch) else []
    if not any(_is_crop(valid[index], *one) for index, one in enumerate(cut)):
        yield score, valid
        return
    for index, (window, whole) in enumerate(cut):
        if not _is_crop(valid[index], window, whole):
            yield score[index, None], valid[index, None]
            continue
        row, column, height, width = window
        place = (0, slice(row, row + height), slice(column, column + width))
        canvas, counts = score.new_zeros(1, *whole), valid.new_zeros(1, *whole)
        canvas[place], counts[place] = score[index, :height, :width], valid[index, :height, :width]
        yield canvas, counts


def _is_crop(valid: Tensor, window: Sequence[int], whole: Sequence[int]) -> bool:
    """Tell crops, which may be padded by pixels that do not count, from whole images, which may have been brought to another size."""
    height, width = window[2:]
    fits = height <= valid.shape[0] and width <= valid.shape[1] and not bool(valid[height:].any() or valid[:, width:].any())
    return fits and tuple(whole) != tuple(valid.shape)


def gathered_moments(batches: Iterable[Sequence[BinnedMoments]]) -> list[BinnedMoments]:
    """Merge the moments of several quantities over batches and ranks.

    Raises:
        ValueError: no rank has a batch.
    """
    found: list[BinnedMoments] | None = None
    for new in batches:
        found = list(new) if found is None else [merge_binned(a, b) for a, b in zip(found, new, strict=True)]
    parts = [part for part in gathered_objects(found) if part is not None]
    if not parts:
        raise ValueError("Expected training images to take the statistics of places from, but the training data serve none.")
    return [reduce(merge_binned, moments) for moments in zip(*parts, strict=True)]
