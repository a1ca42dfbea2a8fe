"""Share the images of an industrial data set out: normal ones train, validate and test, defective ones test."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from anomseg.data.image_folders import IMAGE_SUFFIXES, PARTS, Part
from anomseg.data.image_split import ShareSplit
from anomseg.data.industrial_images import ImageSize, IndustrialImage, check_image_size
from anomseg.data.industrial_layouts import (
    GOOD,
    IndustrialFile,
    IndustrialLayout,
    IndustrialLayoutName,
    find_industrial,
    industrial_layout_of,
)
from anomseg.data.industrial_patches import PatchRule
from anomseg.data.industrial_split import (
    IndustrialSplit,
    SessionSplit,
    check_industrial_split,
    drawn_to_validate,
    kept_together,
    share_out,
)
from anomseg.data.path_template import matching_files
from anomseg.errors import SceneNotFoundError
from anomseg.sample import ANOMALY, IGNORE

TestDefects = Literal["all", "split"]
IndustrialParts = dict[Part, list[IndustrialImage]]


@dataclass(frozen=True)
class IndustrialSet:
    """Describe one data set among those that train a model together.

    Attributes:
        root: its folder.
        layout: name of a layout, or one of your own.
        categories: kinds of objects or surfaces to take; None takes all that the folder holds.
        split: how normal images are shared out, by names `category/defect/stem`; None takes the layout's, or else follows its folders to
            train and to test, or else draws `ShareSplit(0.6, 0.1, 0.3)`. Categories are shared out one by one, patches by their images.
        test_defects: which defective images test: `all`, or those that the `split` gives to test, which keeps objects apart that have
            normal images in training.
        patches: cuts images into patches; None takes the layout's, if it has one.
        size: (height, width) that images are scaled to, or a factor; None takes what the data module says.
        repeats: training samples from each image for one from each image of other sets, at least 1: sets of few large images beside
            sets of many small ones need some.
    """

    root: str | Path
    layout: IndustrialLayoutName | IndustrialLayout = "mvtec"
    categories: tuple[str, ...] | None = None
    split: IndustrialSplit | None = None
    test_defects: TestDefects = "all"
    patches: PatchRule | None = None
    size: ImageSize = None
    repeats: int = 1

    def __post_init__(self) -> None:
        industrial_layout_of(self.layout)
        check_image_size(self.size)
        check_industrial_split(self.split)
        if isinstance(self.categories, str):
            raise ValueError(f"Expected a sequence of categories, but got the text '{self.categories}'. Write ['{self.categories}'].")
        if isinstance(self.size, list):  # images are told apart by what describes them
            object.__setattr__(self, "size", tuple(self.size))
        if self.test_defects not in get_args(TestDefects) or self.repeats < 1:
            raise ValueError(
                f"Expected test_defects of {get_args(TestDefects)} and repeats >= 1, but got {self.test_defects!r} and {self.repeats}."
            )

    @property
    def described(self) -> IndustrialLayout:
        """Give the layout."""
        return industrial_layout_of(self.layout)


def shared_set(chosen: IndustrialSet, val_share: float = 0.1, seed: int = 0) -> IndustrialParts:
    """Find the images of a data set and share them out.

    Args:
        chosen: the data set.
        val_share: share of the training images of each category that validate instead, where the split sets none apart; 0 for none. All
            patches of an image stay together, and so do the images of a session of `SessionSplit` or a group of `GroupSplit`.
        seed: of splits by shares, and of those images.

    Returns:
        Images that train, validate and test, with their sizes; training and validation images are normal. A warning says how many defective
        images have no mask, or an empty one: their pixels are unknown (255), and their image label is 1 all the same.

    Raises:
        SceneNotFoundError: there is no image, or no normal one.
        SceneFormatError: a file is unreadable.
        ValueError: a mask differs from its image in size, or the split fails.
    """
    layout = chosen.described
    categories = None if chosen.categories is None else tuple(chosen.categories)
    found = [IndustrialImage(file, layout, chosen.size).measured() for file in find_industrial(chosen.root, layout, categories)]
    rule = chosen.patches or layout.patches
    if rule is None:
        images = [_judged(image) for image in found]
        owner = {image: image.name for image in images}
    else:
        owner = {patch: image.name for image in found for patch in _patches(image, rule)}
        images = list(owner)
        blank = [str(image.file.path) for image in found if bool((image.truth() == IGNORE).all())]
        if blank:
            warnings.warn(
                f"{len(blank)} of {len(found)} images have no truth to cut patches by, and are left out: {blank[:3]}.", stacklevel=2
            )
    if not any(image.file.defect == GOOD for image in images):
        raise SceneNotFoundError(
            f"Expected normal images in '{chosen.root}', which training needs, but its {len(images)} images are of "
            f"{sorted({str(image.file.defect) for image in images})}. Name the normal ones in good= of the layout, or give patches=."
        )
    _say_what_is_unknown(images)
    split, pools = _split_of(chosen), _pools(chosen, images, owner)
    unit = kept_together(split, pools)
    unit_of = {image: unit.get(owner[image], owner[image]) for image in images}
    return _with_validation(_shared(chosen, images, owner, seed), unit_of, val_share, seed)


def predicted_images(root: str | Path, layout: IndustrialLayout, category: str) -> list[IndustrialImage]:
    """Find images to predict, laid out as those of a data set or directly in a folder; in the latter case nothing is known of them.

    Args:
        root: the folder.
        layout: of the data set.
        category: what images that lie directly in the folder show; empty where nobody knows.

    Raises:
        SceneNotFoundError: there is no image.
    """
    folder = Path(root).expanduser()
    try:
        files = find_industrial(folder, layout)
    except SceneNotFoundError:
        direct = matching_files(folder, "{name}.*", IMAGE_SUFFIXES) if folder.is_dir() else []
        if not direct:
            raise
        files = [IndustrialFile(path, None, category, None, None, path.stem) for path, _ in direct]
    return [_judged(IndustrialImage(file, layout).measured()) for file in files]


def _judged(image: IndustrialImage) -> IndustrialImage:
    """Let the mask say whether the image is normal, where its place does not."""
    if image.file.defect is not None or image.file.mask is None:
        return image
    kind = image.layout.defect if bool((image.truth() == ANOMALY).any()) else GOOD
    return replace(image, file=replace(image.file, defect=kind))


def _patches(image: IndustrialImage, rule: PatchRule) -> list[IndustrialImage]:
    mask = image.truth()
    if bool((mask == IGNORE).all()):
        return []  # nobody knows which of its patches are normal
    normal, anomalous = rule.patches(mask)
    kinds = ((GOOD, normal), (image.file.defect if image.file.defect not in (None, GOOD) else image.layout.defect, anomalous))
    return [replace(image, file=replace(image.file, defect=kind), window=window) for kind, windows in kinds for window in windows]


def _split_of(chosen: IndustrialSet) -> IndustrialSplit | None:
    """Choose the split; None where the folders say which images train."""
    split = chosen.split or chosen.described.split
    return split if split is not None or chosen.described.train is not None else ShareSplit(0.6, 0.1, 0.3)


def _pools(chosen: IndustrialSet, images: list[IndustrialImage], owner: dict[IndustrialImage, str]) -> list[list[str]]:
    """List the names that are shared out together: those of each category where shares are drawn, else all."""
    whole = {owner[image] for image in images if image.file.defect == GOOD or chosen.test_defects == "split"}
    if not isinstance(_split_of(chosen), ShareSplit | SessionSplit):
        return [sorted(whole)]
    category_of = {owner[image]: image.file.category for image in images}
    pools = [[name for name in sorted(whole) if category_of[name] == category] for category in sorted(set(category_of.values()))]
    return [pool for pool in pools if pool]


def _shared(chosen: IndustrialSet, images: list[IndustrialImage], owner: dict[IndustrialImage, str], seed: int) -> IndustrialParts:
    """Give each image to the part of the image that it is, or was cut from."""
    split = _split_of(chosen)
    normal = {owner[image] for image in images if image.file.defect == GOOD}
    if split is None:
        part_of: dict[str, Part] = {owner[image]: image.file.part or "test" for image in images}
    else:
        shares = [share_out(split, pool, seed) for pool in _pools(chosen, images, owner)]
        part_of = {name: part for shared in shares for part, names in zip(PARTS, shared, strict=True) for name in names}
    parts: IndustrialParts = {part: [] for part in PARTS}
    for image in images:
        good, part = image.file.defect == GOOD, part_of.get(owner[image])
        all_test = chosen.test_defects == "all" and owner[image] not in normal
        if good and part is not None:
            parts[part].append(image)
        elif not good and (all_test or part == "test"):
            parts["test"].append(image)
    return parts


def _with_validation(parts: IndustrialParts, unit_of: dict[IndustrialImage, str], val_share: float, seed: int) -> IndustrialParts:
    """Let some training images of each category validate, where none do; what is one unit is never parted."""
    train, val = [], list(parts["val"])
    have = {image.file.category for image in val}
    for category in sorted({image.file.category for image in parts["train"]}):
        images = [image for image in parts["train"] if image.file.category == category]
        units = [unit_of[image] for image in images]
        held = set() if category in have or val_share == 0 else drawn_to_validate(units, val_share, seed)
        train += [image for image, unit in zip(images, units, strict=True) if unit not in held]
        val += [image for image, unit in zip(images, units, strict=True) if unit in held]
    return {**parts, "train": train, "val": val}


def _say_what_is_unknown(images: Sequence[IndustrialImage]) -> None:
    defective = [image for image in images if image.image_label == ANOMALY and image.window is None]
    lacking = [image.name for image in defective if image.file.mask is None]
    empty = [image.name for image in defective if image.file.mask is not None and bool((image.truth() == IGNORE).all())]
    for names, what in ((lacking, "have no mask"), (empty, "have a mask that marks nothing")):
        if names:
            warnings.warn(
                f"{len(names)} of {len(defective)} defective images {what}, such as {names[:3]}: their pixels are ignored (255) and count "
                "in no pixel figure; their image labels do count.",
                stacklevel=3,
            )
