"""Cut samples from scenes: whole or in tiles, with the pixels that calibrate kept apart from those that test."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomseg.data.mask_rules import POINTWISE, BlockRule, MaskRule, full_mask
from anomseg.data.read_scene import read_scene
from anomseg.data.scene import Scene
from anomseg.functional.windows import Window, tile_cores, tile_windows
from anomseg.sample import ANOMALY, IGNORE, NORMAL, finite_pixels

SceneLoader = Callable[[], Scene]
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
        """Give the bytes that the whole image takes in memory, 0 where they are not known."""

    @property
    def exact_parts(self) -> bool:
        """Say whether a part holds the very values of the whole, and costs no more than its share of it."""


@runtime_checkable
class KnownTruth(Protocol):
    """Load a scene, or its truth alone."""

    def __call__(self) -> Scene:
        """Load the scene."""

    def truth(self) -> Tensor:
        """Load the truth, (H, W) int64 of 0, 1 and 255."""


class SceneDataset(Dataset[dict[str, Any]]):
    """Serve whole scenes, or overlapping tiles of them, as samples of the batch contract.

    Scenes are read when asked for and the latest are kept in memory; nothing is normalised, so no statistics pass between scenes. Of a
    scene that exceeds this memory, a tile is read without the rest where its loader can do that. It pickles without the scenes it holds,
    for loader workers.

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
        processes: int = 1,
    ) -> None:
        """Store the scenes and, if tiled, plan their windows.

        Args:
            scenes: loaders without arguments that return a ``Scene``, or paths for ``read_scene``.
            tile: side of a tile in pixels; None serves whole scenes. Tiles of a scene smaller than that are as large as the scene.
            overlap: pixels that neighbouring tiles share at least.
            mask_rule: picks the truth that counts, from the whole scene's mask and size. Parts of scenes are read with `full_mask`,
                `unlabelled_mask` and `BlockRule` alone; any other rule sees whole scenes.
            sizes: (height, width) of each scene in pixels; by default each scene is read once if tiled.
            cache_bytes: images kept in memory, in bytes, by all processes together; each always keeps its latest scene.
            count_once: whether the truth of a pixel that tiles share is kept in one of them alone, and 255 in the others: figures then
                count every pixel once. The last tile of an axis overlaps its neighbour wherever the side is no multiple of the tile.
            processes: loader processes that hold scenes of their own; what is served does not depend on it.

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
        self.cache_bytes = cache_bytes // processes
        self._cache: OrderedDict[int, tuple[Scene, Tensor]] = OrderedDict()
        self._kept: dict[tuple[int, int], Tensor] = {}
        parted = [scene for scene in self.scenes if _is_partial(scene)]
        known_rule = isinstance(mask_rule, BlockRule) or mask_rule in POINTWISE
        self._parted = parted if known_rule and len(parted) == len(self.scenes) else []
        self._crops_parts = sum(scene.nbytes for scene in self._parted) > cache_bytes
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
        if self.windows is None:
            return self.cut(index)
        which, window = self.windows[index]
        apart = self._parted and self._parted[which].exact_parts and self._parted[which].nbytes > self.cache_bytes
        sample = self._part(which, window) if apart else self.cut(which, window)
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

        Args:
            which: index of the scene.
            window: (row, column, height, width) within the scene, in pixels.

        Returns:
            The sample that ``cut`` returns.
        """
        return self._part(which, window) if self._crops_parts else self.cut(which, window)

    def truth_of(self, which: int) -> Tensor:
        """Give the truth of a whole scene that counts, (H, W) int64.

        Of scenes that can be read in parts it is their truth alone, if they know it without their image: then pixels without data are not
        marked in it, however much memory there is.
        """
        load = self.scenes[which]
        if self._parted and isinstance(load, KnownTruth):
            return self.mask_rule(load.truth(), self.size_of(which))
        return self._scene(which)[1].long()

    def size_of(self, which: int) -> tuple[int, int]:
        """Give (height, width) of a scene in pixels; the scene is read where sizes were not given."""
        return self._scene(which)[0].size if self.sizes is None else self.sizes[which]

    def _part(self, which: int, window: Window) -> dict[str, Any]:
        if which in self._cache:
            return self.cut(which, window)
        scene, size, rule = self._parted[which].part(window), self.size_of(which), self.mask_rule
        lost = ~finite_pixels(scene.image[None])[0]
        if isinstance(rule, BlockRule):
            if size not in self._kept:
                self._kept = {} if len(self._kept) == _KEPT_SIZES else self._kept
                self._kept[size] = rule.kept(size)
            row, column, height, width = window
            mask = full_mask(scene.mask, scene.size)
            mask[~self._kept[size][row : row + height, column : column + width]] = IGNORE
        else:
            mask = rule(scene.mask, scene.size)
        label = None if scene.label is None else scene.label.masked_fill(lost, IGNORE)
        return _sample(scene, scene.image, mask.masked_fill_(lost, IGNORE), label, window, size)

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


def _is_partial(scene: object) -> TypeGuard[PartialScene]:
    return hasattr(type(scene), "part")  # of the class: isinstance of a protocol would read the properties of each scene


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
