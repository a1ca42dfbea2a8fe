"""Where outliers come from that are pasted into frames: cut-outs, annotated images, textures, or nothing but a seed.

A source must not hold objects of a known class: a pasted car that counts as an outlier teaches the net to doubt cars.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.data.outlier_files import PictureMemory, changed_at, visible_files
from anomseg.data.picture_io import rasterised, read_picture
from anomseg.data.raster_io import read_mask_bands
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.sample import IGNORE

DRIVING_CATEGORIES = ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "traffic light", "stop sign")
"""Categories of COCO that are known classes of driving scenes."""
_DRAWS = 8
_MASKS = 64  # read until one of them shows an object
_LEAST_TEXTURE = 0.02  # standard deviation in [0, 1]
_MEMORY = PictureMemory(2**27)


class OutlierSource(ABC):
    """Give objects, one at a time."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw an object: (4, h, w) float32, red, green, blue and alpha, each in [0, 1]; alpha is 1 inside of the object."""


@dataclass(frozen=True)
class RGBACutouts(OutlierSource):
    """Take PNG files with an alpha channel. Up to 128 MB of the latest ones, and of `TextureCrops`, stay in memory.

    Attributes:
        folder: holds the files.
        index: name of a table in the folder with the columns `name` and `known_driving_class`; rows of known classes (1) are left out.
            None takes all files.
        part: all of them, or those that `train`, `val` or `test`: every `every`-th by name tests.
        every: at least 2.
        val_every: every so many of those that do not test validate, and do not train; at least 2. None validates with those that train.
    """

    folder: str
    index: str | None = None
    part: Literal["all", "train", "val", "test"] = "all"
    every: int = 4
    val_every: int | None = None

    def __post_init__(self) -> None:
        if self.part not in ("all", "train", "val", "test") or self.every < 2 or (self.val_every is not None and self.val_every < 2):
            raise ValueError(
                f"Expected part 'all', 'train', 'val' or 'test', every >= 2 and val_every >= 2 or None, but got {self.part!r}, "
                f"{self.every} and {self.val_every}."
            )

    def files(self) -> tuple[Path, ...]:
        """List the files, sorted by name.

        Raises:
            SceneNotFoundError: the folder, the table or one of its files is missing, or nothing is left.
        """
        folder = Path(self.folder)
        return _cutouts(self, changed_at(folder), 0 if self.index is None else changed_at(folder / self.index))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a cut-out; see the base class.

        Raises:
            SceneFormatError: a file has no alpha channel.
        """
        files = self.files()
        return _MEMORY.get(files[int(torch.randint(len(files), (), generator=generator))], _rgba).float() / 255


@lru_cache(maxsize=16)
def _cutouts(source: RGBACutouts, *changed: int) -> tuple[Path, ...]:
    folder = Path(source.folder)
    if not folder.is_dir():
        raise SceneNotFoundError(f"Expected a folder of cut-outs at '{folder}', but there is none. Correct folder=, or use another source.")
    if source.index is None:
        files = list(visible_files(folder, (".png",)))
    else:
        with (folder / source.index).open(newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        files = sorted(folder / f"{row['name']}.png" for row in rows if row["known_driving_class"] == "0")
    if source.part != "all":
        files = [path for number, path in enumerate(files) if (number % source.every == 0) == (source.part == "test")]
    if source.val_every is not None and source.part in ("train", "val"):
        files = [path for number, path in enumerate(files) if (number % source.val_every == 0) == (source.part == "val")]
    lacking = [str(path) for path in files if not path.is_file()]
    if lacking or not files:
        raise SceneNotFoundError(f"Expected cut-outs (.png with alpha) in '{folder}', but {lacking[:4] or 'all of them'} are missing.")
    return tuple(files)


def _rgba(path: Path) -> Tensor:
    picture = read_picture(path)
    if len(picture) not in (2, 4):
        raise SceneFormatError(
            f"Expected a cut-out with an alpha channel in '{path}', but got {len(picture)} bands. Cut the object out, or use TextureCrops."
        )
    colour, alpha = picture[:-1].expand(3, -1, -1), picture[-1:]
    if not bool((alpha > 0.5).any()):
        raise SceneFormatError(f"Expected a visible object in '{path}', but alpha is 0 everywhere.")
    return trimmed(torch.cat([colour, alpha]))


def trimmed(cutout: Tensor) -> Tensor:
    """Cut (4, H, W) down to the box around its visible pixels, alpha above a half, of which there must be one."""
    inside = (cutout[3] > 0.5).nonzero()
    (top, left), (bottom, right) = inside.amin(0).tolist(), inside.amax(0).tolist()
    return cutout[:, top : bottom + 1, left : right + 1]


@dataclass(frozen=True)
class MaskedObjects(OutlierSource):
    """Take annotated objects of images, as of COCO, leaving out images that show a known class.

    Attributes:
        images: folder of the images.
        annotations: JSON file with `images`, `annotations` (polygons) and `categories`, as COCO writes it; or a folder of masks, named as
            their images, in which 0 and 255 are background and all pixels of another id are one object.
        exclude: names or ids of categories, ids alone with masks, and () for none; images that show one are not used at all, since other
            parts of it may be in the background. Names match whatever their case, `_` or a note in brackets: `car` is LVIS's
            `car_(automobile)`. Each must be there, but of the categories that stand by default one is enough.
        least: smallest area of an object in pixels.
    """

    images: str
    annotations: str
    exclude: tuple[str | int, ...] = DRIVING_CATEGORIES
    least: int = 400

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw an object; see the base class.

        Raises:
            SceneNotFoundError: the annotations are missing, or no object is left.
            SceneFormatError: the annotations are not as COCO writes them, or a mask has another size than its image.
            ValueError: `exclude` names what is not there.
        """
        if Path(self.annotations).is_dir():
            return self._of_mask(generator)
        objects = _annotated(self, changed_at(Path(self.annotations)))
        for _ in range(_DRAWS):
            name, polygons = objects[int(torch.randint(len(objects), (), generator=generator))]
            colour = read_picture(Path(self.images) / name)[:3].expand(3, -1, -1)
            inside = rasterised(polygons, (colour.shape[-2], colour.shape[-1]))
            if bool(inside.any()):
                return trimmed(torch.cat([colour, inside[None].float()]))
        raise SceneNotFoundError(
            f"Expected objects inside of their images in '{self.annotations}', but {_DRAWS} in turn show no pixel. Are these the images?"
        )

    def _of_mask(self, generator: torch.Generator) -> Tensor:
        """Draw an object of an id mask; masks that show nothing of use are drawn again."""
        masks = _masks(self, changed_at(Path(self.images)), changed_at(Path(self.annotations)))
        for index in torch.randperm(len(masks), generator=generator)[:_MASKS].tolist():
            image, mask = masks[index]
            ids = torch.from_numpy(read_mask_bands(mask)[0][0].astype("int64"))
            count = torch.bincount(ids.flatten(), minlength=IGNORE + 1)
            if any(int(count[number]) for number in self.exclude if isinstance(number, int) and 0 <= number < len(count)):
                continue
            count[0], count[IGNORE] = 0, 0
            usable = (count >= self.least).nonzero()[:, 0]
            if len(usable):
                chosen = usable[int(torch.randint(len(usable), (), generator=generator))]
                return trimmed(torch.cat([_picture_of(image, mask, ids), (ids == chosen)[None].float()]))
        raise SceneNotFoundError(
            f"Expected objects of {self.least} pixels in the masks of '{self.annotations}' without the ids {self.exclude}, but "
            f"{min(_MASKS, len(masks))} of them show none. Correct exclude= or least=."
        )


def _picture_of(path: Path, mask: Path, ids: Tensor) -> Tensor:
    """Read the picture (3, H, W) that a mask belongs to."""
    picture = read_picture(path)[:3].expand(3, -1, -1)
    if (size := tuple(picture.shape[1:])) != (came := tuple(ids.shape)):
        raise SceneFormatError(f"Expected {size} pixels in '{mask}', as in '{path}', but got {came}. Is it the mask of another image?")
    return picture


@lru_cache(maxsize=16)
def _masks(source: MaskedObjects, *changed: int) -> tuple[tuple[Path, Path], ...]:
    if any(isinstance(known, str) for known in source.exclude):
        raise ValueError(
            f"Expected ids in exclude= for the masks of '{source.annotations}', which have no names, but got {source.exclude}. Give the "
            "ids of known classes, or exclude=() where no image shows one."
        )
    images = {path.stem: path for path in visible_files(Path(source.images))}
    found = tuple((images[path.stem], path) for path in visible_files(Path(source.annotations), (".png",)) if path.stem in images)
    if not found:
        raise SceneNotFoundError(
            f"Expected masks (.png) in '{source.annotations}' named as the images of '{source.images}', but found none."
        )
    return found


@lru_cache(maxsize=4)
def _annotated(source: MaskedObjects, changed: int) -> tuple[tuple[str, list[list[float]]], ...]:
    path = Path(source.annotations)
    if not path.is_file():
        raise SceneNotFoundError(f"Expected annotations at '{path}', but there is no such file. Give a JSON file as COCO writes it.")
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        held = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise SceneFormatError(f"Expected 'images', 'annotations' and 'categories' in '{path}', as COCO writes them, but got {held}.")
    known = _excluded(source, {c["id"]: str(c["name"]) for c in content["categories"]})
    spoilt = {a["image_id"] for a in content["annotations"] if a["category_id"] in known}
    names = {i["id"]: i["file_name"] for i in content["images"] if i["id"] not in spoilt}
    outlines = ((names[a["image_id"]], *_outline(a)) for a in content["annotations"] if a["image_id"] in names)
    found = tuple((name, polygons) for name, polygons, area in outlines if polygons and area >= source.least)
    if not found:
        raise SceneNotFoundError(
            f"Expected objects in '{path}' from images without {source.exclude}, of {source.least} pixels at least, but there is none."
        )
    return found


def _excluded(source: MaskedObjects, categories: dict[int, str]) -> set[int]:
    """Find the ids of the categories that a source excludes."""
    by_name: dict[str, set[int]] = {}
    for number, name in categories.items():
        by_name.setdefault(_plain(name), set()).add(number)
    found = [({known} & set(categories)) if isinstance(known, int) else by_name.get(_plain(known), set()) for known in source.exclude]
    lacking = [known for known, ids in zip(source.exclude, found, strict=True) if not ids]
    if lacking and (source.exclude != DRIVING_CATEGORIES or len(lacking) == len(found)):
        raise ValueError(
            f"Expected the categories {lacking} of exclude= in '{source.annotations}', but it has {sorted(categories.items())[:24]}. Give "
            "names or ids of known classes, or exclude=() where no image shows one."
        )
    return set().union(*found)


def _plain(name: str) -> str:
    return re.sub(r"\(.*?\)", "", name.replace("_", " ")).strip().lower()


def _outline(annotation: dict[str, Any]) -> tuple[list[list[float]], float]:
    """Take the polygons of an annotation that have an inside, and its area; no polygon where it has none, or a mask in their place."""
    given = annotation.get("segmentation")
    polygons = [flat for flat in given if len(flat) >= 6 and len(flat) % 2 == 0] if isinstance(given, list) else []
    if "area" in annotation:
        return polygons, float(annotation["area"])
    sides = [(flat[0::2], flat[1::2]) for flat in polygons]
    return polygons, sum(abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2 for x, y in sides)


def blob(generator: torch.Generator, side: int = 64) -> Tensor:
    """Draw a smooth random shape: (side, side) float32 in {0, 1}, one connected piece or a few, cropped by nothing."""
    coarse = torch.randn(1, 1, 6, 6, generator=generator)
    field = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)[0, 0]
    axis = torch.linspace(-1, 1, side)
    field = field + 1.2 - 2.4 * (axis[:, None].square() + axis.square())
    return (field > 0).float()


@dataclass(frozen=True)
class TextureCrops(OutlierSource):
    """Fill smooth random shapes with crops of images, whatever these show; choose images that show no known class.

    Crops without texture, such as sky, are drawn again; label files among the images would teach black and white shapes, so name the
    folder of the images alone.

    Attributes:
        folder: holds the images, at any depth.
        side: of a crop in pixels, at least 8.
    """

    folder: str
    side: int = 96

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a shape; see the base class.

        Raises:
            SceneNotFoundError: the folder holds no image.
        """
        files = visible_files(Path(self.folder), deep=True)
        if not files:
            raise SceneNotFoundError(
                f"Expected images of textures in '{self.folder}', but found none. Correct folder=, or use SyntheticOutliers()."
            )
        for _ in range(_DRAWS):
            picture = _MEMORY.get(files[int(torch.randint(len(files), (), generator=generator))], _texture)
            side = min(self.side, *picture.shape[-2:])
            top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in picture.shape[-2:])
            crop = picture[:, top : top + side, left : left + side].expand(3, -1, -1).float() / 255
            if float(crop.std()) > _LEAST_TEXTURE:
                break
        return torch.cat([crop, blob(generator, side)[None]])


def _texture(path: Path) -> Tensor:
    return read_picture(path)[:3]


@dataclass(frozen=True)
class SyntheticOutliers(OutlierSource):
    """Draw smooth random shapes of two colours in stripes, checks, spots or noise: needs no files.

    Attributes:
        side: of a shape in pixels, at least 8.
    """

    side: int = 64

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a shape; see the base class."""
        first, second = torch.rand(2, 3, 1, 1, generator=generator)
        kind, turn = int(torch.randint(4, (), generator=generator)), float(torch.rand((), generator=generator)) * 3.1416
        period = 3 + 12 * float(torch.rand((), generator=generator))
        axis = torch.arange(self.side, dtype=torch.float32)
        along = axis[:, None] * torch.cos(torch.tensor(turn)) + axis * torch.sin(torch.tensor(turn))
        across = axis * torch.cos(torch.tensor(turn)) - axis[:, None] * torch.sin(torch.tensor(turn))
        waves = torch.sin(6.2832 * along / period), torch.sin(6.2832 * across / period)
        grain = F.avg_pool2d(torch.randn(1, 1, self.side, self.side, generator=generator), 3, 1, 1)[0, 0] * 2
        share = torch.sigmoid(4 * (waves[0], waves[0] * waves[1], waves[0] + waves[1] - 1, grain)[kind])
        return torch.cat([torch.lerp(first, second, share).clamp(0, 1), blob(generator, self.side)[None]])


def check_sources(sources: Sequence[OutlierSource]) -> None:
    """Check that there is a source.

    Raises:
        ValueError: there is none; the message says how to give one.
    """
    if not sources:
        raise ValueError(
            "Expected a source of outliers, but got none. Give RGBACutouts(folder), MaskedObjects(images, annotations) or "
            "TextureCrops(folder), or SyntheticOutliers(), which needs no files."
        )
