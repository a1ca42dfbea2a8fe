"""Figures for each category of images, and their mean over the categories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from anomseg.metrics.pixel import ImageAUROC, ImageAveragePrecision, ImageF1Max
from anomseg.sample import ANOMALY, IGNORE

NAMED_CATEGORIES = 32


def image_metrics() -> dict[str, Metric | MetricCollection]:
    """Collect the figures that take one score for each image.

    They are `image_auroc`, `image_ap` and best F1 as `image_f1` of its highest pixel, and `image_auroc_top` of the mean over the highest
    hundredth of its pixels, which a speck of noise does not decide.
    """
    return {
        "image_auroc": ImageAUROC(),
        "image_ap": ImageAveragePrecision(),
        "image_f1": ImageF1Max(),
        "image_auroc_top": ImageAUROC(top=0.01),
    }


class CategoryMetrics(nn.Module):
    """Keep one collection for each category of images, wherever and in whatever order its images come.

    A category's collection is made when its first image comes. Every collection keeps its own scores: at most 64 MB for each category and
    kind of state (pixels, regions, images); 100 images of 256 x 256 pixels are 26 MB for each of the first two.

    Args:
        collection: the figures; it is cloned for each category, and those of `image_metrics` that it lacks join it, pooled and for each.
    """

    def __init__(self, collection: MetricCollection) -> None:
        super().__init__()
        held: dict[str, Metric | MetricCollection] = {n: m.clone() for n, m in collection.items(keep_base=True, copy_state=False)}
        self.pooled_images = MetricCollection({n: m for n, m in image_metrics().items() if n not in held})
        self.blank = MetricCollection({**image_metrics(), **held})  # never fed
        self._of: dict[str, MetricCollection] = {}
        self._without_mask = 0
        self._has_warned = False

    def update(
        self, score: Tensor, mask: Tensor, categories: Sequence[str], names: Sequence[str] | None = None, image_labels: Tensor | None = None
    ) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores.
            mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored; 255 everywhere where the mask of an anomalous image is missing.
            categories: the B classes of objects or surfaces.
            names: the B scene names, for messages.
            image_labels: (B,) 0 normal, 1 anomalous, 255 unknown; by default what the masks say.

        Raises:
            ValueError: there is not one category for each sample.
        """
        if len(categories) != len(score):
            raise ValueError(f"Expected one category for each of the {len(score)} images, but got {list(categories)}. Collate a list.")
        if image_labels is not None:
            self._without_mask += int(((mask == IGNORE).flatten(1).all(1) & (image_labels == ANOMALY)).sum())
        self.pooled_images.update(score, mask, name=names, image_label=image_labels)
        for category in dict.fromkeys(categories):
            chosen = [index for index, other in enumerate(categories) if other == category]
            labels = None if image_labels is None else image_labels[chosen]
            named = None if names is None else [names[index] for index in chosen]
            self._collection(category).update(score[chosen], mask[chosen], name=named, image_label=labels)

    def _collection(self, category: str) -> MetricCollection:
        if category not in self._of:
            self._of[category] = self.blank.clone()
        return self._of[category]

    def compute(self) -> dict[str, Tensor]:
        """Compute all figures; every rank must call this.

        Returns:
            `<figure>` of `image_metrics` pooled over all images, where the collection has none of that name; `<figure>_mean_over_class`,
            averaged over the categories that define it (a category of normal images alone has no curve); and `<figure>/<category>` for
            each of these, if there are at most 32 categories. Empty where no category was given.
        """
        parts = _gathered((sorted(self._of), self._without_mask))
        categories = sorted({category for held, _ in parts for category in held})
        if not categories:
            return {}
        self._warn_of_missing_masks(sum(missing for _, missing in parts))
        with warnings.catch_warnings():  # categories without anomalies, or without an image on this rank, are no sign of a mistake
            warnings.filterwarnings("ignore", ".*is undefined without.*|.*was called before the ``update`` method.*")
            values: dict[str, Tensor] = self.pooled_images.compute()
            of = {category: self._collection(category).compute() for category in categories}  # in one order on all ranks: they synchronise
        for figure in of[categories[0]]:
            column = torch.stack([v[figure].double().cpu() for v in of.values()])
            if bool(column.isnan().all()):
                continue
            values[f"{figure}_mean_over_class"] = column.nanmean()
            if len(categories) <= NAMED_CATEGORIES:
                values.update({f"{figure}/{c}": v for c, v in zip(categories, column, strict=True) if not v.isnan()})
        return values

    def _warn_of_missing_masks(self, missing: int) -> None:
        if missing and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{missing} anomalous images have no mask (255 everywhere): they count in image figures, and in no pixel figure. "
                "Add their masks where you have them.",
                stacklevel=4,
            )

    def reset(self) -> None:
        """Forget everything but that a missing mask was said."""
        self.pooled_images.reset()
        self._of, self._without_mask = {}, 0


def _gathered(part: tuple[list[str], int]) -> list[tuple[list[str], int]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts
