"""Read one pair of images and its truth, on the pixels that both dates share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from anomseg.data.change_folders import PairFiles
from anomseg.data.change_truth import TruthReading
from anomseg.data.pair_transform import PairTransform
from anomseg.data.picture_io import check_picture
from anomseg.data.raster_align import Grid, grid_of, read_on_grid, shared_window
from anomseg.data.raster_io import Raster, kept_bands, raster_shape, read_raster
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneFacts
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.functional.windows import Window
from anomseg.sample import ANOMALY, IGNORE, NORMAL


@dataclass(frozen=True)
class PairReading:
    """Say how the values of a pair are read.

    Attributes:
        bands: indices from 0 of the bands to keep, in this order; None keeps all.
        scale: factors that multiply the values of the first and the second date; None leaves both as stored, and then both must be stored
            with as many bits. 8 bits beside 16 are put on one scale by (257, 1), or by the factors of the products.
        prepare: changes whole pairs, in this order.
    """

    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    prepare: tuple[PairTransform, ...] = ()


@dataclass(frozen=True)
class ChangePair:
    """Load one pair when it is called: a scene loader that is a few paths.

    Where both dates have a place on earth but not the same pixels, the second is warped onto the pixels of the first, bilinear, and the
    pair is the part that both cover.

    Attributes:
        files: the files.
        reading: how values are read.
        truths: how the truth is read.
        name: of the scene.
        grid: the pixels of the pair; filled in by `measured`.
        origin: (row, column) of these pixels in the files of the first date; filled in by `measured`.
        warped: files on other pixels than the first one; filled in by `measured`.
        stored: number of bands that are kept of each date; filled in by `measured`.
        window: (row, column, height, width) of a block of the pair; None is the whole pair.
    """

    files: PairFiles
    reading: PairReading = field(default_factory=PairReading)
    truths: TruthReading = field(default_factory=TruthReading)
    name: str = ""
    grid: Grid | None = None
    origin: tuple[int, int] = (0, 0)
    warped: frozenset[Path] = frozenset()
    stored: int = 0
    window: Window | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Give (height, width) in pixels of the pair or its block, once it is measured."""
        return self._block[2:]

    @property
    def nbytes(self) -> int:
        """Give the bytes that both dates take in memory once they are prepared, 0 before they are measured."""
        bands = reduce(lambda count, change: change.bands(count), self.reading.prepare, self.stored)
        return 0 if self.grid is None else 8 * self.size[0] * self.size[1] * bands

    @property
    def exact_parts(self) -> bool:
        """Say whether a part is read alone and as the whole holds it: not where a whole pair is prepared, or one date warped."""
        return not self.reading.prepare and not self.warped

    @property
    def has_truth(self) -> bool:
        """Say whether the files name a truth."""
        return self.files.has_truth

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without a look at the pixels."""
        return SceneFacts(self.name, self.size, self.has_truth)

    def measured(self) -> ChangePair:
        """Read the headers, and find the pixels that both dates share.

        Returns:
            This pair with its grid.

        Raises:
            SceneNotFoundError: a file is missing.
            SceneFormatError: a file is unreadable.
            ValueError: the dates differ in their bands or bits, or in size without a georeference that would align them, or share no pixel.
        """
        before, after = ([Path(path) for path in paths] for paths in (self.files.before, self.files.after))
        (first, one), (second, other) = grid_of(before[0]), grid_of(after[0])
        self._check_bits(one, other)
        grids = {path: grid_of(path)[0] for path in (*before, *after)}
        for path, own in grids.items():
            check_picture(path)
            first.check_place(own, path, before[0])
        bands = [sum(raster_shape(path)[0] for path in paths) for paths in (before, after)]
        if bands[0] != bands[1] and self.reading.bands is None:
            raise ValueError(
                f"Expected as many bands at both dates of '{self.files.name}', but '{before[0]}' has {bands[0]} and '{after[0]}' has "
                f"{bands[1]}. Convert one of them, or keep those that both have with bands=."
            )
        count = bands[0] if self.reading.bands is None else len(self.reading.bands)
        grid, origin = first, (0, 0)
        if not first.matches(second):
            row, column, height, width = self._shared(first, second)
            grid, origin = first.part((row, column, height, width)), (row, column)
        warped = {path for path, own in grids.items() if not first.matches(own)}
        for path in warped:
            if not (grid.is_georeferenced and grids[path].is_georeferenced):
                raise ValueError(self._misfit(path, grids[path], before[0], first))
        truths = self.truths.measured(self.files, first, grid)
        name = self.name or self.files.name
        return replace(self, name=name, truths=truths, grid=grid, origin=origin, warped=frozenset(warped), stored=count)

    def block(self, window: Window) -> ChangePair:
        """Give one block of this pair as a pair of its own; its name tells where it lies."""
        return replace(self, name=f"{self.name}_r{window[0]:05d}_c{window[1]:05d}", window=window)

    def part(self, window: Window) -> Scene:
        """Read a window of this pair; the rest is read only where ``prepare`` needs it.

        Args:
            window: (row, column, height, width) in pixels of this pair.

        Returns:
            A scene of the window's size under this pair's name and with its transform.
        """
        row, column, height, width = window
        if self.reading.prepare:
            return _cut(self(), window)
        top, left, _, _ = self._block
        return self._read((top + row, left + column, height, width))

    def __call__(self) -> Scene:
        """Read both dates and the truth.

        Returns:
            The scene: image (2, C, H, W), NaN where either date has no data, 255 there in the mask; no mask where there is no truth.

        Raises:
            SceneFormatError: a file is unreadable, or a mask holds more than two values.
            ValueError: one date has no data in the shared part, or a band to keep does not exist.
        """
        pair = self if self.grid is not None else self.measured()
        if pair.window is None or not pair.reading.prepare:
            return pair._read(pair._block)
        # What changes whole pairs has to see the whole pair: a block would be registered for itself.
        block = _cut(replace(pair, window=None)(), pair.window)
        return replace(block, transform=cast(Grid, pair.grid).part(pair.window).transform)

    def truth(self) -> Tensor:
        """Read the truth alone; pixels without data are not marked in it.

        Returns:
            (H, W) int64 of 0, 1, 255.

        Raises:
            SceneNotFoundError: the pair has none.
            SceneFormatError: see `__call__`.
        """
        mask = self._truth(self._block)
        if mask is None:
            raise SceneNotFoundError(f"Expected a mask of the pair '{self.name}', but there is none. Add it, or serve the pair to predict.")
        return mask

    def found(self) -> tuple[bool, bool]:
        """Say whether the truth holds unchanged, and changed pixels."""
        mask = self.truth()
        return bool((mask == NORMAL).any()), bool((mask == ANOMALY).any())

    @property
    def _block(self) -> Window:
        if self.grid is None:
            raise ValueError(f"Expected a measured pair, but '{self.files.name}' is not. Call measured() first.")
        return self.window or (0, 0, *self.grid.size)

    def _read(self, window: Window) -> Scene:
        (before, one), (after, other) = (self._date(paths, window) for paths in (self.files.before, self.files.after))
        for paths, image in ((self.files.before, before), (self.files.after, after)):
            if window == self._block and not bool(torch.isfinite(image).all(dim=0).any()):
                raise ValueError(
                    f"Expected data at both dates of '{self.name}', but '{paths[0]}' has none in the shared part. Leave it out."
                )
        image = torch.stack([before, after])
        if self.reading.scale is not None:
            image = image * torch.tensor(self.reading.scale)[:, None, None, None]
        image = torch.where(torch.isfinite(image).all(dim=(0, 1)), image, torch.nan)
        for change in self.reading.prepare:
            image = change(image)
        mask = self._truth(window)
        if mask is not None:
            mask = mask.masked_fill(~torch.isfinite(image).all(dim=(0, 1)), IGNORE)
        wavelength = one.wavelength if len(self.files.before) == 1 and one.wavelength == other.wavelength else None
        wavelength = wavelength if wavelength is None or len(wavelength) == image.shape[1] else None
        place = self.grid.part(self._block) if self.grid is not None else Grid((0, 0))
        return Scene(self.name, image, mask, wavelength, place.transform, place.crs)

    def _date(self, paths: tuple[str | Path, ...], window: Window) -> tuple[Tensor, Raster]:
        held = self._held(paths)
        rasters = [self._raster(path, window, keep) for path, keep, _ in held]
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and so a pixel without data
            image = np.concatenate([np.require(raster.image, np.float32, ["C", "W"]) for raster in rasters])
        image[:, ~np.logical_and.reduce([raster.valid for raster in rasters])] = np.nan
        places = [place for _, _, own in held for place in own]
        return torch.from_numpy(image[np.argsort(places)] if places else image), rasters[0]

    def _held(self, paths: tuple[str | Path, ...]) -> list[tuple[Path, tuple[int, ...] | None, list[int]]]:
        """List the files that hold kept bands, with their indices in the file (None: all) and their places among the kept ones.

        What is dropped must not hide pixels, so nothing of it is read.
        """
        if self.reading.bands is None or len(paths) == 1:
            return [(Path(path), self.reading.bands, []) for path in paths]
        counts = [raster_shape(Path(path))[0] for path in paths]
        wanted = kept_bands(sum(counts), self.reading.bands, paths[0])
        found: list[tuple[Path, tuple[int, ...] | None, list[int]]] = []
        for path, count, start in zip(paths, counts, accumulate(counts, initial=0), strict=False):
            places = [place for place, band in enumerate(wanted) if start <= band < start + count]
            if places:
                found.append((Path(path), tuple(wanted[place] - start for place in places), places))
        return found

    def _raster(self, path: Path, window: Window, keep: tuple[int, ...] | None) -> Raster:
        row, column, height, width = window
        if path in self.warped and self.grid is not None:
            raster = read_on_grid(path, self.grid, window, keep)
        else:
            raster = read_raster(path, (self.origin[0] + row, self.origin[1] + column, height, width), keep)
        if raster.image.dtype.kind not in "biuf":
            raise SceneFormatError(f"Expected real numbers in '{path}', but got {raster.image.dtype}. Take the magnitude of complex data.")
        return raster

    def _truth(self, window: Window) -> Tensor | None:
        return self.truths.read(self.files, self.grid, self.origin, window) if self.has_truth and self.grid is not None else None

    def _shared(self, first: Grid, second: Grid) -> Window:
        before, after = self.files.before[0], self.files.after[0]
        if not (first.is_georeferenced and second.is_georeferenced):
            raise ValueError(self._misfit(Path(after), second, Path(before), first))
        window = shared_window(first, second)
        if window is None:
            raise ValueError(
                f"Expected dates of one place in the pair '{self.files.name}', but '{before}' and '{after}' share no pixel. Pair others."
            )
        return window

    def _misfit(self, path: Path, grid: Grid, other: Path, wanted: Grid) -> str:
        return (
            f"Expected {wanted.size[0]} x {wanted.size[1]} pixels in '{path}' as in '{other}', but got {grid.size[0]} x {grid.size[1]}, "
            "and without a georeference on both they cannot be aligned. Resize or crop one, or give them a transform and a CRS."
        )

    def _check_bits(self, one: np.dtype[Any], other: np.dtype[Any]) -> None:
        if self.reading.scale is None and one.itemsize != other.itemsize and (one.kind in "iu" or other.kind in "iu"):
            raise ValueError(
                f"Expected values of one scale at both dates of '{self.files.name}', but '{self.files.before[0]}' is stored as {one} and "
                f"'{self.files.after[0]}' as {other}. Say what multiplies them with scale=(before, after); (1, 1) if they are one already."
            )


def _cut(scene: Scene, window: Window) -> Scene:
    """Cut a window out of image and truth; the rest stays as it is."""
    row, column, height, width = window
    place = (..., slice(row, row + height), slice(column, column + width))
    return replace(scene, image=scene.image[place].clone(), mask=None if scene.mask is None else scene.mask[place].clone())
