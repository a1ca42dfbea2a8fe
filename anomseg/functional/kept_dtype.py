"""Moves of tensors between devices that leave their types alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keeping_dtype(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Take the change of type out of what a module does to its tensors when it is moved.

    Scores, anchors and counts are wrong in bfloat16, and bit patterns are nothing in another type: modules that hold such tensors pass
    this on in their `_apply`, so that `.to(device)` moves them and `.to(torch.bfloat16)`, as half-precision training calls it, does not.

    Args:
        move: what `torch.nn.Module._apply` is given.

    Returns:
        The same without a change of type.
    """

    def moved(tensor: Tensor) -> Tensor:
        there = move(tensor)
        return there if there.dtype == tensor.dtype else tensor.to(there.device)

    return moved
