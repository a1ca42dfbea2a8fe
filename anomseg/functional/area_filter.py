"""Area opening and closing of grey-scale planes: they remove bright or dark details that cover fewer pixels than an area.

Let X_t = {p : f(p) >= t} be the upper set of a plane f at level t, and C_t(p) the 4-connected region of X_t around pixel p. Then

    opening_λ(f)(p) = max { t <= f(p) : |C_t(p)| >= λ }        closing_λ(f) = -opening_λ(-f)

An opening never brightens (anti-extensive), keeps the order of planes (increasing) and changes nothing the second time (idempotent). In
contrast to a filter with a window it removes small objects of any shape and moves no contour of a large one. ``f - opening(f)`` is the
top-hat: what is bright and small; ``closing(f) - f`` is the bottom-hat: what is dark and small.

Pixels that are not finite hold no data: they belong to no region, connect none, and stay as they are.

Source: Vincent, "Grayscale area openings and closings, their efficient implementation and applications", Proc. EURASIP Workshop on
Mathematical Morphology, 1993. The result is his; the algorithm, written for arrays, is described at `_flood`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Index = NDArray[np.int64]
_CHUNK = 1 << 18  # pixels filtered at once: some 20 MB of indices


@torch.no_grad()
def area_opening(plane: Tensor, area: int, levels: int | None = None) -> Tensor:
    """Remove bright details of fewer than ``area`` 4-connected pixels.

    Args:
        plane: (H, W) or (B, H, W) floating point, any unit; NaN or infinity where there is no data.
        area: least number of pixels that a bright region keeps, at least 1 (which changes nothing).
        levels: None works with every grey value; a number, at least 2, first rounds each plane down to that many equal steps between its
            lowest and highest value, as the published implementations do. That costs accuracy and saves nothing here.

    Returns:
        The opened planes, shape, dtype and device of ``plane``, never above it. A connected piece of the plane with fewer than ``area``
        pixels, such as an island amid no data, takes its lowest value everywhere.

    Raises:
        ValueError: wrong shape, ``area`` below 1 or no whole number, or ``levels`` below 2.
        TypeError: ``plane`` holds integers.
    """
    _check(plane, area, levels)
    planes = plane if plane.ndim == 3 else plane[None]
    if planes.numel() == 0 or area == 1:
        return plane.clone() if levels is None else _quantise(planes, levels).view_as(plane)
    if levels is not None:
        planes = _quantise(planes, levels)
    values = planes.detach().cpu().numpy()
    step = max(1, _CHUNK // values[0].size)
    opened = np.concatenate([_open(values[start : start + step], int(area)) for start in range(0, len(values), step)])
    return torch.from_numpy(opened).to(plane.device).view_as(plane)


def area_closing(plane: Tensor, area: int, levels: int | None = None) -> Tensor:
    """Remove dark details of fewer than ``area`` 4-connected pixels: ``-area_opening(-plane)``, with the arguments of `area_opening`.

    Returns:
        The closed planes, shape, dtype and device of ``plane``; without ``levels`` never below it.
    """
    return -area_opening(-plane, area, levels)


def area_details(plane: Tensor, area: int, levels: int | None = None) -> Tensor:
    """Keep what covers fewer pixels than an area: top-hat of small bright details minus bottom-hat of small dark ones.

    Args:
        plane: (H, W) or (B, H, W), as for `area_opening`.
        area: pixels, at least 1.
        levels: grey levels; None for all.

    Returns:
        As ``plane``: (z - γ(z)) - (φ(z) - z), positive on small bright details, negative on small dark ones, 0 elsewhere.
    """
    return 2 * plane - area_opening(plane, area, levels) - area_closing(plane, area, levels)


def area_in_pixels(square_metres: float, ground_sampling_distance: float) -> int:
    """Convert an area on the ground to the pixels that cover it, ``ceil(square_metres / ground_sampling_distance²)``.

    Args:
        square_metres: area in m², above 0.
        ground_sampling_distance: side of a pixel on the ground in metres, above 0.

    Returns:
        Whole pixels, at least 1.

    Raises:
        ValueError: one of the two is not a positive number.
    """
    if not (0 < square_metres < math.inf and 0 < ground_sampling_distance < math.inf):
        raise ValueError(
            f"Expected a positive area in m² and a positive pixel size in metres, but got {square_metres} and {ground_sampling_distance}. "
            "Take the pixel size from the scene's transform."
        )
    return max(1, math.ceil(square_metres / ground_sampling_distance**2 - 1e-9))  # 30 / 0.1² must not become 3,001


def _check(plane: Tensor, area: int, levels: int | None) -> None:
    if plane.ndim not in (2, 3):
        raise ValueError(f"Expected planes (H, W) or (B, H, W), but got {tuple(plane.shape)}. Filter channels one by one, or flatten them.")
    if not plane.is_floating_point():
        raise TypeError(f"Expected floating-point planes, but got {plane.dtype}. Cast them with .float().")
    if area != int(area) or area < 1:
        raise ValueError(f"Expected an area of at least 1 whole pixel, but got {area}. Convert square metres with area_in_pixels.")
    if levels is not None and levels < 2:
        raise ValueError(f"Expected at least 2 levels, but got {levels}. Use None to keep every grey value.")


def _quantise(planes: Tensor, levels: int) -> Tensor:
    """Round (B, H, W) down to equal steps between each plane's lowest and highest finite value."""
    valid = torch.isfinite(planes)
    lowest = torch.where(valid, planes, torch.inf).amin((1, 2), keepdim=True)
    highest = torch.where(valid, planes, -torch.inf).amax((1, 2), keepdim=True)
    width = (highest - lowest) / (levels - 1)
    stepped = lowest + ((planes - lowest) / width).floor() * width
    return torch.where(valid & (width > 0), torch.minimum(stepped, planes), planes)


def _open(values: NDArray[Any], area: int) -> NDArray[Any]:
    """Open (B, H, W) planes; the ranks of their pixels are node numbers that are unique over the planes."""
    count = len(values)
    valid = np.isfinite(values)
    pixels = np.where(valid, values, -np.inf).reshape(count, -1)
    order = np.argsort(pixels, axis=1, kind="stable")
    offset = np.arange(count)[:, None] * pixels.shape[1]
    # Pixels of one value are told apart by their place, which makes every node distinct; the opened values do not depend on it, because
    # each upper set of values is also one of ranks.
    rank = np.empty((count, pixels.shape[1]), dtype=np.int64)
    np.put_along_axis(rank, order, offset + np.arange(pixels.shape[1]), axis=1)
    node = np.where(valid, rank.reshape(values.shape), -1)
    opened = _flood(np.pad(node, ((0, 0), (1, 1), (1, 1)), constant_values=-1), values.size, area)[:, 1:-1, 1:-1]
    level = np.take_along_axis(pixels, order, axis=1).ravel()
    result: NDArray[Any] = np.where(valid, level[np.maximum(opened, 0)], values).astype(values.dtype)
    return result


def _flood(nodes: _Index, count: int, area: int) -> _Index:
    """Merge every regional maximum of fewer than ``area`` pixels into its highest neighbour, all at once, until none is left.

    A maximum's neighbours are lower than it, so at all levels between itself and the highest neighbour its region is the maximum alone,
    too small, and removed; one level further down the two are one region. As that neighbour is no maximum, no merge meets another.
    A pass makes each remaining maximum grow, so there are at most ``area - 1``; a pass costs a look-up of all pixels, and some ten
    operations on those of the maxima that changed in the pass before.

    Args:
        nodes: (B, H + 2, W + 2), a number of its own for each pixel, higher where the pixel is brighter; -1 without data and as border.
        count: one more than the highest number.
        area: least number of pixels.

    Returns:
        (B, H + 2, W + 2) number of the pixel whose value the opened plane takes.
    """
    steps = (1, -1, nodes.shape[2], -nodes.shape[2])
    node = nodes.ravel()
    sizes = np.ones(count, dtype=np.int64)
    active = np.flatnonzero(node >= 0)
    highest = np.full(count, -1, dtype=np.int64)
    changed = np.zeros(count + 1, dtype=bool)  # its last element answers for -1
    while active.size:
        own = node[active]
        best = np.full(own.size, -1, dtype=np.int64)
        for step in steps:
            neighbour = node[active + step]
            np.maximum(best, np.where(neighbour == own, -1, neighbour), out=best)
        np.maximum.at(highest, own, best)
        target = highest[own]
        merging = (target >= 0) & (target < own)
        children = np.unique(own[merging])
        parents = highest[children]
        np.add.at(sizes, parents, sizes[children])
        highest[own] = -1
        node[active[merging]] = target[merging]
        grown = parents[sizes[parents] < area]
        changed[grown] = True
        active = np.flatnonzero(changed[node])
        changed[grown] = False
    return node.reshape(nodes.shape)
