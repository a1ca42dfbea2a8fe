"""RX on whitened principal components, with the size of targets as prior knowledge: what is small *and* deviates is anomalous.

All scores follow one direction, **higher is more anomalous**. Pixels without data, and pixels that the caller marks as not valid, take
no part in any statistic, window or filter, and score 0.0.

Source: Reed and Yu 1990 for RX (see `anomseg.functional.rx`); Vincent 1993 for the area filter (see `anomseg.functional.area_filter`),
which attribute-filter detectors apply to components, as Kang et al., "Hyperspectral anomaly detection with attribute and
edge-preserving filters", IEEE Trans. Geosci. Remote Sens. 55(10), 2017. Whitening, scaling and fusion here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anomseg.functional.area_filter import area_details
from anomseg.functional.rx import local_rx, usable_pixels
from anomseg.functional.smoothing import gaussian
from anomseg.functional.whitening import whitened_components
from anomseg.sample import finite_pixels

_FAINTEST = 1e-6  # share of a map's mean below which a score counts as that, so that the logarithm of 0 stays finite
_LARGEST_EXPONENT = 80.0  # e⁸⁰ is still a float32


@torch.no_grad()
def area_filtered_rx(
    image: Tensor,
    components: int = 15,
    area: int = 30,
    levels: int | None = None,
    smoothing: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Score every pixel by the small details of the whitened components around it.

    With the components z_i of `whitened_components`, opening γ and closing φ of ``area``, and σ the standard deviation over the scene,

        d_i = (z_i - γ(z_i)) - (φ(z_i) - z_i)        score = G * √( Σ_i (d_i / σ(d_i))² )

    that is RX on what is brighter or darker than its surroundings and covers fewer than ``area`` pixels; G is a Gaussian.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        components: number of whitened components, at least 1; above C it is reduced to C.
        area: pixels, at least 2, above the area of the largest target: nothing larger is seen. See `area_in_pixels` for square metres.
        levels: grey levels of the filter; None for all (see `area_opening`).
        smoothing: standard deviation of the Gaussian in pixels; 0 for none.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 >= 0, no unit, about √components on the scene's average; 0.0 where a pixel is left out.

    Raises:
        ValueError: a wrong shape, an argument out of its range, or an image with fewer than 2 valid pixels.
    """
    if area < 2:
        raise ValueError(
            f"Expected an area of at least 2 pixels, but got {area}. It must exceed the largest target, 30 for vehicles at 3 m."
        )
    keep = usable_pixels(image, valid)
    planes = whitened_components(image, components, keep)
    score = torch.zeros(keep.shape, dtype=torch.float32, device=image.device)
    for index, chosen in enumerate(keep):
        plane = planes[index]
        detail = area_details(plane, area, levels)
        values = detail[:, chosen].double()
        deviation = values.std(dim=1, keepdim=True)
        score[index, chosen] = (values / torch.where(deviation > 0, deviation, torch.inf)).square().sum(0).sqrt().float()
    return gaussian(score, smoothing, keep)


@torch.no_grad()
def pca_rx(image: Tensor, components: int = 20, valid: Tensor | None = None) -> Tensor:
    """Score every pixel by its squared distance from the scene's mean in the first whitened components, ``Σ_i z_i²``.

    With all components this is `global_rx`; the last ones hold little but noise, and leaving them out often helps.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        components: number of whitened components, at least 1; above C it is reduced to C.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 squared distances >= 0; 0.0 where a pixel is left out.

    Raises:
        ValueError: a wrong shape, ``components`` below 1, or an image with fewer than 2 valid pixels.
    """
    return whitened_components(image, components, valid).square().sum(1).nan_to_num(0.0)


@torch.no_grad()
def pca_local_rx(
    image: Tensor,
    components: int = 20,
    inner: int = 9,
    outer: int = 21,
    ridge: float = 1.0,
    smoothing: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Score every pixel against a dual window in the first whitened components: `local_rx` on `whitened_components`, then a Gaussian.

    The scene's covariance is I there, so that ``ridge`` adds a multiple of I to each window's: with outer² - inner² = 360 pixels for 20
    components the covariance is well determined, and the ridge keeps uniform surroundings from magnifying noise.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        components: number of whitened components, at least 1; above C it is reduced to C.
        inner: odd width of the guard window in pixels; at least the size of the largest target.
        outer: odd width of the background window in pixels, above ``inner`` and at most the image's shorter side.
        ridge: >= 0; share of the scene's covariance that is added to every window's; 0 leaves it to the shrinkage of `local_rx`.
        smoothing: standard deviation of the Gaussian in pixels; 0 for none.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 squared Mahalanobis distances >= 0; 0.0 where a pixel is left out.

    Raises:
        ValueError: a wrong shape or window, an argument out of its range, or an image with fewer than 2 valid pixels.
    """
    planes = whitened_components(image, components, valid)
    return gaussian(local_rx(planes, inner, outer, ridge), smoothing, torch.isfinite(planes[:, 0]))


@torch.no_grad()
def fuse_scores(maps: Sequence[Tensor], valid: Tensor | None = None, exponential: bool = False) -> Tensor:
    """Join maps of one scene by the sum of their standard scores, ``Σ_m (log s_m - mean) / std`` over the valid pixels.

    The logarithm makes maps of different power comparable (s and s² give the same), the standard score those of different spread. A map
    without any contrast adds nothing. Scores below a millionth of their map's mean count as that.

    Args:
        maps: (B, H, W) scores >= 0, one or more, each higher is more anomalous; each image is standardised on its own.
        valid: (B, H, W) bool, False for pixels to leave out; None for none.
        exponential: return the exponential of the sum, which is positive and of the order of a product of maps; the order stays.

    Returns:
        (B, H, W) float32, mean 0 over the valid pixels unless ``exponential``; 0.0 where a pixel is left out.

    Raises:
        ValueError: no map, maps of different shapes, scores that are negative or not finite where valid.
    """
    if not maps or any(m.ndim != 3 or m.shape != maps[0].shape for m in maps):
        raise ValueError(
            f"Expected one or more maps of one shape (B, H, W), but got {[tuple(m.shape) for m in maps]}. Score the same images."
        )
    keep = torch.ones_like(maps[0], dtype=torch.bool) if valid is None else valid
    if keep.shape != maps[0].shape or keep.dtype != torch.bool:
        raise ValueError(f"Expected valid of shape {tuple(maps[0].shape)} bool, but got {tuple(keep.shape)} {keep.dtype}.")
    count = keep.sum((1, 2), keepdim=True).clamp_min(1)
    total = torch.zeros_like(maps[0], dtype=torch.float64)
    for position, scores in enumerate(maps):
        values = torch.where(keep, scores.double(), 0.0)
        if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise ValueError(
                f"Expected finite scores >= 0, but map {position} holds {float(values.min()):.4g} to {float(values.max()):.4g}. "
                "Fuse distances, not logits; leave pixels without data out with valid=."
            )
        floor = values.sum((1, 2), keepdim=True) / count * _FAINTEST
        logs = torch.where(keep, values.clamp_min(floor).clamp_min(torch.finfo(values.dtype).tiny).log(), 0.0)
        centred = torch.where(keep, logs - logs.sum((1, 2), keepdim=True) / count, 0.0)
        deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
        total += torch.where(deviation > 1e-9, centred / deviation, 0.0)  # below that, a constant map's rounding
    if exponential:
        total = total.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp()
    return torch.where(keep, total, 0.0).float()


def fused_rx(
    image: Tensor,
    components: int = 5,
    area: int = 30,
    local_components: int = 20,
    inner: int = 9,
    outer: int = 21,
    ridge: float = 1.0,
) -> Tensor:
    """Fuse `area_filtered_rx` with `pca_local_rx` by `fuse_scores`; the arguments are theirs.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        components: whitened components of the area filter.
        area: of the area filter, in pixels.
        local_components: whitened components of local RX.
        inner: side of local RX's guard window in pixels.
        outer: side of its background window in pixels.
        ridge: share of the scene's covariance that is added to every window's.

    Returns:
        (B, H, W) float32, mean 0 over the valid pixels; 0.0 where a pixel is left out.
    """
    small = area_filtered_rx(image, components, area)
    local = pca_local_rx(image, local_components, inner, outer, ridge)
    return fuse_scores((small, local), finite_pixels(image))
