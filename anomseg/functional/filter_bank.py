"""Texture and colour of every pixel at several scales: Gaussian derivatives, local standard deviations, smoothed bands.

Pixels without data, and everything outside the image, weigh nothing. With a Gaussian g, the image x and its mask m (1 where there is data)

    f = N / D,  N = g * (x m),  D = g * m,  f_u = (N_u - f D_u) / D,  f_uv = (N_uv - f_u D_v - f_v D_u - f D_uv) / D

so that a constant image has zero derivatives up to its border and around holes.

Source: normalised convolution of Knutsson and Westin, "Normalized and differential convolution", CVPR 1993; scale-normalised derivatives of
Lindeberg, "Feature detection with automatic scale selection", Int. J. Comput. Vis. 30(2), 1998. The choice of channels is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from anomseg.sample import finite_pixels

_REACH = 4.0  # a kernel ends this many standard deviations from its centre: what lies beyond holds 6e-5 of its mass
_BLOCK = 64  # pixels of a row filtered by one matrix product


def filter_bank_channels(bands: int, scales: int) -> int:
    """Count the channels of `filter_bank`: C + (2 C + 3) for each scale."""
    return bands + scales * (2 * bands + 3)


@torch.no_grad()
def filter_bank(image: Tensor, sigmas: Sequence[float] = (1.0, 4.0, 16.0), log_floor: float = 0.0) -> Tensor:
    """Describe every pixel by the colour and the texture around it.

    The channels are the C bands themselves, and then for each scale: the C smoothed bands, the C local standard deviations, and of the mean
    of the bands the length of the gradient times σ and both eigenvalues of the Hessian times σ², the larger first. All are in units of the
    image, and none changes when the image is turned by 90 degrees or mirrored, apart from moving with it. Bring bands of different units to
    one scale first, and hundreds of bands to a few components. Deviations, lengths and curvatures have long tails, to which a Gaussian fits
    only after the logarithm.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        sigmas: standard deviations σ of the Gaussians in pixels, each at least 0.5.
        log_floor: δ >= 0 in units of the image, about its noise. Above 0, deviations and lengths s become ln(1 + s / δ), and curvatures e
            become sign(e) ln(1 + |e| / δ), without a unit. 0 leaves them.

    Returns:
        (B, C + S (2 C + 3), H, W) float32 for S scales, 30 channels for RGB and three scales; NaN where there is no data.

    Raises:
        ValueError: a wrong shape, no scale, a scale below 0.5, or a negative floor.
    """
    _check(image, sigmas)
    if log_floor < 0:
        raise ValueError(f"Expected log_floor >= 0, but got {log_floor}. Use 0.0 for none; 0.01 suits an image of unit variance.")
    keep = finite_pixels(image)[:, None]
    # Squares of a large offset would cancel in float32; no other channel sees a constant that is added and taken off.
    count = keep.sum((-2, -1), keepdim=True).clamp_min(1)
    offset = torch.where(keep, image, 0.0).double().sum((-2, -1), keepdim=True) / count
    centred = torch.where(keep, image - offset, 0.0).float()
    weight = keep.float()
    channels = [centred + offset.float()]
    for sigma in sigmas:
        mean, deviation = _local_moments(centred, weight, sigma)
        texture = torch.cat([deviation, _derivatives(centred.mean(1, keepdim=True), weight, sigma)], 1)
        if log_floor > 0:
            texture = texture.sign() * (texture.abs() / log_floor).log1p()
        channels += [mean + offset.float(), texture]
    return torch.where(keep, torch.cat(channels, 1), torch.nan)


@torch.no_grad()
def gaussian_filter(image: Tensor, sigma: float) -> Tensor:
    """Smooth each band by a Gaussian that pixels without data, and those outside the image, do not enter.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        sigma: its standard deviation in pixels, at least 0.5.

    Returns:
        (B, C, H, W) float32 in units of the image; NaN where there is no data.

    Raises:
        ValueError: a wrong shape or a sigma below 0.5.
    """
    _check(image, [sigma])
    keep = finite_pixels(image)[:, None]
    weight = keep.float()
    g = _kernels(sigma, weight)[0]
    smoothed = _separable(torch.where(keep, image, 0.0).float(), g, g) / _separable(weight, g, g)
    return torch.where(keep, smoothed, torch.nan)


def _check(image: Tensor, sigmas: Sequence[float]) -> None:
    if image.ndim != 4:
        raise ValueError(f"Expected an image of shape (B, C, H, W), but got {tuple(image.shape)}. Add the missing axes, as in image[None].")
    if not sigmas or min(sigmas) < 0.5:
        raise ValueError(f"Expected one or more sigmas >= 0.5, but got {tuple(sigmas)}. A sampled Gaussian below half a pixel is none.")


def _radius(sigma: float) -> int:
    return math.ceil(_REACH * sigma)


def _kernels(sigma: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a Gaussian of sum 1 and its first and second derivative times σ and σ², as they are correlated with an image."""
    radius = _radius(sigma)
    t = torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma
    g = torch.exp(-t.square() / 2)
    g = g / g.sum()
    first, second = t * g, (t.square() - 1) * g
    return g.to(like), first.to(like), second.to(like)


def _separable(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Correlate every band of (B, C, H, W) with the outer product of two kernels; zero outside, which is no data there."""
    return _along_columns(_along_columns(image.mT, rows).mT, columns)


def _along_columns(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every row with a kernel, as products of blocks with a banded matrix: many times faster than a convolution of one band."""
    radius, width = len(kernel) // 2, image.shape[-1]
    tap = torch.arange(_BLOCK + 2 * radius, device=kernel.device)[:, None] - torch.arange(_BLOCK, device=kernel.device)
    inside = (tap >= 0) & (tap < len(kernel))
    band = torch.where(inside, kernel[tap.clamp(0, len(kernel) - 1)], 0.0)
    padded = pad(image, (radius, radius))
    starts = range(0, width, _BLOCK)
    sizes = [min(_BLOCK, width - start) for start in starts]
    with torch.autocast(image.device.type, enabled=False):  # differences of what is nearly equal follow
        blocks = [padded[..., a : a + n + 2 * radius] @ band[: n + 2 * radius, :n] for a, n in zip(starts, sizes, strict=True)]
    return torch.cat(blocks, -1)


def _local_moments(centred: Tensor, weight: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Compute the weighted mean and standard deviation around every pixel, (B, C, H, W) each.

    In float64: beside a bright part of an image, the mean square and the squared mean of a dark one are far larger than their difference.
    """
    wide = centred.double()
    g = _kernels(sigma, wide)[0]
    mass = _separable(weight.double(), g, g).clamp_min(torch.finfo(centred.dtype).tiny)
    mean = _separable(wide, g, g) / mass
    power = _separable(wide.square(), g, g) / mass
    return mean.to(centred), (power - mean.square()).clamp_min(0.0).sqrt().to(centred)


def gaussian_jet(image: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Compute the derivatives up to the second order of every band, smoothed by a Gaussian.

    Args:
        image: (B, C, H, W) finite, 0 where there is no data.
        weight: (B, 1, H, W) float, 1 where there is data and 0 elsewhere.
        sigma: standard deviation σ of the Gaussian in pixels, at least 0.5.

    Returns:
        (5, B, C, H, W) in units of the image: σ f_u, σ f_v, σ² f_uu, σ² f_vv and σ² f_uv, with u down the rows and v along them.
    """
    g, first, second = _kernels(sigma, image)
    both = torch.cat([image, weight], 1)  # N and D of the formula, filtered in one go

    def filtered(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        response = _separable(both, rows, columns)
        return response[:, :-1], response[:, -1:]

    n, d = filtered(g, g)
    d = d.clamp_min(torch.finfo(d.dtype).tiny)
    f = n / d
    (n_u, d_u), (n_v, d_v) = filtered(first, g), filtered(g, first)
    f_u, f_v = (n_u - f * d_u) / d, (n_v - f * d_v) / d
    (n_uu, d_uu), (n_vv, d_vv) = filtered(second, g), filtered(g, second)
    n_uv, d_uv = filtered(first, first)
    f_uu, f_vv = (n_uu - 2 * f_u * d_u - f * d_uu) / d, (n_vv - 2 * f_v * d_v - f * d_vv) / d
    return torch.stack([f_u, f_v, f_uu, f_vv, (n_uv - f_u * d_v - f_v * d_u - f * d_uv) / d])


def _derivatives(intensity: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Compute σ |∇f| and σ² times both eigenvalues of the Hessian of the smoothed (B, 1, H, W) intensity: (B, 3, H, W)."""
    f_u, f_v, f_uu, f_vv, f_uv = gaussian_jet(intensity, weight, sigma)[:, :, 0]
    half = (f_uu + f_vv) / 2
    spread = ((f_uu - f_vv) / 2).hypot(f_uv)
    return torch.stack([f_u.hypot(f_v), half + spread, half - spread], 1)
