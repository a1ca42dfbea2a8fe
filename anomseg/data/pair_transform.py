"""Prepare pairs once when they are read: binarise them, or move one date onto the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.functional.registration import global_shift, local_shift, moved_by, shifted

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

    def bands(self, count: int) -> int:
        """Give the number of bands C' that come out where ``count`` go in, for what memory pairs take; as many by default."""
        return count


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
        _check_shift(self)

    def __call__(self, pair: Tensor) -> Tensor:
        """Change a pair; see the base class."""
        first, second = pair if self.moved == "before" else pair.flip(0)
        dates = (self._laid(first, second), second)
        if dates[0] is first:
            return torch.cat([pair, pair], 1) if self.keep else pair
        stacked = torch.stack(dates if self.moved == "before" else dates[::-1])
        stacked = torch.cat([pair, stacked], 1) if self.keep else stacked
        return torch.where(torch.isfinite(stacked).all(dim=(0, 1)), stacked, torch.nan)

    def bands(self, count: int) -> int:
        """Give the number of bands that come out; see the base class."""
        return 2 * count if self.keep else count

    def _laid(self, first: Tensor, second: Tensor) -> Tensor:
        """Give the first date where it lies on the second, and itself where it does already."""
        return _near(self, first, second)


@dataclass(frozen=True)
class LocalShift(GlobalShift):
    """Move one date as `GlobalShift` does, and then each place of it by a few pixels of its own.

    For boards that bent or shrank, scans, and roofs that lean: see `anomseg.functional.registration.local_shift`. Values stay as they are.

    Attributes:
        reach: most pixels along each axis by which a place moves beside the rest, at least 1; the time grows with its square.
        window: side in pixels of the windows that are compared, at least 3 and much larger than what may have changed.
    """

    reach: int = 4
    window: int = 48

    def __post_init__(self) -> None:
        _check_shift(self)
        if self.reach < 1 or self.window < 3:
            raise ValueError(f"Expected reach >= 1 and window >= 3 pixels, but got {self.reach} and {self.window}.")

    def _laid(self, first: Tensor, second: Tensor) -> Tensor:
        near = _near(self, first, second)
        field = local_shift(near, second, min(self.reach, min(first.shape[-2:]) - 1), self.window)
        return moved_by(near, field, self.border) if bool(field.any()) else near


def _check_shift(options: GlobalShift) -> None:
    if options.max_shift < 1 or options.moved not in get_args(Moved) or options.border not in ("edge", "nodata"):
        raise ValueError(
            "Expected max_shift >= 1, moved 'before' or 'after' and border 'edge' or 'nodata', "
            f"but got {options.max_shift}, {options.moved!r} and {options.border!r}."
        )


def _near(options: GlobalShift, first: Tensor, second: Tensor) -> Tensor:
    """Move a date as a whole, or give it itself where it need not move."""
    shift, _ = global_shift(first, second, min(options.max_shift, min(first.shape[-2:]) - 1))
    return first if shift == (0, 0) else shifted(first, shift, options.border)
