"""Share the pairs of a data set out among its parts, and keep those of a part that can serve it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from anomseg.data.change_folders import ChangeLayout, ChangeLayoutName, PairFiles, PairsByPart, change_layout, find_pairs
from anomseg.data.change_pairs import ChangePair, PairReading
from anomseg.data.change_truth import TruthCoding, TruthReading
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import PARTS, Part
from anomseg.data.image_split import NameSplit, ShareSplit, block_windows
from anomseg.errors import SceneNotFoundError

PairSplit = ShareSplit | NameSplit | GroupSplit | Literal["all_stages"]
PairParts = dict[Part, list[ChangePair]]


@dataclass(frozen=True)
class PairSource:
    """Say where pairs come from.

    Attributes:
        root: the folder of the data set.
        layout: how it is laid out.
        pairs: the files of each pair, below the root, instead of a layout; empty searches by the layout.
        threshold: of the masks, where ``pairs`` are given; see `TruthReading`.
        reading: how values are read.
    """

    root: str | Path
    layout: ChangeLayoutName | ChangeLayout = "auto"
    pairs: tuple[PairFiles, ...] = ()
    threshold: float | None = None
    reading: PairReading = field(default_factory=PairReading)

    def found(self) -> dict[Part | str, list[ChangePair]]:
        """List the pairs by part, or all under ""; only names are read.

        Raises:
            SceneNotFoundError: see `find_pairs`.
        """
        root, reading = Path(self.root).expanduser(), self.reading
        if self.pairs:
            listed: PairsByPart = {"": [pair.below(root) for pair in self.pairs]}
            truths = TruthReading(self.threshold)
        else:
            layout = change_layout(self.layout, root)
            listed = find_pairs(root, layout)
            reading = replace(reading, bands=layout.bands if reading.bands is None else reading.bands)
            truths = TruthReading(layout.threshold if self.threshold is None else self.threshold, layout.unchanged)
        return {part: [ChangePair(files, reading, truths, files.name) for files in found] for part, found in listed.items()}


def shared_pairs(source: PairSource, split: PairSplit | None, seed: int) -> PairParts:
    """Find the pairs of a data set and share them out.

    Args:
        source: where they come from.
        split: how to share; None follows the folders or lists of the layout, "all_stages" gives every pair to training and test.
        seed: of a split by shares.

    Returns:
        Pairs, or blocks of pairs, that train, validate and test. Only a split by blocks reads headers and masks.

    Raises:
        SceneNotFoundError: there are no pairs.
        ValueError: there is no split and the layout has no folders of parts, or two pairs to be split share a name.
    """
    found = source.found()
    if split is None:
        if "" in found:
            names = sorted(pair.name for pair in found[""])
            raise ValueError(
                f"Expected a split of the {len(names)} pairs below '{source.root}' ({names[:4]}...), which lie in no folders or lists of "
                "parts. Give split=GroupSplit(...) by place or series, NameSplit(...), ShareSplit(...) if chance is meant, or "
                "'all_stages' for methods that do not read the truth."
            )
        return {part: found.get(part, []) for part in PARTS}
    pairs = [pair for listed in found.values() for pair in listed]
    if split == "all_stages":
        return {"train": pairs, "val": [], "test": pairs}
    if isinstance(split, ShareSplit) and split.block is not None:
        measured = [pair.measured() for pair in pairs]
        pairs = [pair.block(window) for pair in measured for window in block_windows(pair.size, split.block)]
    by_name = {pair.name: pair for pair in pairs}
    if len(by_name) < len(pairs):
        twice = sorted({pair.name for pair in pairs if by_name[pair.name] is not pair})
        raise ValueError(f"Expected pairs of different names to split them, but {twice[:8]} occur twice. Rename them, or use the folders.")
    return {part: [by_name[name] for name in names] for part, names in zip(PARTS, split.share(list(by_name), seed), strict=True)}


def usable_pairs(pairs: Sequence[ChangePair], part: Part, needs_truth: bool = True) -> list[ChangePair]:
    """Read headers and masks of one part, and leave out pairs that cannot serve it: a warning says how many.

    Training needs an unchanged pixel in each pair, validation and test a pixel that counts.

    Args:
        pairs: the pairs of the part.
        part: what they are for.
        needs_truth: whether pairs without a mask are an error; they serve as they are otherwise.

    Returns:
        The pairs that can serve, measured.

    Raises:
        SceneNotFoundError: pairs lack their masks, or a file is missing.
        SceneFormatError: a file is unreadable, or a mask holds more than two values.
        ValueError: there is no pair, dates or masks do not fit, pairs differ in their bands, or no pair can serve.
    """
    if not pairs:
        raise ValueError(
            f"Expected at least one pair for '{part}', but the split gives none. Correct split=, or the folders of the layout."
        )
    lacking = [pair.name for pair in pairs if not pair.has_truth]
    if lacking and needs_truth:
        raise SceneNotFoundError(
            f"Expected a mask for each pair of '{part}', but {len(lacking)} of {len(pairs)} lack one, such as {lacking[:4]}. "
            "Add the masks, or serve these pairs to predict alone."
        )
    measured = measured_pairs(pairs)
    kept = [pair for pair in measured if not pair.has_truth or _can_serve(pair, part)]
    wanted = "an unchanged pixel" if part == "train" else "a pixel that is not ignored"
    if not kept:
        raise ValueError(f"Expected {wanted} in the {len(pairs)} pairs of '{part}', but there is none. Correct the masks, or the split.")
    if len(kept) < len(pairs):
        warnings.warn(f"{len(pairs) - len(kept)} of {len(pairs)} pairs of '{part}' lack {wanted} and are left out.", stacklevel=2)
    return kept


def measured_pairs(pairs: Sequence[ChangePair]) -> list[ChangePair]:
    """Read the headers of pairs, and check that they have as many bands.

    Raises:
        ValueError: pairs differ in their bands, or see `ChangePair.measured`.
    """
    measured = _of_one_coding([pair if pair.grid is not None else pair.measured() for pair in pairs])
    counts = {pair.stored: pair.files.before[0] for pair in reversed(measured)}
    if len(counts) > 1:
        named = ", ".join(f"{count} in '{path}'" for count, path in sorted(counts.items()))
        raise ValueError(f"Expected pairs of as many bands, but got {named}. Give them a module each, or keep some with bands=.")
    return measured


def served_pairs(pairs: Sequence[ChangePair]) -> list[ChangePair]:
    """Read the headers of pairs that are to be mapped, with or without a truth.

    Raises:
        ValueError: there is no pair, or see `measured_pairs`.
    """
    if not pairs:
        raise ValueError("Expected pairs to predict, but the split or the folders give none for 'test'. Name a folder in predict_root=.")
    return measured_pairs(pairs)


def _of_one_coding(pairs: list[ChangePair]) -> list[ChangePair]:
    """Let 255 mean one thing: beside masks that hold 1, those of 0 and 255 alone are unchanged and unknown, and not black and white."""
    codings = {coding for pair in pairs for coding in pair.truths.codings}
    if not {"ids", "black_white"} <= codings:
        return pairs
    other = [pair.name for pair in pairs if "black_white" in pair.truths.codings]
    warnings.warn(
        f"{len(other)} of {len(pairs)} pairs have masks of 0 and 255 alone, such as {other[:4]}, beside masks that hold 1: their 255 is "
        "read as unknown. If it is change, set threshold=0.",
        stacklevel=2,
    )
    read_as: dict[TruthCoding, TruthCoding] = {"black_white": "ids"}
    truths = [replace(pair.truths, codings=tuple(read_as.get(coding, coding) for coding in pair.truths.codings)) for pair in pairs]
    return [replace(pair, truths=truth) for pair, truth in zip(pairs, truths, strict=True)]


def _can_serve(pair: ChangePair, part: Part) -> bool:
    unchanged, changed = pair.found()
    return unchanged or (changed and part != "train")
