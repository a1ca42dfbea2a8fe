"""Cut a scene into windows, weight their overlaps, and draw random blocks of it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

Window = tuple[int, int, int, int]
"""(row, column, height, width) in pixels."""


def tile_origins(length: int, tile: int, stride: int) -> list[int]:
    """Place tiles along one axis so that they cover it and none leaves it.

    Args:
        length: pixels along the axis, at least 1.
        tile: pixels a tile covers; an axis shorter than a tile gets the one origin 0.
        stride: pixels from one origin to the next, 1 to ``tile``.

    Returns:
        First pixels of the tiles, ascending. The last tile is shifted inwards to end at the border.

    Raises:
        ValueError: a length is not positive, or the stride would leave gaps.
    """
    if length < 1 or tile < 1:
        raise ValueError(f"Expected length and tile of at least 1 pixel, but got length={length} and tile={tile}.")
    if not 1 <= stride <= tile:
        raise ValueError(f"Expected a stride between 1 and the tile of {tile} pixels, but got {stride}. A longer stride would skip pixels.")
    if length <= tile:
        return [0]
    origins = list(range(0, length - tile, stride))
    return [*origins, length - tile]


def tile_windows(size: tuple[int, int], tile: int, overlap: int = 0) -> list[Window]:
    """List the square windows that cover a scene, row by row.

    Args:
        size: (height, width) of the scene in pixels.
        tile: side of a window in pixels; an axis shorter than that is taken whole.
        overlap: pixels that neighbours share at least, 0 to ``tile - 1``.

    Returns:
        Windows (row, column, height, width) in pixels, all of one size.

    Raises:
        ValueError: a size is not positive, or the overlap does not lie in 0 to ``tile - 1``.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"Expected an overlap of 0 to {tile - 1} pixels for tiles of {tile}, but got {overlap}. Enlarge the tile.")
    height, width = size
    rows = tile_origins(height, tile, tile - overlap)
    columns = tile_origins(width, tile, tile - overlap)
    return [(row, column, min(tile, height), min(tile, width)) for row in rows for column in columns]


def tile_cores(size: tuple[int, int], tile: int, overlap: int = 0) -> list[Window]:
    """Share the pixels of a scene out among its tiles: each belongs to one, and what two share is cut in the middle.

    Args:
        size: see `tile_windows`.
        tile: likewise.
        overlap: likewise.

    Returns:
        For each window of `tile_windows`, in the same order, the (row, column, height, width) in the scene that is its own.

    Raises:
        ValueError: see `tile_windows`.
    """
    tile_windows(size, tile, overlap)  # checks the arguments
    spans = [_spans(tile_origins(length, tile, tile - overlap), tile, length) for length in size]
    return [(top, left, bottom - top, right - left) for top, bottom in spans[0] for left, right in spans[1]]


def _spans(origins: list[int], tile: int, length: int) -> list[tuple[int, int]]:
    edges = [0, *((first + tile + second) // 2 for first, second in pairwise(origins)), length]
    return list(pairwise(edges))


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad an image at its lower and right border until both sides are multiples of a number.

    Args:
        image: (..., C, H, W).
        multiple: at least 1.

    Returns:
        (..., C, H', W'), mirrored without repeating the border, or repeating it where the image is too small to mirror.
    """
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return image
    mode = "reflect" if down < height and right < width else "replicate"
    flat = functional.pad(image[None] if image.ndim == 3 else image.flatten(1, -3), (0, right, 0, down), mode=mode)
    return flat.reshape(*image.shape[:-2], *flat.shape[-2:])


def taper(height: int, width: int, overlap: int, floor: float = 1e-3) -> Tensor:
    """Weight the pixels of a window so that overlapping windows blend without seams.

    Along each axis the weight of pixel i is ``sin²(π/2 · (i + ½) / overlap)`` within ``overlap`` pixels of either end and 1 between;
    the ramps of two neighbours that share exactly ``overlap`` pixels add up to 1. Elsewhere, and on scene borders where only one ramp
    falls, divide the weighted sum of scores by the sum of weights.

    Args:
        height: rows of the window in pixels.
        width: columns of the window in pixels.
        overlap: length of a ramp in pixels; 0 weights all pixels alike.
        floor: least weight, above 0, so that the division is defined everywhere.

    Returns:
        (height, width) float32 in [floor, 1].

    Raises:
        ValueError: a side is not positive, the overlap is negative, or the floor does not lie in (0, 1].
    """
    if height < 1 or width < 1 or overlap < 0:
        raise ValueError(f"Expected a positive window and overlap >= 0, but got {height}x{width} pixels and overlap={overlap}.")
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"Expected a floor in (0, 1], but got {floor}. Weights of 0 leave pixels undefined.")
    return (_ramp(height, overlap)[:, None] * _ramp(width, overlap)[None, :]).clamp_min(floor)


def _ramp(length: int, overlap: int) -> Tensor:
    position = torch.arange(length, dtype=torch.float32) + 0.5
    from_edge = torch.minimum(position, length - position)
    if overlap == 0:
        return torch.ones(length)
    return torch.sin(0.5 * math.pi * (from_edge / overlap).clamp_max(1.0)) ** 2


def random_blocks(size: tuple[int, int], block: int, share: float, seed: int) -> Tensor:
    """Draw a share of a scene as random square blocks.

    Blocks rather than single pixels, because neighbouring pixels are near copies of each other.

    Args:
        size: (height, width) of the scene in pixels.
        block: side of a block in pixels; blocks at the lower and right border may be smaller.
        share: part of the blocks to draw, above 0 and below 1. At least one block is drawn, and one is left if there are two.
        seed: draws the same blocks for the same arguments, whatever torch's global generator has done.

    Returns:
        (H, W) bool, True inside the drawn blocks.

    Raises:
        ValueError: a size is not positive, or the share does not lie in (0, 1).
    """
    height, width = size
    if height < 1 or width < 1 or block < 1:
        raise ValueError(f"Expected a scene and blocks of at least 1 pixel, but got size={size} and block={block}.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"Expected a share between 0 and 1, but got {share}. A quarter of the blocks is 0.25.")
    rows, columns = math.ceil(height / block), math.ceil(width / block)
    count = rows * columns
    drawn = max(1, min(round(share * count), count - 1))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    grid = torch.zeros(count, dtype=torch.bool)
    grid[order[:drawn]] = True
    chosen = grid.view(rows, columns).repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)
    return chosen[:height, :width].contiguous()
