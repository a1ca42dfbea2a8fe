"""Read one image of a folder, whole or a block of it, with its truth by the class rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomseg.data.class_masks import file_shape, read_class_ids, read_layer
from anomseg.data.class_rule import ClassAsNormal, IndexThreshold, with_background
from anomseg.data.hdf5_io import HDF5_SUFFIXES, read_hdf5
from anomseg.data.image_folders import FolderLayout, ImageFiles, classes_of
from anomseg.data.picture_io import check_picture
from anomseg.data.raster_align import grid_of
from anomseg.data.raster_io import Raster, kept_bands, read_raster
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneFacts
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.functional.windows import Window
from anomseg.sample import IGNORE


@dataclass(frozen=True)
class FolderImage:
    """Load one image when it is called: a scene loader that is a few paths, so that thousands of them weigh nothing.

    Attributes:
        name: unique among the scenes of a stage.
        files: the files.
        layout: what their values mean.
        classes: what is normal.
        bands: indices from 0 of the bands to keep, in this order; None keeps all. What is missing in the others is no matter.
        size: (height, width) in pixels of the image, or of the block; filled in by `measured`.
        stored: number of bands in the files; filled in by `measured`.
        window: (row, column, height, width) of the block in the files; None is the whole image.
    """

    name: str
    files: ImageFiles
    layout: FolderLayout
    classes: ClassAsNormal
    bands: tuple[int, ...] | None = None
    size: tuple[int, int] = (0, 0)
    stored: int = 0
    window: Window | None = None

    @property
    def has_truth(self) -> bool:
        """Say whether there are masks, or the layout derives them."""
        return bool(self.files.masks) or isinstance(self.layout.masks, IndexThreshold)

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without a look at the pixels."""
        return SceneFacts(self.name, self.size, self.has_truth)

    @property
    def nbytes(self) -> int:
        """Give the bytes that the image takes in memory, once it is measured."""
        return 4 * self.size[0] * self.size[1] * (self.stored if self.bands is None else len(self.bands))

    @property
    def exact_parts(self) -> bool:
        """Say that a part is read alone and as the whole holds it."""
        return True

    def measured(self) -> FolderImage:
        """Read the headers, and compare them.

        Returns:
            This image with its size and number of bands.

        Raises:
            ValueError: a mask or band file has another size than the image, or lies elsewhere on earth, or a band to keep does not exist.
            SceneFormatError: a file is unreadable, or an image is none as it is shown; see `check_picture`.
        """
        first, *rest = self.files.bands
        truths = (*(path for _, path in self.files.masks), *self.files.valid)
        stored, height, width = file_shape(first, self.layout.image_key, None if rest else self.bands)
        for path in rest:
            more, *other = file_shape(path, self.layout.image_key)
            stored += more
            _check_size(first, (height, width), path, other)
        kept_bands(stored, self.bands, first)
        for path in truths:
            _check_size(first, (height, width), path, file_shape(path, self.layout.mask_key)[1:])
        for path in _rasters(self.files.bands):
            check_picture(path)
        _check_place(first, _rasters((*rest, *truths)))
        return replace(self, size=(height, width), stored=stored)

    def block(self, window: Window) -> FolderImage:
        """Give one block of this image as an image of its own; its name tells where it lies."""
        row, column, height, width = window
        return replace(self, name=f"{self.name}_r{row:05d}_c{column:05d}", size=(height, width), window=window)

    def part(self, window: Window) -> Scene:
        """Read a window of this image and nothing beyond the file's own blocks or rows.

        Args:
            window: (row, column, height, width) in pixels of this image.

        Returns:
            A scene of the window's size under this image's name and with its transform.
        """
        row, column, height, width = window
        top, left = (0, 0) if self.window is None else self.window[:2]
        scene = replace(self, window=(top + row, left + column, height, width))()
        if scene.transform is None:
            return scene
        a, b, c, d, e, f = scene.transform
        return replace(scene, transform=(a, b, c - a * column - b * row, d, e, f - d * column - e * row))

    def __call__(self) -> Scene:
        """Read image and truth.

        Returns:
            The scene: NaN in every band of a pixel without data in one of them, 255 there in the mask; no mask where there is no truth.

        Raises:
            SceneFormatError: a file is unreadable, or a mask holds ids or colours outside the class table.
            ValueError: truth and image differ in size, or a band to keep does not exist.
        """
        image, raster = self._image(self.bands)
        mask = self._mask(image)
        if mask is not None and mask.shape == image.shape[1:]:
            mask = mask.masked_fill(~torch.isfinite(image).all(dim=0), IGNORE)
        wavelength = None if raster is None or len(self.files.bands) > 1 else raster.wavelength
        transform, crs = (None, None) if raster is None else (raster.transform, raster.crs)
        return Scene(self.name, image, mask, wavelength, transform, crs)

    def truth(self) -> Tensor:
        """Read the truth alone; the image is read too where the truth or the extent of the data depends on it.

        Returns:
            (H, W) int64 of 0, 1, 255.

        Raises:
            SceneNotFoundError: the image has none.
        """
        mask = self().mask if self.window is not None or isinstance(self.layout.masks, IndexThreshold) else self._mask(None)
        if mask is None:
            raise SceneNotFoundError(
                f"Expected a mask '{self.layout.masks}' for the image '{self.files.bands[0]}', but there is none. "
                "Add it, or use predict_root= for images without truth."
            )
        return mask

    def found(self) -> tuple[str, ...]:
        """Name the classes that the masks hold."""
        table, masks = classes_of(self.layout), dict(self.files.masks)
        if isinstance(self.layout.masks, IndexThreshold):
            return table.found_in(self._derived(self.layout.masks, self._image(self.bands)[0]))
        if "" in masks:
            return table.found_in(self.ids())
        layers = with_background(self._layers(), table)
        return tuple(name for name, layer in layers.items() if bool(layer.any()))

    def ids(self) -> Tensor:
        """Read the class ids of the only mask file, (H, W) int64, `NO_CLASS` where the class is not known."""
        layout = self.layout
        return read_class_ids(dict(self.files.masks)[""], layout.table, layout.encoding, layout.mask_key, self.window)

    def _derived(self, rule: IndexThreshold, image: Tensor) -> Tensor:
        """Derive class ids, where bands are dropped from the two bands of the rule alone, which need not be among those that are kept."""
        if self.bands is None:
            return rule.ids(image)
        return replace(rule, bands=(0, 1)).ids(self._image(rule.bands)[0])

    def _layers(self) -> dict[str, Tensor]:
        return {name: read_layer(path, self.window) for name, path in self.files.masks}

    def _mask(self, image: Tensor | None) -> Tensor | None:
        layout, table = self.layout, classes_of(self.layout)
        if isinstance(layout.masks, IndexThreshold):
            mask = None if image is None else self.classes.mask(self._derived(layout.masks, image), table)
        elif not self.files.masks:
            mask = None
        elif "" in dict(self.files.masks):
            mask = self.classes.mask(self.ids(), table)
        else:
            mask = self.classes.mask_of_layers(self._layers(), table)
        if mask is not None:
            for path in self.files.valid:
                mask = mask.masked_fill(~read_layer(path, self.window), IGNORE)
        return mask

    def _image(self, bands: Sequence[int] | None) -> tuple[Tensor, Raster | None]:
        """Read the named bands and nothing of the others, so that what these lack is no matter."""
        parts: list[np.ndarray[Any, Any]] = []
        order: list[int] = []
        first: Raster | None = None
        valid: Any = True
        for path, places, keep in self._files_of(bands):
            stored, raster = self._stored(path, keep)
            if raster is not None:
                first, valid = first or raster, valid & raster.valid
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and so a pixel without data
                parts.append(np.require(stored, np.float32, ["C", "W"]))
            order += places
        image = np.concatenate(parts)
        if order != sorted(order):
            image = image[np.argsort(order)]
        valid = valid & np.isfinite(image).all(axis=0)
        if self.layout.nodata is not None:
            valid = valid & ~(image == self.layout.nodata).all(axis=0)
        if not valid.all():
            image[:, ~valid] = np.nan
        return torch.from_numpy(image), first

    def _files_of(self, bands: Sequence[int] | None) -> list[tuple[Path, list[int], list[int] | None]]:
        """List the files that hold the bands, with the places of their bands in the image and their indices in the file (None: all)."""
        if bands is None or len(self.files.bands) == 1:
            return [(path, [], None if bands is None else list(bands)) for path in self.files.bands]
        counts = [file_shape(path, self.layout.image_key)[0] for path in self.files.bands]
        wanted = kept_bands(sum(counts), bands, self.files.bands[0])
        found: list[tuple[Path, list[int], list[int] | None]] = []
        for path, count, start in zip(self.files.bands, counts, accumulate(counts, initial=0), strict=False):
            places = [place for place, band in enumerate(wanted) if start <= band < start + count]
            if places:
                found.append((path, places, [wanted[place] - start for place in places]))
        return found

    def _stored(self, path: Path, keep: list[int] | None) -> tuple[np.ndarray[Any, Any], Raster | None]:
        raster = None if path.suffix.lower() in HDF5_SUFFIXES else read_raster(path, self.window, keep)
        stored = read_hdf5(path, self.layout.image_key, self.window) if raster is None else raster.image
        if stored.dtype.kind not in "biuf":
            raise SceneFormatError(f"Expected real numbers in '{path}', but got {stored.dtype}. Take the magnitude of complex data.")
        return stored if raster is not None else stored[kept_bands(len(stored), keep, path)], raster


def _rasters(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() not in HDF5_SUFFIXES]


def _check_place(image: Path, others: Sequence[Path]) -> None:
    if not _rasters([image]) or (grid := grid_of(image)[0]).transform is None:
        return
    for path in others:
        grid.check_same(grid_of(path)[0], path, image)


def _check_size(image: object, size: tuple[int, int], path: object, other: tuple[int, ...] | list[int]) -> None:
    if tuple(other) != size:
        raise ValueError(
            f"Expected {size[0]} x {size[1]} pixels in '{path}' as in '{image}', but got {other[0]} x {other[1]}. "
            "Is it the mask of another image, or of an uncropped one?"
        )
