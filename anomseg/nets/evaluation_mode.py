"""Run a network as in evaluation, whatever mode it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into its own mode afterwards.

    Norms of batches then use what they have learnt, and learn nothing. After `trainer.test`, Lightning leaves a trained module in training
    mode: a map drawn then would be another one, and would move the statistics of its norms.

    Args:
        module: with all of its parts.
    """
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
