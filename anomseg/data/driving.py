"""Serve driving scenes: known classes to learn, held-out classes and pasted objects as anomalies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from anomseg.data.augment import Augmentation
from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.crops import CropDataset
from anomseg.data.driving_frames import DrivingFrame, DrivingTruth, PastedFrame, find_overlays
from anomseg.data.driving_layouts import DrivingLayout, DrivingLayoutName, driving_layout_of
from anomseg.data.folder_image import FolderImage
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_parts import Parts, shared_images, unlabelled_images
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.data.mask_rules import full_mask
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.scene_datamodule import SceneDataModule, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.errors import SceneNotFoundError
from anomseg.sample import ANOMALY, IGNORE

HeldOutFrames = Literal["ignore", "drop", "test"]
TestWith = Literal["held_out", "pasted"]


class DrivingDataModule(SceneDataModule):
    """Read frames with labels: `image` (3, H, W) in [0, 1], `label` of the known classes, `mask` 1 on what is none of them.

    Classes that are held out are void in training, or their frames are dropped or tested, and anomalous in tests: a test with true labels.
    Objects that are pasted teach a method such as PEBAL to doubt (`paste`), choose its checkpoint on validation frames (`val_paste`), and
    test it (`test_with="pasted"`, `test_paste`): give these three sources that share nothing, and paste the last in another way. Neither
    validation nor training ever sees the held-out classes.

    Example:
        >>> paste = OutlierPaste((SyntheticOutliers(),))
        >>> data = DrivingDataModule("CamVid", "camvid", hold_out=("bicyclist",), size=(180, 240), paste=paste, batch_size=8)
    """

    def __init__(
        self,
        root: str | Path,
        layout: DrivingLayoutName | DrivingLayout = "cityscapes",
        hold_out: Sequence[str] = (),
        hold_out_frames: HeldOutFrames = "ignore",
        split: ShareSplit | NameSplit | GroupSplit | None = None,
        size: tuple[int, int] | None = None,
        paste: OutlierPaste | None = None,
        val_paste: OutlierPaste | None = None,
        test_paste: OutlierPaste | None = None,
        test_with: TestWith = "held_out",
        void_as_outliers: bool = False,
        void_rim: int = 0,
        test_step: int = 1,
        augment: Augmentation | None = None,
        crops: int = 1,
        predict_root: str | Path | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        seed: int = 0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            root: the folder of the data set.
            layout: name of a layout, or one of your own.
            hold_out: names of classes that are never learnt.
            hold_out_frames: what training does with frames that show them: `ignore` those pixels; `drop` the frames, in which shadows and
                reflections of the objects would still be seen; or `test` on them: frames of training and validation that show held-out
                classes are moved to the test. The latter two read all label files of their parts first.
            split: how frames are shared out; None follows the folders. Split videos by sequence (`GroupSplit`): neighbouring frames are
                near copies. Where it sets no frames apart to validate, the last tenth of the training frames does.
            size: (height, width) in pixels that frames are scaled to; None keeps their own.
            paste: what is pasted into training frames; None pastes nothing.
            val_paste: what is pasted into validation frames; None pastes nothing, and then no figure of anomalies can be validated.
            test_paste: what is pasted with ``test_with="pasted"``.
            test_with: `held_out` classes and those that the set itself names anomalous; or `pasted` objects, with the former void.
            void_as_outliers: void pixels of the label files train as outliers. They are diverse and cost nothing, but may lie beside
                held-out objects or be parts of them: say so where you report figures.
            void_rim: pixels of void next to anything labelled that do not train as outliers; the seams between classes are such.
            test_step: every so many frames are tested, in the order of their names.
            augment: changes training frames before anything is pasted.
            crops: training samples from each frame in an epoch.
            predict_root: frames to predict; None takes those that test.
            batch_size: samples a batch; frames of different sizes are evaluated one by one.
            num_workers: loader processes.
            tile: side of a training crop, and of a window of evaluation; None serves whole frames.
            overlap: pixels that neighbouring windows share.
            seed: of order, crops, augmentation and pasting.

        Raises:
            ValueError: an argument is out of its range, a class is unknown, or a test has nothing anomalous.
        """
        super().__init__(batch_size, num_workers, tile, overlap, seed=seed)
        self._described = driving_layout_of(layout)
        unknown = sorted(set(hold_out) - set(self._described.classes))
        if unknown or (hold_out and not set(self._described.classes) - set(hold_out)):
            raise ValueError(f"Expected classes to hold out among {self._described.classes}, and one to learn, but got {tuple(hold_out)}.")
        if hold_out_frames not in get_args(HeldOutFrames) or test_with not in get_args(TestWith) or min(test_step, crops, void_rim + 1) < 1:
            raise ValueError(
                f"Expected hold_out_frames of {get_args(HeldOutFrames)}, test_with of {get_args(TestWith)}, test_step and crops >= 1 and "
                f"void_rim >= 0, but got {hold_out_frames!r}, {test_with!r}, {test_step}, {crops} and {void_rim}."
            )
        if test_with == "pasted" and test_paste is None:
            raise ValueError("Expected test_paste for test_with='pasted', but got None. OutlierPaste((SyntheticOutliers(),), 1.0) is one.")
        self.root, self.layout, self.hold_out, self.hold_out_frames = root, layout, hold_out, hold_out_frames
        self.split, self.size, self.test_step, self.predict_root = split, size, test_step, predict_root
        self.paste, self.val_paste, self.test_paste, self.test_with = paste, val_paste, test_paste, test_with
        self.void_as_outliers, self.void_rim, self.augment, self.crops = void_as_outliers, void_rim, augment, crops
        self._parts: dict[Stage, list[DrivingFrame]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the known classes, in the order of their labels: a net has as many outputs."""
        return DrivingTruth(self._described, tuple(self.hold_out)).known

    def scenes(self) -> Sequence[SceneLoader]:
        """List the frames of all parts."""
        return [frame for part in self._shared().values() for frame in part]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the frames of one stage, with what is pasted into them for good.

        Raises:
            SceneNotFoundError: the folder or a label file is missing, or no frame fits the layout.
            ValueError: a part has no frame, or a test has nothing anomalous.
        """
        if stage == "predict" and self.predict_root is not None:
            normal = ClassAsNormal(self._described.folders.table.names[:1])
            found = unlabelled_images(self.predict_root, self._described.folders, normal)
            return [DrivingFrame(image, self._truth("test"), self.size) for image in found]
        part: Stage = "test" if stage == "predict" else stage
        frames = [replace(frame, truth=self._truth(stage)).measured() for frame in self._shared()[part]]
        frames = frames[:: self.test_step] if part == "test" else frames
        lacking = [str(frame.image.files.bands[0]) for frame in frames if not frame.image.has_truth]
        if self._described.partial and stage == "test":
            frames, lacking = [frame for frame in frames if frame.image.has_truth], []
        if lacking and stage != "predict":
            raise SceneNotFoundError(
                f"Expected a label file '{self._described.folders.masks}' for each frame of '{stage}', but {len(lacking)} of {len(frames)} "
                f"lack one, such as {lacking[:4]}. Add them, or use predict_root= for frames without labels."
            )
        if stage == "train" and self.hold_out_frames == "drop":
            frames = [frame for frame in frames if not self._shows_held_out(frame)]
        self._check_frames(frames, stage)
        paste = {"val": self.val_paste, "test": self.test_paste if self.test_with == "pasted" else None}.get(stage)
        return frames if paste is None else [PastedFrame(frame, paste, self.seed) for frame in frames]

    def _check_frames(self, frames: Sequence[DrivingFrame], stage: Stage) -> None:
        if not frames:
            raise ValueError(
                f"Expected frames to {stage}, but the split gives none, or all show held-out classes. Correct split=; where a set has no "
                "labels to test on, hold_out_frames='test' tests on the frames that show held-out classes."
            )
        # The first frame nearly always counts, so this reads one label file.
        if stage != "predict" and not any(frame.counts(learnt=stage == "train") for frame in frames):
            raise ValueError(
                f"Expected pixels that count in the label files of '{stage}', but all {len(frames)} are void, such as "
                f"{[str(path) for _, path in frames[0].image.files.masks]}. Are they the placeholders of a test whose labels are not "
                "public? Choose other frames by split=."
            )

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: frames or crops to train, with objects pasted anew in each epoch."""
        if stage != "train":
            return self.scene_dataset(stage, full_mask)
        whole = self.scene_dataset(stage, full_mask, tiled=False)
        return CropDataset(whole, self.tile, self.crops, self.augment, self.seed, finish=self.paste)

    def _truth(self, stage: Stage) -> DrivingTruth:
        tested = stage in ("test", "predict") and self.test_with == "held_out"
        if stage == "test" and tested and not (self.hold_out or self._described.anomalies):
            raise ValueError(
                f"Expected something anomalous to test, but the layout has no anomalies and hold_out is empty. Hold out some of "
                f"{self._described.classes}, or take test_with='pasted'."
            )
        void = ANOMALY if stage == "train" and self.void_as_outliers else IGNORE
        return DrivingTruth(self._described, tuple(self.hold_out), tested, void, self.void_rim)

    def _shared(self) -> dict[Stage, list[DrivingFrame]]:
        if not self._parts:
            normal = ClassAsNormal(self._described.folders.table.names[:1])
            folders = self._described.folders
            if self.split is None and (self._described.partial or (folders.train, folders.val, folders.test) == (None, None, None)):
                shared: Parts = {"train": [], "val": [], "test": unlabelled_images(self.root, folders, normal)}
            else:
                shared = shared_images(self.root, folders, normal, self.split, None, self.seed)
            shared = {part: _renamed(images) for part, images in shared.items()}
            if not shared["val"] and len(shared["train"]) > 1:
                frames = sorted(shared["train"], key=lambda image: image.name)
                last = max(1, len(frames) // 10)  # neighbours in time, so that only one of them has near copies in training
                shared = {**shared, "train": frames[:-last], "val": frames[-last:]}
            truth = DrivingTruth(self._described, tuple(self.hold_out))
            self._parts = {part: [DrivingFrame(image, truth, self.size) for image in images] for part, images in shared.items()}
            if self.hold_out_frames == "test":
                self._parts = self._shown_tested(self._parts)
            if self._described.overlay is not None:
                added = find_overlays(self.root, self._described.overlay)
                tested = [frame for frame in self._parts["test"] if frame.image.name in added]
                self._parts["test"] = [replace(frame, overlay=added[frame.image.name]) for frame in tested]
        return self._parts

    def _shown_tested(self, parts: dict[Stage, list[DrivingFrame]]) -> dict[Stage, list[DrivingFrame]]:
        """Move frames that show held-out classes to the test."""
        learnt: tuple[Stage, ...] = ("train", "val")
        shown = {part: [self._shows_held_out(frame) for frame in parts[part]] for part in learnt}
        kept = {part: [frame for frame, held in zip(parts[part], shown[part], strict=True) if not held] for part in learnt}
        moved = [frame for part in learnt for frame, held in zip(parts[part], shown[part], strict=True) if held]
        return {**parts, **kept, "test": sorted([*parts["test"], *moved], key=lambda frame: frame.image.name)}

    def _shows_held_out(self, frame: DrivingFrame) -> bool:
        ids, table = frame.ids(), self._described.folders.table
        return ids is not None and any(bool((ids == table.id_of(name)).any()) for name in self.hold_out)


def _renamed(images: list[FolderImage]) -> list[FolderImage]:
    """Tell frames of one name in different folders, such as towns, apart by the folder."""
    times = Counter(image.name for image in images)
    folder_of = {image: image.files.bands[0].parent.name for image in images if times[image.name] > 1}
    return [replace(image, name=f"{folder_of[image]}_{image.name}") if image in folder_of else image for image in images]
