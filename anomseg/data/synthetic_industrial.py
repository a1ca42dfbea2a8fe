"""Serve synthetic surfaces and parts: an industrial data module of several categories that needs no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from anomseg.data.augment import Augmentation
from anomseg.data.crops import CropDataset
from anomseg.data.defects import Corruption
from anomseg.data.industrial import CorruptSample
from anomseg.data.mask_rules import full_mask
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneDataModule, SceneFacts, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.data.synthetic_surfaces import SurfaceDefect, SurfaceKind, surface_scene

_MOST_IMAGES = 10_000


@dataclass(frozen=True)
class SyntheticSurface:
    """Draw one surface when it is called; arguments as of `surface_scene`."""

    kind: SurfaceKind
    size: tuple[int, int]
    seed: int
    defect: SurfaceDefect | None = None
    bands: int = 3

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without drawing."""
        return SceneFacts(f"{self.kind}/{self.defect or 'good'}/{self.seed:06d}", self.size, True)

    def __call__(self) -> Scene:
        """Draw the surface."""
        return surface_scene(self.kind, self.size, self.seed, self.defect, self.bands)


class SyntheticIndustrialDataModule(SceneDataModule):
    """Draw surfaces and parts of several categories: normal ones to train and validate, every second one with a defect to test.

    Image ``i`` of a category in a module with seed ``s`` is ``surface_scene(kind, seed=10000 * s + i)``: training takes the first numbers,
    then validation, then test, so that parts and modules of different seeds share no image. Kinds of defects take turns.

    Example:
        >>> data = SyntheticIndustrialDataModule(("woven", "gear"), train=48, corruption=Corruption(), batch_size=8)
    """

    def __init__(
        self,
        kinds: Sequence[SurfaceKind] = ("woven", "tiles", "gear"),
        train: int = 32,
        val: int = 8,
        test: int = 20,
        size: tuple[int, int] = (64, 64),
        bands: int = 3,
        corruption: Corruption | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        batch_size: int = 8,
        num_workers: int = 0,
        tile: int | None = None,
        seed: int = 0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            kinds: the categories, each once.
            train: images of each category that train, at least 1.
            val: images of each category that validate, at least 1.
            test: images of each category that test, at least 2; at most 10,000 in all.
            size: (height, width) of each image in pixels, each at least 32.
            bands: number of bands, at least 1.
            corruption: puts synthetic defects into training samples, by other rules than those of the test; None for none.
            augment: changes training images before that.
            crops: training samples from each image in an epoch.
            batch_size: samples a batch.
            num_workers: loader processes; 0 draws in the main one.
            tile: side of a training crop; None trains on whole images, which are what is evaluated in any case.
            seed: of the images, the order, the crops, the augmentation and the corruption; at least 0.

        Raises:
            ValueError: an argument is out of its range. Size and bands are checked where the first image is drawn.
        """
        super().__init__(batch_size, num_workers, tile, seed=seed)
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(get_args(SurfaceKind)):
            raise ValueError(f"Expected different kinds of {get_args(SurfaceKind)}, but got {tuple(kinds)}.")
        if min(train, val, crops) < 1 or test < 2 or train + val + test > _MOST_IMAGES or seed < 0:
            raise ValueError(
                f"Expected at least one image to train, one to validate, two to test, one crop, at most {_MOST_IMAGES} images and "
                f"seed >= 0, but got train={train}, val={val}, test={test}, crops={crops} and seed={seed}."
            )
        self.kinds = kinds
        self.train = train
        self.val = val
        self.test = test
        self.size: tuple[int, int] = (size[0], size[1])
        self.bands = bands
        self.corruption = corruption
        self.augment = augment
        self.crops = crops

    @property
    def known_categories(self) -> tuple[str, ...]:
        """Name the categories, sorted."""
        return tuple(sorted(self.kinds))

    def scenes(self) -> Sequence[SceneLoader]:
        """List the images of all parts; nothing is drawn yet."""
        parts: tuple[Stage, ...] = ("train", "val", "test")
        return [image for stage in parts for image in self.scenes_of(stage)]

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the images of one stage; prediction takes those of the test.

        Args:
            stage: what they are for.
        """
        first, count = {"train": (0, self.train), "val": (self.train, self.val)}.get(stage, (self.train + self.val, self.test))
        defects: tuple[SurfaceDefect, ...] = get_args(SurfaceDefect)
        images = []
        for kind in self.kinds:
            for number in range(count):
                defect = defects[number // 2 % len(defects)] if stage in ("test", "predict") and number % 2 else None
                images.append(SyntheticSurface(kind, self.size, _MOST_IMAGES * self.seed + first + number, defect, self.bands))
        return images

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: images or crops to train, corrupted anew in each epoch.

        Args:
            stage: what they are for.
        """
        if stage != "train":
            return self.scene_dataset(stage, full_mask, tiled=False)
        whole = self.scene_dataset(stage, full_mask, tiled=False)
        others: dict[str, tuple[int, ...]] = {
            kind: tuple(range(place * self.train, (place + 1) * self.train)) for place, kind in enumerate(self.kinds)
        }
        finish = None if self.corruption is None else CorruptSample(self.corruption, whole, others)
        return CropDataset(whole, self.tile, self.crops, self.augment, self.seed, finish=finish)
