"""Pick the truth that counts: all of it, none that tells where anomalies are, or what lies in or outside of seeded blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.windows import random_blocks
from anomseg.sample import ANOMALY, IGNORE, NORMAL

MaskRule = Callable[[Tensor | None, tuple[int, int]], Tensor]


def full_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Keep every pixel of the truth: the published protocol of testing.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None where there is no truth.
        size: (height, width) of the scene in pixels.

    Returns:
        (H, W) int64, a copy; all 0 without truth.
    """
    return torch.full(size, NORMAL, dtype=torch.int64) if mask is None else mask.clone()


def unlabelled_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Hide where anomalies are: a scene that is also tested must not tell those who learn from it.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None where there is no truth.
        size: (height, width) of the scene in pixels.

    Returns:
        (H, W) int64: 255 where the truth is 255, 0 elsewhere.
    """
    kept = full_mask(mask, size)
    return kept.masked_fill_(kept == ANOMALY, NORMAL)


def calibration_mask(mask: Tensor | None, size: tuple[int, int], block: int = 10, share: float = 0.25, seed: int = 0) -> Tensor:
    """Keep the truth inside seeded random blocks, and ignore the rest of the scene.

    The calibration protocol: a method sees and scores the whole image, but its scores are calibrated, by their normal pixels (0) alone,
    on a random share of blocks. ``held_out_mask`` with the same arguments keeps exactly the other pixels. Blocks depend on the size and
    the seed only, never on the truth, so that knowing where anomalies lie cannot leak into them; scenes of one size share their blocks.

    Args:
        mask: (H, W) int64 of 0, 1, 255; None is taken as normal everywhere, which is how a scene without truth is calibrated.
        size: (height, width) of the scene in pixels.
        block: side of a block in pixels.
        share: part of the blocks to keep, above 0 and below 1.
        seed: draws the blocks.

    Returns:
        (H, W) int64 of 0, 1, 255: the truth inside the blocks, 255 outside.

    Raises:
        ValueError: a size is not positive, or the share does not lie in (0, 1).
    """
    return full_mask(mask, size).masked_fill_(~random_blocks(size, block, share, seed), IGNORE)


def held_out_mask(mask: Tensor | None, size: tuple[int, int], block: int = 10, share: float = 0.25, seed: int = 0) -> Tensor:
    """Ignore the blocks that ``calibration_mask`` keeps, and keep the truth elsewhere.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None for normal everywhere.
        size: (height, width) of the scene in pixels.
        block: side of a block in pixels.
        share: part of the blocks that calibrate, above 0 and below 1.
        seed: draws the blocks.

    Returns:
        (H, W) int64 of 0, 1, 255: 255 inside the blocks, the truth outside.

    Raises:
        ValueError: a size is not positive, or the share does not lie in (0, 1).
    """
    return full_mask(mask, size).masked_fill_(random_blocks(size, block, share, seed), IGNORE)


@dataclass(frozen=True)
class BlockRule:
    """Keep the truth inside or outside of random blocks of the whole scene; which pixels these are, its size alone decides.

    Attributes:
        rule: ``calibration_mask`` or ``held_out_mask``.
        block: see there.
        share: likewise.
        seed: likewise.
    """

    rule: Callable[[Tensor | None, tuple[int, int], int, float, int], Tensor]
    block: int = 10
    share: float = 0.25
    seed: int = 0

    def __call__(self, mask: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Apply the rule."""
        return self.rule(mask, size, self.block, self.share, self.seed)

    def kept(self, size: tuple[int, int]) -> Tensor:
        """Mark the pixels whose truth is kept, (H, W) bool."""
        return self(torch.zeros(size, dtype=torch.uint8), size) != IGNORE


POINTWISE: tuple[MaskRule, ...] = (full_mask, unlabelled_mask)  # a part of what they make of a scene is what they make of a part
