"""Serve pairs of images of one place at two dates, and the truth about what changed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from anomseg.data.augment import Augmentation
from anomseg.data.change_folders import ChangeLayout, ChangeLayoutName, PairFiles
from anomseg.data.change_pairs import ChangePair, PairReading
from anomseg.data.change_parts import PairParts, PairSource, served_pairs, shared_pairs, usable_pairs
from anomseg.data.crops import CropDataset
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import Part
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.mask_rules import calibration_mask, full_mask, held_out_mask
from anomseg.data.pair_transform import PairTransform
from anomseg.data.scene_datamodule import CACHE_BYTES, SceneDataModule, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader


class ChangeDataModule(SceneDataModule):
    """Read pairs of images before and after, ``image`` (B, 2, C, H, W), with masks of change, ``mask`` (B, H, W).

    Training serves random crops of side ``tile``, drawn by seed, epoch and index alone; the other stages serve windows of that side, or
    of another, or whole pairs (``evaluate_on``). Windows that overlap let a net see past the edge of what it judges. Where nothing is set
    apart to validate, validation takes a seeded share of blocks of the training pairs, and these are 255 in training; the pairs that test
    never validate. Nothing is split by chance unless a `ShareSplit` asks for it: tiles of one place, or copies of one scene, on both sides
    of a split flatter every figure.

    Headers and masks are read once before a stage begins, images when they are asked for. Pairs that fit in ``cache_bytes`` stay in memory
    once read and prepared, so that an epoch decodes nothing after the first.

    Example:
        >>> split = GroupSplit(r"^.{5}", test=("12300",), val=("12000",))
        >>> data = ChangeDataModule("deeppcb", "deeppcb", split=split, tile=256, anomaly_share=0.5)
    """

    def __init__(
        self,
        root: str | Path,
        layout: ChangeLayoutName | ChangeLayout = "auto",
        pairs: list[PairFiles] | None = None,
        split: ShareSplit | NameSplit | GroupSplit | Literal["all_stages"] | None = None,
        bands: list[int] | None = None,
        scale: tuple[float, float] | None = None,
        threshold: float | None = None,
        prepare: list[PairTransform] | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        anomaly_share: float = 0.0,
        predict_root: str | Path | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        evaluate_on: Literal["tiles", "pairs"] | int = "tiles",
        calibration_share: float = 0.25,
        calibration_block: int = 10,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            root: the folder of the data set.
            layout: where images and masks lie: the name of a dialect, a description, or "auto" for the dialect that fits.
            pairs: the files of each pair, below the root, instead of a layout.
            split: how pairs are shared out; None follows the folders or lists of the layout. "all_stages" serves every pair to every stage:
                for methods that learn from a pair without its truth, never for those that read it.
            bands: indices from 0 of the bands to keep, in this order; None keeps those of the layout, mostly all.
            scale: factors that multiply the values of the first and second date; needed where they are stored with different bits.
            threshold: mask value above which a pixel is change; None reads 0 and 1, 0 and 255, or greys of a JPEG (127).
            prepare: changes whole pairs when they are read, such as `Binarise` and `GlobalShift`.
            augment: changes training samples, such as `PairAugmentation`.
            crops: training samples from each pair in an epoch.
            anomaly_share: share of the crops that hold a changed pixel, 0 to 1, where their pair has one.
            predict_root: folder of pairs that ``predict`` serves, laid out alike; None serves the test pairs, or all without a split.
            batch_size: samples a batch; evaluation takes 1 where pairs or windows differ in size.
            num_workers: loader processes, which share ``cache_bytes``; 0 loads in the main one, which suits pairs that fit in memory.
            tile: side of a crop in pixels; None trains on whole pairs, and evaluates them.
            overlap: pixels that neighbouring windows of evaluation share at least, fewer than their side.
            evaluate_on: windows of side ``tile`` (`tiles`), whole `pairs`, or windows of so many pixels, more than ``overlap``.
            calibration_share: part of the blocks of training pairs that validates where no pair does, above 0 and below 1.
            calibration_block: side of such a block in pixels.
            seed: of the split, the blocks, the order, the crops and the augmentation.
            cache_bytes: images kept in memory for each stage, 512 MB by default; a pair takes 8 bytes for each pixel and band. Of
                more pairs than fit, each crop is read, and whole pairs prepared for it, anew: a warning says how much they take.

        Raises:
            ValueError: an argument is out of its range.
        """
        wide = evaluate_on if isinstance(evaluate_on, int) else None
        super().__init__(batch_size, num_workers, tile, overlap if wide is None else 0, calibration_share, calibration_block, "all", seed)
        if bands is not None and (not bands or min(bands) < 0 or len(set(bands)) < len(bands)):
            raise ValueError(f"Expected different band indices of at least 0, but got bands={bands}. Use None to keep all bands.")
        if scale is not None and len(scale) != 2:
            raise ValueError(f"Expected two factors in scale=, one for each date, but got {tuple(scale)}. (1, 1) changes nothing.")
        if crops < 1 or not 0.0 <= anomaly_share <= 1.0 or cache_bytes < 0:
            raise ValueError(
                f"Expected crops >= 1, anomaly_share from 0 to 1 and cache_bytes >= 0, but got {crops}, {anomaly_share} and {cache_bytes}."
            )
        if evaluate_on not in ("tiles", "pairs") and (wide is None or tile is None or not 0 <= overlap < wide):
            raise ValueError(
                "Expected evaluate_on 'tiles', 'pairs' or, beside tile=, a side in pixels of more than the overlap, "
                f"but got {evaluate_on!r} with tile={tile} and overlap={overlap}."
            )
        self.root = root
        self.layout = layout
        self.pairs = pairs
        self.split = split
        self.bands = bands
        self.scale = scale
        self.threshold = threshold
        self.prepare = prepare
        self.augment = augment
        self.crops = crops
        self.anomaly_share = anomaly_share
        self.predict_root = predict_root
        self.evaluate_on, self.overlap = evaluate_on, overlap
        self.cache_bytes = cache_bytes
        self._shared: PairParts | None = None
        self._usable: PairParts = {}

    def scenes(self) -> Sequence[SceneLoader]:
        """List the pairs of all parts; nothing of them is read."""
        return [pair for part in self._parts().values() for pair in part]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the pairs of one stage.

        Args:
            stage: what they are for.

        Returns:
            Loaders that return a ``Scene`` each.

        Raises:
            SceneNotFoundError: the folder, a partner or a mask is missing, or no pair fits the layout.
            SceneFormatError: a file is unreadable, or a mask holds more than two values.
            ValueError: there is no split, pairs differ in their bands, dates cannot be aligned, or no pair can serve the stage.
        """
        if stage == "predict" and self.predict_root is not None:
            return self._all_of(PairSource(self.predict_root, self.layout, (), self.threshold, self._reading))
        if stage == "predict" and self.split is None:
            found = self._source.found()
            return served_pairs(found.get("", found.get("test", [])))
        if stage == "predict":
            return served_pairs(self._parts()["test"])
        return self._pairs_of("train" if stage == "val" and self._validates_on_blocks else stage)

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: crops to train, whole pairs or windows otherwise.

        Args:
            stage: what they are for.
        """
        if stage == "train":
            self._warn_of_small_cache()
            rule = self.block_rule(held_out_mask) if self._validates_on_blocks else full_mask
            pairs = self.scene_dataset("train", rule, tiled=False)
            return CropDataset(pairs, self.tile, self.crops, self.augment, self.seed, self.anomaly_share)
        by_blocks = stage == "val" and self._validates_on_blocks
        rule = self.block_rule(calibration_mask) if by_blocks else full_mask
        side = self.evaluate_on if isinstance(self.evaluate_on, int) else None
        return self.scene_dataset(stage, rule, tiled=self.evaluate_on != "pairs", tile=side)

    def _warn_of_small_cache(self) -> None:
        pairs = self._pairs_of("train")
        needed = sum(pair.nbytes for pair in pairs)
        if self.prepare and self.tile is not None and needed > self.cache_bytes:
            warnings.warn(
                f"The {len(pairs)} training pairs take {needed} bytes, but cache_bytes={self.cache_bytes}: each crop reads and prepares "
                f"its whole pair anew. Set cache_bytes={needed} or more to prepare each pair once, or store prepared images.",
                stacklevel=2,
            )

    @property
    def _reading(self) -> PairReading:
        return PairReading(None if self.bands is None else tuple(self.bands), self.scale, tuple(self.prepare or ()))

    @property
    def _source(self) -> PairSource:
        return PairSource(self.root, self.layout, tuple(self.pairs or ()), self.threshold, self._reading)

    @property
    def _validates_on_blocks(self) -> bool:
        return not self._parts()["val"]

    def _parts(self) -> PairParts:
        if self._shared is None:
            self._shared = shared_pairs(self._source, self.split, self.seed)
        return self._shared

    def _pairs_of(self, part: Part) -> list[ChangePair]:
        if part not in self._usable:
            self._usable[part] = usable_pairs(self._parts()[part], part, self.split != "all_stages")
        return self._usable[part]

    @staticmethod
    def _all_of(source: PairSource) -> list[ChangePair]:
        return served_pairs([pair for pairs in source.found().values() for pair in pairs])
