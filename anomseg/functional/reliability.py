"""Judge heat maps as probabilities of an anomaly: cross-entropy, Brier score and calibration error, read from counted scores.

Glossary: p heat of a pixel, y its truth (1 anomalous, 0 normal), n number of pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anomseg.functional.score_histogram import ScoreCounts, key_to_score

SMALLEST = 1e-7
"""Heat is held inside [1e-7, 1 - 1e-7], so that one pixel of heat 0 or 1 on the wrong side costs 16 nats and not infinity."""


def cell_scores(counts: ScoreCounts) -> Tensor:
    """Give the middle score of each cell, (K,) float32; the score itself where a cell holds one."""
    return key_to_score(counts.lower + (counts.width - 1) // 2)


def reliability(counts: ScoreCounts, heat: Callable[[Tensor], Tensor] | None = None, bins: int = 15) -> dict[str, Tensor]:
    """Compare heat with truth.

    A calibration fitted on normal pixels alone knows nothing of how common anomalies are, so its heat is not their probability, and these
    figures compare heat maps with each other rather than with 0.

    Args:
        counts: counted scores.
        heat: monotone map from (K,) scores to heat in [0, 1]; None where the scores are heat already.
        bins: of equal width, for the calibration error.

    Returns:
        () float64 each, NaN where there is no pixel: `bce` = -mean(y ln p + (1 - y) ln(1 - p)) in nats; `brier` = mean (p - y)²; `ece`, the
        mean over pixels of |mean p - share of anomalies| of their bin, in [0, 1].

    Raises:
        ValueError: heat outside [0, 1], or fewer than one bin.
    """
    score = cell_scores(counts)
    p = (score if heat is None else heat(score)).double()
    if bins < 1 or bool((p < 0).any() or (p > 1).any()):
        reach = f"{float(p.min()):.3g} to {float(p.max()):.3g}" if p.numel() else "none"
        raise ValueError(f"Expected heat in [0, 1] and bins >= 1, but got {reach} and {bins}. Pass the calibration as `heat`.")
    p = p.clamp(SMALLEST, 1 - SMALLEST)
    normal, anomalous = counts.normal.double(), counts.anomalous
    n = normal.sum() + anomalous.sum()
    bce = -(anomalous * p.log() + normal * torch.log1p(-p)).sum() / n
    brier = (anomalous * (1 - p).square() + normal * p.square()).sum() / n
    place = (p * bins).long().clamp_max(bins - 1)
    empty = torch.zeros(bins, dtype=torch.float64, device=p.device)
    claimed = empty.scatter_add(0, place, p * (normal + anomalous))
    found = empty.scatter_add(0, place, anomalous)
    return {"bce": bce, "brier": brier, "ece": (claimed - found).abs().sum() / n}
