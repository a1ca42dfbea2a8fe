"""Draw from the global generators of torch by a seed, where layers draw from no other, and leave them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the processor and of all GPUs that are in use, and put them back at the end.

    GPUs that are not in use yet are left alone: `torch.manual_seed` would keep the seed for when they are.

    Args:
        seed: of all of them.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types here
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
