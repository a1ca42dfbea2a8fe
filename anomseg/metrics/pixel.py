"""Pixel-level figures over unbounded scores, as torchmetrics that share one state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anomseg.functional import score_curves
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.metrics.score_state import ScoreState, check_scores, one_thread, select_pixels
from anomseg.sample import ANOMALY, IGNORE, NORMAL, check_mask


def warn_if_class_is_missing(counts: ScoreCounts, figure: str, needs: Sequence[str] = ("normal", "anomalous")) -> None:
    """Warn that a figure is undefined because a class that it needs was not seen."""
    for held, what in ((counts.normal, "normal"), (counts.anomalous, "anomalous")):
        if what in needs and not held.sum() > 0:
            warnings.warn(f"{figure} is undefined without {what} pixels and is returned as NaN. Is the mask complete?", stacklevel=3)
            return


def _check_rate(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"Expected argument `{name}` in (0, 1], but got {value}. Give a share, not a percentage.")
    return value


class PixelAUROC(ScoreState):
    """Compute the area under the pixel ROC curve, in [0, 1]; NaN with a warning where a class is missing.

    `resolution_bound()` says how far the figure can be from the exact one.
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "AUROC")
        return score_curves.auroc(counts)

    @one_thread()
    def resolution_bound(self) -> Tensor:
        """Return () float64: the largest possible distance to the exact AUROC of the counted pixels (of this rank)."""
        return score_curves.auroc_bound(self.counts())


class PixelAveragePrecision(ScoreState):
    """Compute pixel average precision (the step sum of scikit-learn), in [0, 1]; NaN where there is no anomalous pixel."""

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Average precision", ["anomalous"])
        return score_curves.average_precision(counts)


class FPRAtTPR(ScoreState):
    """Compute the false-positive rate at the strictest threshold that reaches a true-positive rate, in [0, 1].

    Args:
        tpr: the rate to reach, in (0, 1].
        kwargs: passed to `torchmetrics.Metric`.
    """

    higher_is_better = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, tpr: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tpr = _check_rate("tpr", tpr)

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64, NaN where a class is missing."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "The false-positive rate")
        return score_curves.fpr_at_tpr(counts, self.tpr)


class F1Max(ScoreState):
    """Find the best F1 over all thresholds, in [0, 1], and the threshold that gives it.

    The threshold is chosen on the truth it is judged by: it bounds what a threshold can reach and is no estimate for new scenes.
    """

    higher_is_better = True

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """Return `f1_max` () float64 and `f1_max_threshold` () float32 (flag `score >= threshold`)."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "F1", ["anomalous"])
        f1, threshold = score_curves.f1_max(counts)
        return {"f1_max": f1, "f1_max_threshold": threshold}


class OracleIoU(ScoreState):
    """Compute the mean IoU of both classes at Youden's threshold, in [0, 1], and that threshold.

    The threshold is chosen on the truth it is judged by, hence the name: papers that threshold their maps at the best point of the test
    set's ROC curve print this figure.
    """

    higher_is_better = True

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """Return `oracle_miou` () float64 and `oracle_threshold` () float32 (flag `score >= threshold`)."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "IoU")
        iou, threshold = score_curves.oracle_iou(counts)
        return {"oracle_miou": iou, "oracle_threshold": threshold}


class ThresholdAtFPR(ScoreState):
    """Find the lowest threshold that flags at most a share of the normal pixels; anomalous pixels play no part.

    Args:
        fpr: the allowed share, in (0, 1].
        kwargs: passed to `torchmetrics.Metric`.
    """

    higher_is_better = None

    def __init__(self, fpr: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fpr = _check_rate("fpr", fpr)

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float32: flag `score >= threshold`."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "The threshold", ["normal"])
        return score_curves.threshold_at_fpr(counts, self.fpr)


class Detectability(ScoreState):
    """Compute the 3-D ROC family of hyperspectral detection; see `anomseg.functional.score_curves.detectability` for the formulas.

    Scores are min-max normalised over all pixels the metric has seen: one map for the values that papers print.
    """

    higher_is_better = True

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """Return () float64 each: `auc_df`, `auc_dt`, `auc_ft`, `td`, `bs`, `tdbs`, `odp`, `snpr`."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Detectability")
        return score_curves.detectability(counts)


@one_thread()
def image_scores(
    score: Tensor, mask: Tensor, image_label: Tensor | None = None, top: float | None = None, name: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Give each sample one score: its highest pixel score, or the mean of a top share of them.

    Ignored pixels take no part. Only where a labelled sample has no other pixels, so that the truth of every pixel is unknown, do all its
    finite scores count: an anomalous image whose mask is missing is still an anomalous image.

    Args:
        score: (B, H, W) raw scores.
        mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored.
        image_label: (B,) 0 normal, 1 anomalous, 255 unknown; without it, a sample is anomalous where its mask holds an anomalous pixel.
        top: share of the sample's pixels that are averaged, in (0, 1]; None takes the maximum.
        name: the B scene names, for messages.

    Returns:
        (B,) float32 scores and (B,) int64 labels 0, 1, or 255 where a sample does not count; its score is NaN then.

    Raises:
        ValueError: shapes differ, a counted score is not finite, or the mask or a label holds another value.
    """
    check_scores(score, mask, name)
    check_mask(mask, name)
    labels = [None] * len(score) if image_label is None else _check_labels(image_label, len(score))
    values, found = score.new_full((len(score),), torch.nan, dtype=torch.float32), []
    for index, label in enumerate(labels):
        kept, anomalous = select_pixels(score[index : index + 1], mask[index : index + 1])
        if label in (NORMAL, ANOMALY) and not kept.numel():
            kept = score[index].detach().float().flatten()
            kept = kept[torch.isfinite(kept)]
        known = int(anomalous.numel() > 0) if label is None else label
        if known == IGNORE or not kept.numel():
            found.append(IGNORE)
            continue
        found.append(known)
        values[index] = kept.max() if top is None else kept.topk(max(1, round(top * kept.numel()))).values.mean()
    return values, torch.tensor(found, dtype=torch.int64, device=score.device)


def _check_labels(image_label: Tensor, samples: int) -> list[int | None]:
    if image_label.shape != (samples,) or not set(held := image_label.tolist()) <= {NORMAL, ANOMALY, IGNORE}:
        came = f"{image_label.flatten()[:8].tolist()} of shape {tuple(image_label.shape)}"
        raise ValueError(
            f"Expected image labels 0 (normal), 1 (anomalous) or 255 (unknown) of shape ({samples},), but got {came}. "
            "Give one integer for each image of the batch."
        )
    return held


class ImageScores(ScoreState):
    """Hold one score for each sample, see `image_scores`; subclasses read their figure from `counts()`. With tiles, a sample is a tile.

    Args:
        top: share of the sample's pixels that are averaged, in (0, 1]; None takes the maximum.
        kwargs: passed to `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, top: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = None if top is None else _check_rate("top", top)
        # a state of its own name keeps torchmetrics from joining this metric with the pixel metrics, which hold other scores
        self.add_state(f"image_scores_by_{'maximum' if top is None else f'top_{top}'.replace('.', '_')}", default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, mask: Tensor, name: Sequence[str] | None = None, image_label: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            score: (B, H, W) raw scores of any range, higher is more anomalous.
            mask: (B, H, W) integers or bool: 0 normal, 1 anomaly, 255 ignored.
            name: the B scene names, for messages.
            image_label: (B,) 0 normal, 1 anomalous, 255 leaves the sample out; by default what the mask says. A label stands above the
                mask, also where the mask is missing (255 everywhere) or empty.

        Raises:
            ValueError: as `image_scores`.
        """
        values, labels = image_scores(score, mask, image_label, self.top, name)
        self._append(values[labels != IGNORE], values[labels == ANOMALY])


class ImageAUROC(ImageScores):
    """Compute AUROC with one score for each sample, in [0, 1]; arguments as `ImageScores`."""

    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64, NaN with a warning where all samples are normal or all are anomalous."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Image AUROC")
        return score_curves.auroc(counts)


class ImageAveragePrecision(ImageScores):
    """Compute average precision with one score for each sample, in [0, 1]; arguments as `ImageScores`."""

    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    @one_thread()
    def compute(self) -> Tensor:
        """Return () float64, NaN with a warning where no sample is anomalous."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Image average precision", ["anomalous"])
        return score_curves.average_precision(counts)


class ImageF1Max(ImageScores):
    """Find the best F1 over all thresholds on one score for each sample; arguments as `ImageScores`, and a caveat as `F1Max`."""

    @one_thread()
    def compute(self) -> dict[str, Tensor]:
        """Return `image_f1_max` () float64 and `image_f1_max_threshold` () float32, NaN with a warning where no sample is anomalous."""
        counts = self.counts()
        warn_if_class_is_missing(counts, "Image F1", ["anomalous"])
        f1, threshold = score_curves.f1_max(counts)
        return {"image_f1_max": f1, "image_f1_max_threshold": threshold}
