"""Reed-Xiaoli (RX) anomaly detection: the squared Mahalanobis distance of a spectrum from its background.

All scores follow one direction, **higher is more anomalous**; they are squared distances (no unit, >= 0, about the number of bands
on Gaussian background). Pixels without data, and pixels that the caller marks as not valid, take no part in any statistic and score 0.0.

Glossary: x spectrum, μ mean, S scatter (sum of outer products of deviations), Σ = S / (n - 1) covariance, R correlation, λ shrinkage.

Source: Reed and Yu, "Adaptive multiple-band CFAR detection of an optical pattern with unknown spectral distribution", IEEE Trans.
Acoust., Speech, Signal Process. 38(10), 1990, which divides by n, not n - 1, and assumes full rank (see `regularised_precision`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.dual_window import dual_window_scores, oas_shrinkage
from anomseg.sample import finite_pixels

_PIXEL_CHUNK = 2048  # pixels scored at once: 3 MB in float64 at 200 bands, so that they stay in the cache


@dataclass(frozen=True)
class BackgroundStatistics:
    """Moments of a set of pixels that merge exactly over batches and ranks.

    Attributes:
        count: () float64, number of pixels.
        mean: (C,) float64, in units of the image.
        scatter: (C, C) float64, sum of the outer products of the deviations from the mean, in squared units of the image.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor


def pixel_statistics(pixels: Tensor) -> BackgroundStatistics:
    """Take count, mean and scatter in float64, centred before they are multiplied, so that a large offset does not cancel.

    Args:
        pixels: (N, C) finite spectra; leave pixels without data out. N = 0 gives the neutral element of `merge_statistics`.

    Raises:
        ValueError: ``pixels`` is not two-dimensional.
    """
    if pixels.ndim != 2:
        raise ValueError(f"Expected pixels of shape (N, C), but got {tuple(pixels.shape)}. Flatten with x.movedim(1, -1).flatten(0, -2).")
    values = pixels.to(torch.float64, copy=True)  # changed in place below: fresh memory costs more than the arithmetic
    count = values.new_tensor(float(len(values)))
    if len(values) == 0:
        return BackgroundStatistics(count, values.sum(0), values.T @ values)
    # The first pixel serves as origin, which makes the scatter of a constant band exactly zero.
    origin = values[0].clone()
    shift = values.sub_(origin).mean(dim=0)
    deviation = values.sub_(shift)
    return BackgroundStatistics(count, origin + shift, deviation.T @ deviation)


def merge_statistics(a: BackgroundStatistics, b: BackgroundStatistics) -> BackgroundStatistics:
    """Join the statistics of two disjoint sets of pixels: the result is that of their union.

    Source:
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance", Am. Stat. 37(3), 1983, eq. 2.1, for vectors.
    """
    count = a.count + b.count
    share = b.count / count.clamp_min(1)
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + torch.outer(delta, delta) * (a.count * share)
    return BackgroundStatistics(count, torch.where(a.count > 0, a.mean + delta * share, b.mean), scatter)


def covariance(statistics: BackgroundStatistics) -> Tensor:
    """Divide the scatter by n - 1: (C, C) float64, in squared units of the image.

    Raises:
        ValueError: fewer than 2 pixels were counted.
    """
    if float(statistics.count) < 2:
        raise ValueError(
            f"Expected statistics of at least 2 pixels, but got {int(statistics.count)}. Check the no-data and validity masks."
        )
    return statistics.scatter / (statistics.count - 1)


def _whitening(covariance: Tensor, count: float, ridge: float) -> Tensor:
    """Find the (C, rank) basis W of the regularised precision W Wᵀ; see `regularised_precision`."""
    variance = covariance.diagonal()
    live = variance > 0
    scale = torch.where(live, variance, 1.0).rsqrt() * live
    # Bands are brought to unit variance first: the rank must not depend on the units of a band.
    correlation = covariance * scale[:, None] * scale
    if ridge > 0:
        correlation = correlation + ridge * torch.diag(live.double())
    elif count <= len(variance) and bool(live.any()):
        weight = oas_shrinkage(correlation[live][:, live], variance.new_tensor(count))
        correlation = (1 - weight) * correlation + weight * torch.diag(live.double())
    values, vectors = torch.linalg.eigh(correlation)
    kept = values > values[-1].clamp_min(0.0) * len(values) * torch.finfo(values.dtype).eps
    return torch.einsum("c,ck,k->ck", scale, vectors[:, kept], values[kept].rsqrt())


def regularised_precision(covariance: Tensor, count: float | Tensor, ridge: float = 0.0) -> Tensor:
    """Invert a covariance, with a stated answer where it has no inverse.

    - **Full rank**: the inverse, equal to ``numpy.linalg.pinv``.
    - **More pixels than bands, yet singular** (a constant band, a band that others explain): the inverse within the spanned subspace.
    - **No more pixels than bands**: a pseudo-inverse would give every counted pixel the same score, so the correlation R is shrunk to
      (1 - λ) R + λ I with the weight λ of OAS, which follows from n, C and R alone. All bands constant: zeros.

    Every case is invariant to a scaling of single bands; the first two also to any invertible mixing of bands.

    Args:
        covariance: (C, C) float64, squared units of the image.
        count: number of pixels behind it.
        ridge: >= 0; adds this share of each band's variance to the diagonal, and then takes the place of the shrinkage.

    Returns:
        (C, C) float64 precision, inverse squared units of the image.

    Raises:
        ValueError: ``covariance`` is not square or ``ridge`` is negative.

    Source:
        Chen et al., "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans. Signal Process. 58(10), 2010, eq. 23.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or ridge < 0:
        came = f"{tuple(covariance.shape)} and {ridge}"
        raise ValueError(f"Expected covariance (C, C) and ridge >= 0, but got {came}. Pass covariance(statistics).")
    basis = _whitening(covariance.double(), float(count), ridge)
    return basis @ basis.T


def mahalanobis(image: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Score every pixel by (x - μ)ᵀ P (x - μ), in float64 and in chunks of pixels.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        mean: (C,) background mean, units of the image.
        precision: (C, C) inverse covariance of the background.

    Returns:
        (B, H, W) float32 squared distances >= 0, higher is more anomalous; 0.0 where there is no data.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    bands = image.shape[1] if image.ndim == 4 else -1
    if mean.shape != (bands,) or precision.shape != (bands, bands):
        came = f"{tuple(image.shape)}, {tuple(mean.shape)} and {tuple(precision.shape)}"
        raise ValueError(f"Expected image (B, C, H, W), mean (C,) and precision (C, C), but got {came}. Use statistics of the same bands.")
    scores = [_distances(scene.flatten(1), mean.double(), precision.double()) for scene in image]
    return torch.where(finite_pixels(image), torch.stack(scores).view(-1, *image.shape[-2:]), 0.0)


def _distances(pixels: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Compute (N,) float32 squared distances of (C, N) pixels, the layout of an image, which is never copied as a whole."""
    scores = pixels.new_empty(pixels.shape[1], dtype=torch.float32)
    for start in range(0, len(scores), _PIXEL_CHUNK):  # one pass over the pixels, a matrix product per chunk
        deviation = pixels[:, start : start + _PIXEL_CHUNK].double() - mean[:, None]
        scores[start : start + _PIXEL_CHUNK] = (deviation * (precision @ deviation)).sum(0).clamp_min(0.0)
    return scores


@torch.no_grad()
def global_rx(image: Tensor, valid: Tensor | None = None) -> Tensor:
    """Score every pixel against the mean and covariance of all valid pixels of its image.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 squared Mahalanobis distances >= 0, higher is more anomalous; 0.0 where a pixel is left out.

    Raises:
        ValueError: a wrong shape, or an image with fewer than 2 valid pixels.
    """
    keep = usable_pixels(image, valid)
    scores = image.new_zeros(keep.shape, dtype=torch.float32)
    for index, chosen in enumerate(keep):  # every image has statistics of its own
        pixels = image[index].flatten(1) if bool(chosen.all()) else image[index][:, chosen]
        statistics = pixel_statistics(pixels.T)
        precision = regularised_precision(covariance(statistics), statistics.count)
        scores[index, chosen] = _distances(pixels, statistics.mean, precision)
    return scores


@torch.no_grad()
def local_rx(image: Tensor, inner: int = 9, outer: int = 25, ridge: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Score every pixel against its surroundings: the outer window around it without the inner one.

    Near the border both windows are shifted to lie within the image, as ``spectral.rx`` does. A window
    whose covariance cannot be inverted (no more pixels than bands, or equal pixels) is shrunk by OAS towards that of the scene; one
    with fewer than 2 valid pixels is replaced by the scene's mean and covariance.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        inner: odd width of the guard window in pixels; at least the size of the largest target.
        outer: odd width of the background window in pixels, above ``inner``; outer² - inner² should exceed C clearly.
        ridge: >= 0; adds this share of the *scene's* covariance to every window's and then takes the place of the shrinkage.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) float32 squared Mahalanobis distances >= 0, higher is more anomalous; 0.0 where a pixel is left out.

    Raises:
        ValueError: a wrong shape or window, a negative ridge, or an image with fewer than 2 valid pixels.

    Source:
        Dual-window RX as in ``spectral.rx(X, window=(inner, outer))``; shrinkage and no-data are ours.
    """
    keep = usable_pixels(image, valid)
    _check_windows(inner, outer, ridge, image.shape[-2:])
    scores = image.new_zeros(keep.shape, dtype=torch.float32)
    for index, chosen in enumerate(keep):
        pixels = image[index][:, chosen].T
        statistics = pixel_statistics(pixels)
        basis = _whitening(covariance(statistics), float(statistics.count), 0.0)
        if basis.shape[1] == 0:
            continue  # a constant image scores 0
        # A leading 1 in each pixel makes a window's matrix of products hold its count and sum as well; left-out pixels are all zero.
        scene = basis.new_zeros(*chosen.shape, 1 + basis.shape[1])
        scene[chosen] = torch.nn.functional.pad((pixels.double() - statistics.mean) @ basis, (1, 0), value=1.0)
        scores[index] = dual_window_scores(scene, inner, outer, ridge).float()
    return torch.where(keep, scores, 0.0)


def _check_windows(inner: int, outer: int, ridge: float, size: torch.Size) -> None:
    if inner < 1 or inner % 2 == 0 or outer % 2 == 0 or inner >= outer:
        raise ValueError(f"Expected odd windows with 1 <= inner < outer, but got inner={inner}, outer={outer}. Use for example 5 and 21.")
    if outer > min(size):
        raise ValueError(f"Expected outer <= {min(size)} for an image of {tuple(size)} pixels, but got {outer}. Use a smaller window.")
    if ridge < 0:
        raise ValueError(f"Expected ridge >= 0, but got {ridge}. Use 0.0 for none; 0.01 to 1.0 is usual.")


def usable_pixels(image: Tensor, valid: Tensor | None = None) -> Tensor:
    """Join no-data and the caller's choice, and check that every image keeps at least 2 pixels.

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, H, W) bool, True for pixels to use.

    Raises:
        ValueError: a wrong shape or dtype, or an image with fewer than 2 usable pixels.
    """
    if image.ndim != 4:
        raise ValueError(f"Expected an image of shape (B, C, H, W), but got {tuple(image.shape)}. Add the missing axes, as in image[None].")
    keep = finite_pixels(image)
    if valid is not None:
        if valid.shape != keep.shape or valid.dtype != torch.bool:
            came = f"{tuple(valid.shape)} {valid.dtype}"
            raise ValueError(f"Expected valid of shape {tuple(keep.shape)} bool, but got {came}. Pass a mask such as mask != 255.")
        keep = keep & valid
    counts = keep.flatten(1).sum(dim=1)
    if bool((counts < 2).any()):
        index = int((counts < 2).nonzero()[0])
        raise ValueError(
            f"Expected at least 2 valid pixels in every image, but got {int(counts[index])} in image {index} of shape "
            f"{tuple(image.shape[1:])}. NaN in any band marks a pixel as no data: check the no-data value, and skip empty tiles."
        )
    return keep
