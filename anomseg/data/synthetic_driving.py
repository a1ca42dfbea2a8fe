"""Serve synthetic streets: a data module of unknown objects on the road that needs no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomseg.data.augment import Augmentation
from anomseg.data.crops import CropDataset
from anomseg.data.driving_frames import PastedFrame
from anomseg.data.mask_rules import full_mask
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import SyntheticOutliers
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule, SceneFacts, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.data.synthetic_streets import STREET_CLASSES, street_scene

_MOST_STREETS = 10_000


@dataclass(frozen=True)
class SyntheticStreet:
    """Draw one street when it is called; arguments as of `street_scene`."""

    size: tuple[int, int]
    seed: int
    unknown: int = 0

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without drawing."""
        return SceneFacts(f"synthetic-street-{self.seed}", self.size, True)

    def __call__(self) -> Scene:
        """Draw the street."""
        return street_scene(self.size, self.seed, self.unknown)


class SyntheticDrivingDataModule(SceneDataModule):
    """Draw streets with `label` of six known classes (`classes`), and `mask` 1 on what is none of them.

    Unknown objects stand in test streets alone: boxes, cones, balls, animals and trunks. Training learns to doubt from what is pasted
    (`paste`), and validation chooses by what is pasted there: blobs with textures, which resemble no object of the test. Street ``i`` of a
    module with seed ``s`` is ``street_scene(seed=10000 * s + i)``: training takes the first numbers, then validation, then test.

    Example:
        >>> data = SyntheticDrivingDataModule(train=64, paste=OutlierPaste((SyntheticOutliers(),)), batch_size=8)
    """

    def __init__(
        self,
        train: int = 64,
        val: int = 12,
        test: int = 24,
        size: tuple[int, int] = (96, 128),
        unknown: int = 2,
        paste: OutlierPaste | None = None,
        val_paste: OutlierPaste | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        batch_size: int = 8,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        seed: int = 0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            train: number of streets that train, at least 1.
            val: number of streets that validate, at least 1.
            test: number of streets that test, at least 1; at most 10,000 in all.
            size: (height, width) of each street in pixels, each at least 48.
            unknown: unknown objects in each test street, at least 1.
            paste: what is pasted into training streets, anew in each epoch; None pastes nothing, which suits closed-set training.
            val_paste: what is pasted into validation streets; None pastes one `SyntheticOutliers` into each.
            augment: changes training streets before anything is pasted.
            crops: training samples from each street in an epoch.
            batch_size: samples a batch.
            num_workers: loader processes; 0 draws in the main one.
            tile: side of a training crop, and of a window of evaluation; None serves whole streets.
            overlap: pixels that neighbouring windows share at least, 0 to ``tile - 1``.
            seed: of the streets, the order, the crops, the augmentation and the pasting; at least 0.

        Raises:
            ValueError: an argument is out of its range. The size is checked where the first street is drawn.
        """
        super().__init__(batch_size, num_workers, tile, overlap, seed=seed)
        if min(train, val, test, unknown, crops) < 1 or train + val + test > _MOST_STREETS or seed < 0:
            raise ValueError(
                f"Expected at least one street of each part, one unknown object and one crop, at most {_MOST_STREETS} streets and a seed "
                f"of at least 0, but got train={train}, val={val}, test={test}, unknown={unknown}, crops={crops} and seed={seed}."
            )
        self.train = train
        self.val = val
        self.test = test
        self.size: tuple[int, int] = (size[0], size[1])
        self.unknown = unknown
        self.paste = paste
        self.val_paste = val_paste
        self.augment = augment
        self.crops = crops

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the known classes, in the order of their labels: a net has as many outputs."""
        return STREET_CLASSES

    def scenes(self) -> Sequence[SceneLoader]:
        """List the streets of all parts; nothing is drawn yet."""
        parts: tuple[Stage, ...] = ("train", "val", "test")
        return [street for stage in parts for street in self.scenes_of(stage)]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the streets of one stage; prediction takes those of the test.

        Args:
            stage: what they are for.
        """
        first, last = {"train": (0, self.train), "val": (self.train, self.train + self.val)}.get(
            stage, (self.train + self.val, self.train + self.val + self.test)
        )
        base, unknown = _MOST_STREETS * self.seed, self.unknown if stage in ("test", "predict") else 0
        streets = [SyntheticStreet(self.size, base + number, unknown) for number in range(first, last)]
        if stage != "val":
            return streets
        paste = self.val_paste or OutlierPaste((SyntheticOutliers(),), probability=1.0, count=(1, 1), size=(0.15, 0.4))
        return [PastedFrame(street, paste, self.seed) for street in streets]

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: streets or crops to train, with objects pasted anew in each epoch.

        Args:
            stage: what they are for.
        """
        if stage != "train":
            return self.scene_dataset(stage, full_mask)
        streets = self.scene_dataset("train", full_mask, tiled=False)
        return CropDataset(streets, self.tile, self.crops, self.augment, self.seed, finish=self.paste)
