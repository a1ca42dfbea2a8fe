"""Bring an image to the number of bands that a network was built for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def resample_bands(image: Tensor, bands: int, mode: Literal["linear", "tile"] = "linear") -> Tensor:
    """Resample the spectral axis; an image that has the wanted number of bands is returned as it is.

    - ``"linear"`` reads the spectrum at ``bands`` evenly spaced places between its first and its last band (a single one: midway), so
      that neighbours stay neighbours. There is no low-pass filter: going down, bands in between are skipped.
    - ``"tile"`` makes no new values: going up, the bands are repeated in order, the last round cut off; going down, evenly spread
      bands are taken, the first among them.

    Band indices stand in for wavelengths: bands that were removed from a spectrum leave no gap here.

    Args:
        image: (B, C, H, W) in any unit, C >= 1. NaN spreads to the places read between it and a neighbour, in ``"linear"`` alone.
        bands: wanted number of bands, at least 1.
        mode: ``"linear"`` or ``"tile"``.

    Returns:
        (B, bands, H, W), dtype and unit of ``image``.

    Raises:
        ValueError: a wrong shape, fewer than 1 band, or another mode.

    Source:
        Linear: the inference of Li et al., arXiv 2303.12342, when a scene has fewer bands than the training image. Tiling: Li et al.,
        arXiv 2310.07511, up to a fixed 270 bands; going down by either mode is ours.
    """
    if image.ndim != 4 or image.shape[1] < 1:
        raise ValueError(f"Expected an image of shape (B, C, H, W) with C >= 1, but got {tuple(image.shape)}. Add axes, as in image[None].")
    if bands < 1:
        raise ValueError(f"Expected bands >= 1, but got {bands}. Pass the number of bands that the network was built for.")
    if mode not in ("linear", "tile"):
        raise ValueError(f"Expected mode 'linear' or 'tile', but got {mode!r}. Use 'linear' unless the bands have no order.")
    count = image.shape[1]
    if count == bands:
        return image
    step = torch.arange(bands, device=image.device)
    if mode == "tile":
        return image[:, step % count if bands > count else step * count // bands]
    # Integer arithmetic places a band that is hit exactly at weight 0: its neighbour, NaN perhaps, is then not read.
    numerator, span = (step * (count - 1), bands - 1) if bands > 1 else (step + count - 1, 2)
    low = numerator // span
    high = (numerator + span - 1) // span
    weight = (numerator % span).to(image.dtype) / span
    return torch.lerp(image[:, low], image[:, high], weight[:, None, None])
