"""Figures pooled over all scenes, and for each scene or each category of images, by name."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from anomseg.functional.reliability import reliability
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.metrics.category_metrics import CategoryMetrics
from anomseg.metrics.pixel import (
    Detectability,
    F1Max,
    FPRAtTPR,
    ImageAUROC,
    OracleIoU,
    PixelAUROC,
    PixelAveragePrecision,
    ThresholdAtFPR,
)
from anomseg.metrics.region import PerRegionOverlap
from anomseg.metrics.score_state import ScoreState

NAMED_SCENES = 32


def pixel_metrics() -> MetricCollection:
    """Collect the figures that are cheap enough for every validation: `auroc`, `ap`, `fpr95`."""
    return MetricCollection({"auroc": PixelAUROC(), "ap": PixelAveragePrecision(), "fpr95": FPRAtTPR(0.95)})


def all_metrics() -> MetricCollection:
    """Collect all figures.

    Those of `pixel_metrics`, best F1, mean IoU at Youden's threshold, the threshold at 1 % false alarms, AUPRO, image AUROC, and the 3-D
    ROC family.
    """
    figures: dict[str, Metric | MetricCollection] = {
        "auroc": PixelAUROC(),
        "ap": PixelAveragePrecision(),
        "fpr95": FPRAtTPR(0.95),
        "f1": F1Max(),
        "oracle": OracleIoU(),
        "threshold_at_fpr01": ThresholdAtFPR(0.01),
        "detectability": Detectability(),
        "aupro": PerRegionOverlap(0.3),
        "image_auroc": ImageAUROC(),
    }
    return MetricCollection(figures)


def _pixel_metric(collection: MetricCollection) -> ScoreState:
    """Find a metric whose counts are those of all pixels, without the copies of its state that `collection["auroc"]` would make."""
    for metric in collection.values(copy_state=False):
        if isinstance(metric, ScoreState) and type(metric).update is ScoreState.update:
            return metric
    raise ValueError(f"Expected a pixel metric such as PixelAUROC in the collection, but got {list(collection.keys())}. Add one.")


def _nowhere() -> bool:
    """Say that there are no other ranks."""
    return False


class SceneMetrics(nn.Module):
    """Keep one collection over all scenes, and one for the scene that is being fed, or one for each category.

    A scene's figures are computed when the next scene begins, so memory does not grow with their number. Samples of a scene must follow
    one another on one rank, as the loaders of this library deliver them: a scene that comes again is an error, and one that came on several
    ranks has no figures of its own, which is said. Images of categories may come in any order; there may be hundreds, and none of them is a
    scene with figures of its own.

    Args:
        collection: the figures; it is cloned for the scenes.
        prefix: put before every name, such as `test_`.
    """

    def __init__(self, collection: MetricCollection, prefix: str) -> None:
        super().__init__()
        self.pooled = collection
        self.prefix = prefix
        self.categories = CategoryMetrics(collection)
        self.scene = collection.clone()
        for metric in self.scene.values(copy_state=False):
            metric.distributed_available_fn = _nowhere  # a scene is one rank's own; `sync_on_compute` is read by the constructor alone
        self._name: str | None = None
        self._values: dict[str, dict[str, float]] = {}
        self._begun: set[str] = set()  # also those of one class, which have no values

    def update(
        self,
        score: Tensor,
        mask: Tensor,
        names: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        image_labels: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores.
            mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored.
            names: the B scene names; without them only pooled figures are kept.
            categories: the B classes of objects or surfaces; with them there are figures for each category instead of each scene.
            image_labels: (B,) 0 normal, 1 anomalous, 255 unknown, for the figures of images; by default what the masks say.

        Raises:
            ValueError: samples of a scene come after those of another one that interrupted it.
        """
        self.pooled.update(score, mask, name=names, image_label=image_labels)
        if categories is not None:
            self.categories.update(score, mask, categories, names, image_labels)
            return
        for index, name in enumerate(names or []):
            if name != self._name:
                self._close_scene()
                self._begin_scene(name)
            own = slice(index, index + 1)
            self.scene.update(score[own], mask[own], name=[name], image_label=None if image_labels is None else image_labels[own])

    def _begin_scene(self, name: str) -> None:
        if name in self._begun:
            self.reset()  # what a broken-off run left behind must not stop every run after it
            raise ValueError(
                f"Expected the samples of scene '{name}' one after the other, but they came again after another scene, so the scene would "
                "be judged by a part of itself. Sort the tiles by scene, do not shuffle them, and give different scenes different names. "
                "If an earlier run was broken off, start again: its samples are forgotten now."
            )
        self._begun.add(name)
        self._name = name

    def _close_scene(self) -> None:
        if self._name is not None:
            held = _pixel_metric(self.scene).counts()
            if held.normal.sum() > 0 and held.anomalous.sum() > 0:  # a scene of one class has no curve, and is not an error here
                with warnings.catch_warnings():  # image AUROC of a scene that is one sample is undefined, and no error either
                    warnings.filterwarnings("ignore", ".*is undefined without.*")
                    self._values[self._name] = {k: float(v) for k, v in self.scene.compute().items()}
        self.scene.reset()
        self._name = None

    def counts(self) -> ScoreCounts:
        """Count the pooled scores of all ranks; every rank must call this."""
        metric = _pixel_metric(self.pooled)
        with metric.sync_context(should_sync=metric._to_sync, should_unsync=True):
            return metric.counts()

    def compute(self, heat: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Compute all figures; every rank must call this.

        Args:
            heat: monotone map from scores to heat in [0, 1], such as a fitted calibration; None leaves the figures of heat maps out.

        Returns:
            `<prefix><figure>` pooled over all pixels, `<prefix><figure>_mean` averaged over the scenes that hold both classes, and
            `<prefix><figure>/<scene>` for each of them, if they are at most 32; with heat, `<prefix>heat_bce`, `<prefix>heat_brier` and
            `<prefix>heat_ece` pooled (see `reliability`). A figure that no scene defines, such as image AUROC
            of scenes that are one sample each, is pooled only. With categories, all that `CategoryMetrics.compute` gives, with the prefix.
        """
        self._close_scene()
        of_categories = self.categories.compute()
        with warnings.catch_warnings():  # scenes that all hold an anomaly are the rule, and no sign of a mistake
            warnings.filterwarnings("ignore", "Image AUROC is undefined without normal.*")
            if of_categories:  # and so are normal images to validate on
                warnings.filterwarnings("ignore", ".*is undefined without anomalous.*")
            values = {f"{self.prefix}{k}": v for k, v in {**of_categories, **self.pooled.compute()}.items()}
        if heat is not None:
            values.update({f"{self.prefix}heat_{k}": v for k, v in reliability(self.counts(), heat).items()})
        scenes = self._gathered()
        for figure in next(iter(scenes.values()), {}):
            of_scenes = torch.tensor([v[figure] for v in scenes.values()], dtype=torch.float64)
            if bool(of_scenes.isnan().all()):
                continue
            values[f"{self.prefix}{figure}_mean"] = of_scenes.nanmean()
            if len(scenes) <= NAMED_SCENES:
                values.update({f"{self.prefix}{figure}/{name}": v for name, v in zip(scenes, of_scenes, strict=True)})
        return values

    def _gathered(self) -> dict[str, dict[str, float]]:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return dict(sorted(self._values.items()))
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self._begun, self._values))
        times = Counter(name for begun, _ in parts for name in begun)
        split = sorted(name for name, count in times.items() if count > 1)
        if split:  # no error: this is known at the end alone, when an error would throw away the pooled figures of the whole run
            warnings.warn(
                f"Expected all samples of a scene on one rank, but those of {split} came on several. These scenes get no figures of their "
                "own and are left out of the means; a sample that was given to several ranks counts as often in the pooled figures. Give "
                "the loader UnpaddedSampler(dataset, groups=<scene of each sample>), or use one device.",
                stacklevel=3,
            )
        return dict(sorted((name, v) for _, values in parts for name, v in values.items() if times[name] == 1))

    def reset(self) -> None:
        """Forget everything."""
        self.pooled.reset()
        self.categories.reset()
        self.scene.reset()
        self._name, self._values, self._begun = None, {}, set()
