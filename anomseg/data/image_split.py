"""Share images, or blocks of images, out among training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from anomseg.functional.windows import Window

Shared = tuple[list[str], list[str], list[str]]


@dataclass(frozen=True)
class ShareSplit:
    """Draw seeded shares of the images.

    Attributes:
        train: share of the images that train, above 0.
        val: share that validates; 0 validates on blocks of the training images, which then do not train.
        test: share that tests. The three add up to 1.
        block: side in pixels; then blocks of the images are drawn instead of whole images, which splits a single large raster. Blocks
            that touch are no strangers to each other: whole images, or places apart, are the harder test.
    """

    train: float = 0.7
    val: float = 0.1
    test: float = 0.2
    block: int | None = None

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        if min(shares) < 0 or self.train <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"Expected shares of at least 0 that add up to 1, with train above 0, but got {shares}. Correct them.")
        if self.block is not None and self.block < 1:
            raise ValueError(f"Expected blocks of at least 1 pixel, but got {self.block}. Use None to split by images.")

    def share(self, names: Sequence[str], seed: int) -> Shared:
        """Share the names out: a part of n names gets n times its share, rounded, and at least one where its share is above 0.

        Args:
            names: images or blocks; their order has no influence.
            seed: draws the same parts for the same names.

        Returns:
            Names that train, validate and test, each sorted; together all, none twice.

        Raises:
            ValueError: there are fewer names than parts.
        """
        ordered = sorted(names)
        wanted = [share > 0 for share in (self.train, self.val, self.test)]
        if len(ordered) < sum(wanted):
            raise ValueError(
                f"Expected at least {sum(wanted)} images or blocks to split, but got {len(ordered)}: {ordered}. "
                "Split a large image by blocks with split=ShareSplit(block=...), or set a share to 0."
            )
        count, val, test = len(ordered), int(wanted[1]), int(wanted[2])
        first = min(max(round(self.train * count), 1), count - val - test)
        second = min(max(round((self.train + self.val) * count), first + val), count - test)
        generator = torch.Generator().manual_seed(seed)
        drawn = [ordered[index] for index in torch.randperm(count, generator=generator).tolist()]
        return sorted(drawn[:first]), sorted(drawn[first:second]), sorted(drawn[second:])


@dataclass(frozen=True)
class NameSplit:
    """Name the images of each part.

    Attributes:
        train: names (file stems) that train.
        val: names that validate; none validates on blocks of the training images, which then do not train.
        test: names that test. Images that no part names are left out.
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = [*self.train, *self.val, *self.test]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice or not self.train:
            raise ValueError(f"Expected names that train, and each name once, but got {twice or 'none that trains'}. Correct the lists.")

    def share(self, names: Sequence[str], seed: int) -> Shared:
        """Share the names out as listed.

        Args:
            names: the images that exist.
            seed: without effect; both kinds of split are called alike.

        Returns:
            Names that train, validate and test, as listed.

        Raises:
            ValueError: a listed image does not exist.
        """
        missing = sorted({*self.train, *self.val, *self.test} - set(names))
        if missing:
            raise ValueError(
                f"Expected the images {missing[:8]} ({len(missing)} in all) that the split names, but found {sorted(names)[:8]} and "
                f"{max(0, len(names) - 8)} more. Names are file stems without the parts that the layout fixes."
            )
        return list(self.train), list(self.val), list(self.test)


def block_windows(size: tuple[int, int], block: int) -> list[Window]:
    """Cut an image into blocks that cover it once, as near to a side as its size allows.

    Args:
        size: (height, width) in pixels.
        block: the side that is aimed at, in pixels.

    Returns:
        Windows (row, column, height, width), row by row; sides along one axis differ by one pixel at most.
    """
    rows, columns = (_edges(length, block) for length in size)
    return [(top, left, down - top, right - left) for top, down in rows for left, right in columns]


def _edges(length: int, block: int) -> list[tuple[int, int]]:
    count = max(1, round(length / block))
    edges = [length * index // count for index in range(count + 1)]
    return list(pairwise(edges))
