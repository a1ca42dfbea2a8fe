"""RX as a module: the detector that every other method is measured against."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.errors import NotFittedError
from anomseg.functional.rx import (
    BackgroundStatistics,
    covariance,
    global_rx,
    local_rx,
    mahalanobis,
    merge_statistics,
    pixel_statistics,
    regularised_precision,
)
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.training_data import gathered_objects, normal_pixels, training_batches
from anomseg.sample import check_sample


class RX(AnomalySegmenter):
    """Score a pixel by its squared Mahalanobis distance from the background.

    Nothing is learnt with `background="scene"`: fitting only calibrates. With `background="training"` one pass over the training pixels
    gathers mean and covariance (float64, exact over any batches and ranks); anomalous and ignored training pixels are left out.

    Args:
        mode: `global` compares with the whole background, `local` with a window around each pixel.
        inner: side of the guard window in pixels, odd, at least as wide as the targets; `local` only.
        outer: side of the background window in pixels, odd; `local` only.
        ridge: share of the scene's covariance that is added to every window's, at least 0; `local` only. 0, the default of the function
            `local_rx`, inverts the window's own covariance, which is noisy where a window holds few more pixels than there are bands.
        background: `scene` takes it from the image that is scored, `training` from the training data; `local` needs `scene`.
        calibration: see `AnomalySegmenter`.

    Source: Reed and Yu, IEEE TASSP 38(10), 1990.
    """

    least_pixels = 2
    learns = False

    def __init__(
        self,
        mode: Literal["global", "local"] = "global",
        inner: int = 9,
        outer: int = 25,
        ridge: float = 1.0,
        background: Literal["scene", "training"] = "scene",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if mode not in ("global", "local") or background not in ("scene", "training"):
            raise ValueError(
                f"Expected mode 'global' or 'local' and background 'scene' or 'training', but got {mode!r} and {background!r}."
            )
        if mode == "local" and background == "training":
            raise ValueError(
                "Expected background='scene' with mode='local', whose background is the window around each pixel, but got 'training'."
            )
        self.mode, self.inner, self.outer, self.ridge, self.background = mode, inner, outer, ridge, background
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("scatter", torch.empty(0, dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.scatter: Tensor

    def on_train_start(self) -> None:
        """Gather the statistics of the training data of all ranks."""
        if self.background != "training":
            return
        found: BackgroundStatistics | None = None
        for batch in training_batches(self):
            check_sample(batch)
            new = pixel_statistics(batch["image"].movedim(1, -1)[normal_pixels(batch)].cpu())
            found = new if found is None else merge_statistics(found, new)
        merged = reduce(merge_statistics, [part for part in gathered_objects(found) if part is not None])
        self.count, self.mean, self.scatter = (t.to(self.device) for t in (merged.count, merged.mean, merged.scatter))

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by squared Mahalanobis distance; see the base class."""
        if self.mode == "local":
            return local_rx(image, self.inner, self.outer, self.ridge)
        if self.background == "scene":
            return global_rx(image)
        if not self.mean.numel():
            raise NotFittedError(
                "Expected the background of the training data, but none was gathered. Call `trainer.fit` with training data first."
            )
        statistics = BackgroundStatistics(self.count, self.mean, self.scatter)
        return mahalanobis(image, self.mean, regularised_precision(covariance(statistics), self.count))
