"""Cut samples from scenes: whole or in tiles, with the pixels that calibrate kept apart from those that test."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomseg.data.read_scene import read_scene
from anomseg.data.scene import Scene
from anomseg.functional.windows import Window, random_blocks, tile_cores, tile_windows
from anomseg.sample import ANOMALY, IGNORE, NORMAL, finite_pixels

SceneLoader = Callable[[], Scene]
MaskRule = Callable[[Tensor | None, tuple[int, int]], Tensor]
_KEPT_SIZES = 8


@runtime_checkable
class PartialScene(Protocol):
    """Load a scene, or a part of it without reading the rest."""

    def __call__(self) -> Scene:
        """Load the scene."""

    def part(self, window: Window) -> Scene:
        """Load the part of a window, with the transform of the whole scene."""

    @property
    def nbytes(self) -> int:
        """Give the bytes that the whole image takes in memory."""


@runtime_checkable
class KnownTruth(Protocol):
    """Load a scene, or its truth alone."""

    def __call__(self) -> Scene:
        """Load the scene."""

    def truth(self) -> Tensor:
        """Load the truth, (H, W) int64 of 0, 1 and 255."""


def full_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Keep every pixel of the truth: the published protocol of testing.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None where there is no truth.
        size: (height, width) of the scene in pixels.

    Returns:
        (H, W) int64, a copy; all 0 without truth.
    """
    return torch.full(size, NORMAL, dtype=torch.int64) if mask is None else mask.clone()


def unlabelled_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Hide where anomalies are: a scene that is also tested must not tell those who learn from it.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None where there is no truth.
        size: (height, width) of the scene in pixels.

    Returns:
        (H, W) int64: 255 where the truth is 255, 0 elsewhere.
    """
    kept = full_mask(mask, size)
    return kept.masked_fill_(kept == ANOMALY, NORMAL)


def calibration_mask(mask: Tensor | None, size: tuple[int, int], block: int = 10, share: float = 0.25, seed: int = 0) -> Tensor:
    """Keep the truth inside seeded random blocks, and ignore the rest of the scene.

    The calibration protocol: a method sees and scores the whole image, but its scores are calibrated, by their normal pixels (0) alone,
    on a random share of blocks. ``held_out_mask`` with the same arguments keeps exactly the other pixels. Blocks depend on the size and
    the seed only, never on the truth, so that knowing where anomalies lie cannot leak into them; scenes of one size share their blocks.

    Args:
        mask: (H, W) int64 of 0, 1, 255; None is taken as normal everywhere, which is how a scene without truth is calibrated.
        size: (height, width) of the scene in pixels.
        block: side of a block in pixels.
        share: part of the blocks to keep, above 0 and below 1.
        seed: draws the blocks.

    Returns:
        (H, W) int64 of 0, 1, 255: the truth inside the blocks, 255 outside.

    Raises:
        ValueError: a size is not positive, or the share does not lie in (0, 1).
    """
    return full_mask(mask, size).masked_fill_(~random_blocks(size, block, share, seed), IGNORE)


def held_out_mask(mask: Tensor | None, size: tuple[int, int], block: int = 10, share: float = 0.25, seed: int = 0) -> Tensor:
    """Ignore the blocks that ``calibration_mask`` keeps, and keep the truth elsewhere.

    Args:
        mask: (H, W) int64 of 0, 1, 255, or None for normal everywhere.
        size: (height, width) of the scene in pixels.
        block: side of a block in pixels.
        share: part of the blocks that calibrate, above 0 and below 1.
        seed: draws the blocks.

    Returns:
        (H, W) int64 of 0, 1, 255: 255 inside the blocks, the truth outside.

    Raises:
        ValueError: a size is not positive, or the share does not lie in (0, 1).
    """
    return full_mask(mask, size).masked_fill_(random_blocks(size, block, share, seed), IGNORE)


class SceneDataset(Dataset[dict[str, Any]]):
    """Serve whole scenes, or overlapping tiles of them, as samples of the batch contract.

    Scenes are read when asked for and the latest are kept in memory; nothing is normalised, so no statistics pass between scenes. It
    pickles without the scenes it holds, for loader workers.

    Attributes:
        windows: (scene index, window) of every sample if tiled; None if whole.
    """

    def __init__(
        self,
        scenes: Sequence[SceneLoader | str | Path],
        tile: int | None = None,
        overlap: int = 0,
        mask_rule: MaskRule = full_mask,
        sizes: Sequence[tuple[int, int]] | None = None,
        cache_bytes: int = 2**29,
        count_once: bool = False,
    ) -> None:
        """Store the scenes and, if tiled, plan their windows.

        Args:
            scenes: loaders without arguments that return a ``Scene``, or paths for ``read_scene``.
            tile: side of a tile in pixels; None serves whole scenes. Tiles of a scene smaller than that are as large as the scene.
            overlap: pixels that neighbouring tiles share at least.
            mask_rule: picks the truth that counts, from the whole scene's mask and size.
            sizes: (height, width) of each scene in pixels; by default each scene is read once if tiled.
            cache_bytes: images kept in memory, in bytes; the latest scene is always kept.
            count_once: whether the truth of a pixel that tiles share is kept in one of them alone, and 255 in the others: figures then
                count every pixel once. The last tile of an axis overlaps its neighbour wherever the side is no multiple of the tile.

        Raises:
            ValueError: there is no scene, ``sizes`` has another length, or the overlap is not smaller than the tile.
        """
        if not scenes:
            raise ValueError("Expected at least one scene, but got an empty sequence. Pass loaders or paths.")
        if sizes is not None and len(sizes) != len(scenes):
            raise ValueError(
                f"Expected {len(scenes)} sizes, one a scene, but got {len(sizes)}. Leave them out to read them from the scenes."
            )
        self.scenes = [partial(read_scene, scene) if isinstance(scene, (str, Path)) else scene for scene in scenes]
        self.tile = tile
        self.overlap = overlap
        self.mask_rule = mask_rule
        self.sizes = sizes
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, tuple[Scene, Tensor]] = OrderedDict()
        self._kept: dict[tuple[int, int], Tensor] = {}
        partial_scenes = [scene for scene in self.scenes if isinstance(scene, PartialScene)]
        self._reads_parts = len(partial_scenes) == len(self.scenes) and sum(s.nbytes for s in partial_scenes) > cache_bytes
        self.windows: list[tuple[int, Window]] | None = None
        self._cores: list[Window] = []
        if tile is not None:
            known = sizes or [self._scene(index)[0].size for index in range(len(scenes))]
            self.windows = [(index, window) for index, size in enumerate(known) for window in tile_windows(size, tile, overlap)]
            self._cores = [core for size in known for core in tile_cores(size, tile, overlap)] if count_once else []

    @property
    def groups(self) -> list[int]:
        """Give the scene index of every sample, which keeps a scene's tiles on one rank."""
        return list(range(len(self.scenes))) if self.windows is None else [index for index, _ in self.windows]

    @property
    def of_one_size(self) -> bool:
        """Say whether all samples are known to have one height and width, so that they stack."""
        if self.windows is not None:
            return len({window[2:] for _, window in self.windows}) == 1
        return self.sizes is not None and len(set(self.sizes)) == 1

    def __len__(self) -> int:
        return len(self.scenes) if self.windows is None else len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Cut one sample.

        Args:
            index: of the sample, negative from the end.

        Returns:
            ``image`` (C, h, w) or (2, C, h, w) float32, ``mask`` (h, w) int64 with 255 where there is no data, ``label`` (h, w) int64 if
            the scene has classes, ``image_label`` () int64 if the scene has one (that of a tile: 1 where an anomaly lies in it, else 0, or
            255 where an anomalous scene does not say), and the metadata of the batch contract, all without the batch axis. Tensors are
            copies.

        Raises:
            IndexError: there is no such sample.
        """
        index = range(len(self))[index]
        which, window = (index, None) if self.windows is None else self.windows[index]
        sample = self.cut(which, window)
        if window is None:
            return sample
        part = _within(self._cores[index], window) if self._cores else (slice(None), slice(None))
        if "image_label" in sample:
            sample["image_label"] = _tile_label(sample["image_label"], sample["mask"][part])
        for truth in {"mask", "label"} & sample.keys() if self._cores else ():
            kept = torch.full_like(sample[truth], IGNORE)
            kept[part] = sample[truth][part]
            sample[truth] = kept
        return sample

    def cut(self, which: int, window: Window | None = None) -> dict[str, Any]:
        """Cut any window out of a scene.

        Args:
            which: index of the scene.
            window: (row, column, height, width) within the scene, in pixels; None is the whole of it.

        Returns:
            A sample as `__getitem__` returns it.
        """
        scene, mask = self._scene(which)
        row, column, height, width = window = window or (0, 0, *scene.size)
        rows, columns = slice(row, row + height), slice(column, column + width)
        part = None if scene.label is None else scene.label[rows, columns]
        return _sample(scene, scene.image[..., rows, columns].clone(), mask[rows, columns].long(), part, window, scene.size)

    def cut_once(self, which: int, window: Window) -> dict[str, Any]:
        """Cut a window that no other one follows: of scenes that do not all fit in memory, only this part is read if that can be done.

        The rule then picks its pixels without a look at the truth, as the rules of this module do anyway.

        Args:
            which: index of the scene.
            window: (row, column, height, width) within the scene, in pixels.

        Returns:
            The sample that ``cut`` returns.
        """
        load = self.scenes[which]
        if not self._reads_parts or which in self._cache or not isinstance(load, PartialScene):
            return self.cut(which, window)
        scene, size = load.part(window), self.size_of(which)
        if size not in self._kept:
            self._kept = {} if len(self._kept) == _KEPT_SIZES else self._kept
            self._kept[size] = self.mask_rule(None, size) != IGNORE
        row, column, height, width = window
        counted = self._kept[size][row : row + height, column : column + width] & finite_pixels(scene.image[None])[0]
        return _sample(scene, scene.image, full_mask(scene.mask, scene.size).masked_fill_(~counted, IGNORE), scene.label, window, size)

    def truth_of(self, which: int) -> Tensor:
        """Give the truth of a whole scene that counts, (H, W) int64; the image is read too unless the loader knows its truth alone."""
        load = self.scenes[which]
        if which in self._cache or not self._reads_parts or not isinstance(load, KnownTruth):
            return self._scene(which)[1].long()
        return self.mask_rule(load.truth(), self.size_of(which))

    def size_of(self, which: int) -> tuple[int, int]:
        """Give (height, width) of a scene in pixels; the scene is read where sizes were not given."""
        return self._scene(which)[0].size if self.sizes is None else self.sizes[which]

    def _scene(self, index: int) -> tuple[Scene, Tensor]:
        if index not in self._cache:
            scene = self.scenes[index]()
            mask = self.mask_rule(scene.mask, scene.size)
            lost = ~finite_pixels(scene.image[None])[0]
            mask[lost] = IGNORE
            label = None if scene.label is None else scene.label.to(torch.uint8).masked_fill(lost, IGNORE)
            self._cache[index] = (replace(scene, mask=None, label=label), mask.to(torch.uint8))  # int64 masks outweigh images of few bands
        self._cache.move_to_end(index)
        while len(self._cache) > 1 and sum(scene.image.nbytes for scene, _ in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        return self._cache[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_kept": {}}


def _within(core: Window, window: Window) -> tuple[slice, slice]:
    row, column = core[0] - window[0], core[1] - window[1]
    return slice(row, row + core[2]), slice(column, column + core[3])


def _tile_label(label: Tensor, mask: Tensor) -> Tensor:
    """Label a tile: an anomalous scene is normal where it is known to be."""
    if int(label) != ANOMALY:
        return label
    found = ANOMALY if bool((mask == ANOMALY).any()) else IGNORE if bool((mask == IGNORE).any()) else NORMAL
    return torch.tensor(found)


def _sample(scene: Scene, image: Tensor, mask: Tensor, label: Tensor | None, window: Window, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "image": image,
        "mask": mask,
        **({} if label is None else {"label": label.long()}),
        **({} if scene.image_label is None else {"image_label": torch.tensor(scene.image_label)}),
        "name": scene.name,
        **({} if scene.category is None else {"category": scene.category}),
        "window": window,
        "scene_size": size,
        "transform": scene.transform,
        "crs": scene.crs,
        "wavelength": scene.wavelength,
    }
