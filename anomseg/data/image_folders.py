"""Describe how a data set lays out its images and masks, as small tables, and find the files that fit a description."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from anomseg.data.class_rule import BINARY, DERIVED, ClassTable, IndexThreshold
from anomseg.data.hdf5_io import HDF5_SUFFIXES
from anomseg.data.path_template import matching_files
from anomseg.errors import SceneFormatError, SceneNotFoundError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", *HDF5_SUFFIXES)
Encoding = Literal["binary", "index", "colour"]
LayoutName = Literal[
    "plain",
    "image_label",
    "deepglobe",
    "deepglobe_colour",
    "agriculture_vision",
    "agriculture_vision_2020",
    "loveda",
    "loveda_flat",
    "potsdam",
    "landslide4sense",
]
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class FolderLayout:
    """Describe where images and masks lie below a root, and what the stored values mean.

    Paths are templates: ``{name}`` stands for the name of an image (without it there is one image, named by its stem), ``{split}`` for a
    folder named in ``train``, ``val`` or ``test``, ``{class}`` for a class, any other ``{word}`` and ``*`` for anything without a slash.
    A path component that is ``{split}`` alone may be missing, and a path may offer it at two places: the first way to find images counts.

    Attributes:
        images: one template, or one for each band file of an image, in this order; the first lists the images.
        masks: template of the masks, with ``{class}`` where each class has a mask of its own; or an `IndexThreshold`. Masks of a class
            that the table lacks are an error.
        table: the classes.
        encoding: ``"binary"`` (0 and 1, or black and white at a threshold of 127; 0, 1 and 255 is 255 ignored; other values without
            white are an error), ``"index"`` (class ids), or ``"colour"``. Masks of single classes are binary. A file of 0 and 255 alone
            is black and white: take ``"index"`` for tiles of 0, 1 and an ignored 255, of which some hold no 1.
        train: folder that ``{split}`` stands for, or None.
        val: likewise.
        test: likewise.
        valid: templates of further binary masks; where one is black, a pixel does not count. They may be missing.
        nodata: image value that marks, where all bands that are kept have it, a pixel without data; beside what a file declares itself.
        image_key: name of the array in HDF5 images; None takes the only one.
        mask_key: name of the array in HDF5 masks; None takes the only one.
    """

    images: tuple[str, ...]
    masks: str | IndexThreshold
    table: ClassTable = BINARY
    encoding: Encoding = "binary"
    train: str | None = "train"
    val: str | None = "val"
    test: str | None = "test"
    valid: tuple[str, ...] = ()
    nodata: float | None = None
    image_key: str | None = None
    mask_key: str | None = None

    def __post_init__(self) -> None:
        folders = [folder for folder in (self.train, self.val, self.test) if folder is not None]
        if len(set(folders)) < len(folders):
            raise ValueError(f"Expected different folders to train, validate and test, but got {folders}. Set one to None.")
        if not self.images or self.encoding not in get_args(Encoding):
            raise ValueError(
                f"Expected an image template and an encoding of {get_args(Encoding)}, but got {self.images} and {self.encoding!r}."
            )
        if not isinstance(self.masks, IndexThreshold) and self.masks.count("{split}") not in (0, self.images[0].count("{split}")):
            raise ValueError(
                f"Expected {{split}} at the same places of images and masks, but got '{self.images[0]}' and '{self.masks}'. "
                "Write it in both."
            )


def _agriculture_vision(*classes: str) -> FolderLayout:
    return FolderLayout(  # the test images have no public masks, so `val` is tested on
        ("{split}/images/rgb/{name}.jpg", "{split}/images/nir/{name}.jpg"),
        "{split}/labels/{class}/{name}.png",
        ClassTable(("background", *classes)),
        val=None,
        test="val",
        valid=("{split}/boundaries/{name}.png", "{split}/masks/{name}.png"),
    )


LAYOUTS: Mapping[str, FolderLayout] = {
    "plain": FolderLayout(("{split}/images/{split}/{name}.*",), "{split}/masks/{split}/{name}.*"),
    "image_label": FolderLayout(("{split}/image/{split}/{name}.*",), "{split}/label/{split}/{name}.*"),
    "deepglobe": FolderLayout(
        ("{split}_images/{name}_sat.jpg",),
        "{split}_labels/{name}_mask.png",
        ClassTable(("urban", "agriculture", "rangeland", "forest", "water", "barren", "unknown"), void=("unknown",)),
        "index",
        val=None,
    ),
    "deepglobe_colour": FolderLayout(  # as published: only the images of `train` have masks
        ("{split}/{name}_sat.jpg",),
        "{split}/{name}_mask.png",
        ClassTable(
            ("urban", "agriculture", "rangeland", "forest", "water", "barren", "unknown"),
            colours=((0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)),
            void=("unknown",),
        ),
        "colour",
        val=None,
        test=None,
    ),
    "agriculture_vision": _agriculture_vision(
        "double_plant", "drydown", "endrow", "nutrient_deficiency", "planter_skip", "storm_damage", "water", "waterway", "weed_cluster"
    ),
    "agriculture_vision_2020": _agriculture_vision(
        "cloud_shadow", "double_plant", "planter_skip", "standing_water", "waterway", "weed_cluster"
    ),
    "loveda": FolderLayout(  # the test images have no public masks, so `Val` is tested on
        ("{split}/{area}/images_png/{name}.png",),
        "{split}/{area}/masks_png/{name}.png",
        ClassTable(("no data", "background", "building", "road", "water", "barren", "forest", "agriculture"), void=("no data",)),
        "index",
        train="Train",
        val=None,
        test="Val",
    ),
    "loveda_flat": FolderLayout(
        ("img_dir/{split}/{name}.png",),
        "ann_dir/{split}/{name}.png",
        ClassTable(("no data", "background", "building", "road", "water", "barren", "forest", "agriculture"), void=("no data",)),
        "index",
        val=None,
        test="val",
    ),
    "potsdam": FolderLayout(
        ("img_dir/{split}/{name}.png",),
        "ann_dir/{split}/{name}.png",
        ClassTable(("boundary", "impervious surface", "building", "low vegetation", "tree", "car", "clutter"), void=("boundary",)),
        "index",
        val=None,
        test="val",
    ),
    "landslide4sense": FolderLayout(
        ("{split}/img/image_{name}.h5",),
        "{split}/mask/mask_{name}.h5",
        ClassTable(("no landslide", "landslide")),
        "index",
        train="TrainData",
        val="ValidData",
        test="TestData",
        image_key="img",
        mask_key="mask",
    ),
}


def layout_of(chosen: LayoutName | FolderLayout) -> FolderLayout:
    """Look a layout up by its name; a layout passes.

    Raises:
        ValueError: there is no layout of that name.
    """
    if isinstance(chosen, FolderLayout):
        return chosen
    if chosen not in LAYOUTS:
        raise ValueError(f"Expected a FolderLayout or one of {', '.join(LAYOUTS)}, but got layout={chosen!r}.")
    return LAYOUTS[chosen]


def classes_of(layout: FolderLayout) -> ClassTable:
    """Give the classes that the masks of a layout name: two where they are derived from the image."""
    return DERIVED if isinstance(layout.masks, IndexThreshold) else layout.table


@dataclass(frozen=True)
class ImageFiles:
    """List the files of one image.

    Attributes:
        name: what ``{name}`` stood for.
        bands: the band files, in the order of the layout.
        masks: (class, file) pairs; the class is "" where one mask holds all. Empty where there is none.
        valid: masks of the pixels that count.
    """

    name: str
    bands: tuple[Path, ...]
    masks: tuple[tuple[str, Path], ...] = ()
    valid: tuple[Path, ...] = ()


def find_images(root: str | Path, layout: FolderLayout) -> dict[Part | Literal[""], list[ImageFiles]]:
    """List the images below a root.

    Args:
        root: the folder of the data set.
        layout: how it is laid out.

    Returns:
        Images by part ("train", "val", "test"), those with files of the same folders; or all under "" where there are no such folders, or
        those of training alone, so that they are still to be split. Masks that are missing are left out.

    Raises:
        SceneNotFoundError: the folder is missing, or holds no image of this layout, or a band file is missing.
        SceneFormatError: two files claim the same name, or there are masks of classes that the table lacks.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise SceneNotFoundError(f"Expected a folder of images at '{folder}', but there is none (from '{Path.cwd()}'). Correct root=.")
    folders = {part: name for part, name in zip(PARTS, (layout.train, layout.val, layout.test), strict=True) if name is not None}
    for keep in _placements(layout.images[0]):
        parts = {part: _images(folder, layout, keep, name) for part, name in folders.items()}
        found: dict[Part | Literal[""], list[ImageFiles]] = {part: images for part, images in parts.items() if images}
        if set(found) == {"train"}:
            return {"": found["train"]}
        if found:
            return found
    unsplit = [] if _is_bound(layout.images[0]) else _images(folder, layout, (), None)
    if unsplit:
        return {"": unsplit}
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise SceneNotFoundError(
        f"Expected images at '{folder}/{layout.images[0]}' with {{split}} one of {list(folders.values())}, but found none; the folder "
        f"holds {held}. Correct root=, choose another layout=, or describe yours with FolderLayout."
    )


def find_unlabelled(root: str | Path, layout: FolderLayout) -> list[ImageFiles]:
    """List images of any part, or those lying directly in a folder.

    Args:
        root: the folder.
        layout: how a data set is laid out; images of one file each may also lie in the folder itself.

    Raises:
        SceneNotFoundError: the folder is missing or holds no image.
    """
    folder = Path(root).expanduser()
    try:
        return [image for images in find_images(folder, layout).values() for image in images]
    except SceneNotFoundError:
        direct = _listing(folder, "{name}.*") if folder.is_dir() and len(layout.images) == 1 else {}
        if not direct:
            raise
    return [ImageFiles(name, (path,)) for name, path in sorted(direct.items())]


def _placements(template: str) -> list[tuple[bool, ...]]:
    """List the ways to keep components that are {split} alone: one of them, then more; {split} within a name always stays."""
    count = sum(part == "{split}" for part in template.split("/"))
    if not count:
        return [()] if _is_bound(template) else []
    return sorted((keep for keep in product((True, False), repeat=count) if any(keep)), key=sum)


def _is_bound(template: str) -> bool:
    return any("{split}" in part and part != "{split}" for part in template.split("/"))


def _placed(template: str, keep: tuple[bool, ...], folder: str | None) -> str:
    left = list(keep)
    parts = []
    for part in template.split("/"):
        if part != "{split}" or (left and left.pop(0)):
            parts.append(part.replace("{split}", folder or ""))
    return "/".join(parts)


def _images(root: Path, layout: FolderLayout, keep: tuple[bool, ...], folder: str | None) -> list[ImageFiles]:
    listings = [_listing(root, _placed(template, keep, folder)) for template in layout.images]
    masks: dict[str, dict[str, Path]] = {}
    if isinstance(layout.masks, str):
        classes = layout.table.names if "{class}" in layout.masks else ("",)
        masks = {name: _listing(root, _placed(layout.masks.replace("{class}", name), keep, folder)) for name in classes}
    valid = [_listing(root, _placed(template, keep, folder)) for template in layout.valid]
    if listings[0] and isinstance(layout.masks, str) and "{class}" in layout.masks:
        known = {path for listing in (*listings, *masks.values(), *valid) for path in listing.values()}
        _check_classes(root, _placed(layout.masks, keep, folder), layout.table.names, known)
    for template, listing in zip(layout.images, listings, strict=True):
        lacking = sorted(set(listings[0]) - set(listing))
        if lacking:
            raise SceneNotFoundError(
                f"Expected a band file '{template}' for every image below '{root}', but {len(lacking)} lack it, such as {lacking[:4]}. "
                "Copy them, or leave the file out of the layout."
            )
    return [
        ImageFiles(
            key.split("\0")[0] or listings[0][key].stem,
            tuple(listing[key] for listing in listings),
            tuple((name, listing[key]) for name, listing in masks.items() if key in listing),
            tuple(listing[key] for listing in valid if key in listing),
        )
        for key in sorted(listings[0])
    ]


def _check_classes(root: Path, template: str, names: Sequence[str], known: set[Path]) -> None:
    # A class that the table lacks would become background, and so normal, without a word.
    parts = template.split("/")
    depth = next(index for index, part in enumerate(parts) if "{class}" in part) + 1
    if parts[depth - 1] == "{class}" and depth < len(parts):  # few folders: the many files of those that are known are not listed again
        found = sorted(root.glob(re.sub(r"\{\w+\}", "*", "/".join(parts[:depth]))))
        others = [folder for folder in found if folder.is_dir() and folder.name not in names and not folder.name.startswith(".")]
        strange = [folder for folder in others if {*_listing(root, template.replace("{class}", folder.name)).values()} - known]
    else:
        strange = sorted({*_listing(root, template).values()} - known)
    if strange:
        raise SceneFormatError(
            f"Expected masks of the classes {tuple(names)} at '{root}/{template}', but got also "
            f"{[path.relative_to(root).as_posix() for path in strange[:16]]}. Choose the layout of this release, or add the classes to the "
            "table: layout=dataclasses.replace(LAYOUTS[...], table=ClassTable((...)))."
        )


def _listing(root: Path, template: str) -> dict[str, Path]:
    """Find the files of a template, by name and, after a null character, whatever its other words stood for."""
    found: dict[str, Path] = {}
    for path, fields in matching_files(root, template, IMAGE_SUFFIXES):
        key = "\0".join([fields.pop("name", ""), *(value for _, value in sorted(fields.items()))])
        if key in found:
            raise SceneFormatError(f"Expected one file for each name, but '{found[key]}' and '{path}' share one. Remove or rename one.")
        found[key] = path
    return found
