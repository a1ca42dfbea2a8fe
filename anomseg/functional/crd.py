"""Collaborative representation (CRD): a pixel that its surroundings cannot rebuild is anomalous.

The neighbours X (k bands, n pixels) between an inner and an outer window rebuild the pixel y as X α, where

    α = argmin ‖ỹ - X̃ α‖² + λ ‖Γ α‖²,    Γ = diag(‖y - x_j‖),    X̃ = [X; 1ᵀ],  ỹ = [y; 1],    score = ‖y - X α‖₂

The weights Γ make unlike neighbours expensive, and the row of ones pulls the sum of α towards 1.

With D = λ Γ² and M = X̃ D⁻¹ X̃ᵀ the push-through identity (X̃ᵀX̃ + D)⁻¹ X̃ᵀ = D⁻¹ X̃ᵀ (I + M)⁻¹ gives ỹ - X̃ α = (I + M)⁻¹ ỹ. The paper's
system of n equations becomes one of k + 1, and a neighbour that is missing is a zero in D⁻¹.

Source: Li and Du, "Collaborative representation for hyperspectral anomaly detection", IEEE Trans. Geosci. Remote Sens. 53(3), 2015,
eq. 5 to 9. Working on a few whitened components, and smaller windows at the border, are ours.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from anomseg.functional.rx import usable_pixels
from anomseg.functional.whitening import whitened_components

_CHUNK = 1 << 22  # numbers in the windows held at once: 32 MB in float64
_NEAREST = 1e-6  # share of the image's mean square below which two pixels count as that far apart, so that D⁻¹ stays finite


@torch.no_grad()
def collaborative_representation(
    image: Tensor,
    inner: int = 9,
    outer: int = 15,
    ridge: float = 10.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Score every pixel by what its neighbours leave of it, in the bands as they are given.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data. The mean of its valid pixels is taken off each band first.
        inner: odd width of the guard window in pixels; at least the size of the largest target.
        outer: odd width of the background window in pixels, above ``inner``. Both are cut off at the border.
        ridge: λ > 0, no unit: the smaller, the more the neighbours may combine to rebuild a foreign pixel.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 >= 0 in the unit of the image; 0.0 where a pixel is left out, or has no neighbour to be judged by.

    Raises:
        ValueError: a wrong shape or window, ``ridge`` not above 0, or an image with fewer than 2 valid pixels.
    """
    keep = usable_pixels(image, valid)
    if inner < 1 or inner % 2 == 0 or outer % 2 == 0 or inner >= outer:
        raise ValueError(f"Expected odd windows with 1 <= inner < outer, but got inner={inner}, outer={outer}. Use for example 9 and 15.")
    if not 0 < ridge < math.inf:
        raise ValueError(f"Expected ridge > 0, but got {ridge}. Without it the neighbours rebuild every pixel; 1 to 100 is usual.")
    score = torch.zeros(keep.shape, dtype=torch.float32, device=image.device)
    for index, chosen in enumerate(keep):
        scene = torch.where(chosen, image[index].double(), 0.0)
        mean = scene.sum((1, 2), keepdim=True) / chosen.sum()
        score[index] = _residuals(torch.where(chosen, scene - mean, 0.0), chosen, inner, outer, ridge)
    return torch.where(keep, score, 0.0)


@torch.no_grad()
def pca_collaborative_representation(
    image: Tensor,
    components: int = 20,
    inner: int = 9,
    outer: int = 15,
    ridge: float = 10.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Score every pixel by `collaborative_representation` in the first whitened components, where distances have no unit.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        components: number of whitened components, at least 1; above C it is reduced to C.
        inner: see `collaborative_representation`.
        outer: see `collaborative_representation`.
        ridge: see `collaborative_representation`.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 >= 0, no unit; 0.0 where a pixel is left out, or has no neighbour to be judged by.

    Raises:
        ValueError: as `collaborative_representation`, or ``components`` below 1.
    """
    return collaborative_representation(whitened_components(image, components, valid), inner, outer, ridge)


def _residuals(scene: Tensor, chosen: Tensor, inner: int, outer: int, ridge: float) -> Tensor:
    """Score a (C, H, W) scene, 0 where not chosen; returns (H, W) float64."""
    channels, height, width = scene.shape
    ring = torch.ones(outer, outer, dtype=torch.bool, device=scene.device)
    border = (outer - inner) // 2
    ring[border : border + inner, border : border + inner] = False
    nearest = _NEAREST * float(scene.square().sum() / chosen.sum())
    radius = outer // 2
    # The last channel is the row of ones, which tells at the same time where there is a neighbour.
    padded = torch.nn.functional.pad(torch.cat((scene, chosen[None].double())), (radius,) * 4)
    scores = scene.new_zeros(height, width)
    pixel = outer * outer * (channels + 1)
    columns = max(1, min(width, _CHUNK // pixel))
    rows = max(1, min(height, _CHUNK // (pixel * columns)))
    for top in range(0, height, rows):  # a pixel costs (C + 1)² n for M and (C + 1)³ / 3 to solve
        for left in range(0, width, columns):
            bottom, right = min(top + rows, height), min(left + columns, width)
            windows = padded[:, top : bottom + outer - 1, left : right + outer - 1].unfold(1, outer, 1).unfold(2, outer, 1)
            neighbours = rearrange(windows, "c h w i j -> (h w) i j c")[:, ring]
            pixels = padded[:, top + radius : bottom + radius, left + radius : right + radius].flatten(1).T
            scores[top:bottom, left:right] = _solve(neighbours, pixels, ridge, nearest).view(bottom - top, right - left)
    return scores


def _solve(neighbours: Tensor, pixels: Tensor, ridge: float, nearest: float) -> Tensor:
    """Compute the first C rows' length of (I + M)⁻¹ ỹ for (N, n, C + 1) neighbours and (N, C + 1) pixels; returns (N,)."""
    known = neighbours[..., -1]
    distance = (neighbours - pixels[:, None])[..., :-1].square().sum(-1)
    if nearest == 0:
        return torch.zeros_like(distance[:, 0])  # an image without any contrast
    weighted = neighbours * (known / (ridge * distance.clamp_min(nearest)))[..., None]
    with torch.autocast(neighbours.device.type, enabled=False):
        matrix = neighbours.mT @ weighted
    matrix.diagonal(dim1=1, dim2=2).add_(1.0)
    factor = torch.linalg.cholesky(matrix)
    rest = torch.cholesky_solve(pixels[..., None], factor)[:, :-1, 0]
    return torch.where(known.any(1), torch.linalg.vector_norm(rest, dim=1), 0.0)
