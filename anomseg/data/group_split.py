"""Share images or pairs out by what they have in common, so that near copies of one another never train and test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anomseg.data.image_split import Shared


@dataclass(frozen=True)
class GroupSplit:
    r"""Share out by groups, which a pattern reads from the names.

    Attributes:
        pattern: regular expression that is searched in each name; its first bracketed group, or else the whole match, names the group.
        test: groups that test.
        val: groups that validate; none validates on blocks of the training images, which then do not train.
        train: groups that train; none takes all that are left.

    Example:
        >>> split = GroupSplit(r"^\d{5}", test=("12300",), val=("12000",))
    """

    pattern: str
    test: tuple[str, ...]
    val: tuple[str, ...] = ()
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = [*self.test, *self.val, *self.train]
        twice = sorted({group for group in named if named.count(group) > 1})
        if twice:
            raise ValueError(f"Expected each group in one part, but {twice} are named more than once. Correct the split.")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"Expected a regular expression, but got pattern={self.pattern!r} ({error}).") from error

    def share(self, names: Sequence[str], seed: int) -> Shared:
        """Share the names out.

        Args:
            names: the images or pairs that exist.
            seed: without effect; all kinds of split are called alike.

        Returns:
            Names that train, validate and test, each sorted.

        Raises:
            ValueError: a name holds no group, a group that is named does not exist, or nothing is left to train.
        """
        groups = {name: self.group_of(name) for name in sorted(names)}
        missing = sorted({*self.test, *self.val, *self.train} - set(groups.values()))
        rest = tuple(sorted(set(groups.values()) - {*self.test, *self.val}))
        if missing or not rest:
            raise ValueError(
                f"Expected the groups {missing or 'of training'} that the split names, but the pattern {self.pattern!r} finds "
                f"{sorted(set(groups.values()))[:12]}. Correct the pattern or the groups."
            )
        train, val, test = ([name for name, group in groups.items() if group in part] for part in (self.train or rest, self.val, self.test))
        return train, val, test

    def group_of(self, name: str) -> str:
        """Give the group of a name.

        Raises:
            ValueError: the pattern is not in it.
        """
        match = re.search(self.pattern, name)
        if match is None:
            raise ValueError(f"Expected the pattern {self.pattern!r} in every name, but '{name}' has none. Correct the pattern.")
        return next((group for group in match.groups() if group is not None), match.group())
