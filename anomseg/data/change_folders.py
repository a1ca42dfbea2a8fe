"""Describe how data sets of change detection lay out their pairs, as a table of dialects, and find the pairs that fit one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomseg.data.image_folders import PARTS, FolderLayout, Part, find_images
from anomseg.errors import SceneFormatError, SceneNotFoundError

ChangeLayoutName = Literal[
    "auto",
    "a_b_label",
    "a_b_out",
    "time1_time2_label",
    "t1_t2_mask",
    "t1_t2_label",
    "t1_t2_gt",
    "image1_image2_label",
    "s2looking",
    "second",
    "deeppcb",
    "suffix_1_2_gt",
    "oscd",
]
Colour = tuple[int, int, int]
_LISTED = 8


@dataclass(frozen=True)
class ChangeLayout:
    """Describe where the images of both dates and the masks lie below a root.

    Paths are templates as those of `FolderLayout`: ``{name}`` joins the files of a pair, whatever their suffixes, ``{split}`` is a folder
    of one part, ``*`` anything without a slash.

    Attributes:
        before: templates of the first date; several files of one date are stacked as bands, in this order.
        after: templates of the second date.
        mask: template of the masks; None where there are none.
        lists: template of text files in UTF-8 that name the pairs of each part, such as ``list/{split}.txt``; used where they are there.
            An entry is a name, with or without a suffix, or a line of paths below the root: before, after and mask. Tabs and commas part
            entries, and blanks where they are no part of a name.
        threshold: mask value above which a pixel is change, such as 127; None reads 0 and 1, 0 and 255, or greys of a JPEG (127).
        unchanged: colour that marks unchanged pixels in masks of semantic colours; any other colour is change.
        bands: indices of the bands to keep where a data module names none, such as the first one of grey images, some of which are stored
            as colours; None keeps all.
        train: name of the part's folder and list, or None.
        val: likewise.
        test: likewise.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    mask: str | None
    lists: str | None = None
    threshold: float | None = None
    unchanged: Colour | None = None
    bands: tuple[int, ...] | None = None
    train: str | None = "train"
    val: str | None = "val"
    test: str | None = "test"

    def __post_init__(self) -> None:
        if not self.before or len(self.before) != len(self.after):
            raise ValueError(f"Expected as many templates before as after, but got {self.before} and {self.after}. Name both dates' files.")


def _folders(before: str, after: str, mask: str, threshold: float | None = None, unchanged: Colour | None = None) -> ChangeLayout:
    first, second, truth = (f"{{split}}/{folder}/{{split}}/{{name}}.*" for folder in (before, after, mask))
    return ChangeLayout((first,), (second,), truth, "list/{split}.txt", threshold, unchanged)


_SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")

CHANGE_LAYOUTS: Mapping[str, ChangeLayout] = {
    "a_b_label": _folders("A", "B", "label"),  # LEVIR-CD, LEVIR-CD+, tiles of WHU-CD, the lists of BIT and ChangeFormer
    "a_b_out": _folders("A", "B", "OUT", 127.0),  # CDD, season-varying
    "time1_time2_label": _folders("time1", "time2", "label"),  # SYSU-CD, CLCD
    "t1_t2_mask": _folders("t1", "t2", "mask"),  # DSIFN-CD
    "t1_t2_label": _folders("t1", "t2", "label"),
    "t1_t2_gt": _folders("T1", "T2", "GT"),
    "image1_image2_label": _folders("image1", "image2", "label"),
    "s2looking": _folders("Image1", "Image2", "label"),
    "second": _folders("im1", "im2", "label1", unchanged=(255, 255, 255)),
    "deeppcb": ChangeLayout(("template/{name}.*",), ("test/{name}.*",), "mask/{name}.*", bands=(0,)),
    "suffix_1_2_gt": ChangeLayout(("{name}_1.*",), ("{name}_2.*",), "{name}_gt.*"),
    "oscd": ChangeLayout(
        tuple(f"*Images/{{name}}/imgs_1_rect/{band}.tif" for band in _SENTINEL_2),
        tuple(f"*Images/{{name}}/imgs_2_rect/{band}.tif" for band in _SENTINEL_2),
        "*Labels/{name}/cm/cm.png",
        "*Images/{split}.txt",
    ),
}


@dataclass(frozen=True)
class PairFiles:
    """Name the files of one pair.

    Attributes:
        name: of the pair, unique within a data module.
        before: files of the first date, stacked as bands.
        after: files of the second date.
        mask: truth map, or None.
        changed: map of the pixels known as changed, instead of ``mask``.
        unchanged: map of the pixels known as unchanged; what neither marks is 255.
    """

    name: str
    before: tuple[str | Path, ...]
    after: tuple[str | Path, ...]
    mask: str | Path | None = None
    changed: str | Path | None = None
    unchanged: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.before or not self.after:
            raise ValueError(f"Expected files of both dates of '{self.name}', but got {self.before} and {self.after}.")
        if (self.changed is None) != (self.unchanged is None) or (self.mask is not None and self.changed is not None):
            raise ValueError(f"Expected a mask, or a map of changed and one of unchanged pixels, for '{self.name}', but got a mixture.")

    @property
    def has_truth(self) -> bool:
        """Say whether a truth is named."""
        return self.mask is not None or self.changed is not None

    @property
    def truths(self) -> tuple[Path, ...]:
        """List the files of the truth."""
        return tuple(Path(path) for path in (self.mask, self.changed, self.unchanged) if path is not None)

    def below(self, root: Path) -> PairFiles:
        """Place relative paths below a root."""
        before, after = (tuple(root / path for path in paths) for paths in (self.before, self.after))
        truths = [None if path is None else root / path for path in (self.mask, self.changed, self.unchanged)]
        return PairFiles(self.name, before, after, *truths)


Key = tuple[Part | Literal[""], str]
PairsByPart = dict[Part | Literal[""], list[PairFiles]]


def change_layout(chosen: ChangeLayoutName | ChangeLayout, root: str | Path) -> ChangeLayout:
    """Look a layout up by its name; a layout passes, and "auto" takes the first of the table that finds pairs, at best with masks.

    Raises:
        ValueError: there is no layout of that name.
        SceneNotFoundError: "auto" finds nothing below the root.
    """
    if isinstance(chosen, ChangeLayout):
        return chosen
    if chosen != "auto":
        if chosen not in CHANGE_LAYOUTS:
            raise ValueError(f"Expected a ChangeLayout, 'auto' or one of {', '.join(CHANGE_LAYOUTS)}, but got layout={chosen!r}.")
        return CHANGE_LAYOUTS[chosen]
    fitting = [layout for layout in CHANGE_LAYOUTS.values() if _fits(Path(root).expanduser(), layout.before[0])]
    labelled = [layout for layout in fitting if layout.mask is not None and _fits(Path(root).expanduser(), layout.mask)]
    if not fitting:
        raise SceneNotFoundError(
            f"Expected pairs below '{root}' in one of the layouts {', '.join(CHANGE_LAYOUTS)}, but found none. Correct root=, describe "
            "yours with ChangeLayout, or name the files with pairs=[PairFiles(...)]."
        )
    return (labelled or fitting)[0]


def find_pairs(root: str | Path, layout: ChangeLayout) -> PairsByPart:
    """List the pairs below a root.

    Args:
        root: the folder of the data set.
        layout: how it is laid out.

    Returns:
        Pairs by part ("train", "val", "test"), those with files of the same folders or lists; or all under "" where there is neither.

    Raises:
        SceneNotFoundError: the folder is missing, holds no pair, or an image lacks its partner; the message lists such images.
        SceneFormatError: two files of one date claim the same name.
    """
    folder = Path(root).expanduser()
    dates = [[_listed(folder, layout, template) for template in date] for date in (layout.before, layout.after)]
    truths = dict(_listed(folder, layout, layout.mask, needed=False)) if layout.mask is not None else {}
    files = [listing for date in dates for listing in date]
    known = {key for listing in files for key in listing}
    alone = sorted(key for key in known if any(key not in listing for listing in files))
    if alone:
        templates = (*layout.before, *layout.after)
        named = [f"{name} (no {next(t for t, f in zip(templates, files, strict=True) if (part, name) not in f)})" for part, name in alone]
        raise SceneNotFoundError(
            f"Expected a partner for every image below '{folder}', but {len(alone)} of {len(known)} have none: {', '.join(named[:_LISTED])}"
            f"{', ...' if len(named) > _LISTED else ''}. Add the missing files, or remove the others."
        )
    pairs: PairsByPart = {}
    for key in sorted(known):
        before, after = (tuple(listing[key] for listing in date) for date in dates)
        pairs.setdefault(key[0], []).append(PairFiles(key[1], before, after, _truth(truths, *key)))
    return _by_lists(folder, layout, pairs)


def _truth(truths: Mapping[Key, Path], part: Part | Literal[""], name: str) -> Path | None:
    found = truths.get((part, name))
    # masks of training alone are found under "", as if there were no parts
    return truths.get(("", name)) if found is None and part == "train" else found


def _listed(folder: Path, layout: ChangeLayout, template: str, needed: bool = True) -> dict[Key, Path]:
    """Find the files of one template by part and name."""
    single = FolderLayout((template,), template, train=layout.train, val=layout.val, test=layout.test)
    try:
        found = find_images(folder, single)
    except SceneNotFoundError:
        if needed:
            raise
        return {}
    listing: dict[Key, Path] = {}
    for part, images in found.items():
        for image in images:
            if (part, image.name) in listing:
                raise SceneFormatError(
                    f"Expected one file for each name, but '{listing[part, image.name]}' and '{image.bands[0]}' share '{image.name}'. "
                    "Put what sets them apart into {name}, or read the folders with a module each."
                )
            listing[part, image.name] = image.bands[0]
    return listing


def _fits(folder: Path, template: str) -> bool:
    try:
        return bool(find_images(folder, FolderLayout((template,), template)))
    except (SceneNotFoundError, SceneFormatError):
        return False


def _by_lists(folder: Path, layout: ChangeLayout, pairs: PairsByPart) -> PairsByPart:
    """Share pairs out as text files say, where there are such files and the folders do not say it already."""
    if layout.lists is None or set(pairs) != {""}:
        return pairs
    parts: list[tuple[Part, str]] = [
        (part, name) for part, name in zip(PARTS, (layout.train, layout.val, layout.test), strict=True) if name is not None
    ]
    files = {part: sorted(folder.glob(layout.lists.replace("{split}", name))) for part, name in parts}
    by_name = {pair.name: pair for pair in pairs[""]}
    shared: PairsByPart = {part: [] for part, _ in parts}
    for part, lists in files.items():
        for path in lists:
            entries = (entry for line in path.read_text(encoding="utf-8-sig").splitlines() for entry in _entries(folder, line, by_name))
            shared[part] += [_pair(folder, entry, by_name, path) for entry in entries]
    return {part: listed for part, listed in shared.items() if listed} or pairs


def _entries(folder: Path, line: str, by_name: Mapping[str, PairFiles]) -> Iterable[Sequence[str]]:
    """Read the entries of a line: paths, or names. Names may hold blanks, so that these part entries only where nothing is found else."""
    words = [word for word in re.split(r"\s*[,\t]\s*", line.strip()) if word]
    if not any((folder / word).is_file() if "/" in word else _named(word, by_name) for word in words):
        words = [word for word in re.split(r"[,\s]+", line.strip()) if word]
    return [words] if any("/" in word for word in words) else [[word] for word in words]


def _named(word: str, by_name: Mapping[str, PairFiles]) -> PairFiles | None:
    name = Path(word).name
    return by_name.get(name) or by_name.get(Path(name).stem)


def _pair(folder: Path, words: Sequence[str], by_name: Mapping[str, PairFiles], path: Path) -> PairFiles:
    if len(words) in (2, 3) and "/" in words[0]:
        return PairFiles(Path(words[0]).stem, (folder / words[0],), (folder / words[1],), *(folder / word for word in words[2:]))
    found = _named(words[0], by_name)
    if found is None:
        raise SceneNotFoundError(
            f"Expected the pair '{words[0]}' that '{path}' names, but there are {sorted(by_name)[:_LISTED]} and "
            f"{max(0, len(by_name) - _LISTED)} more. Add its files, or correct the list."
        )
    return found
