"""Cut random crops for training, the same ones whatever the number of workers and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, DistributedSampler

from anomseg.data.augment import Augmentation
from anomseg.data.scene_dataset import SceneDataset
from anomseg.functional.windows import Window
from anomseg.sample import ANOMALY, IGNORE, NORMAL

_DRAWS = 10
_MISSES = 5  # anomalous places without data that are drawn before a crop from anywhere is
_PLACES = 4096  # anomalous pixels remembered of each scene


@dataclass(frozen=True)
class Visit:
    """Name one sample of one epoch."""

    epoch: int
    index: int


class VisitSampler(DistributedSampler[Any]):
    """Hand the epoch to the dataset together with each index.

    Loader workers hold copies of the dataset that no call from outside reaches, so the epoch travels with the index. Order and shares
    of the ranks are those of torch's ``DistributedSampler``, by which Lightning knows it and calls ``set_epoch``.
    """

    def __iter__(self) -> Iterator[Visit]:
        for index in super().__iter__():
            yield Visit(self.epoch, int(index))


class SampleStep(Protocol):
    """Change a training sample, or one that is tested, by a generator alone."""

    def __call__(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Give the changed sample, of the same sizes."""


class CropDataset(Dataset[dict[str, Any]]):
    """Cut random square crops out of scenes of any size, and augment them.

    A crop is drawn by (seed, epoch, index) alone. Of up to 10 draws the first that holds a normal pixel is taken, because a crop without
    one teaches nothing about normality; a given share of the crops is laid around an anomalous pixel with data, and anywhere where 5 draws
    find none. Scenes smaller than the crop are padded at their lower and right border: NaN in the image, 255 in the mask.
    """

    def __init__(
        self,
        scenes: SceneDataset,
        side: int | None,
        crops: int | Sequence[int] = 1,
        augment: Augmentation | None = None,
        seed: int = 0,
        anomaly_share: float = 0.0,
        finish: SampleStep | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            scenes: serves whole scenes.
            side: of a crop in pixels; None takes whole scenes.
            crops: samples from each scene in an epoch: one number, or one for each scene.
            augment: changes image and mask together.
            seed: of the crops and the augmentation.
            anomaly_share: share of the crops, 0 to 1, that hold a pixel drawn from the anomalous ones of their scene, at any place in the
                crop; a scene without such a pixel gives crops from anywhere.
            finish: the last step of all, such as `OutlierPaste`.

        Raises:
            ValueError: a number is out of its range, or the scenes are tiled.
        """
        if not 0.0 <= anomaly_share <= 1.0:
            raise ValueError(f"Expected a share of crops from 0 to 1, but got anomaly_share={anomaly_share}. Half of them is 0.5.")
        counts = [crops] * len(scenes) if isinstance(crops, int) else list(crops)
        if min(counts) < 1 or len(counts) != len(scenes) or (side is not None and side < 1) or scenes.windows is not None:
            raise ValueError(f"Expected whole scenes, crops >= 1 and a side >= 1 or None, but got crops={crops} and side={side}.")
        self.scenes = scenes
        self.side = side
        self.crops = crops
        self.augment = augment
        self.seed = seed
        self.anomaly_share = anomaly_share
        self.finish = finish
        self._scene_of = [which for which, count in enumerate(counts) for _ in range(count)]
        self._places: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._scene_of)

    def __getitem__(self, visit: int | Visit) -> dict[str, Any]:
        """Cut one sample.

        Args:
            visit: epoch and index; a plain index is one of epoch 0, negative from the end.

        Returns:
            A sample of the batch contract without the batch axis; ``window`` tells where it was cut, before the augmentation.

        Raises:
            IndexError: there is no such sample.
        """
        if not isinstance(visit, Visit):
            visit = Visit(0, visit)
        index = range(len(self))[visit.index]
        # Hashed, because torch's generator keeps 32 bits of its seed, and sums of the three would repeat one another.
        word = int(np.random.SeedSequence((self.seed, visit.epoch, index)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(word)
        sample = self._crop(self._scene_of[index], generator)
        if self.augment is not None:
            draw, image = generator.get_state(), sample["image"]
            sample["image"], sample["mask"] = self.augment(image, sample["mask"], generator)
            if "label" in sample:  # the same draw once more: an augmentation changes one map of truth at a time
                sample["label"] = self.augment(image, sample["label"], generator.set_state(draw))[1]
        return sample if self.finish is None else self.finish(sample, generator)

    def _crop(self, which: int, generator: torch.Generator) -> dict[str, Any]:
        if self.side is None:
            return self.scenes.cut(which)
        size = self.scenes.size_of(which)
        aimed = self.anomaly_share > 0 and float(torch.rand((), generator=generator)) < self.anomaly_share
        places = self._anomalous(which) if aimed else torch.empty(0, 2, dtype=torch.int32)
        missed = 0
        for _ in range(_DRAWS):
            place = places[int(torch.randint(len(places), (), generator=generator))] if len(places) and missed < _MISSES else None
            window = _random_window(size, self.side, generator) if place is None else _window_around(size, self.side, place, generator)
            sample = self.scenes.cut_once(which, window)
            hit = place is None or int(sample["mask"][int(place[0]) - window[0], int(place[1]) - window[1]]) == ANOMALY
            missed += not hit
            if hit and bool((sample["mask"] == NORMAL).any()):
                break
        down, right = (max(0, self.side - length) for length in size)
        if down or right:
            sample["image"] = functional.pad(sample["image"], (0, right, 0, down), value=torch.nan)
            for truth in ("mask", "label"):
                if truth in sample:
                    sample[truth] = functional.pad(sample[truth], (0, right, 0, down), value=IGNORE)
        return sample

    def _anomalous(self, which: int) -> Tensor:
        if which not in self._places:
            places = (self.scenes.truth_of(which) == ANOMALY).nonzero()
            chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(self.seed))[:_PLACES]
            self._places[which] = places[chosen].to(torch.int32)
        return self._places[which]


def _window_around(size: tuple[int, int], side: int, place: Tensor, generator: torch.Generator) -> Window:
    starts = []
    for length, position in zip(size, place.tolist(), strict=True):
        first, last = max(0, position - side + 1), min(position, max(0, length - side))
        starts.append(first + int(torch.randint(max(0, last - first) + 1, (), generator=generator)))
    return starts[0], starts[1], min(side, size[0]), min(side, size[1])


def _random_window(size: tuple[int, int], side: int, generator: torch.Generator) -> Window:
    row, column = (int(torch.randint(max(0, length - side) + 1, (), generator=generator)) for length in size)
    return row, column, min(side, size[0]), min(side, size[1])
