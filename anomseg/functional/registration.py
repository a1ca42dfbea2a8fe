"""Find the shift of whole pixels between two images of one place, and undo it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Shift = tuple[int, int]
"""(rows, columns) in pixels; positive moves down and right."""
_LEAST_SHARE = 0.25  # of the pixels that must overlap for a shift to be considered
_LEAST_GAIN = 1e-4  # in correlation, below which images stay where they are


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
    if before.shape != after.shape or before.ndim != 3:
        raise ValueError(
            f"Expected two images of one shape (C, H, W), but got {tuple(before.shape)} and {tuple(after.shape)}. Align first."
        )
    if not 0 <= max_shift < min(before.shape[-2:]):
        raise ValueError(f"Expected max_shift of 0 to {min(before.shape[-2:]) - 1} pixels, but got {max_shift}.")
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
