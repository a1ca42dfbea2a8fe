"""Serve synthetic pairs of two dates: a data module of change detection that needs no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from anomseg.data.augment import Augmentation
from anomseg.data.crops import CropDataset
from anomseg.data.mask_rules import full_mask
from anomseg.data.scene_datamodule import SceneDataModule, Stage
from anomseg.data.scene_dataset import SceneDataset, SceneLoader
from anomseg.data.synthetic_pairs import PairDifficulty, synthetic_pair

_MOST_PAIRS = 1000


class SyntheticChangeDataModule(SceneDataModule):
    """Draw pairs with exact truth, ``image`` (B, 2, C, H, W); those that train, validate and test are different pairs.

    Pair ``i`` of a module with seed ``s`` is ``synthetic_pair(seed=1000 * s + i)``: training takes the first numbers, then validation, then
    test. Modules with different seeds share no pair.

    Example:
        >>> data = SyntheticChangeDataModule(train=32, val=8, test=8, batch_size=8)
    """

    def __init__(
        self,
        train: int = 32,
        val: int = 8,
        test: int = 8,
        size: tuple[int, int] = (128, 128),
        bands: int = 3,
        difficulty: PairDifficulty | None = None,
        augment: Augmentation | None = None,
        crops: int = 1,
        anomaly_share: float = 0.0,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        seed: int = 0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            train: number of pairs that train, at least 1.
            val: number of pairs that validate, at least 1.
            test: number of pairs that test, at least 1; at most 1000 in all.
            size: (height, width) of each date in pixels, each at least 48.
            bands: number of bands, at least 1.
            difficulty: what differs between the dates without being change; by default `PairDifficulty()`.
            augment: changes training samples, such as `PairAugmentation`.
            crops: training samples from each pair in an epoch.
            anomaly_share: share of the crops that hold a changed pixel, 0 to 1.
            batch_size: samples a batch.
            num_workers: loader processes; 0 draws in the main one.
            tile: side of a crop, and of a window, in pixels; None serves whole pairs.
            overlap: pixels that neighbouring windows share at least, 0 to ``tile - 1``.
            seed: of the pairs, the order, the crops and the augmentation; at least 0.

        Raises:
            ValueError: an argument is out of its range. Size and bands are checked where the first pair is drawn.
        """
        super().__init__(batch_size, num_workers, tile, overlap, seed=seed)
        if min(train, val, test, crops) < 1 or train + val + test > _MOST_PAIRS or seed < 0:
            raise ValueError(
                f"Expected at least one pair of each part and one crop, at most {_MOST_PAIRS} pairs and a seed of at least 0, but got "
                f"train={train}, val={val}, test={test}, crops={crops} and seed={seed}. Draw larger pairs instead of more."
            )
        self.train = train
        self.val = val
        self.test = test
        self.size = size
        self.bands = bands
        self.difficulty = difficulty
        self.augment = augment
        self.crops = crops
        self.anomaly_share = anomaly_share
        first = _MOST_PAIRS * seed
        self._pairs = [partial(synthetic_pair, size, first + number, bands, difficulty) for number in range(train + val + test)]

    def scenes(self) -> Sequence[SceneLoader]:
        """List a drawing for each pair of all parts; nothing is drawn yet.

        Returns:
            Loaders without arguments, picklable, that return a ``Scene`` each.
        """
        return self._pairs

    def scenes_of(self, stage: Stage) -> Sequence[SceneLoader]:
        """List the pairs of one stage; prediction takes those of the test.

        Args:
            stage: what they are for.
        """
        seen = self.train + self.val
        return {"train": self._pairs[: self.train], "val": self._pairs[self.train : seen]}.get(stage, self._pairs[seen:])

    def dataset(self, stage: Stage) -> SceneDataset | CropDataset:
        """Build the samples of one stage: crops to train, whole pairs or windows otherwise, with the full truth.

        Args:
            stage: what they are for.
        """
        if stage != "train":
            return self.scene_dataset(stage, full_mask)
        pairs = self.scene_dataset("train", full_mask, tiled=False)
        return CropDataset(pairs, self.tile, self.crops, self.augment, self.seed, self.anomaly_share)
