"""How a chunked scan is cut into blocks that fit the cache, and how their operands come to stand with time first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHECKPOINT = 256
"""Tokens between two states that are kept for the gradient."""

BLOCK = 1 << 19
"""Numbers (tokens x channels x state) of each of the half dozen arrays that a block holds."""

ENOUGH = 32
"""Channels that fill the processor's vectors well."""

Part = tuple[slice, slice, slice]
"""Index of rows and channels in a state (R, N, S)."""


class Scratch:
    """Lend memory by name, again and again: touching fresh pages costs more than the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Lend a tensor of that shape; its values are whatever was there, and the same name lends the same memory."""
        size, held = math.prod(shape), self._held.get(name)
        if held is None or len(held) < size:
            held = self._held[name] = self.like.new_empty(size)
        return held[:size].view(shape)


class Block(NamedTuple):
    """Name the rows, channels and tokens that are worked on together; ``steps`` tokens make a chunk. Tokens may reach past the end."""

    part: Part
    start: int
    stop: int
    steps: int

    @property
    def checkpoints(self) -> slice:
        """Name the checkpoints whose tokens lie in the block."""
        return slice(self.start // CHECKPOINT, -(-self.stop // CHECKPOINT))

    def load(self, x: Tensor, name: str, scratch: Scratch) -> Tensor:
        """Bring channels (R, S, L) to (n, l, R, 1, S), zeros past the end: Δ = 0 leaves a state as it is."""
        part = x[self.part[0], self.part[2], self.start : self.stop]
        return self._time_first(part, name, scratch).view(-1, self.steps, part.shape[0], 1, part.shape[1])

    def load_sides(self, x: Tensor, name: str, scratch: Scratch) -> Tensor:
        """Bring what enters or leaves the state (R, N, L) to (n, l, R, N, 1)."""
        part = x[self.part[0], :, self.start : self.stop]
        return self._time_first(part, name, scratch).view(-1, self.steps, part.shape[0], part.shape[1], 1)

    def store(self, values: Tensor, x: Tensor, scratch: Scratch) -> None:
        """Write (n, l, R, 1, S) to its place in (R, S, L)."""
        place = x[self.part[0], self.part[2], self.start : self.stop]
        self._time_last(values, place, scratch)

    def add_sides(self, values: Tensor, x: Tensor, scratch: Scratch) -> None:
        """Add (n, l, R, N, 1) at its place in (R, N, L)."""
        place = x[self.part[0], :, self.start : self.stop]
        found = scratch("sides", *place.shape)
        self._time_last(values, found, scratch)
        place.add_(found)

    def _time_first(self, part: Tensor, name: str, scratch: Scratch) -> Tensor:
        there = part.shape[-1]
        if not part.is_contiguous():  # a transposition is fast only from contiguous rows
            part = scratch("turned", *part.shape).copy_(part)
        turned = scratch(name, self.stop - self.start, part.shape[0] * part.shape[1])
        turned[:there].copy_(part.view(-1, there).t())
        turned[there:].zero_()
        return turned

    def _time_last(self, values: Tensor, place: Tensor, scratch: Scratch) -> None:
        there = place.shape[-1]
        flat = place if place.is_contiguous() else scratch("turned", *place.shape)
        flat.view(-1, there).copy_(values.reshape(self.stop - self.start, -1)[:there].t())
        if flat is not place:
            place.copy_(flat)


def _even(total: int, most: int) -> int:
    """Give the size, at least 1, of equal parts of ``total``, none larger than ``most`` where that is at least 1."""
    parts = -(-total // max(1, most))
    return max(1, -(-total // max(1, parts)))


class Plan(NamedTuple):
    """Say how a scan is cut: R = B G rows of S channels each, steps of a chunk, and what one block takes."""

    batch: int
    groups: int
    share: int
    state: int
    length: int
    steps: int
    rows_at_once: int
    channels_at_once: int
    tokens_at_once: int

    @classmethod
    def of(cls, u: Tensor, B: Tensor) -> Plan:
        """Fit the blocks into `BLOCK` numbers: all tokens of `ENOUGH` channels, for these need not be gathered, or some of all channels."""
        batch, channels, length = u.shape
        groups, state = B.shape[1:3]
        share = channels // groups
        stretch = length if BLOCK // (length * state) >= min(share, ENOUGH) else CHECKPOINT
        rows = _even(batch * groups, BLOCK // (stretch * share * state))
        width = share if rows > 1 else _even(share, BLOCK // (stretch * state))
        stretches = max(-(-stretch // CHECKPOINT), BLOCK // (CHECKPOINT * rows * width * state))
        tokens = min(stretches * CHECKPOINT, length)
        steps = min(1 << round(math.log2(tokens) / 2), CHECKPOINT)
        return cls(batch, groups, share, state, length, steps, rows, width, stretches * CHECKPOINT)

    @property
    def checkpoints(self) -> int:
        """Count the states that are kept."""
        return -(-self.length // CHECKPOINT)

    def parts(self) -> Iterator[Part]:
        """Yield the rows and channels that are worked on together."""
        for r in range(0, self.batch * self.groups, self.rows_at_once):
            for s in range(0, self.share, self.channels_at_once):
                yield slice(r, r + self.rows_at_once), slice(None), slice(s, s + self.channels_at_once)

    def blocks(self, part: Part, reverse: bool) -> list[Block]:
        """List the blocks of a part in the order of reading; the last in time is filled up to whole chunks."""
        whole = -(-self.length // self.steps) * self.steps
        starts = range(0, whole, self.tokens_at_once)
        blocks = [Block(part, t, min(t + self.tokens_at_once, whole), self.steps) for t in starts]
        return blocks[::-1] if reverse else blocks

    def fold_state(self, x: Tensor) -> Tensor:
        """Turn (..., B, D, N) into a new (..., R, N, S)."""
        split = x.reshape(*x.shape[:-3], self.batch * self.groups, self.share, self.state)
        return split.transpose(-1, -2).clone(memory_format=torch.contiguous_format)

    def unfold_state(self, x: Tensor) -> Tensor:
        """Turn (..., R, N, S) into a new (..., B, D, N)."""
        turned = x.transpose(-1, -2).clone(memory_format=torch.contiguous_format)
        return turned.view(*x.shape[:-3], self.batch, self.groups * self.share, self.state)
