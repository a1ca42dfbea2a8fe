"""Share images out by the session in which they were taken, so that one object never trains and tests; and what must stay together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from anomseg.data.group_split import GroupSplit
from anomseg.data.image_split import NameSplit, Shared, ShareSplit


@dataclass(frozen=True)
class SessionSplit:
    r"""Draw seeded shares of whole sessions: runs of images whose numbers follow one another closely.

    Attributes:
        pattern: regular expression that is searched in each name; its first bracketed group is the number, an integer.
        gap: a new session begins where the sorted numbers jump by more than this, at least 0; 0 makes each number a session.
        train: share of the images that train, above 0.
        val: share that validates; 0 leaves that to the data module.
        test: share that tests. The three add up to 1, and are met as nearly as whole sessions allow.
        seed: draws the sessions; None takes the seed of the data module.

    Example:
        >>> split = SessionSplit(r"num_(\d+)", gap=1000)
    """

    pattern: str
    gap: int = 1000
    train: float = 0.6
    val: float = 0.1
    test: float = 0.3
    seed: int | None = None

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        if min(shares) < 0 or self.train <= 0 or abs(sum(shares) - 1) > 1e-6 or self.gap < 0:
            raise ValueError(
                f"Expected shares of at least 0 that add up to 1, with train above 0, and gap >= 0, but got {shares} and {self.gap}."
            )
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"Expected a regular expression, but got pattern={self.pattern!r} ({error}).") from error
        if not groups:
            raise ValueError(f"Expected a bracketed group that is the number, but got pattern={self.pattern!r}. num_(\\d+) has one.")

    def sessions(self, names: Sequence[str]) -> list[list[str]]:
        """Group names into sessions.

        Args:
            names: of the images; their order has no influence.

        Returns:
            Sessions in the order of their numbers, each sorted by number and name.

        Raises:
            ValueError: a name holds no number.
        """
        numbered = sorted((self._number(name), name) for name in names)
        found = [[numbered[0][1]]] if numbered else []
        for (before, _), (number, name) in pairwise(numbered):
            if number - before > self.gap:
                found.append([])
            found[-1].append(name)
        return found

    def share(self, names: Sequence[str], seed: int) -> Shared:
        """Share the names out: each session, in a drawn order, goes to the part that lacks most of its share.

        Args:
            names: of the images; their order has no influence.
            seed: draws the order, unless the split has a seed of its own.

        Returns:
            Names that train, validate and test, each sorted; together all, none twice.

        Raises:
            ValueError: a name holds no number, or there are fewer sessions than parts.
        """
        sessions = self.sessions(names)
        shares = (self.train, self.val, self.test)
        wanted = [part for part, share in enumerate(shares) if share > 0]
        if len(sessions) < len(wanted):
            raise ValueError(
                f"Expected at least {len(wanted)} sessions to split, but {len(names)} images make {len(sessions)} with gap={self.gap}. "
                "Lower the gap, or set a share to 0."
            )
        parts: tuple[list[str], list[str], list[str]] = ([], [], [])
        generator = torch.Generator().manual_seed(seed if self.seed is None else self.seed)
        order = torch.randperm(len(sessions), generator=generator).tolist()
        for left, index in zip(range(len(order), 0, -1), order, strict=True):
            empty = [part for part in wanted if not parts[part]]
            open_parts = empty if len(empty) == left else wanted
            lacking = [shares[part] * len(names) - len(parts[part]) for part in open_parts]
            parts[open_parts[lacking.index(max(lacking))]].extend(sessions[index])
        return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])

    def _number(self, name: str) -> int:
        match = re.search(self.pattern, name)
        if match is None or match[1] is None or not match[1].isdecimal():
            raise ValueError(
                f"Expected a number by the pattern {self.pattern!r} in every name, but '{name}' has none. Correct the pattern."
            )
        return int(match[1])


IndustrialSplit = ShareSplit | NameSplit | GroupSplit | SessionSplit


def check_industrial_split(split: IndustrialSplit | None) -> None:
    """Check that a split draws whole images.

    Raises:
        ValueError: it draws blocks of them.
    """
    if isinstance(split, ShareSplit) and split.block is not None:
        raise ValueError(
            f"Expected a split of whole images, but got ShareSplit(block={split.block}), which draws blocks: what is inspected is learnt "
            "from normal images and tested on others. Leave block= out; to learn from one image, lay it out to train alone, by the folders "
            "of layout 'mvtec' or by NameSplit."
        )


def share_out(split: IndustrialSplit, names: Sequence[str], seed: int) -> Shared:
    """Share names out; see the `share` of the split.

    Raises:
        ValueError: there are too few names, or the split fails otherwise.
    """
    if isinstance(split, ShareSplit):
        wanted = sum(share > 0 for share in (split.train, split.val, split.test))
        if len(names) < wanted:
            raise ValueError(
                f"Expected at least {wanted} images to share out, but got {len(names)}: {sorted(names)}. Set a share to 0, as in "
                "ShareSplit(0.7, 0.0, 0.3), or name the images of each part with NameSplit."
            )
    return split.share(names, seed)


def kept_together(split: IndustrialSplit | None, pools: Iterable[Sequence[str]]) -> dict[str, str]:
    """Find which images no draw may part.

    Args:
        split: whose sessions or groups stay whole; of others, and of None, each image is alone.
        pools: names that were shared out together.

    Returns:
        For each name that of its session or group, or itself.
    """
    if isinstance(split, SessionSplit):
        return {name: session[0] for pool in pools for session in split.sessions(pool) for name in session}
    return {name: split.group_of(name) if isinstance(split, GroupSplit) else name for pool in pools for name in pool}


def drawn_to_validate(units: Sequence[str], share: float, seed: int) -> set[str]:
    """Draw whole units, so that about a share of what they hold validates and one unit or more is left.

    Args:
        units: what each image, or patch of one, must not be parted from.
        share: of the images, above 0 and below 1.
        seed: draws the order in which units are tried; one that would exceed the share by more than its half is passed over.

    Returns:
        The units that validate; none where there is but one, else at least one.
    """
    sizes = Counter(units)
    wanted = max(1, round(share * len(units)))
    listed = list(sizes)
    tried = [listed[index] for index in torch.randperm(len(listed), generator=torch.Generator().manual_seed(seed)).tolist()]
    held: set[str] = set()
    taken = 0
    for unit in tried:
        if len(held) + 1 < len(tried) and taken + sizes[unit] / 2 <= wanted:
            held.add(unit)
            taken += sizes[unit]
    return held if held or len(tried) == 1 else {min(tried, key=lambda unit: sizes[unit])}
