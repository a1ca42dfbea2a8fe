"""Serve scenes to a Lightning trainer: the same checks, splits and loaders for every kind of scene."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

import lightning.pytorch as L
import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from anomseg.data.crops import CropDataset, VisitSampler
from anomseg.data.mask_rules import BlockRule, MaskRule, calibration_mask, full_mask, held_out_mask, unlabelled_mask
from anomseg.data.sampler import UnpaddedSampler
from anomseg.data.scene import Scene
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.functional.windows import tile_windows
from anomseg.sample import ANOMALY, IGNORE, NORMAL, collate, finite_pixels

Loader = DataLoader[dict[str, Any]]
CACHE_BYTES = 2**29  # scenes kept in memory, by all loader workers together


Stage = Literal["train", "val", "test", "predict"]
STAGES: dict[str | None, tuple[Stage, ...]] = {  # what Lightning's stages read; those that are missing here are read when asked for
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "val"),
}


@dataclass(frozen=True)
class SceneFacts:
    """Keep what the checks learned of a scene, without its pixels.

    Attributes:
        name: of the scene.
        size: (height, width) in pixels.
        has_truth: whether it has a mask.
    """

    name: str
    size: tuple[int, int]
    has_truth: bool


@runtime_checkable
class KnownScene(Protocol):
    """Load a scene, and know its facts before it is loaded: such scenes are not read to be checked."""

    def __call__(self) -> Scene:
        """Load the scene."""

    def facts(self) -> SceneFacts:
        """Give its facts."""


class SceneDataModule(L.LightningDataModule, ABC):
    """Read, check, split and serve scenes; a subclass says which.

    Every scene serves every stage, because anomaly detection in a scene is learned from that very scene without its truth:

    * **train**: whole scenes or tiles; the mask is there, but methods learn without the anomalies.
    * **validate**: the whole image, and the truth in a seeded random share of blocks; normal pixels in them calibrate the scores.
    * **test**: all pixels, as published figures count them, or with ``test_on="held_out"`` those outside of the calibration blocks.
    * **predict**: all pixels; a scene without truth has mask 0 where there is data.

    A subclass writes ``scenes()`` and hands these arguments on; one whose stages have scenes of their own also writes ``scenes_of()`` and
    ``dataset()``. The hooks of Lightning are final.
    """

    def __init__(
        self,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        calibration_share: float = 0.25,
        calibration_block: int = 10,
        test_on: Literal["all", "held_out"] = "all",
        seed: int = 0,
        train_on: Literal["all", "normal"] = "normal",
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            batch_size: samples a batch; 1 for scenes of different band counts. Samples of different sizes are evaluated one by one.
            num_workers: loader processes; 0 loads in the main one.
            tile: side of a tile in pixels; None serves whole scenes.
            overlap: pixels that neighbouring tiles share at least, 0 to ``tile - 1``.
            calibration_share: part of the blocks whose normal pixels calibrate, above 0 and below 1.
            calibration_block: side of such a block in pixels.
            test_on: ``"all"`` pixels, or those ``"held_out"`` from calibration.
            seed: of the calibration blocks and of the order of training samples.
            train_on: whether training masks name the anomalies, so that methods learn from the ``"normal"`` pixels alone, which suits
                scenes that are not tested; ``"all"`` hides them.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if batch_size < 1 or num_workers < 0 or calibration_block < 1:
            raise ValueError(
                "Expected batch_size >= 1, num_workers >= 0 and calibration_block >= 1, "
                f"but got {batch_size}, {num_workers} and {calibration_block}. Correct them."
            )
        if not 0.0 < calibration_share < 1.0:
            raise ValueError(f"Expected 0 < calibration_share < 1, but got {calibration_share}. A quarter is 0.25.")
        if test_on not in ("all", "held_out"):
            raise ValueError(f"Expected test_on to be 'all' or 'held_out', but got {test_on!r}. Choose one of them.")
        if train_on not in ("all", "normal"):
            raise ValueError(f"Expected train_on to be 'all' or 'normal', but got {train_on!r}. Choose one of them.")
        if tile is not None:
            tile_windows((tile, tile), tile, overlap)  # raises if the overlap does not fit the tile
        elif overlap:
            raise ValueError(f"Expected overlap=0 for whole scenes, but got {overlap}. Set tile= as well.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.tile = tile
        self.overlap = overlap
        self.calibration_share = calibration_share
        self.calibration_block = calibration_block
        self.test_on = test_on
        self.train_on = train_on
        self.seed = seed
        self.cache_bytes = CACHE_BYTES
        self._all: list[SceneLoader] = []
        self._facts: dict[SceneLoader, SceneFacts] = {}
        self._of_stage: dict[Stage, list[SceneLoader]] = {}

    @abstractmethod
    def scenes(self) -> Sequence[SceneLoader]:
        """List the scenes.

        Returns:
            Loaders without arguments, picklable, that return a ``Scene`` each.
        """

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the scenes of one stage: every scene serves every stage here.

        Args:
            stage: what they are for.

        Returns:
            Loaders as those of ``scenes()``.
        """
        if not self._all:
            self._all = list(self.scenes())
        return self._all

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage.

        Args:
            stage: what they are for; all but training need a ``SceneDataset``.

        Returns:
            Whole scenes or tiles, with the truth that counts in that stage.
        """
        held_out, blind = stage == "test" and self.test_on == "held_out", stage == "train" and self.train_on == "all"
        rule = self.block_rule(calibration_mask) if stage == "val" else self.block_rule(held_out_mask) if held_out else full_mask
        return self.scene_dataset(stage, unlabelled_mask if blind else rule)

    @final
    def setup(self, stage: str | None = None) -> None:
        """Read and check every scene of the stage once, before anything is trained.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None.

        Raises:
            ValueError: there is no scene, two share a name, one has no pixel that counts, or, to test, one has no truth.
            SceneNotFoundError: a file or folder is missing.
            SceneFormatError: a file does not hold a scene.
        """
        for served in STAGES[stage]:
            loaders = self._checked(served)
            lacking = [self._facts[load].name for load in loaders if not self._facts[load].has_truth]
            if stage == "test" and lacking:
                raise ValueError(
                    f"Expected a truth for every scene to test, but {lacking} have none. "
                    "Give their masks (mask_root=, mask_key=), leave these scenes out, or use predict instead."
                )

    @final
    def train_dataloader(self) -> Loader:
        """Give all samples in an order seeded by (seed, epoch); ranks get equally many, by repeats where needed."""
        dataset = self.dataset("train")
        world, rank = _world()
        kind: type[DistributedSampler[Any]] = VisitSampler if isinstance(dataset, CropDataset) else DistributedSampler
        return self._loader(dataset, self.batch_size, kind(dataset, num_replicas=world, rank=rank, shuffle=True, seed=self.seed))

    @final
    def val_dataloader(self) -> Loader:
        """Give whole images with the truth inside the calibration blocks, 255 elsewhere, or the scenes that are there to validate."""
        return self._evaluation_loader("val")

    @final
    def test_dataloader(self) -> Loader:
        """Give all pixels, or with ``test_on="held_out"`` 255 inside the calibration blocks."""
        return self._evaluation_loader("test")

    @final
    def predict_dataloader(self) -> Loader:
        """Give all pixels, with the truth where there is one."""
        return self._evaluation_loader("predict")

    @final
    def block_rule(self, rule: Any) -> BlockRule:
        """Bind ``calibration_mask`` or ``held_out_mask`` to the blocks of this module."""
        return BlockRule(rule, self.calibration_block, self.calibration_share, self.seed)

    @final
    def scene_dataset(self, stage: Stage, rule: MaskRule, tiled: bool = True, tile: int | None = None) -> SceneDataset:
        """Serve the scenes of a stage.

        Args:
            stage: whose scenes.
            rule: picks the truth that counts.
            tiled: whether in tiles, where there is a tile size.
            tile: another side than that of the module.

        Returns:
            The samples.
        """
        loaders = self._checked(stage)
        sizes = [self._facts[load].size for load in loaders]
        side, overlap = (tile or self.tile, self.overlap) if tiled else (None, 0)
        once = stage in ("val", "test")  # figures count every pixel once; training and maps want whole tiles
        return SceneDataset(loaders, side, overlap, rule, sizes, self.cache_bytes, once, max(1, self.num_workers))

    def _checked(self, stage: Stage) -> list[SceneLoader]:
        if stage not in self._of_stage:
            loaders = list(self.scenes_of(stage))
            if not loaders:
                raise ValueError(f"Expected at least one scene from {type(self).__name__}.scenes(), but got none.")
            for load in loaders:
                if load not in self._facts:
                    self._facts[load] = load.facts() if isinstance(load, KnownScene) else _inspect(load())
            names = [self._facts[load].name for load in loaders]
            twice = sorted({name for name, times in Counter(names).items() if times > 1})
            if twice:
                raise ValueError(
                    f"Expected scenes of different names, which name their outputs, but got {twice} more than once. Rename the files."
                )
            self._of_stage[stage] = loaders
        return self._of_stage[stage]

    def _evaluation_loader(self, stage: Stage) -> Loader:
        dataset = self.dataset(stage)
        if not isinstance(dataset, SceneDataset):
            raise TypeError(f"Expected a SceneDataset to evaluate, but got {type(dataset).__name__} from dataset('{stage}').")
        world, rank = _world()
        sampler = UnpaddedSampler(dataset, world, rank, groups=dataset.groups) if world > 1 else None
        return self._loader(dataset, self.batch_size if dataset.of_one_size else 1, sampler)

    def _loader(self, dataset: Dataset[dict[str, Any]], batch_size: int, sampler: Sampler[Any] | None) -> Loader:
        # No pin_memory: torch turns the metadata's tuples into lists while it pins.
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
        )


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


def _inspect(scene: Scene) -> SceneFacts:
    counted = finite_pixels(scene.image[None])[0]
    if not bool(counted.any()):
        raise ValueError(
            f"Expected pixels with data in scene '{scene.name}', but every one of {tuple(scene.image.shape)} has NaN, infinity or the "
            "no-data value in some band. Drop the dead bands (bands=), or correct the no-data value."
        )
    if scene.mask is not None:
        values = scene.mask[counted]
        if bool((values == IGNORE).all()):
            raise ValueError(
                f"Expected pixels of 0 or 1 in the mask of scene '{scene.name}', but all with data are 255 (ignored). "
                "Write anomalies as 1 and normal pixels as 0."
            )
        for value, kind in ((ANOMALY, "anomalous"), (NORMAL, "normal")):
            if not bool((values == value).any()):
                warnings.warn(
                    f"The mask of scene '{scene.name}' holds no {kind} pixel ({value}): metrics that compare both are undefined.",
                    stacklevel=2,
                )
    return SceneFacts(scene.name, scene.size, scene.mask is not None)
