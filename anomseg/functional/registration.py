"""Find the shift of whole pixels between two images of one place, for all of it or place by place, and undo it."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Shift = tuple[int, int]
"""(rows, columns) in pixels; positive moves down and right."""
_LEAST_SHARE = 0.25  # of the pixels that must overlap for a shift to be considered
_LEAST_GAIN = 1e-4  # in correlation, below which images stay where they are
_PRICE = 0.02  # of the difference, for each pixel of a local shift: along an edge all shifts are alike, and the smallest is meant


def global_shift(before: Tensor, after: Tensor, max_shift: int) -> tuple[Shift, float]:
    """Find the shift that moves one image onto another, by the normalised cross-correlation of all pixels that overlap.

    For a shift s the correlation runs over the pixels x with data in both images: of ``before(x - s)`` and ``after(x)``, each less its
    mean over these pixels, summed over the bands. It is unchanged by gain and offset between the dates. All shifts come from six
    correlations by FFT, band by band; pixels without data enter none of them.

    Args:
        before: (C, H, W), NaN where there is no data.
        after: (C, H, W) likewise.
        max_shift: most pixels along each axis, at least 0.

    Returns:
        The shift, and its correlation in [-1, 1]. Shifts that leave less than a quarter of the pixels do not count. The shift is (0, 0)
        where no other is better by 1e-4, so that flat images stay; their correlation is 0.

    Raises:
        ValueError: the shapes differ, or ``max_shift`` is negative or as large as the image.

    Source: Padfield, "Masked Object Registration in the Fourier Domain", IEEE TIP 21(5), 2012; here the bands are summed.
    """
    _check("max_shift", max_shift, before, after)
    fixed_here, moved_here = torch.isfinite(after).all(dim=0), torch.isfinite(before).all(dim=0)
    size = tuple(_fast_length(length + max_shift) for length in before.shape[-2:])
    rows, columns = _offsets(max_shift, size[0])[:, None], _offsets(max_shift, size[1])

    def sums(first: Tensor, second: Tensor) -> Tensor:
        """Sum the products of two spectra's images over the overlap, for each shift."""
        found: Tensor = torch.fft.irfft2(first.conj() * second, s=size)
        return found[rows, columns].double()

    moved_data, fixed_data = (torch.fft.rfft2(here.float(), s=size) for here in (moved_here, fixed_here))
    count = sums(moved_data, fixed_data).clamp_min(1.0)
    covariance, moved_spread, fixed_spread = (torch.zeros_like(count) for _ in range(3))
    for moved_band, fixed_band in zip(before, after, strict=True):  # cost: nine transforms; one band at a time bounds the memory
        moved, fixed = _centred(moved_band, moved_here), _centred(fixed_band, fixed_here)
        moved_image, moved_square, fixed_image, fixed_square = (
            torch.fft.rfft2(one, s=size) for one in (moved, moved.square(), fixed, fixed.square())
        )
        moved_sum, fixed_sum = sums(moved_image, fixed_data), sums(moved_data, fixed_image)
        covariance += sums(moved_image, fixed_image) - moved_sum * fixed_sum / count
        moved_spread += sums(moved_square, fixed_data) - moved_sum**2 / count
        fixed_spread += sums(moved_data, fixed_square) - fixed_sum**2 / count
    spread = (moved_spread * fixed_spread).clamp_min(0.0).sqrt()
    floor = 1e-4 * int((moved_here & fixed_here).sum()) * len(before)  # images have a standard deviation of 1
    enough = (count >= _LEAST_SHARE * fixed_here.numel()) & (spread > floor)
    correlation = torch.where(enough, covariance / spread.clamp_min(1e-12), -2.0)
    best, stay = int(correlation.argmax()), float(correlation[max_shift, max_shift])
    if float(correlation.max()) <= stay + _LEAST_GAIN:
        return (0, 0), max(stay, 0.0) if stay <= -2.0 else stay
    row, column = divmod(best, 2 * max_shift + 1)
    return (row - max_shift, column - max_shift), float(correlation.max())


def local_shift(before: Tensor, after: Tensor, reach: int = 4, window: int = 48) -> Tensor:
    """Find for each place the small shift that moves one image onto another: for what bent, shrank or stands above the ground.

    Each window takes the shift that lowers the mean |before(x - s) - after(x)| most, over its pixels with data in both, both images scaled
    to mean 0 and deviation 1 (so gain and offset of a date change nothing). A pixel of shift must lower that by 2 %, so that windows
    without texture, or with edges of one direction, move as little as they may. Windows overlap by two thirds; between their centres the
    shift is interpolated and rounded, so whatever is moved by it keeps its values. Choose windows much larger than what may have changed.

    Args:
        before: (C, H, W), NaN where there is no data; moved by `global_shift` before where that is more than a few pixels.
        after: (C, H, W) likewise.
        reach: most pixels along each axis, at least 0; (2 reach + 1)² shifts are tried.
        window: side of a window in pixels, at least 3.

    Returns:
        (2, H, W) int64, rows and columns, positive moves down and right: what `moved_by` takes. 0 where a window holds no data.

    Raises:
        ValueError: the shapes differ, ``reach`` is negative or as large as the image, or ``window`` is below 3.
    """
    _check("reach", reach, before, after)
    if window < 3:
        raise ValueError(f"Expected a window of at least 3 pixels, but got {window}. It should be much larger than a change.")
    height, width = before.shape[-2:]
    step = window // 3
    grid = (-(-height // step), -(-width // step))
    moved, fixed = (_scaled(image) for image in (before, after))

    def windows(values: Tensor) -> Tensor:
        """Sum over the window around each block."""
        blocks = functional.avg_pool2d(functional.pad(values, (0, grid[1] * step - width, 0, grid[0] * step - height))[None, None], step)
        return functional.avg_pool2d(blocks, 3, 1, 1)[0, 0] * (3 * step) ** 2

    room = windows(torch.ones(height, width))
    gaps = (moved - fixed).abs().sum(dim=0)
    best, found = torch.full(grid, _LEAST_GAIN), torch.zeros(2, *grid)
    span = range(-reach, reach + 1)
    for shift in sorted(product(span, span), key=lambda s: math.hypot(*s)):  # of equals the smallest
        gain = gaps - (1 + _PRICE * math.hypot(*shift)) * (shifted(moved, shift, "nodata") - fixed).abs().sum(dim=0)
        seen = windows(gain.isfinite().float())  # the same pixels for what stays and what moves
        gains = windows(gain.nan_to_num(0.0)) / seen.clamp_min(1.0)
        better = (gains > best) & (seen >= _LEAST_SHARE * room)
        best = torch.where(better, gains, best)
        found = torch.where(better, torch.tensor(shift, dtype=found.dtype)[:, None, None], found)
    full = functional.interpolate(found[None], (grid[0] * step, grid[1] * step), mode="bilinear", align_corners=False)
    return full[0, :, :height, :width].round().long()


def moved_by(image: Tensor, field: Tensor, border: Literal["edge", "nodata"] = "edge") -> Tensor:
    """Move each place of an image by whole pixels of its own.

    Args:
        image: (C, H, W).
        field: (2, H, W) integers: rows and columns, see `local_shift`.
        border: what comes in from outside: the nearest pixel ("edge"), or NaN ("nodata").

    Returns:
        (C, H, W), a copy: ``out[y, x] = image[y - rows[y, x], x - columns[y, x]]``.

    Raises:
        ValueError: the field is not of the image's size.
    """
    height, width = image.shape[-2:]
    if field.shape != (2, height, width):
        raise ValueError(f"Expected a field of shape (2, {height}, {width}) like the image, but got {tuple(field.shape)}.")
    rows, columns = torch.arange(height)[:, None] - field[0], torch.arange(width) - field[1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = image[:, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return taken if border == "edge" else torch.where(inside, taken, torch.nan)


def shifted(image: Tensor, shift: Shift, border: Literal["edge", "nodata"] = "edge") -> Tensor:
    """Move an image by whole pixels.

    Args:
        image: (C, H, W).
        shift: rows and columns; positive moves down and right.
        border: what comes in at the other side: the nearest pixel ("edge"), or NaN ("nodata").

    Returns:
        (C, H, W), a copy: ``out[y, x] = image[y - rows, x - columns]``.

    Raises:
        ValueError: the shift is as large as the image.
    """
    (height, width), (down, right) = image.shape[-2:], shift
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(f"Expected a shift smaller than the image of {height} x {width} pixels, but got {shift}.")
    part = image[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    pads = (max(0, right), max(0, -right), max(0, down), max(0, -down))
    if border == "nodata":
        return functional.pad(part, pads, value=torch.nan)
    return functional.pad(part[None], pads, mode="replicate")[0]


def _check(name: str, most: int, before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape or before.ndim != 3:
        raise ValueError(
            f"Expected two images of one shape (C, H, W), but got {tuple(before.shape)} and {tuple(after.shape)}. Align first."
        )
    if not 0 <= most < min(before.shape[-2:]):
        raise ValueError(f"Expected {name} of 0 to {min(before.shape[-2:]) - 1} pixels, but got {most}.")


def _scaled(image: Tensor) -> Tensor:
    """Scale the bands to mean 0 and deviation 1, and leave NaN where any band has no data."""
    here = torch.isfinite(image).all(dim=0)
    return torch.where(here, torch.stack([_centred(band, here) for band in image]), torch.nan)


def _centred(band: Tensor, here: Tensor) -> Tensor:
    """Scale a band (H, W) to mean 0 and deviation 1 over its data, and put 0 where there is none."""
    count = here.sum().clamp_min(1)
    filled = torch.where(here, band, 0.0).float()
    centred = torch.where(here, filled - filled.sum() / count, 0.0)
    scale = (centred.square().sum() / count).sqrt()
    return torch.where(scale > 0, centred / scale.clamp_min(1e-30), 0.0)


def _offsets(max_shift: int, length: int) -> Tensor:
    return torch.arange(-max_shift, max_shift + 1) % length


def _fast_length(length: int) -> int:
    """Give the next length without a prime factor above 5, of which transforms are fast."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
