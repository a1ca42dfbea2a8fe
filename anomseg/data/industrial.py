"""Serve images of products and surfaces: normal ones to learn, defects to find."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anomseg.data.augment import Augmentation
from anomseg.data.crops import CropDataset
from anomseg.data.defects import Corruption
from anomseg.data.image_folders import PARTS
from anomseg.data.industrial_images import ImageSize, IndustrialImage, check_image_size
from anomseg.data.industrial_layouts import IndustrialLayout, IndustrialLayoutName
from anomseg.data.industrial_patches import PatchRule
from anomseg.data.industrial_sets import IndustrialParts, IndustrialSet, TestDefects, predicted_images, shared_set
from anomseg.data.industrial_split import IndustrialSplit, check_industrial_split
from anomseg.data.mask_rules import MaskRule, calibration_mask, full_mask, held_out_mask
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule, SceneFacts, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.errors import SceneFormatError

_BLOCKS = 4  # along the shorter side, where blocks calibrate: smaller ones would leave features of patches hardly a place free of them


class IndustrialDataModule(SceneDataModule):
    """Read images of one or many categories: `image` (C, H, W) in [0, 1], `image_label`, `category`, and `mask` 1 on defects.

    Training and validation images are normal: the former are learnt, the latter calibrate and are never learnt. With `corruption`,
    training samples carry `corrupted` and `defect` beside the clean `image`. One root with many categories, or several data sets, train
    one model.

    Example:
        >>> tiles = IndustrialSet("magnetic_tile", "magnetic_tile", size=0.5)
        >>> boards = IndustrialSet("deeppcb", "deeppcb", size=(256, 256))
        >>> data = IndustrialDataModule([tiles, boards], tile=96, channels=1, corruption=Corruption(default_defects()), batch_size=8)
    """

    def __init__(
        self,
        root: str | Path | Sequence[IndustrialSet],
        layout: IndustrialLayoutName | IndustrialLayout = "mvtec",
        categories: Sequence[str] | None = None,
        split: IndustrialSplit | None = None,
        test_defects: TestDefects = "all",
        patches: PatchRule | None = None,
        size: ImageSize = None,
        bands: Sequence[int] | None = None,
        channels: int | None = None,
        corruption: Corruption | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        val_share: float = 0.1,
        predict_root: str | Path | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        evaluate_on: Literal["images", "tiles"] = "images",
        seed: int = 0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            root: the folder of a data set, described by the next five arguments; or several sets, each described by itself.
            layout: see `IndustrialSet`.
            categories: likewise.
            split: likewise.
            test_defects: likewise.
            patches: likewise.
            size: (height, width) in pixels that images are scaled to, or a factor such as 0.5; None keeps their own sizes.
            bands: indices from 0 of the bands to keep; None keeps all.
            channels: number of bands of all images: grey is repeated in each, one band is the mean of three. None keeps what the files
                have; where grey lies beside three bands it is repeated, and a warning says so.
            corruption: puts synthetic defects into training samples after the augmentation; None for none.
            augment: changes training samples.
            crops: training samples from each image in an epoch.
            val_share: share of the training images of each category that validate, 0 to below 1, where the split sets none apart.
                Sessions, groups and the patches of an image stay together. Without any, blocks of the training images calibrate and are
                255 in training: a quarter of them, a quarter of the shorter side long.
            predict_root: images to predict, laid out as the set or directly in a folder; of the latter the category is known where
                there is but one. None takes those that test.
            batch_size: samples a batch; images of different sizes are evaluated one by one.
            num_workers: loader processes.
            tile: side of a training crop in pixels; None trains on whole images.
            overlap: pixels that neighbouring tiles of evaluation share.
            evaluate_on: whole `images`, which suits nets without fixed sizes and scores of whole images, or `tiles`.
            seed: of shares, order, crops, augmentation and corruption.

        Raises:
            ValueError: an argument is out of its range, or describes one data set where several are given.
        """
        super().__init__(batch_size, num_workers, tile, overlap, seed=seed)
        if not isinstance(root, str | Path) and (
            (layout, test_defects) != ("mvtec", "all") or (categories, split, patches) != (None, None, None) or not root
        ):
            raise ValueError(
                "Expected data sets that describe themselves, and no layout, categories, split, test_defects or patches beside "
                f"them, but got {len(root)} sets and some of these. Move them into IndustrialSet."
            )
        if crops < 1 or not 0 <= val_share < 1 or (channels is not None and channels < 1) or evaluate_on not in ("images", "tiles"):
            raise ValueError(
                "Expected crops >= 1, 0 <= val_share < 1, channels >= 1 or None and evaluate_on 'images' or 'tiles', but got "
                f"{crops}, {val_share}, {channels} and {evaluate_on!r}."
            )
        if bands is not None and (not len(bands) or min(bands) < 0):
            raise ValueError(f"Expected indices of bands from 0, at least one, but got {tuple(bands)}. None keeps all.")
        if isinstance(categories, str):
            raise ValueError(f"Expected a sequence of categories, but got the text '{categories}'. Write ['{categories}'].")
        check_image_size(size)
        check_industrial_split(split)
        self.root, self.layout, self.categories, self.split, self.test_defects = root, layout, categories, split, test_defects
        self.patches, self.size, self.bands, self.channels = patches, size, bands, channels
        self.corruption, self.augment, self.crops, self.val_share = corruption, augment, crops, val_share
        self.predict_root, self.evaluate_on = predict_root, evaluate_on
        self._parts: IndustrialParts = {}
        self._samples: list[int] = []

    @property
    def sets(self) -> tuple[IndustrialSet, ...]:
        """Give the data sets."""
        if not isinstance(self.root, str | Path):
            return tuple(self.root)
        chosen = None if self.categories is None else tuple(self.categories)
        return (IndustrialSet(self.root, self.layout, chosen, self.split, self.test_defects, self.patches),)

    @property
    def known_categories(self) -> tuple[str, ...]:
        """Name the categories that train, sorted."""
        return tuple(sorted({image.file.category for image in self._shared()["train"]}))

    def scenes(self) -> Sequence[SceneLoader]:
        """List the images of all parts."""
        return [image for part in self._shared().values() for image in part]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the images of one stage.

        Raises:
            SceneNotFoundError: a folder is missing, or holds no image of its layout.
            SceneFormatError: a file is unreadable, or images differ in their bands.
            ValueError: a part has no image.
        """
        parts = self._shared()
        if stage == "predict" and self.predict_root is not None:
            only = self.known_categories[0] if len(self.known_categories) == 1 else ""
            found = predicted_images(self.predict_root, self.sets[0].described, only)
            images = self._finished([replace(image, size=self.sets[0].size) for image in found], self._bands_of(parts["train"]))
            return [image if image.file.category else UncategorisedImage(image) for image in images]
        images = parts["train" if stage == "val" and not parts["val"] else "test" if stage == "predict" else stage]
        if not images:
            raise ValueError(f"Expected images to {stage}, but the split gives none. Correct split=, or the folders.")
        return images

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: images or crops to train, corrupted anew in each epoch."""
        blocks = not self._shared()["val"]
        if stage != "train":
            rule = self._surface_rule(calibration_mask) if blocks and stage == "val" else full_mask
            return self.scene_dataset(stage, rule, tiled=self.evaluate_on == "tiles")
        whole = self.scene_dataset(stage, self._surface_rule(held_out_mask) if blocks else full_mask, tiled=False)
        finish = None if self.corruption is None else CorruptSample(self.corruption, whole, self._others())
        return CropDataset(whole, self.tile, self._samples, self.augment, self.seed, finish=finish)

    def _surface_rule(self, rule: Any) -> MaskRule:
        """Bind a rule of blocks to the share and seed of this module, and to blocks that fit each image."""
        return partial(_in_blocks, rule=rule, share=self.calibration_share, seed=self.seed)

    def _others(self) -> dict[str, tuple[int, ...]]:
        """Index the training images by category."""
        categories = [image.file.category for image in self._shared()["train"]]
        return {name: tuple(i for i, c in enumerate(categories) if c == name) for name in sorted(set(categories))}

    def _shared(self) -> IndustrialParts:
        if not self._parts:
            shared = [shared_set(chosen, self.val_share, self.seed) for chosen in self.sets]
            parts: IndustrialParts = {part: [image for each in shared for image in each[part]] for part in PARTS}
            if not parts["train"]:
                raise ValueError("Expected normal images to train, but the split gives none. Correct split=, or good= of the layout.")
            channels = self._common_channels([image for part in parts.values() for image in part])
            self._parts = {part: self._finished(images, channels) for part, images in parts.items()}
            self._samples = [self.crops * one.repeats for one, each in zip(self.sets, shared, strict=True) for _ in each["train"]]
            self._say_what_is_unusual()
        return self._parts

    def _finished(self, images: Sequence[IndustrialImage], channels: int | None) -> list[IndustrialImage]:
        bands = None if self.bands is None else tuple(self.bands)
        size = tuple(self.size) if isinstance(self.size, list) else self.size
        return [replace(image, size=image.size or size, bands=bands, channels=channels) for image in images]

    def _bands_of(self, images: Sequence[IndustrialImage]) -> int | None:
        return images[0].channels if images[0].channels is not None or self.bands is not None else images[0].shape[0]

    def _common_channels(self, images: Sequence[IndustrialImage]) -> int | None:
        if self.channels is not None or self.bands is not None:
            return self.channels
        example = {image.shape[0]: image.file.path for image in reversed(images)}
        if len(example) == 1:
            return None
        named = ", ".join(f"{count} in '{path}'" for count, path in sorted(example.items()))
        if set(example) != {1, 3}:
            raise SceneFormatError(f"Expected images of as many bands, but got {named}. Pick some with bands=, or give each a model.")
        warnings.warn(
            f"Grey images lie beside those of three bands ({named}): grey is repeated in each. Set channels= to choose.", stacklevel=2
        )
        return 3

    def _say_what_is_unusual(self) -> None:
        train, val, test = (self._parts[part] for part in PARTS)
        known = {image.file.category for image in train}
        unseen = sorted({image.file.category for image in test} - known)
        if unseen:
            warnings.warn(f"The categories {unseen} are tested but never learnt: what is learnt is {sorted(known)}.", stacklevel=2)
        if not val:
            warnings.warn(
                f"No image is left to validate among {len(train)} that train: scores are calibrated on blocks of these, 255 in training, "
                "which look more normal than a new image will.",
                stacklevel=2,
            )
        alone = sorted(known - {image.file.category for image in val}) if val else []
        if alone:
            warnings.warn(
                f"No image of the categories {alone} is left to validate: scores are calibrated on the other categories alone, and their "
                "heat says little of these. A category wants two or more training images (or sessions, where the split has these), and "
                "val_share above 0.",
                stacklevel=2,
            )
        small = 0 if self.tile is None else sum(min(image.scaled) < self.tile for image in train)
        if small:
            warnings.warn(
                f"{small} of {len(train)} training images are smaller than the crop of {self.tile} pixels: they are padded with pixels "
                "without data. Lower tile=, or enlarge them with size=.",
                stacklevel=2,
            )


def _in_blocks(mask: Tensor | None, size: tuple[int, int], rule: Any, share: float, seed: int) -> Tensor:
    """Apply a rule of blocks whose side is a part of the shorter side of the image."""
    masked: Tensor = rule(mask, size, block=max(1, min(size) // _BLOCKS), share=share, seed=seed)
    return masked


@dataclass(frozen=True)
class UncategorisedImage:
    """Load an image of which nothing is known, not even what it shows.

    Attributes:
        image: the image; what its file says of the category is left out.
    """

    image: IndustrialImage

    @property
    def name(self) -> str:
        """Name the image."""
        return f"unknown/{self.image.file.stem}"

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without a look at the pixels."""
        return replace(self.image.facts(), name=self.name)

    def __call__(self) -> Scene:
        """Read the image; see `IndustrialImage`."""
        return replace(self.image(), name=self.name, category=None)


@dataclass(frozen=True)
class CorruptSample:
    """Corrupt a training sample, with another image of its category to take pieces from.

    Attributes:
        corruption: what to put in.
        images: serves whole images.
        others: indices of the images of each category.
    """

    corruption: Corruption
    images: SceneDataset
    others: Mapping[str, tuple[int, ...]]

    def __call__(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Add `corrupted` and `defect`; `image` is given back untouched."""
        pool = self.others.get(sample["category"], ()) if self.corruption.needs_others else ()
        drawn = [pool[int(torch.randint(len(pool), (), generator=generator))]] if pool else []
        return self.corruption(sample, generator, [self.images.cut(index)["image"] for index in drawn])
