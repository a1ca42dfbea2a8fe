"""Fixed derivative operators of maps: first order (Sobel, Scharr) and second order (Laplacian, difference of Gaussians, pyramid band).

All act on every channel on its own, keep the size, mirror the map at its border, and have no parameters. They are scaled so that the
numbers mean something: a ramp of slope 1 per pixel has a first derivative of 1, and (x² + y²) / 4 a Laplacian of 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FirstOrder = Literal["sobel", "scharr"]
SecondOrder = Literal["laplacian", "laplacian8", "dog", "pyramid"]

_ACROSS = {"sobel": (1.0, 2.0, 1.0), "scharr": (3.0, 10.0, 3.0)}
_LAPLACIANS = {
    "laplacian": ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
    "laplacian8": ((1 / 3, 1 / 3, 1 / 3), (1 / 3, -8 / 3, 1 / 3), (1 / 3, 1 / 3, 1 / 3)),
}
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def gradients(x: Tensor, kernel: FirstOrder = "sobel") -> tuple[Tensor, Tensor]:
    """Differentiate along rows and along columns.

    Args:
        x: (B, C, H, W).
        kernel: weights across the derivative: Sobel (1, 2, 1) / 4, Scharr (3, 10, 3) / 16, which is closer to isotropic.

    Returns:
        Derivatives along the width and along the height, (B, C, H, W) each, in units of x per pixel.

    Raises:
        ValueError: an unknown kernel.
    """
    if kernel not in _ACROSS:
        raise ValueError(f"Expected a kernel of {', '.join(_ACROSS)}, but got {kernel!r}. Take 'sobel'.")
    across = x.new_tensor(_ACROSS[kernel])
    along = x.new_tensor((-0.5, 0.0, 0.5))
    table = torch.outer(across / across.sum(), along)
    return _filtered(x, table), _filtered(x, table.T)


def gradient_magnitude(x: Tensor, kernel: FirstOrder = "sobel", floor: float = 1e-6) -> Tensor:
    """Compute √(g_x² + g_y² + floor), (B, C, H, W); the floor keeps its gradient finite where the map is flat."""
    across, down = gradients(x, kernel)
    return (across.square() + down.square() + floor).sqrt()


def laplacian(x: Tensor, neighbours: Literal[4, 8] = 4) -> Tensor:
    """Compute the Laplacian (B, C, H, W) from 4 neighbours, or from 8 with a third of the weight each.

    Raises:
        ValueError: neither 4 nor 8 neighbours.
    """
    if neighbours not in (4, 8):
        raise ValueError(f"Expected 4 or 8 neighbours, but got {neighbours}.")
    return _filtered(x, x.new_tensor(_LAPLACIANS["laplacian" if neighbours == 4 else "laplacian8"]))


def difference_of_gaussians(x: Tensor, sigma: float = 1.0, ratio: float = 1.6) -> Tensor:
    """Subtract a wider Gaussian mean from a narrower one, in a 5 x 5 window: with a ratio of 1.6 nearly the Laplacian of a Gaussian.

    Args:
        x: (B, C, H, W).
        sigma: standard deviation of the narrower one in pixels, > 0.
        ratio: of the two deviations, > 1.

    Returns:
        (B, C, H, W); positive on a bright spot, where a Laplacian is negative.

    Raises:
        ValueError: an argument is out of its range.

    Source: Marr and Hildreth, "Theory of edge detection", Proc. R. Soc. B 207, 1980, appendix B (ratio 1.6).
    """
    if not sigma > 0 or not ratio > 1:
        raise ValueError(f"Expected sigma > 0 pixels and ratio > 1, but got {sigma} and {ratio}. Use 1.0 and 1.6.")
    offsets = torch.arange(-2, 3, device=x.device, dtype=x.dtype)
    narrow, wide = (torch.softmax(-0.5 * (offsets / s).square(), 0) for s in (sigma, sigma * ratio))
    return _filtered(x, torch.outer(narrow, narrow) - torch.outer(wide, wide))


def pyramid_band(x: Tensor) -> Tensor:
    """Subtract from a map what a half-resolution copy keeps of it: one band of a Laplacian pyramid, (B, C, H, W).

    Source: Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code", IEEE Trans. Commun. 31(4), 1983; 5-tap binomial kernel
        both ways.
    """
    taps = x.new_tensor(_BINOMIAL)
    kernel = torch.outer(taps, taps)
    # Kept pixels stay at their places: enlarging them as if they lay between would shift the band by half a pixel.
    kept = torch.zeros_like(x[:1, :1])
    kept[..., ::2, ::2] = 1.0
    coarse = _filtered(x, kernel) * kept
    return x - _filtered(coarse, kernel) / _filtered(kept, kernel)


def second_order(x: Tensor, operator: SecondOrder) -> Tensor:
    """Apply a second-order operator by name, (B, C, H, W).

    Raises:
        ValueError: an unknown operator.
    """
    if operator == "dog":
        return difference_of_gaussians(x)
    if operator == "pyramid":
        return pyramid_band(x)
    if operator in _LAPLACIANS:
        return laplacian(x, 4 if operator == "laplacian" else 8)
    raise ValueError(f"Expected an operator of laplacian, laplacian8, dog and pyramid, but got {operator!r}. Take 'dog'.")


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with one (k, k) kernel; mirrored at the border, repeated where a side is too short to mirror."""
    if x.ndim != 4:
        raise ValueError(f"Expected maps (B, C, H, W), but got {tuple(x.shape)}. Add the missing axes.")
    reach = kernel.shape[-1] // 2
    mode = "reflect" if min(x.shape[-2:]) > reach else "replicate"
    padded = F.pad(x, (reach, reach, reach, reach), mode=mode)
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
