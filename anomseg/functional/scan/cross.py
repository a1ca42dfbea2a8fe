"""Selective scans over images: four directions, so that every pixel sees every other one.

Direction 0 reads row by row, 1 column by column, 2 and 3 are 0 and 1 read from the end.

Source: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166, section 4.2 (2D selective scan).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.functional.scan.backends import ScanBackend
from anomseg.functional.scan.selective import selective_scan


def cross_sequences(x: Tensor) -> Tensor:
    """Read images (B, C, H, W) row by row and column by column: (B, 2, C, HW).

    Raises:
        ValueError: Where x has not four axes.
    """
    if x.ndim != 4:
        raise ValueError(f"Expected images (B, C, H, W), but got {tuple(x.shape)}. Add the missing axes.")
    return torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)


def merge_sequences(y: Tensor, height: int, width: int) -> Tensor:
    """Add up sequences by row and by column (B, 2, C, HW) at their pixels, (B, C, H, W): the adjoint of `cross_sequences`.

    Raises:
        ValueError: Where the shape does not fit.
    """
    _check_sequences(y, 2, height, width)
    rows, columns = y.unbind(1)
    return rows.reshape(*rows.shape[:2], height, width) + columns.reshape(*rows.shape[:2], width, height).transpose(2, 3)


def cross_scan(x: Tensor) -> Tensor:
    """Read images (B, C, H, W) in four directions: (B, 4, C, HW).

    `cross_selective_scan` does the same work without these copies.

    Raises:
        ValueError: Where x has not four axes.
    """
    onwards = cross_sequences(x)
    return torch.cat([onwards, onwards.flip(-1)], dim=1)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """Add up four sequences (B, 4, C, HW) at their pixels, (B, C, H, W): the adjoint of `cross_scan`.

    Raises:
        ValueError: Where the shape does not fit.
    """
    _check_sequences(y, 4, height, width)
    return merge_sequences(y[:, :2] + y[:, 2:].flip(-1), height, width)


def cross_selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: ScanBackend = "auto",
) -> Tensor:
    """Scan images in four directions and add up the results: two scans onwards and two in reverse, without flipped copies.

    The operands of directions 2 and 3 stand in the order of `cross_sequences`, not in the order of reading: direction k belongs to
    the sequence k mod 2. With flipped operands, `cross_merge` of a `selective_scan` of `cross_scan` gives the same.

    Args:
        x: Images (B, C, H, W).
        delta: Steps of each direction (B, 4, C, HW).
        A: Rates of decay (4 C, N), direction by direction.
        B: How the input enters the state (B, 4, N, HW).
        C: How the state becomes output (B, 4, N, HW).
        D: Skip connection (4 C,).
        delta_bias: Added to the steps (4 C,).
        delta_softplus: Whether the step is softplus(delta + bias).
        backend: What runs it, see `scan_backend`.

    Returns:
        The sum of the four outputs (B, C, H, W).

    Raises:
        ValueError: Where shapes do not fit.
    """
    u = cross_sequences(x).flatten(1, 2)
    _, channels, height, width = x.shape
    _check_sequences(delta, 4, height, width)
    total: Tensor | None = None
    for first, reverse in ((0, False), (2, True)):
        pair, own = slice(first, first + 2), slice(first * channels, (first + 2) * channels)
        skip, bias = (None if v is None else v[own] for v in (D, delta_bias))
        operands = (u, delta[:, pair].flatten(1, 2), A[own], B[:, pair], C[:, pair])
        y = selective_scan(*operands, skip, None, bias, delta_softplus, backend=backend, reverse=reverse)
        total = y if total is None else total + y
    assert total is not None
    return merge_sequences(total.view(total.shape[0], 2, channels, height * width), height, width)


def _check_sequences(y: Tensor, directions: int, height: int, width: int) -> None:
    if y.ndim != 4 or y.shape[1] != directions or y.shape[-1] != height * width:
        raise ValueError(f"Expected sequences (B, {directions}, C, {height * width}), but got {tuple(y.shape)}. Check height and width.")
