"""Means and mean squares that follow the batches of a training."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = 0.02
"""Share of a new batch: the last fifty or so tell."""


def running_moments(held: Tensor, sums: Tensor, momentum: float = MOMENTUM) -> Tensor:
    """Move means and mean squares towards those of a batch; the first batch that has a value sets them.

    Args:
        held: (3, N): whether there has been a value, as 0 or 1, then mean and mean square of each of N quantities.
        sums: (3, N) of the batch: how many values, their sum and the sum of their squares; a quantity without values stays.
        momentum: share of the batch in (0, 1].

    Returns:
        (3, N), of the type of `held`.

    Raises:
        ValueError: the shapes are not (3, N) both.
    """
    if held.ndim != 2 or len(held) != 3 or held.shape != sums.shape:
        raise ValueError(f"Expected held and sums of one shape (3, N), but got {tuple(held.shape)} and {tuple(sums.shape)}.")
    sums = sums.to(held)
    count = sums[0]
    weight = torch.where(count > 0, torch.where(held[0] > 0, momentum, 1.0), 0.0).to(held)
    moved = torch.lerp(held[1:], sums[1:] / count.clamp_min(1), weight)
    return torch.cat([(held[:1] + count).clamp_max(1.0), moved])
