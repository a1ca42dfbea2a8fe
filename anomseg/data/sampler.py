"""Share samples among ranks so that every one is evaluated exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from torch.utils.data import Dataset, DistributedSampler


class UnpaddedSampler(DistributedSampler[int]):
    """Give each rank a contiguous part of the samples, without repeating any.

    torch's ``DistributedSampler`` repeats samples until every rank has as many, which counts them twice in a metric. This one gives ranks
    unequal parts instead, so it suits evaluation; in training, ranks with fewer batches would leave the others waiting. It is a
    ``DistributedSampler`` by type because Lightning replaces every other sampler.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        groups: Sequence[int] | None = None,
    ) -> None:
        """Plan the parts.

        Args:
            dataset: anything with a length.
            num_replicas: ranks; by default those of torch.distributed, or 1 where it is not initialised.
            rank: this one, 0 to ``num_replicas - 1``; by default as torch.distributed says, or 0.
            shuffle: visit in an order drawn from the seed and the epoch (``set_epoch``); a group's samples stay together.
            seed: of the order; the same on all ranks.
            groups: id of the group of each sample, such as its scene; no group is split.

        Raises:
            ValueError: there are fewer samples or groups than ranks, ``groups`` has another length, or the rank is out of range.
        """
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = num_replicas if num_replicas is not None else torch.distributed.get_world_size() if running else 1
        own = rank if rank is not None else torch.distributed.get_rank() if running else 0
        count = len(cast(Sized, dataset))
        if count < world:
            raise ValueError(
                f"Expected at least one sample a rank, but got {count} samples for {world} ranks. Use at most {count} devices."
            )
        if groups is not None and len(groups) != count:
            raise ValueError(f"Expected {count} group ids, one a sample, but got {len(groups)}. Pass dataset.groups.")
        if groups is not None and len(held := set(groups)) < world:
            raise ValueError(
                f"Expected at least one scene a rank, but got {len(held)} for {world} ranks, and a scene is not split: its figures and its "
                f"map are made on one rank. Use at most {len(held)} device{'s' * (len(held) != 1)}."
            )
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world, rank=own, shuffle=shuffle, seed=seed)
        self.count = count
        self.groups = groups
        self.num_samples, self.total_size = len(self._part()), count

    def __iter__(self) -> Iterator[int]:
        return iter(self._part())

    def __len__(self) -> int:
        return len(self._part())

    def _part(self) -> list[int]:
        members: dict[int, list[int]] = {}
        for index in range(self.count):
            members.setdefault(index if self.groups is None else self.groups[index], []).append(index)
        ordered = list(members.values())
        if self.shuffle:
            # Hashed, because torch's generator keeps 32 bits of its seed, and seed + epoch would repeat the orders of the next seed.
            word = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)[0])
            generator = torch.Generator().manual_seed(word)
            ordered = [ordered[i] for i in torch.randperm(len(ordered), generator=generator).tolist()]
            ordered = [[group[i] for i in torch.randperm(len(group), generator=generator).tolist()] for group in ordered]
        first, last = _part_bounds([len(group) for group in ordered], self.num_replicas)[self.rank]
        return [index for group in ordered[first:last] for index in group]


def _part_bounds(sizes: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """Split groups into contiguous non-empty parts, each cut at the boundary nearest to an even share.

    Args:
        sizes: samples in each group; at least as many groups as parts.
        parts: number of parts.

    Returns:
        First group and one past the last of each part.
    """
    ends = np.cumsum(sizes)
    cuts = [0]
    for part in range(1, parts):
        target = ends[-1] * part / parts
        open_cuts = range(cuts[-1] + 1, len(sizes) - (parts - part) + 1)
        cuts.append(min(open_cuts, key=lambda cut: abs(ends[cut - 1] - target)))
    cuts.append(len(sizes))
    return list(pairwise(cuts))
