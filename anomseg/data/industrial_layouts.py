"""Describe how industrial data sets lie on disk, one row of a table each, and find their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from anomseg.data.class_rule import BINARY, ClassAsNormal, ClassTable
from anomseg.data.image_folders import IMAGE_SUFFIXES, Encoding
from anomseg.data.industrial_patches import PatchRule
from anomseg.data.industrial_split import IndustrialSplit, SessionSplit
from anomseg.data.path_template import matching_files
from anomseg.errors import SceneFormatError, SceneNotFoundError

IndustrialLayoutName = Literal["mvtec", "folders", "magnetic_tile", "crackforest", "deeppcb"]
GOOD = "good"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class IndustrialLayout:
    """Describe an industrial data set.

    Paths are templates: `{category}` stands for the kind of object or surface, `{part}` for a folder named in `train` or `test`, `{defect}`
    for the kind of defect, `{name}` for the name of an image. A root may be one category itself: `{category}/` may then be missing.

    Attributes:
        images: template of the images.
        masks: template of the masks, with the same words; None where there are none.
        good: what `{defect}` stands for where images are normal. Without `{defect}` the masks say which images are.
        train: what `{part}` stands for where images train; or None.
        test: likewise where they test.
        category: name of the only category, for templates without `{category}`; None takes the name of the root.
        defect: name of the defects, for templates without `{defect}`.
        table: classes of the masks.
        encoding: `binary` (0 and 1, or black and white at 127), `index` or `colour`; see `FolderLayout`.
        normal: classes of the table that are normal; the others are anomalous, or void as the table says.
        maximum: image value that becomes 1; None takes the largest of the files' integers, and leaves floating values as they are.
        split: how images are shared out unless another split is asked for; None follows `{part}`, or draws `ShareSplit(0.6, 0.1, 0.3)`.
        patches: cuts images into patches that are images of their own, unless others are asked for; None takes them whole.
    """

    images: str
    masks: str | None = None
    good: tuple[str, ...] = (GOOD,)
    train: str | None = None
    test: str | None = None
    category: str | None = None
    defect: str = "defect"
    table: ClassTable = BINARY
    encoding: Encoding = "binary"
    normal: tuple[str, ...] = ("background",)
    maximum: float | None = None
    split: IndustrialSplit | None = None
    patches: PatchRule | None = None

    def __post_init__(self) -> None:
        if "{name}" not in self.images or ("{part}" in self.images) != (self.train is not None and self.test is not None):
            raise ValueError(
                f"Expected {{name}} in the template of images, and folders to train and to test where it has {{part}}, but got "
                f"'{self.images}', train={self.train!r} and test={self.test!r}."
            )
        if "{defect}" not in self.images and self.masks is None:
            raise ValueError(f"Expected {{defect}} in '{self.images}', or masks=, to tell what is normal, but got neither.")
        if self.maximum is not None and self.maximum <= 0:
            raise ValueError(f"Expected a maximum above 0, but got {self.maximum}.")
        self.classes.ids(self.table)

    @property
    def classes(self) -> ClassAsNormal:
        """Say which classes are normal."""
        return ClassAsNormal(self.normal)


INDUSTRIAL_LAYOUTS: Mapping[str, IndustrialLayout] = {
    "mvtec": IndustrialLayout(
        "{category}/{part}/{defect}/{name}.*", "{category}/ground_truth/{defect}/{name}_mask.*", train="train", test="test"
    ),
    "folders": IndustrialLayout("{defect}/{name}.*", "{defect}/{name}_mask.*"),
    "magnetic_tile": IndustrialLayout(
        "MT_{defect}/Imgs/{name}.jpg",
        "MT_{defect}/Imgs/{name}.png",
        good=("Free",),
        category="magnetic_tile",
        split=SessionSplit(r"num_(\d+)"),  # one tile was photographed under several exposures with neighbouring numbers
    ),
    "crackforest": IndustrialLayout(  # every image shows a crack, so that normal is what lies away from it
        "image/{name}.*", "mask/{name}.*", category="crackforest", defect="crack", patches=PatchRule()
    ),
    "deeppcb": IndustrialLayout(  # the first five digits name the board
        "{defect}/{name}.jpg",
        "mask/{name}.png",
        good=("template",),
        category="deeppcb",
        split=SessionSplit(r"/(\d{5})\d+$", gap=0),
    ),
}


def industrial_layout_of(chosen: IndustrialLayoutName | IndustrialLayout) -> IndustrialLayout:
    """Look a layout up by name; a layout passes.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(chosen, IndustrialLayout):
        return chosen
    if chosen not in INDUSTRIAL_LAYOUTS:
        raise ValueError(f"Expected a layout of {sorted(INDUSTRIAL_LAYOUTS)} or an IndustrialLayout, but got {chosen!r}.")
    return INDUSTRIAL_LAYOUTS[chosen]


@dataclass(frozen=True)
class IndustrialFile:
    """List the files of one image, and what their place says of it.

    Attributes:
        path: the image.
        mask: its mask, or None.
        category: the kind of object or surface.
        defect: the kind of defect, `good` where there is none, or None where only the mask can say it.
        part: `train`, `test`, or None where the folders do not say.
        stem: what `{name}` stood for.
    """

    path: Path
    mask: Path | None
    category: str
    defect: str | None
    part: Literal["train", "test"] | None
    stem: str

    @property
    def name(self) -> str:
        """Name the image `category/defect/stem`; images of a folder to train are told from those to test, which share their numbers."""
        return f"{self.category}/{self.defect or UNKNOWN}/{'train_' if self.part == 'train' else ''}{self.stem}"


def find_industrial(root: str | Path, layout: IndustrialLayout, categories: tuple[str, ...] | None = None) -> list[IndustrialFile]:
    """List the images of a data set.

    Args:
        root: its folder, or that of one category.
        layout: how it is laid out.
        categories: those to take; None takes all.

    Returns:
        Images, sorted by name.

    Raises:
        SceneNotFoundError: the folder is missing, holds no image of this layout, or none of a category; the message lists what it holds.
        SceneFormatError: two images share a name, or two masks an image.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise SceneNotFoundError(f"Expected a folder of images at '{folder}', but there is none (from '{Path.cwd()}'). Correct root=.")
    ways = [layout.images, layout.images.replace("{category}/", "", 1)] if layout.images.startswith("{category}/") else [layout.images]
    for images in ways:
        masks = layout.masks.replace("{category}/", "", 1) if layout.masks is not None and images != layout.images else layout.masks
        found = _found(folder, layout, images, masks)
        if found:
            break
    else:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise SceneNotFoundError(
            f"Expected images at '{folder}/{layout.images}', but found none; the folder holds {held}. Correct root=, choose another of "
            f"layout={sorted(INDUSTRIAL_LAYOUTS)}, or describe yours with IndustrialLayout."
        )
    held_categories = sorted({file.category for file in found})
    missing = sorted(set(categories or ()) - set(held_categories))
    if missing:
        raise SceneNotFoundError(f"Expected the categories {missing} in '{folder}', but it holds {held_categories}. Correct categories=.")
    chosen = sorted((file for file in found if categories is None or file.category in categories), key=lambda file: file.name)
    for one, other in pairwise(chosen):
        if one.name == other.name:
            raise SceneFormatError(f"Expected one image of each name, but '{one.path}' and '{other.path}' share one. Remove or rename one.")
    return chosen


def _found(folder: Path, layout: IndustrialLayout, images: str, masks: str | None) -> list[IndustrialFile]:
    mask_of: dict[tuple[str, ...], Path] = {}
    words = [word for word in ("category", "part", "defect", "name") if masks is not None and f"{{{word}}}" in masks]
    for path, fields in [] if masks is None else matching_files(folder, masks, IMAGE_SUFFIXES):
        key = tuple(fields.get(word, "") for word in words)
        if key in mask_of:
            raise SceneFormatError(f"Expected one mask for each image, but '{mask_of[key]}' and '{path}' share one. Remove or rename one.")
        mask_of[key] = path
    taken = set(mask_of.values())  # the mask of an image may look like an image of its folder
    files = []
    for path, fields in matching_files(folder, images, IMAGE_SUFFIXES):
        defect = fields.get("defect")
        part = fields.get("part")
        if path in taken or (part is not None and part not in (layout.train, layout.test)):
            continue
        normal = defect in layout.good
        files.append(
            IndustrialFile(
                path,
                None if normal else mask_of.get(tuple(fields.get(word, "") for word in words)),
                fields.get("category") or layout.category or folder.resolve().name,
                GOOD if normal else defect,
                None if part is None else "train" if part == layout.train else "test",
                fields["name"],
            )
        )
    return files
