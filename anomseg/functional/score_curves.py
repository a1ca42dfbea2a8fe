"""Read curves, thresholds and quantiles from counted scores.

Every function takes `ScoreCounts`, whose cells ascend, and says what it returns where a class is missing: NaN, never 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.functional.score_histogram import ScoreCounts, key_to_score


def _at_or_above(counts: Tensor) -> Tensor:
    """Sum each cell with all cells above it."""
    return counts.sum() - counts.cumsum(0) + counts


def _nan_like(counts: ScoreCounts) -> Tensor:
    return torch.full((), float("nan"), dtype=torch.float64, device=counts.normal.device)


def auroc(counts: ScoreCounts) -> Tensor:
    """Compute the area under the ROC curve: the chance that an anomalous pixel scores above a normal one, ties counting half.

    Args:
        counts: counted scores.

    Returns:
        () float64 in [0, 1], NaN where a class is missing.

    Source: Mann-Whitney statistic.
    """
    held = counts.anomalous.nonzero()[:, 0]
    anomalous = counts.anomalous[held]
    below = counts.normal.cumsum(0)[held].double() - 0.5 * counts.normal[held].double()
    return (anomalous * below).sum() / (anomalous.sum() * counts.normal.sum())


def auroc_bound(counts: ScoreCounts) -> Tensor:
    """Bound the error of `auroc` that comes from cells wider than one score: ½·Σ P_b·N_b / (P·N) over those cells.

    Returns:
        () float64, 0 where every cell is a single score; NaN where a class is missing.
    """
    unsure = (counts.anomalous * counts.normal)[counts.width > 1]
    return 0.5 * unsure.sum() / (counts.anomalous.sum() * counts.normal.sum())


def average_precision(counts: ScoreCounts) -> Tensor:
    """Compute average precision as Σ (R_i − R_{i−1})·P_i over descending thresholds, the step sum of scikit-learn.

    Returns:
        () float64 in [0, 1], NaN where there is no anomalous pixel.
    """
    held = counts.anomalous.nonzero()[:, 0]
    anomalous = counts.anomalous[held]
    true_positive = _at_or_above(anomalous)
    false_positive = counts.normal.sum() - counts.normal.cumsum(0)[held] + counts.normal[held]
    return (anomalous * true_positive / (true_positive + false_positive)).sum() / anomalous.sum()


def roc(counts: ScoreCounts) -> tuple[Tensor, Tensor, Tensor]:
    """Give the ROC curve from the strictest threshold to the loosest.

    Returns:
        False-positive rates, true-positive rates (both (K,) float64, ascending) and thresholds (K,) float32, descending. The point (0, 0)
        of the infinite threshold is left out.
    """
    false_positive = _at_or_above(counts.normal).double() / counts.normal.sum()
    true_positive = _at_or_above(counts.anomalous) / counts.anomalous.sum()
    return false_positive.flip(0), true_positive.flip(0), counts.thresholds().flip(0)


def fpr_at_tpr(counts: ScoreCounts, tpr: float = 0.95) -> Tensor:
    """Compute the false-positive rate at the strictest threshold that reaches a true-positive rate (Fishyscapes' definition).

    Args:
        counts: counted scores.
        tpr: the true-positive rate to reach, in (0, 1].

    Returns:
        () float64 in [0, 1], NaN where a class is missing.
    """
    if not (counts.normal.sum() > 0 and counts.anomalous.sum() > 0):
        return _nan_like(counts)
    false_rate, true_rate, _ = roc(counts)
    reached = (true_rate >= tpr - 1e-12).nonzero()[0, 0]
    return false_rate[reached]


def f1_max(counts: ScoreCounts) -> tuple[Tensor, Tensor]:
    """Find the best F1 = 2TP / (2TP + FP + FN) over all thresholds, and the threshold that gives it.

    Returns:
        () float64 F1 in [0, 1] and () float32 threshold (flag `score >= threshold`); both NaN where there is no anomalous pixel.
    """
    total = counts.anomalous.sum()
    if not total > 0:
        return _nan_like(counts), _nan_like(counts)
    true_positive, false_positive = _at_or_above(counts.anomalous), _at_or_above(counts.normal)
    f1 = 2 * true_positive / (true_positive + false_positive + total)
    best = len(f1) - 1 - f1.flip(0).argmax()  # the strictest of equals
    return f1[best], counts.thresholds()[best]


def oracle_iou(counts: ScoreCounts) -> tuple[Tensor, Tensor]:
    """Compute the mean intersection over union of both classes at Youden's threshold, which maximises TPR - FPR on this very truth.

    Returns:
        () float64 mean IoU in [0, 1] and () float32 threshold (flag `score >= threshold`); both NaN where a class is missing.
    """
    positive, negative = counts.anomalous.sum(), counts.normal.sum().double()
    if not (positive > 0 and negative > 0):
        return _nan_like(counts), _nan_like(counts)
    true_positive, false_positive = _at_or_above(counts.anomalous), _at_or_above(counts.normal).double()
    youden = true_positive / positive - false_positive / negative
    best = len(youden) - 1 - youden.flip(0).argmax()  # the strictest of equals
    hit, alarm = true_positive[best], false_positive[best]
    anomalous, normal = hit / (positive + alarm), (negative - alarm) / (negative + positive - hit)
    return (anomalous + normal) / 2, counts.thresholds()[best]


def threshold_at_fpr(counts: ScoreCounts, fpr: float) -> Tensor:
    """Find the lowest threshold that flags at most a share of the normal pixels.

    Args:
        counts: counted scores; the anomalous ones are not looked at.
        fpr: the allowed share, in [0, 1].

    Returns:
        () float32: flag `score >= threshold`. Where even the highest normal score is too many, the next float32 above it; NaN where there
        is no normal pixel.
    """
    total = counts.normal.sum()
    if not total > 0:
        return _nan_like(counts)
    allowed = _at_or_above(counts.normal) <= fpr * total.double() * (1 + 1e-12)  # 0.29 * 100 is 28.999999999999996
    first = len(allowed) - int(allowed.sum())  # `allowed` is False, ..., False, True, ..., True
    if first < len(allowed):
        return counts.thresholds()[first]
    return key_to_score(counts.lower[-1:] + counts.width[-1:])[0]


def normal_quantile(counts: ScoreCounts, q: Tensor) -> Tensor:
    """Read quantiles of the normal scores: the lowest score with at least a share q of the normal pixels at or below it.

    Args:
        counts: counted scores.
        q: (Q,) levels in [0, 1].

    Returns:
        (Q,) float32 scores, each exact to its cell; NaN where there is no normal pixel.
    """
    total = counts.normal.sum()
    if not total > 0:
        return torch.full_like(q, float("nan"), dtype=torch.float32)
    held = counts.normal.nonzero()[:, 0]
    cumulated = counts.normal[held].cumsum(0)
    wanted = (q.double().to(cumulated.device) * total - 1e-9).ceil().clamp_min(1).long()
    return counts.thresholds()[held][torch.searchsorted(cumulated, wanted).clamp_max(len(held) - 1)].to(q.device)


def per_region_overlap(counts: ScoreCounts, limit: float = 0.3) -> Tensor:
    """Integrate the mean per-region overlap over false-positive rates up to a limit, divided by the limit (AUPRO).

    Args:
        counts: counted scores whose anomalous pixels carry the weight 1 / (size of their region).
        limit: the highest false-positive rate, in (0, 1].

    Returns:
        () float64 in [0, 1], NaN where a class is missing.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021; the curve is cut at the limit by linear interpolation.
    """
    if not (counts.normal.sum() > 0 and counts.anomalous.sum() > 0):
        return _nan_like(counts)
    fpr, overlap, _ = roc(counts)
    start = torch.zeros(1, dtype=fpr.dtype, device=fpr.device)
    fpr, overlap = torch.cat([start, fpr]), torch.cat([start, overlap])
    inside = int((fpr <= limit).sum())
    if inside < len(fpr):
        step = (limit - fpr[inside - 1]) / (fpr[inside] - fpr[inside - 1])
        at_limit = overlap[inside - 1] + step * (overlap[inside] - overlap[inside - 1])
        fpr = torch.cat([fpr[:inside], torch.full_like(start, limit)])
        overlap = torch.cat([overlap[:inside], at_limit[None]])
    return torch.trapezoid(overlap, fpr) / limit


def detectability(counts: ScoreCounts) -> dict[str, Tensor]:
    """Compute the 3-D ROC family of hyperspectral detection on scores that are min-max normalised over the counted pixels.

    By the identity ∫₀¹ P(s ≥ τ) dτ = E[s], AUC(D,τ) and AUC(F,τ) are the mean normalised scores of the anomalous and the normal pixels.

    Returns:
        () float64 each: `auc_df` = AUROC, `auc_dt`, `auc_ft`, `td` = DF + Dτ, `bs` = DF − Fτ, `tdbs` = Dτ − Fτ, `odp` = Dτ + 1 − Fτ,
        `snpr` = Dτ / Fτ. NaN where a class is missing or all scores are equal.

    Source: Chang, "An Effective Evaluation Tool for Hyperspectral Target Detection", TGRS 2021. Published tables that integrate a thinned
    ROC curve deviate from the identity.
    """
    held = ((counts.normal > 0) | (counts.anomalous > 0)).nonzero()[:, 0]
    middle = counts.lower[held] + (counts.width[held] - 1) // 2
    score = key_to_score(middle).double()
    span = score[-1] - score[0] if len(held) else _nan_like(counts)
    normalised = (score - score[:1]) / span
    detected = (normalised * counts.anomalous[held]).sum() / counts.anomalous.sum()
    false = (normalised * counts.normal[held]).sum() / counts.normal.sum()
    area = auroc(counts)
    return {
        "auc_df": area,
        "auc_dt": detected,
        "auc_ft": false,
        "td": area + detected,
        "bs": area - false,
        "tdbs": detected - false,
        "odp": detected + 1 - false,
        "snpr": detected / false,
    }
