"""The radius of the sphere around normal descriptors, read from the distances of an epoch.

The radius takes no gradient. While an epoch runs, either the largest distance of each image is stored (`largest_distances`) or all
distances are counted in bounded memory (`image_distances` into `score_pages`); a rule reads them when it ends:

    mean_radius       R = mean_m √(max d)
    quantile_radius   R = quantile over images m of √(max d), which single odd images do not move
    boundary_radius   R = quantile over pixels of √d at the level 1 − ν

Squared distances of pixels that are not valid are never computed: what their descriptor holds changes no radius.

Glossary: d squared distance of a normal pixel from the centre, m image, R radius, ν share that may lie outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.functional.score_curves import normal_quantile
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.functional.svdd import image_distances, linear_quantile


@torch.no_grad()
def largest_distances(descriptors: Tensor, centre: Tensor, valid: Tensor) -> Tensor:
    """Take the largest squared distance of each image, to be stored until an epoch ends and read by `mean_radius` or `quantile_radius`.

    Args:
        descriptors: (B, D, H, W).
        centre: (D,).
        valid: (B, H, W) bool.

    Returns:
        (M,) float64, one value for each image that has a valid pixel, >= 0.

    Raises:
        ValueError: a shape is not as above.
    """
    found = [d.max() for d in image_distances(descriptors, centre, valid)]
    return torch.stack(found).double() if found else descriptors.new_empty(0, dtype=torch.float64)


def mean_radius(largest: Tensor) -> Tensor:
    """Average the distance of each image's outermost pixel: R = mean_m √(max d).

    Args:
        largest: (M,) squared distances of `largest_distances`, of all images of an epoch; M >= 1.

    Returns:
        () float64 radius >= 0, in units of the descriptors.

    Raises:
        ValueError: nothing was stored.

    Source:
        Li et al. 2023.
    """
    return _stored(largest).sqrt().mean()


def quantile_radius(largest: Tensor, q: float = 0.9) -> Tensor:
    """Take a quantile of the distances of the images' outermost pixels: as `mean_radius`, but deaf to single odd images.

    Args:
        largest: (M,) squared distances of `largest_distances`, of all images of an epoch; M >= 1.
        q: level in [0, 1], linear between two images.

    Returns:
        () float64 radius >= 0, in units of the descriptors.

    Raises:
        ValueError: nothing was stored, or ``q`` lies outside [0, 1].
    """
    return linear_quantile(_stored(largest).sqrt(), q)


def boundary_radius(counts: ScoreCounts, nu: float = 0.1) -> Tensor:
    """Let a share ν of the counted pixels lie outside: R is the smallest distance with at least a share 1 − ν at or below it.

    Args:
        counts: counted **squared** distances of normal pixels (`image_distances`), any number of them in bounded memory.
        nu: ν in (0, 1].

    Returns:
        () float64 radius >= 0, in units of the descriptors, exact to a cell of the counts. A quantile without interpolation commutes with
        the square root, so that counts of squared distances serve.

    Raises:
        ValueError: nothing was counted, or ``nu`` lies outside (0, 1].

    Source:
        Ruff et al. 2018, sec. 3.3; the quantile is that of √d.
    """
    if not 0 < nu <= 1:
        raise ValueError(f"Expected nu in (0, 1], but got {nu}. It is the share of normal pixels that may lie outside; 0.1 is usual.")
    level = torch.tensor([1 - nu], dtype=torch.float64, device=counts.normal.device)
    square = normal_quantile(counts, level)[0].double()
    if bool(square.isnan()):
        raise ValueError("Expected counted distances of normal pixels, but got none. Keep the old radius where nothing was valid.")
    return square.clamp_min(0.0).sqrt()


def _stored(largest: Tensor) -> Tensor:
    if largest.ndim != 1 or not len(largest):
        raise ValueError(f"Expected stored distances of shape (M,) with M >= 1, but got {tuple(largest.shape)}. Keep the old radius.")
    return largest.double()
