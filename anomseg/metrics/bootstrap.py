"""Intervals of the figures of a data set, with the image as the unit that is drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from anomseg.functional import score_curves
from anomseg.functional.bootstrap import Interval, bootstrap_auroc, percentile_interval, resampling_weights
from anomseg.functional.image_counts import (
    ENTRIES,
    ImageCounts,
    WeightedCounts,
    canonical_order,
    count_image,
    join_image_counts,
    unpack_image_counts,
)
from anomseg.functional.kept_dtype import keeping_dtype
from anomseg.functional.regions import region_weights
from anomseg.metrics.pixel import image_scores
from anomseg.metrics.score_state import one_thread, select_pixels, state_parts
from anomseg.sample import ANOMALY, IGNORE, NORMAL, with_void


class ImageBootstrap(Metric):
    """Give intervals of image AUROC and of pixel AUROC, AP, best F1 and AUPRO by the bootstrap over images.

    Pixels of one image resemble one another, so that a million of them say little more than their image: images are drawn anew, normal and
    anomalous ones apart. Each image is held as sparse counts of its scores: at most 2^20 entries (34 MB) for all of them, with as many
    bits of the scores as fit (of 1,000 images 1,000 cells each; few or small images are held exactly). The result depends on the images
    and the seed, not on batches, ranks or order. Where all images are separated without a fault, see `bootstrap_auroc`.

    To have the intervals beside a method's test figures: ``method.test_metrics.pooled.add_metrics(ImageBootstrap())``.

    Args:
        replicates: how often images are drawn anew for image AUROC.
        pixel_replicates: and for pixel figures; each costs about 20 ms for a million entries.
        level: how often an interval is to hold the truth, in (0, 1).
        seed: of the draw.
        limit: highest false-positive rate of AUPRO, as `PerRegionOverlap`.
        kwargs: passed to `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    image_counts: list[Tensor]

    def __init__(
        self, replicates: int = 200, pixel_replicates: int = 50, level: float = 0.95, seed: int = 0, limit: float = 0.3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if min(replicates, pixel_replicates) < 1 or not 0 < level < 1 or not 0 < limit <= 1:
            came = f"replicates {replicates}, pixel_replicates {pixel_replicates}, level {level} and limit {limit}"
            raise ValueError(f"Expected at least one replicate of either kind, a level in (0, 1) and a limit in (0, 1], but got {came}.")
        self.replicates, self.pixel_replicates = replicates, pixel_replicates
        self.level, self.seed, self.limit = level, seed, limit
        self.add_state("image_counts", default=[], dist_reduce_fx="cat")

    @one_thread()
    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None, image_label: Tensor | None = None) -> None:
        """Count a batch of whole images; arguments as `ImageScores.update`."""
        values, labels = image_scores(score, mask, image_label, name=name)
        shift, entries = _sizes(state_parts(self.image_counts))
        added = []
        for index, label in enumerate(labels.tolist()):
            own = slice(index, index + 1)
            truth = mask[own]
            normal, _ = select_pixels(score[own], with_void(truth, truth == ANOMALY))
            anomalous, _ = select_pixels(score[own], with_void(truth, truth == NORMAL))
            if label != IGNORE or len(normal) + len(anomalous):
                added.append(count_image(values[index], label, normal, anomalous, region_weights(truth), shift))
        if added:
            batch = join_image_counts(added, ENTRIES)
            self.image_counts = [*state_parts(self.image_counts), batch.pack()]
            if entries + len(batch.key) > ENTRIES // 4:
                self.image_counts = [join_image_counts(_unpacked(self.image_counts), ENTRIES).pack()]

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move to another device as any metric does, but keep the types: the counts are bit patterns."""
        return Metric._apply(self, keeping_dtype(fn), exclude_state)

    def counts(self) -> ImageCounts | None:
        """Give the counts of all images so far; None without any."""
        held = _unpacked(self.image_counts)
        return join_image_counts(held, ENTRIES) if held else None

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """Return () float64 each: `<figure>_low` and `<figure>_high` of `image_auroc`, `auroc`, `ap`, `f1_max` and `aupro`.

        NaN where a class is missing. Replicates that do not define a figure are left out.
        """
        counts = self.counts()
        undefined = Interval(float("nan"), float("nan"))
        found = dict.fromkeys(("image_auroc", "auroc", "ap", "f1_max", "aupro"), undefined)
        if counts is not None:
            order = canonical_order(counts)
            labels = counts.label[order]
            scored = labels != IGNORE
            of_images = (counts.score[order][scored], labels[scored])
            found["image_auroc"] = bootstrap_auroc(*of_images, self.replicates, self.seed, self.level)
            weights = torch.empty_like(drawn := resampling_weights(labels, self.pixel_replicates, self.seed))
            weights[:, order] = drawn
            found.update({figure: percentile_interval(values, self.level) for figure, values in self._of_pixels(counts, weights).items()})
        ends = {f"{figure}_{end}": value for figure, pair in found.items() for end, value in zip(("low", "high"), pair, strict=True)}
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in ends.items()}

    def _of_pixels(self, counts: ImageCounts, weights: Tensor) -> dict[str, Tensor]:
        summed, values = WeightedCounts(counts), []
        for weight in weights:  # each a pass over the entries and a few over the cells
            pixels, regions = summed.weighted(weight)
            aupro = score_curves.per_region_overlap(regions, self.limit)
            figures = (score_curves.auroc(pixels), score_curves.average_precision(pixels), score_curves.f1_max(pixels)[0], aupro)
            values.append(torch.stack(figures))
        return dict(zip(("auroc", "ap", "f1_max", "aupro"), torch.stack(values).T, strict=True))


def _sizes(parts: list[Tensor]) -> tuple[int, int]:
    """Read from the heads of packed counts how many bits were dropped at most, and how many entries all but the first hold."""
    heads = [part[:6].view(torch.int64).tolist() for part in parts]
    return max((shift for shift, _, _ in heads), default=0), sum(entries for _, _, entries in heads[1:])


def _unpacked(state: list[Tensor] | Tensor) -> list[ImageCounts]:
    return [part for packed in state_parts(state) for part in unpack_image_counts(packed)]
