"""How alike two images are: structure (SSIM), gradients (GMS, MSGMS), edges, and the direction of features.

Pixels that are not valid touch nothing, whatever they hold, NaN included: their values are replaced before anything is computed, window
means are those of the valid pixels of a window, and where a map needs a whole neighbourhood, pixels beside void weigh nothing. The border
of an image cuts windows off in the same way. Arithmetic is float32, or float64 where the input is, also under autocast.

Glossary: μ mean, σ² variance, σ_xy covariance in a window; L extent of the range of values; g gradient magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.functional.edges import gradient_magnitude, gradients

Range = float | tuple[float, float]
"""Values lie in [low, high]; a single number L stands for [0, L]."""

_GRADIENT_CONSTANT = 170 / 255**2  # of Xue et al., who count grey levels up to 255


def ssim(x: Tensor, y: Tensor, data_range: Range = 1.0, window: int = 11, sigma: float = 1.5, valid: Tensor | None = None) -> Tensor:
    """Compute the structural similarity of every pixel's window.

    ((2 μ_x μ_y + c1)(2 σ_xy + c2)) / ((μ_x² + μ_y² + c1)(σ_x² + σ_y² + c2)), c1 = (0.01 L)², c2 = (0.03 L)², means counted from `low`.

    Args:
        x: (B, C, H, W).
        y: (B, C, H, W).
        data_range: of the values, see `Range`. Standardised images do not lie in [0, 1]: with another range than theirs the measure
            means nothing, and its loss climbs while all others fall.
        window: side of the Gaussian window in pixels, odd.
        sigma: its standard deviation in pixels.
        valid: (B, H, W) bool; None for all.

    Returns:
        (B, C, H, W) in [-1, 1], 1 where x = y; 1 at pixels that are not valid.

    Raises:
        ValueError: shapes differ, or an argument is out of its range.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 13(4), 2004; windows are cut
        off at the border and at void.
    """
    return _ssim(x, y, data_range, window, sigma, valid)[0]


def ssim_loss(x: Tensor, y: Tensor, data_range: Range = 1.0, window: int = 11, sigma: float = 1.5, valid: Tensor | None = None) -> Tensor:
    """Average 1 - SSIM over the valid pixels; a pixel weighs as much as the share of its window that is valid.

    Args:
        x: (B, C, H, W) what is judged; it may leave the range.
        y: (B, C, H, W) the target, which must lie in the range.
        data_range: see `ssim`.
        window: see `ssim`.
        sigma: see `ssim`.
        valid: see `ssim`.

    Returns:
        () in [0, 2], 0 where x = y, and where nothing is valid.

    Raises:
        ValueError: the target leaves the range, or as `ssim`.
    """
    check_range(y, data_range, valid)
    similarity, weight = _ssim(x, y, data_range, window, sigma, valid)
    return weighted_mean(1 - similarity, weight)


def check_range(target: Tensor, data_range: Range, valid: Tensor | None = None) -> None:
    """Check that the valid pixels of (B, C, H, W) lie in the range that a loss counts on, but for a thousandth of its extent.

    Raises:
        ValueError: they do not; the message names both ranges.
    """
    low, high = _bounds(data_range)
    values = target if valid is None else target[valid[:, None].expand_as(target)]
    if not values.numel():
        return
    least, most = (float(one) for one in values.detach().aminmax())
    slack = 1e-3 * (high - low)
    if not (low - slack <= least and most <= high + slack):
        raise ValueError(
            f"Expected target values in [{low:g}, {high:g}], but got {least:g} to {most:g}. Pass data_range=(low, high) of the images as "
            "they are when the loss sees them: standardised images leave [0, 1]."
        )


def gradient_magnitude_similarity(x: Tensor, y: Tensor, data_range: Range = 1.0, valid: Tensor | None = None) -> Tensor:
    """Compute (2 g_x g_y + c) / (g_x² + g_y² + c), c = 0.0026 L².

    Args:
        x: (B, C, H, W).
        y: (B, C, H, W).
        data_range: see `Range`; its extent alone matters.
        valid: (B, H, W) bool; None for all.

    Returns:
        (B, C, H, W) in (0, 1], 1 where x = y and where the 3 x 3 window holds a pixel that is not valid.

    Raises:
        ValueError: shapes differ, or an empty range.

    Source: Xue et al., "Gradient Magnitude Similarity Deviation", IEEE TIP 23(2), 2014, arXiv 1308.3052; Sobel in the place of Prewitt.
    """
    low, high = _bounds(data_range)
    keep = _kept(x, y, valid)
    with torch.autocast(x.device.type, enabled=False):
        x, y = (_filled(one, keep) / (high - low) for one in (x, y))
        a, b = gradient_magnitude(x), gradient_magnitude(y)
        similarity = (2 * a * b + _GRADIENT_CONSTANT) / (a.square() + b.square() + _GRADIENT_CONSTANT)
        return torch.where(inner(keep)[:, None], similarity, 1.0)


def msgms(x: Tensor, y: Tensor, data_range: Range = 1.0, scales: int = 4, valid: Tensor | None = None) -> Tensor:
    """Average the gradient magnitude similarity over bands and over scales, each half as fine as the one before.

    Args:
        x: (B, C, H, W).
        y: (B, C, H, W).
        data_range: see `gradient_magnitude_similarity`.
        scales: at most this many; a scale with a side below 3 pixels is left out, the first never.
        valid: (B, H, W) bool; None for all. A pixel of a coarse scale is valid where all that it covers are.

    Returns:
        (B, H, W) in (0, 1], 1 where x = y and where no scale is valid.

    Raises:
        ValueError: as `gradient_magnitude_similarity`, or no scale.

    Source: Zavrtanik et al., "Reconstruction by Inpainting for Visual Anomaly Detection", Pattern Recognition 112, 2021 (RIAD).
    """
    return _msgms(x, y, data_range, scales, valid)[0]


def msgms_loss(x: Tensor, y: Tensor, data_range: Range = 1.0, scales: int = 4, valid: Tensor | None = None) -> Tensor:
    """Average 1 - MSGMS over the valid pixels, each with the share of its scales that are valid: () in [0, 1); see `msgms`."""
    similarity, weight = _msgms(x, y, data_range, scales, valid)
    return weighted_mean(1 - similarity, weight)


def edge_distance(x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute (|∂(x - y) / ∂column| + |∂(x - y) / ∂row|) / 2 by Sobel.

    Returns:
        (B, C, H, W) >= 0 in units of x per pixel; 0 where the 3 x 3 window holds a pixel that is not valid.
    """
    keep = _kept(x, y, valid)
    with torch.autocast(x.device.type, enabled=False):
        across, down = gradients(_filled(x, keep) - _filled(y, keep))
        return torch.where(inner(keep)[:, None], (across.abs() + down.abs()) / 2, 0.0)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute 1 - cos of the angle between the features of every pixel: (B, D, H, W) twice to (B, H, W) in [0, 2]."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = _precise(x), _precise(y)
        return 1 - (x * y).sum(1) / (_length(x, 1) * _length(y, 1))


def loose_cosine_loss(rebuilt: Tensor, target: Tensor, weight: Tensor, easy: float = 0.9, damping: float = 0.1) -> Tensor:
    """Compute 1 - cos between whole maps of features, where points that fit already hardly pull.

    A net that must rebuild every point exactly learns to copy. One direction for all points of an image, and gradients that are damped at
    the easy share of the points, ask for less.

    Args:
        rebuilt: (B, D, h, w).
        target: (B, D, h, w), without gradient.
        weight: (B, h, w) >= 0; points of weight 0 touch nothing.
        easy: share of the points, those of the least distance, whose gradients are damped, in [0, 1).
        damping: factor of their gradients in [0, 1].

    Returns:
        () in [0, 2], the mean over the images with a point; 0 where there is none.

    Raises:
        ValueError: an argument is out of its range.

    Source: Guo et al., "Dinomaly", CVPR 2025, arXiv 2405.14325, equations of the loose loss; the share is fixed here.
    """
    if not 0 <= easy < 1 or not 0 <= damping <= 1:
        raise ValueError(f"Expected easy in [0, 1) and damping in [0, 1], but got {easy} and {damping}.")
    keep = weight > 0
    if not bool(keep.any()):
        return rebuilt.flatten()[:0].sum()
    with torch.autocast(rebuilt.device.type, enabled=False):
        rebuilt, target = _filled(rebuilt, keep), _filled(target.detach(), keep)
        distance = cosine_distance(rebuilt.detach(), target)
        found = distance[keep]
        rank = int(easy * found.numel())
        damped = (distance < found.kthvalue(rank + 1).values)[:, None]
        rebuilt = torch.where(damped, damping * rebuilt + (1 - damping) * rebuilt.detach(), rebuilt)
        root = weight.to(rebuilt.dtype).sqrt()[:, None]
        a, b = (rebuilt * root).flatten(1), (target * root).flatten(1)
        loss = 1 - (a * b).sum(1) / (_length(a, 1) * _length(b, 1))
        return loss[keep.flatten(1).any(1)].mean()


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Average a map (B, H, W) or (B, C, H, W) with weights (B, H, W) >= 0: (); values of weight 0 are not read, 0 where all are."""
    weight = weight if values.ndim == weight.ndim else weight[:, None].expand_as(values)
    kept = torch.where(weight > 0, values, 0.0)
    weight = weight.to(kept.dtype)
    return (kept * weight).sum() / weight.sum().clamp_min(torch.finfo(kept.dtype).tiny)


def inner(valid: Tensor) -> Tensor:
    """Keep the pixels whose 3 x 3 window is valid: (B, H, W) bool; the border of the image does not count against them."""
    return ~(F.max_pool2d((~valid)[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0)


def _ssim(x: Tensor, y: Tensor, data_range: Range, window: int, sigma: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the map (B, C, H, W) and the share of each pixel's window that is valid, (B, H, W), 0 at pixels that are not."""
    if window < 1 or window % 2 == 0 or not sigma > 0:
        raise ValueError(f"Expected an odd window and sigma > 0, but got {window} and {sigma}. 11 and 1.5 are usual.")
    low, high = _bounds(data_range)
    keep = _kept(x, y, valid)
    with torch.autocast(x.device.type, enabled=False):
        count = keep.sum((1, 2)).clamp_min(1)[:, None, None, None]
        filled = _filled(y.detach(), keep)
        # Variances as differences of large squares lose their digits: count from the mean of the target.
        origin = filled.sum((2, 3), keepdim=True) / count
        a, b = (torch.where(keep[:, None], _filled(one, keep) - origin, 0.0) for one in (x, y))
        kernel = torch.softmax(-0.5 * ((torch.arange(window, dtype=a.dtype, device=a.device) - window // 2) / sigma).square(), 0)
        inside = _blurred(keep[:, None].to(a.dtype), kernel)
        # With d = x - y: 2 μ_x μ_y = μ_x² + μ_y² - μ_d² and 2 σ_xy = σ_x² + σ_y² - σ_d², so that equal windows give 1 to the last digit.
        d = a - b
        means = _blurred(torch.cat([a, d, a * a + b * b, d * d], 1), kernel) / inside.clamp_min(torch.finfo(a.dtype).tiny)
        mean_a, mean_d, squares, squared = means.chunk(4, 1)
        mean_b = mean_a - mean_d
        total = (squares - mean_a * mean_a - mean_b * mean_b).clamp_min(0.0)
        varied = torch.minimum((squared - mean_d * mean_d).clamp_min(0.0), 2 * total)  # also after rounding
        mu_a, mu_b = mean_a + origin - low, mean_b + origin - low
        c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
        light = 1 - mean_d * mean_d / (mu_a * mu_a + mu_b * mu_b + c1)
        similarity = torch.where(keep[:, None], light * (1 - varied / (total + c2)), 1.0)
        whole = _blurred(torch.ones_like(inside[:1]), kernel)
        return similarity, torch.where(keep, (inside / whole)[:, 0], 0.0)


def _msgms(x: Tensor, y: Tensor, data_range: Range, scales: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if scales < 1:
        raise ValueError(f"Expected one or more scales, but got {scales}. 4 is usual.")
    keep, size = _kept(x, y, valid), x.shape[-2:]
    fine = keep
    with torch.autocast(x.device.type, enabled=False):
        x, y = _filled(x, keep), _filled(y, keep)
        total, weight, used = x.new_zeros(len(x), 1, *size), x.new_zeros(len(x), 1, *size), 0
        while used < scales and (not used or min(x.shape[-2:]) >= 3):
            clear = inner(keep)[:, None].to(x.dtype)
            similarity = gradient_magnitude_similarity(x, y, data_range, keep).mean(1, keepdim=True)
            maps = torch.cat([similarity * clear, clear], 1)
            total, weight = (s + one for s, one in zip((total, weight), _resized(maps, size).chunk(2, 1), strict=True))
            # What a coarse pixel covers is valid or the pixel is not; so 0 in the place of void changes no valid mean.
            x, y = (F.avg_pool2d(one, 2, ceil_mode=True, count_include_pad=False) for one in (x, y))
            keep, used = ~(F.max_pool2d((~keep)[:, None].float(), 2, ceil_mode=True)[:, 0] > 0), used + 1
        similarity = torch.where(weight > 0, total / weight.clamp_min(1e-6), 1.0)[:, 0]
        return torch.where(fine, similarity, 1.0), torch.where(fine, weight[:, 0] / used, 0.0)


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def _blurred(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with a window along rows and columns, zeros outside."""
    flat, reach = x.flatten(0, 1)[:, None], len(kernel) // 2
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(reach, 0)), kernel.view(1, 1, 1, -1), padding=(0, reach))
    return flat.view_as(x)


def _bounds(data_range: Range) -> tuple[float, float]:
    low, high = data_range if isinstance(data_range, tuple) else (0.0, data_range)
    if not high > low:
        raise ValueError(f"Expected a range with high > low, or an extent > 0, but got {data_range}.")
    return low, high


def _kept(x: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    if x.ndim != 4 or x.shape != y.shape or (valid is not None and valid.shape != (len(x), *x.shape[-2:])):
        came = [tuple(one.shape) for one in (x, y, valid) if one is not None]
        raise ValueError(f"Expected two images of one shape (B, C, H, W) and valid pixels (B, H, W), but got {came}.")
    return torch.ones(len(x), *x.shape[-2:], dtype=torch.bool, device=x.device) if valid is None else valid


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _filled(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], _precise(x), 0.0)


def _length(x: Tensor, axis: int) -> Tensor:
    return x.square().sum(axis).clamp_min(1e-12).sqrt()
