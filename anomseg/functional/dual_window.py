"""Quadratic forms of pixels with the inverse covariances of windows around them: the engine of local RX.

One matrix of products for each window holds its count, sum and scatter, slides along a row by adding and taking away one column of pixels,
and is factorised once. Glossary: x spectrum, a = (1, x), n pixels, μ mean, S scatter, Σ covariance, λ shrinkage.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

_WINDOW_CHUNK = 32  # windows held at once: 10 MB in float64 at 200 bands
# A factorisation is not trusted where less than this share of a band's products is left; float32 is tried first.
_SMALLEST_PIVOT = {torch.float32: 1e-3, torch.float64: 1e-12}
_FLOOR = 1e-6  # share of the scene's covariance under a shrunk window, so that a window of equal pixels stays finite


def dual_window_scores(scene: Tensor, inner: int, outer: int, ridge: float) -> Tensor:
    """Score every pixel of a scene against the pixels between its guard window and its outer window.

    Rows of windows are shared out over `torch.get_num_threads()` Python threads of one torch thread each: a factorisation of some hundred
    bands is too small to be split, and PyTorch factorises a batch one after the other.

    Args:
        scene: (H, W, 1 + C) float64, whitened so that the scene's covariance is I, with a leading 1; all zero where a pixel is left out.
        inner: side of the guard window in pixels, odd.
        outer: side of the outer window in pixels, odd.
        ridge: share of the scene's covariance that is added to every window's.

    Returns:
        (H, W) float64.
    """
    scores = scene.new_zeros(scene.shape[:2])
    threads = torch.get_num_threads()
    rows = torch.arange(scene.shape[0] - outer + 1).tensor_split(threads)
    work = partial(_score_strip, scene, scores, inner, outer, ridge)
    if threads == 1 or scene.device.type != "cpu" or len(rows[-1]) == 0:
        work(range(scene.shape[0] - outer + 1))
        return scores
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [range(int(part[0]), int(part[-1]) + 1) for part in rows]))
    finally:
        torch.set_num_threads(threads)
    return scores


@torch.inference_mode()  # threads do not inherit the mode of the caller
def _score_strip(scene: Tensor, scores: Tensor, inner: int, outer: int, ridge: float, strip: range) -> None:
    """Write the scores of the pixels whose outer windows begin in a strip of rows."""
    height, width = scene.shape[:2]
    tops, lefts = _window_starts(height, outer), _window_starts(width, outer)
    guard_tops, guard_lefts = _window_starts(height, inner), _window_starts(width, inner)
    buffer = scene.new_empty(2, _WINDOW_CHUNK + outer - 1, scene.shape[2], scene.shape[2])  # fresh memory is slower than the products
    # One step per row of windows and chunk of columns; a pixel costs C³ / 3 for the elimination and about 10 C² for sliding the window.
    for top in strip:
        for left in range(0, width - outer + 1, _WINDOW_CHUNK):
            last = min(left + _WINDOW_CHUNK, width - outer + 1)
            products = _sliding_products(scene[top : top + outer, left : last - 1 + outer], outer, buffer)
            columns = [x for x in range(width) if left <= lefts[x] < last]
            for row in (y for y in range(height) if tops[y] == top):
                guards = scene[guard_tops[row] : guard_tops[row] + inner].unfold(1, inner, 1)
                guard = rearrange(guards[:, [guard_lefts[x] for x in columns]], "i w c j -> w (i j) c")
                background = products[[lefts[x] - left for x in columns]].baddbmm_(guard.mT, guard, alpha=-1)
                scores[row, columns] = _window_scores(background, scene[row, columns], ridge)


def _window_starts(size: int, window: int) -> list[int]:
    """List the first pixel of every pixel's window along an axis, shifted to lie within it."""
    return [min(max(x - window // 2, 0), size - window) for x in range(size)]


def _sliding_products(strip: Tensor, outer: int, buffer: Tensor) -> Tensor:
    """Sum x xᵀ over every outer x outer window of an (outer, W, D) strip: (W - outer + 1, D, D), a part of ``buffer``."""
    columns = rearrange(strip, "h w d -> w h d").contiguous()
    sums, windows = buffer[0, : len(columns)], buffer[1, : len(columns) - outer + 1]
    torch.bmm(columns.mT, columns, out=sums)
    torch.sum(sums[:outer], dim=0, out=windows[0])
    for step in range(1, len(windows)):  # 2 D² additions a window, in the cache; a cumulative sum over all columns is slower
        torch.sub(sums[step + outer - 1], sums[step - 1], out=windows[step]).add_(windows[step - 1])
    return windows


def _window_scores(products: Tensor, pixel: Tensor, ridge: float) -> Tensor:
    """Score (N, D) pixels by their windows' (N, D, D) products, D = 1 + C; returns (N,).

    With a = (1, x), aᵀ (Σ a aᵀ)⁻¹ a = 1 / n + (x - μ)ᵀ S⁻¹ (x - μ): the mean needs no pass of its own.
    """
    count = products[:, 0, 0]
    degrees = (count - 1).clamp_min(1.0)
    regular = (count >= 2) & ((count >= products.shape[-1]) | (ridge > 0))
    if not bool(regular.any()):
        return _shrunk_scores(products, pixel)
    if ridge > 0:
        products.diagonal(dim1=1, dim2=2)[:, 1:] += ridge * degrees[:, None]
    value, solved = _inverse_quadratic(products, pixel, torch.float32)
    if not bool(solved.all()):
        value[~solved], solved[~solved] = _inverse_quadratic(products[~solved], pixel[~solved], torch.float64)
    score = degrees * (value - 1 / count.clamp_min(1.0))
    regular &= solved
    if not bool(regular.all()):
        score[~regular] = _shrunk_scores(products[~regular], pixel[~regular])
    return score.clamp_min(0.0)


def _inverse_quadratic(matrix: Tensor, vector: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute vᵀ M⁻¹ v, (N,), of float64 (N, D, D) and (N, D), and (N,) bool, whether M is safely positive definite.

    With y ≈ M⁻¹ v from a factor in ``precision``, 2 vᵀ y - yᵀ M y is wrong only by the square of the error of y.
    """
    factor, info = torch.linalg.cholesky_ex(matrix.to(precision))
    pivots = factor.diagonal(dim1=1, dim2=2).square() / matrix.diagonal(dim1=1, dim2=2)
    solution = torch.cholesky_solve(vector[:, :, None].to(precision), factor).double()
    value = (solution * (2 * vector[:, :, None] - matrix @ solution)).sum((1, 2))
    return value, (info == 0) & (pivots > _SMALLEST_PIVOT[precision]).all(1)


def _shrunk_scores(products: Tensor, pixel: Tensor) -> Tensor:
    """Score as `_window_scores`, with Σ shrunk by OAS to a multiple of the scene's covariance, which is I here; (N,)."""
    count = products[:, 0, 0]
    mean = products[:, 0, 1:] / count.clamp_min(1.0)[:, None]
    scatter = products[:, 1:, 1:] - count[:, None, None] * mean[:, :, None] * mean[:, None]
    local = scatter / (count - 1).clamp_min(1.0)[:, None, None]
    known = count >= 2
    weight = torch.where(known, oas_shrinkage(local, count), 1.0)[:, None]
    level = torch.where(known, local.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(0.0), 1.0)[:, None]
    shrunk = local * (1 - weight)[:, None]
    shrunk.diagonal(dim1=1, dim2=2).add_(weight * level + _FLOOR)
    return _inverse_quadratic(shrunk, pixel[:, 1:] - torch.where(known[:, None], mean, 0.0), torch.float64)[0]


def oas_shrinkage(matrix: Tensor, count: Tensor) -> Tensor:
    """Compute the OAS weight λ in [0, 1], (...), of (..., C, C) covariances of (...) pixels: Chen et al. 2010, eq. 23."""
    squared_mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).square()
    mean_square = matrix.square().mean(dim=(-2, -1))
    spread = (count + 1) * (mean_square - squared_mean / matrix.shape[-1])
    return ((mean_square + squared_mean) / spread.clamp_min(1e-300)).clamp_max(1.0)
