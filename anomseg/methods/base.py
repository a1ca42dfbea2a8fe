"""The one base class: a method writes `__init__`, `training_step` and `score`; everything about evaluation stands here once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, cast, final

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.calibration.quantile import QuantileCalibration
from anomseg.config import arguments_of, build, size_before_loading
from anomseg.errors import NotFittedError
from anomseg.methods.map_scoring import check_map, judged_truth, map_scores
from anomseg.methods.training_data import check_before_fit
from anomseg.metrics.scene_metrics import SceneMetrics, all_metrics, pixel_metrics
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.optimisation import Optimisation
from anomseg.sample import check_sample, flat_truth
from anomseg.version import __version__


class AnomalySegmenter(pl.LightningModule, ABC):
    """Turn images into raw anomaly scores, measure them, and calibrate them on normal validation pixels.

    A subclass keeps each constructor argument as an attribute of the same name, and its fitted state in buffers.

    Args:
        calibration: maps scores to heat maps; `QuantileCalibration()` by default.
        optimisation: how parameters are stepped; AdamW with a cosine schedule by default.
    """

    size_multiple: ClassVar[int] = 1  # images are padded to a multiple of this before `score`, and maps cropped back
    least_pixels: ClassVar[int] = 1  # with data; an image of fewer is not scored, and its map is 0
    learns: ClassVar[bool] = True  # False: nothing is learnt by descent, one epoch is enough, and `training_step` need not be written

    def __init__(self, calibration: Calibration | None = None, optimisation: Optimisation | None = None) -> None:
        super().__init__()
        self.calibration: Calibration = build(calibration) or QuantileCalibration()
        self.optimisation: Optimisation = build(optimisation, Optimisation) or Optimisation()
        self.validation_metrics = SceneMetrics(pixel_metrics(), "val_")
        self.test_metrics = SceneMetrics(all_metrics(), "test_")
        self.further_maps: dict[str, Tensor] = {}  # what `score` learns beside the score of a batch; `predict` returns it too
        self.register_load_state_dict_pre_hook(size_before_loading)  # type: ignore[no-untyped-call]  # torch has no types here
        if not self.learns:
            self.clock = nn.Parameter(torch.zeros(1))  # Lightning counts progress, and saves checkpoints, by optimiser steps

    def on_fit_start(self) -> None:
        """Refuse arguments that no checkpoint could hold, and warn where no validation would calibrate."""
        check_before_fit(self, (self.trainer.max_epochs or 0) if self.learns else 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Take torchgeo's (B, 1, H, W) masks as they come."""
        if isinstance(batch, dict):
            batch.update(flat_truth(batch))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return a loss; that of a method that learns nothing is 0."""
        return self.clock.sum() * 0.0

    def on_train_epoch_end(self) -> None:
        """Stop after one epoch, resumed or not, where further ones would change nothing."""
        self.trainer.should_stop |= not self.learns

    @abstractmethod
    def score(self, image: Tensor) -> Tensor:
        """Score every pixel.

        Args:
            image: (B, C, H, W) or (B, 2, C, H, W) float32; NaN marks pixels without data (see `anomseg.sample.fill_nodata`).

        Returns:
            (B, H, W) float32, **higher is more anomalous**, unbounded, finite wherever there is data.
        """

    @final
    def score_map(self, image: Tensor) -> Tensor:
        """Score images of any size as in evaluation, (B, H, W) float32; pixels without data get their map's lowest score."""
        with evaluation_mode(self):
            return map_scores(self, image)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the heat map: (B, H, W) float32 in [0, 1]. Raises `NotFittedError` before calibration."""
        return cast(Tensor, self.calibration(self.score_map(image)))

    def diagnostics(self) -> dict[str, Tensor]:
        """Conclude a validation while its counts are there: keep what it decides, give figures to be logged; none by default."""
        return {}

    def on_test_epoch_start(self) -> None:
        """Forget what a run that was broken off has left."""
        self.validation_metrics.reset()
        self.test_metrics.reset()

    on_validation_epoch_start = on_test_epoch_start

    @final
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Count the scores of a validation batch; before training, a method that must be fitted first has none."""
        with suppress(*([NotFittedError] if self.trainer.sanity_checking else [])):
            self._count(batch, self.validation_metrics)

    @final
    def on_validation_epoch_end(self) -> None:
        """Calibrate on the normal pixels, then log the figures."""
        if not self.trainer.sanity_checking:
            self.calibration.fit(self.validation_metrics.counts())
            self.log_dict({**self.diagnostics(), **self.validation_metrics.compute()})
        self.validation_metrics.reset()

    @final
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Count the scores of a test batch."""
        self._count(batch, self.test_metrics)

    @final
    def on_test_epoch_end(self) -> None:
        """Log the figures, pooled and for each scene."""
        self.log_dict(self.test_metrics.compute(self.calibration if self.calibration.is_fitted else None))
        self.test_metrics.reset()

    def _count(self, batch: Mapping[str, Any], into: SceneMetrics) -> None:
        check_sample(batch := flat_truth(batch))
        into.update(self.score_map(batch["image"]), judged_truth(batch), *(batch.get(key) for key in ("name", "category", "image_label")))

    @final
    def on_predict_start(self) -> None:
        """Refuse to predict without a calibration, before any work is done."""
        self.calibration(torch.zeros(1, device=self.device))

    @final
    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return `score` (B, H, W) raw and finite, `heatmap` (B, H, W) in [0, 1], and further maps."""
        check_sample(flat_truth(batch))
        check_map(score := self.score_map(batch["image"]), batch)
        return {"score": score, "heatmap": self.calibration(score), **self.further_maps}

    def configure_optimizers(self) -> Any:
        """Build what `optimisation` describes, stepped every batch."""
        optimiser, schedule = self.optimisation.build(self, self.trainer.estimated_stepping_batches if self.learns else 1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class and its arguments as plain data, so that the checkpoint loads with `weights_only=True`."""
        checkpoint["hyper_parameters"] = {"_class_path": f"{type(self).__module__}.{type(self).__qualname__}", **arguments_of(self)}
        checkpoint["anomseg_version"] = __version__
