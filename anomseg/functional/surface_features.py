"""Describe the pixels of a surface by what its light does not change: derivatives, energies of texture, and contrasts of two sides.

Streaks, weaves and other textures with a direction call for features that keep it: the derivative along a streak is small and that
across it is large, and only their joint distribution shows a scratch that runs the other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.functional.filter_bank import gaussian_filter, gaussian_jet
from anomseg.sample import fill_nodata

_Window = tuple[tuple[int, int], tuple[int, int]]  # rows and columns about a pixel, from the first to behind the last
LineKind = Literal["both", "dark", "bright"]
_ALONG = 3.0  # a stroke ends this many standard deviations from its centre
_PEN = 0.6  # pixels: its deviation across
_HELD = 1e-3  # least share of a stroke that lies on data
_POWER_FLOOR = 1e-5  # of squared derivatives of the logarithm: half a per cent of light


def log_light(image: Tensor, floor: float = 0.02) -> Tensor:
    """Take the exposure out: ln((x + floor) / (median + floor)) for each band of each image.

    Args:
        image: (B, C, H, W) of light in [0, 1], NaN where there is no data; values below 0 count as 0.
        floor: about the noise of the dark, in units of the image.

    Returns:
        (B, C, H, W) float32, NaN where there is no data.
    """
    light = image.float().clamp_min(0.0)
    median = light.flatten(2).nanmedian(-1).values[..., None, None]
    return ((light + floor) / (median + floor)).log()


def image_median(features: Tensor, valid: Tensor) -> Tensor:
    """Give the median of each feature over the pixels with data of each image.

    Args:
        features: (B, D, H, W); values where `valid` is False play no part.
        valid: (B, H, W) bool.

    Returns:
        (B, D, 1, 1), 0 for an image without data.
    """
    kept = torch.where(valid[:, None], features, torch.nan).flatten(2)
    return kept.nanmedian(-1).values.nan_to_num(0.0)[..., None, None]


@torch.no_grad()
def directional_derivatives(light: Tensor, sigmas: Sequence[float] = (1.0, 2.0, 4.0), floor: float = 1e-3) -> Tensor:
    """Compute the five derivatives up to the second order at every scale, each divided by its median length in the image.

    The division lets a rough surface and a smooth one of one kind share their statistics.

    Args:
        light: (B, C, H, W), such as that of `log_light`; NaN where there is no data.
        sigmas: of the Gaussians, in pixels.
        floor: added to the medians, in units of the image.

    Returns:
        (B, 5 S C, H, W) float32 for S scales, finite; 0 where there is no data.
    """
    filled, valid = fill_nodata(light)
    weight = valid[:, None].float()
    jets = torch.cat([d for sigma in sigmas for d in gaussian_jet(filled * weight, weight, sigma)], 1)
    return torch.where(valid[:, None], jets / (image_median(jets.abs(), valid) + floor), 0.0)


@torch.no_grad()
def line_responses(
    light: Tensor,
    sigmas: Sequence[float] = (1.0, 1.5, 2.0),
    length: float = 10.0,
    directions: int = 12,
    floor: float = 1e-3,
    kind: LineKind = "both",
) -> Tensor:
    """Find thin lines, dark or bright: the second derivative across a direction, averaged along it, where the direction fits best.

    A speck answers in one direction as in another and is averaged away; a line answers in its own, and stands out of rough texture.
    Responses are divided by their median in the image, as in `directional_derivatives`.

    Args:
        light: (B, C, H, W), such as that of `log_light`; NaN where there is no data.
        sigmas: of the Gaussians across, in pixels; a line answers best to half of its width.
        length: standard deviation of the Gaussian along, in pixels.
        directions: how many are tried.
        floor: added to the medians, in units of the image.
        kind: of lines that count, `dark` or `bright` ones against their surroundings, or `both`.

    Returns:
        (B, S C, H, W) float32 for S scales, finite; 0 where there is no data.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in get_args(LineKind):
        raise ValueError(f"Expected a kind of lines of {get_args(LineKind)}, but got {kind!r}.")
    filled, valid = fill_nodata(light)
    weight = valid[:, None].float()
    height, width = light.shape[-2:]
    shape = (height + math.ceil(_ALONG * length), width + math.ceil(_ALONG * length))
    # Second derivatives in any direction are sums of three, so that these alone are transformed: (S, C, 3, B, ...).
    jets = torch.stack([(gaussian_jet(filled * weight, weight, sigma)[2:] * weight).movedim(2, 0) for sigma in sigmas])
    spectra, held_spectrum = torch.fft.rfft2(jets, shape), torch.fft.rfft2(weight[:, 0], shape)
    best = light.new_zeros(len(sigmas), light.shape[1], *valid.shape, dtype=torch.float32)
    for turn in range(directions):
        sine, cosine = math.sin(math.pi * turn / directions), math.cos(math.pi * turn / directions)
        stroke = torch.fft.rfft2(_stroke(shape, length, sine, cosine, weight))
        held = torch.fft.irfft2(held_spectrum * stroke, shape)[..., :height, :width].clamp_min(_HELD)
        # Lines run along (sine, cosine); the derivative is taken across them.
        across = cosine**2 * spectra[:, :, 0] + sine**2 * spectra[:, :, 1] - 2 * sine * cosine * spectra[:, :, 2]
        mean = torch.fft.irfft2(across * stroke, shape)[..., :height, :width] / held
        best = torch.maximum(best, {"dark": mean, "bright": -mean, "both": mean.abs()}[kind])
    responses = best.movedim(2, 0).flatten(1, 2)
    return torch.where(valid[:, None], responses / (image_median(responses, valid) + floor), 0.0)


@torch.no_grad()
def log_energies(light: Tensor, sigma: float = 1.0, smoothing: float = 3.0, order: Literal[1, 2] = 2) -> Tensor:
    """Compute the logarithm of the local power of the derivatives along rows and columns, and of the three of the second order.

    Args:
        light: (B, C, H, W); NaN where there is no data.
        sigma: of the derivatives, in pixels.
        smoothing: of the power, in pixels.
        order: highest order of the derivatives; 1 for those along rows and columns alone.

    Returns:
        (B, 5 C, H, W) float32, or (B, 2 C, H, W) of order 1, finite; 0 where there is no data.
    """
    filled, valid = fill_nodata(light)
    weight = valid[:, None].float()
    jet = gaussian_jet(filled * weight, weight, sigma)[: 5 if order == 2 else 2]
    power = jet.square().movedim(0, 1).flatten(1, 2)
    smoothed = gaussian_filter(torch.where(valid[:, None], power, torch.nan), smoothing)
    return torch.where(valid[:, None], (smoothed + _POWER_FLOOR).log(), 0.0)


@torch.no_grad()
def window_contrasts(features: Tensor, valid: Tensor, windows: Sequence[tuple[int, int]] = ((7, 15), (13, 31))) -> Tensor:
    """Compare the two sides of every pixel: the mean of a window above minus that below, and left minus right.

    A contrast shrinks in proportion to the data that its smaller side holds, so that the border of the image raises none.

    Args:
        features: (B, D, H, W); values where `valid` is False play no part.
        valid: (B, H, W) bool.
        windows: (depth, width) of each side in pixels, the width odd.

    Returns:
        (B, 2 D W, H, W) float32 for W windows: for each of them D vertical contrasts, then D horizontal ones.

    Raises:
        ValueError: there is no window, one is empty, or its width is even.
    """
    check_windows(windows)
    weight = valid[:, None].double()
    sums = _integral(torch.where(valid[:, None], features, 0.0).double())
    counts = _integral(weight)
    found = []
    for depth, width in windows:
        for first, second in _both_sides(depth, _across(width)):
            n, m = (_window_sum(counts, *side) for side in (first, second))
            contrast = _window_sum(sums, *first) / n.clamp_min(1) - _window_sum(sums, *second) / m.clamp_min(1)
            found.append((contrast * torch.minimum(n, m) / (depth * width)).float())
    return torch.cat(found, 1)


@torch.no_grad()
def streak_changes(
    light: Tensor, valid: Tensor, windows: Sequence[tuple[int, int]] = ((7, 15), (13, 31)), smoothing: float = 6.0
) -> Tensor:
    """Compare the streaks on the two sides of every pixel: do those above go on below, and those on the left on the right?

    The light less its surroundings is averaged over the depth of a window, which leaves the profile of the streaks that run along it. With
    profiles u and v of the two sides, a change is Σ (u - v)² / Σ (u² + v²) over the width: 0 where streaks go on, about 1 where they have
    nothing to do with each other, and 2 where bright ones become dark. A pixel counts by the data that its smaller side holds.

    Args:
        light: (B, C, H, W), such as that of `log_light`; NaN where there is no data.
        valid: (B, H, W) bool.
        windows: (depth, width) of each side in pixels, the width odd.
        smoothing: standard deviation of the Gaussian mean that is the surroundings, in pixels; streaks are narrower.

    Returns:
        (B, 2 C W, H, W) float32 in [0, 2] for W windows: for each of them C changes of vertical streaks, then C of horizontal ones. Towards
        0 where all profiles are flat beside the image's usual ones.

    Raises:
        ValueError: there is no window, one is empty, or its width is even.
    """
    check_windows(windows)
    surroundings = gaussian_filter(torch.where(valid[:, None], light, torch.nan), smoothing)
    detail = _integral(torch.where(valid[:, None], light - surroundings, 0.0).double())
    counts = _integral(valid[:, None].double())
    found = []
    for depth, width in windows:
        across = _across(width)
        for (first, second), line in zip(_both_sides(depth, (0, 1)), (((0, 1), across), (across, (0, 1))), strict=True):
            n, m = (_window_sum(counts, *side) for side in (first, second))
            u, v = (_window_sum(detail, *side) / held.clamp_min(1) for side, held in ((first, n), (second, m)))
            weight = torch.minimum(n, m) / depth
            changed, all_of_it = (_window_sum(_integral(weight * x), *line) for x in ((u - v).square(), u.square() + v.square()))
            usual = image_median(all_of_it, valid)
            found.append((changed / (all_of_it + 0.01 * usual).clamp_min(torch.finfo(torch.float32).tiny)).float())
    return torch.where(valid[:, None], torch.cat(found, 1), 0.0)


def check_windows(windows: Sequence[Sequence[int]]) -> None:
    """Refuse windows whose two sides cannot be compared.

    Raises:
        ValueError: there is no window, one is empty, or its width is even.
    """
    if not windows or any(len(w) != 2 or w[0] < 1 or w[1] < 1 or w[1] % 2 == 0 for w in windows):
        raise ValueError(f"Expected windows (depth, width) of a depth >= 1 and an odd width, but got {[tuple(w) for w in windows]}.")


def _stroke(shape: tuple[int, int], length: float, sine: float, cosine: float, like: Tensor) -> Tensor:
    """Draw a Gaussian stroke of sum 1 about the first pixel, wrapped around: (H, W)."""
    reach = math.ceil(_ALONG * length)
    rows, columns = (torch.arange(side, device=like.device, dtype=like.dtype) for side in shape)
    rows, columns = (torch.where(place > side - 1 - reach, place - side, place) for place, side in zip((rows, columns), shape, strict=True))
    along = rows[:, None] * sine + columns * cosine
    across = rows[:, None] * cosine - columns * sine
    near = (rows[:, None].abs() <= reach) & (columns.abs() <= reach)
    stroke = torch.exp(-along.square() / (2 * length**2) - across.square() / (2 * _PEN**2)) * near
    return stroke / stroke.sum()


def _across(width: int) -> tuple[int, int]:
    """Give the pixels from the first to behind the last of an odd width about a pixel."""
    return (-(width // 2), width // 2 + 1)


def _both_sides(depth: int, across: tuple[int, int]) -> tuple[tuple[_Window, _Window], tuple[_Window, _Window]]:
    """Give the windows above and below a pixel, then those on its left and right."""
    before, behind = (-depth, 0), (0, depth)
    return ((before, across), (behind, across)), ((across, before), (across, behind))


def _integral(x: Tensor) -> Tensor:
    """Sum up from the upper left corner, with a row and a column of zeros before: (B, C, H + 1, W + 1)."""
    return torch.nn.functional.pad(x.cumsum(-2).cumsum(-1), (1, 0, 1, 0))


def _window_sum(integral: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Sum over the window [y + rows[0], y + rows[1]) x [x + columns[0], x + columns[1]) of every pixel, clipped to the image."""
    height, width = integral.shape[-2] - 1, integral.shape[-1] - 1
    y, x = (torch.arange(n, device=integral.device) for n in (height, width))
    top, bottom = ((y + r).clamp(0, height) for r in rows)
    left, right = ((x + c).clamp(0, width) for c in columns)
    upper, lower = integral[..., top, :], integral[..., bottom, :]
    return lower[..., right] - lower[..., left] - upper[..., right] + upper[..., left]
