"""Labels that nobody drew: the top of a detector's map is anomalous, what follows is left out, the rest is normal."""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg.sample import ANOMALY, IGNORE, NORMAL


def rank_labels(score: Tensor, positive_share: float, ignored_share: float, valid: Tensor | None = None) -> Tensor:
    """Label pixels by their rank in a map.

    Args:
        score: (H, W), higher is more anomalous.
        positive_share: share of the valid pixels that becomes anomalous, in [0, 1); 0 labels none, above 0 at least one pixel.
        ignored_share: share of the valid pixels below those that is ignored, in [0, 1).
        valid: (H, W) bool; other pixels are ignored.

    Returns:
        (H, W) int64 of 0, 1 and 255. Equal scores get equal labels, so a tie at a limit goes to the higher class.

    Raises:
        ValueError: the shares are out of range or leave nothing normal.
    """
    if positive_share < 0 or ignored_share < 0 or positive_share + ignored_share >= 1:
        raise ValueError(
            f"Expected shares >= 0 with a sum below 1, but got positive_share={positive_share} and ignored_share={ignored_share}."
        )
    keep = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    ordered = score[keep].sort(descending=True).values
    label = torch.full(score.shape, NORMAL, dtype=torch.int64, device=score.device)
    positives = max(1, round(positive_share * len(ordered))) if positive_share > 0 else 0
    ignored = round(ignored_share * len(ordered))
    if positives + ignored:
        label[score >= ordered[positives + ignored - 1]] = IGNORE
    if positives:
        label[score >= ordered[positives - 1]] = ANOMALY
    label[~keep] = IGNORE
    return label


def threshold_labels(score: Tensor, threshold: float = 0.5, margin: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Label pixels by the min-max normalised map, as the first published pipelines did; one extreme pixel moves every label.

    Args:
        score: (H, W), higher is more anomalous.
        threshold: normalised score from which a pixel is anomalous, in (0, 1).
        margin: width below the threshold that is ignored, in [0, threshold).
        valid: (H, W) bool; other pixels are ignored.

    Returns:
        (H, W) int64 of 0, 1 and 255.

    Raises:
        ValueError: threshold or margin out of range.
    """
    if not (0 < threshold < 1 and 0 <= margin < threshold):
        raise ValueError(f"Expected 0 < threshold < 1 and 0 <= margin < threshold, but got {threshold} and {margin}.")
    keep = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    low, high = score[keep].min(), score[keep].max()
    unit = (score - low) / (high - low).clamp_min(torch.finfo(score.dtype).tiny)
    label = torch.full(score.shape, NORMAL, dtype=torch.int64, device=score.device)
    label[unit >= threshold - margin] = IGNORE
    label[unit >= threshold] = ANOMALY
    label[~keep] = IGNORE
    return label
