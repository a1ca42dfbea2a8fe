"""Serve folders of labelled aerial and satellite images, one class or more of them as normal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomseg.data.augment import Augmentation
from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.crops import CropDataset
from anomseg.data.folder_image import FolderImage
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import FolderLayout, LayoutName, Part, classes_of, layout_of
from anomseg.data.image_parts import Parts, shared_images, unlabelled_images, usable_images
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.mask_rules import calibration_mask, full_mask, held_out_mask
from anomseg.data.scene_datamodule import CACHE_BYTES, SceneDataModule, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader


class RemoteSensingDataModule(SceneDataModule):
    """Read images with class masks, and make some classes normal and the others anomalous.

    Training serves random crops of side ``tile``, drawn by seed, epoch and index alone; the other stages serve whole images, or windows of
    side ``tile``. Training keeps its anomalous pixels as 1: methods leave them out. Where nothing is set apart to validate, validation
    takes a seeded share of blocks of the training images (``calibration_share``), and these blocks are 255 in training. Test images count
    in full. Values are served as stored.

    Masks, and image headers, are read once before a stage begins; images only when they are asked for.

    Example:
        >>> data = RemoteSensingDataModule("roads", "image_label", ClassAsNormal(("object",)), ShareSplit(0.7, 0.0, 0.3), tile=128)
    """

    def __init__(
        self,
        root: str | Path,
        layout: LayoutName | FolderLayout = "plain",
        classes: ClassAsNormal | None = None,
        split: ShareSplit | NameSplit | GroupSplit | None = None,
        bands: list[int] | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        anomaly_share: float = 0.0,
        predict_root: str | Path | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        calibration_share: float = 0.25,
        calibration_block: int = 10,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            root: the folder of the data set.
            layout: where images and masks lie and what they mean: the name of a data set, or a description.
            classes: which classes are normal, and which ignored; by default the class 0 is normal.
            split: how images are shared out; None follows the folders of the layout, and without such folders ``ShareSplit()``.
            bands: indices from 0 of the bands to keep, in this order, counted over all band files; None keeps all. Missing data in the
                others is no matter.
            augment: changes training samples.
            crops: training samples from each image in an epoch.
            anomaly_share: share of the crops that hold an anomalous pixel, 0 to 1, where their image has one.
            predict_root: folder of images without truth that ``predict`` serves, laid out alike or lying directly in it; None serves the
                test images.
            batch_size: samples a batch; evaluation takes 1 where images or windows differ in size.
            num_workers: loader processes, which share ``cache_bytes``; 0 loads in the main one.
            tile: side of a crop, and of a window, in pixels; None serves whole images.
            overlap: pixels that neighbouring windows share at least, 0 to ``tile - 1``.
            calibration_share: part of the blocks of training images that validates where no image does, above 0 and below 1.
            calibration_block: side of such a block in pixels.
            seed: of the split, the blocks, the order, the crops and the augmentation.
            cache_bytes: images kept in memory for each stage, 512 MB by default; an image takes 4 bytes for each pixel and band. Of more
                images than fit, each crop is read anew; of an image that alone does not fit, each window too.

        Raises:
            ValueError: an argument is out of its range, or a class is not one of the layout's.
        """
        super().__init__(batch_size, num_workers, tile, overlap, calibration_share, calibration_block, "all", seed)
        if bands is not None and (not bands or min(bands) < 0 or len(set(bands)) < len(bands)):
            raise ValueError(f"Expected different band indices of at least 0, but got bands={bands}. Use None to keep all bands.")
        if crops < 1 or not 0.0 <= anomaly_share <= 1.0 or cache_bytes < 0:
            raise ValueError(
                f"Expected crops >= 1, anomaly_share from 0 to 1 and cache_bytes >= 0, but got {crops}, {anomaly_share} and {cache_bytes}."
            )
        self.root = root
        self.layout = layout
        self.classes = classes or ClassAsNormal()
        self.split = split
        self.bands = bands
        self.augment = augment
        self.crops = crops
        self.anomaly_share = anomaly_share
        self.cache_bytes = cache_bytes
        self.predict_root = predict_root
        self._described = layout_of(layout)
        self.classes.ids(classes_of(self._described))  # raises where the layout does not know a class
        self._shared: Parts | None = None
        self._usable: Parts = {}

    def scenes(self) -> Sequence[SceneLoader]:
        """List the images of all parts; nothing of them is read."""
        return [image for part in self._parts().values() for image in part]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the images of one stage.

        Args:
            stage: what they are for.

        Returns:
            Loaders that return a ``Scene`` each.

        Raises:
            SceneNotFoundError: the folder or a mask is missing, or no image fits the layout.
            SceneFormatError: a file is unreadable, or a mask holds an id or colour outside the class table.
            ValueError: images differ in their bands, a mask differs from its image in size, or no training image has a normal pixel.
        """
        if stage == "predict" and self.predict_root is not None:
            return unlabelled_images(self.predict_root, self._described, self.classes, self.bands)
        if stage == "predict":
            return self._images_of("test")
        return self._images_of("train" if stage == "val" and self._validates_on_blocks else stage)

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: crops to train, whole images or windows otherwise.

        Args:
            stage: what they are for.
        """
        if stage == "train":
            return CropDataset(self._training_images(), self.tile, self.crops, self.augment, self.seed, self.anomaly_share)
        by_blocks = stage == "val" and self._validates_on_blocks
        return self.scene_dataset(stage, self.block_rule(calibration_mask) if by_blocks else full_mask)

    def _training_images(self) -> SceneDataset:
        return self.scene_dataset("train", self.block_rule(held_out_mask) if self._validates_on_blocks else full_mask, tiled=False)

    @property
    def _validates_on_blocks(self) -> bool:
        return not self._parts()["val"]

    def _parts(self) -> Parts:
        if self._shared is None:
            self._shared = shared_images(self.root, self._described, self.classes, self.split, self.bands, self.seed)
        return self._shared

    def _images_of(self, part: Part) -> list[FolderImage]:
        if part not in self._usable:
            self._usable[part] = usable_images(self._parts()[part], part)
        return self._usable[part]
