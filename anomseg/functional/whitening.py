"""Whitened principal components: the few directions in which a scene varies most, each at unit variance.

With the mean μ and the covariance Σ = V diag(λ) Vᵀ of the valid pixels, λ descending, component i of a spectrum x is

    z_i = v_iᵀ (x - μ) / √λ_i

so that the z_i have mean 0, variance 1 and no correlation, and ‖z‖² over all components is the global RX score of x.

Source: Pearson, "On lines and planes of closest fit to systems of points in space", Philos. Mag. 2(11), 1901; whitening as in
Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", Am. Stat. 72(4), 2018 (PCA whitening). The sign rule is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.functional.rx import covariance, pixel_statistics, usable_pixels


@torch.no_grad()
def whitened_components(image: Tensor, components: int, valid: Tensor | None = None) -> Tensor:
    """Rotate each image to its first principal components and divide each by its standard deviation.

    Statistics are those of the image's own valid pixels, in float64. Of v and -v the one is taken whose largest entry is positive.
    Bands are not rescaled first: a band with large numbers weighs more, so the components depend on the units of single bands.

    Args:
        image: (B, C, H, W) in any unit, NaN in any band where there is no data.
        components: k, at least 1; above C it is reduced to C, so that one setting serves cubes and RGB images.
        valid: (B, H, W) bool, False for pixels to leave out besides those without data; None for none.

    Returns:
        (B, min(k, C), H, W) float32, mean 0 and variance 1 over the valid pixels, NaN where a pixel is left out. Where the pixels span
        fewer dimensions (constant or repeated bands, few pixels) the components beyond their rank are 0.

    Raises:
        ValueError: a wrong shape, ``components`` below 1, or an image with fewer than 2 valid pixels.
    """
    keep = usable_pixels(image, valid)
    if components < 1:
        raise ValueError(f"Expected at least 1 component, but got {components}. 5 to 20 suit hyperspectral scenes.")
    count = min(components, image.shape[1])
    result = image.new_full((len(image), count, *image.shape[2:]), torch.nan, dtype=torch.float32)
    for index, chosen in enumerate(keep):  # every image has statistics of its own
        pixels = image[index][:, chosen].T.double()
        statistics = pixel_statistics(pixels)
        basis = whitening_basis(covariance(statistics), count)
        result[index][:, chosen] = ((pixels - statistics.mean) @ basis).T.float()
    return result


def whitening_basis(matrix: Tensor, count: int) -> Tensor:
    """Find the (C, count) matrix whose column i is v_i / √λ_i, or 0 where λ_i is nothing but rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    # A pixel is known to float32: what float64 leaves of a repeated band is far below this share of the largest variance.
    kept = values > values[0].clamp_min(0.0) * len(matrix) * torch.finfo(values.dtype).eps * 8
    basis: Tensor = vectors * sign * torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    return basis
