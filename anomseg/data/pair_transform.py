"""Prepare pairs once when they are read: binarise them, or move one date onto the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.functional.registration import global_shift, shifted

Moved = Literal["before", "after"]


class PairTransform(ABC):
    """Change both dates of a whole pair, alike in every stage and without its truth."""

    @abstractmethod
    def __call__(self, pair: Tensor) -> Tensor:
        """Change a pair.

        Args:
            pair: (2, C, H, W) float32 as read, NaN at both dates where either has no data.

        Returns:
            (2, C', H, W) float32 on the same pixels, NaN where there is no data.
        """


@dataclass(frozen=True)
class Binarise(PairTransform):
    """Make every value 0 or 1: drawings that were stored as JPEG carry greys that tell where someone edited them.

    Attributes:
        threshold: values above it become 1, in units of the image.
    """

    threshold: float = 127.0

    def __call__(self, pair: Tensor) -> Tensor:
        """Change a pair; see the base class."""
        return torch.where(torch.isnan(pair), pair, (pair > self.threshold).to(pair.dtype))


@dataclass(frozen=True)
class GlobalShift(PairTransform):
    """Move one date by whole pixels onto the other, as `anomseg.functional.registration.global_shift` finds them.

    A camera that is put back, a board on a belt, two orthophotos a few pixels apart. Nothing is resampled, so values stay as they are.

    Attributes:
        max_shift: most pixels along each axis, at least 1; a smaller image allows less.
        moved: the date that moves. The truth stays, so it is the one on which the truth was not drawn.
        border: what comes in: the nearest pixel ("edge"), so that every pixel of the truth still counts, or no data ("nodata").
        keep: keep the bands as read and add the moved ones behind them, and those of the other date a second time: a network then sees
            both, while truth and gate (``gate_bands``) can stay with what was read.
    """

    max_shift: int = 24
    moved: Moved = "before"
    border: Literal["edge", "nodata"] = "edge"
    keep: bool = False

    def __post_init__(self) -> None:
        if self.max_shift < 1 or self.moved not in get_args(Moved) or self.border not in ("edge", "nodata"):
            raise ValueError(
                "Expected max_shift >= 1, moved 'before' or 'after' and border 'edge' or 'nodata', "
                f"but got {self.max_shift}, {self.moved!r} and {self.border!r}."
            )

    def __call__(self, pair: Tensor) -> Tensor:
        """Change a pair; see the base class."""
        first, second = pair if self.moved == "before" else pair.flip(0)
        shift, _ = global_shift(first, second, min(self.max_shift, min(pair.shape[-2:]) - 1))
        if shift == (0, 0):
            return torch.cat([pair, pair], 1) if self.keep else pair
        dates = (shifted(first, shift, self.border), second)
        stacked = torch.stack(dates if self.moved == "before" else dates[::-1])
        stacked = torch.cat([pair, stacked], 1) if self.keep else stacked
        return torch.where(torch.isfinite(stacked).all(dim=(0, 1)), stacked, torch.nan)
