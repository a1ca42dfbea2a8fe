"""Figures of a map that has been cut at a threshold, all from one confusion of counted pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.sample import ANOMALY, NORMAL


@dataclass(frozen=True)
class ChangeFigures:
    """Hold the figures of the change class, and two of both classes.

    A figure whose denominator is 0 is NaN: precision where nothing is flagged, recall where nothing changed, F1 and IoU where neither.

    Attributes:
        precision: TP / (TP + FP), in [0, 1].
        recall: TP / (TP + FN), in [0, 1].
        f1: 2TP / (2TP + FP + FN), in [0, 1]; of the change class, neither averaged over the classes nor over images.
        iou: TP / (TP + FP + FN), in [0, 1]; equals F1 / (2 - F1).
        accuracy: (TP + TN) / all, in [0, 1]; high wherever little changes.
        kappa: Cohen's kappa, accuracy beyond that of chance with the same shares, in [-1, 1].
    """

    precision: float
    recall: float
    f1: float
    iou: float
    accuracy: float
    kappa: float


def confusion(flagged: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of each outcome.

    Args:
        flagged: any shape, bool, predicted change.
        mask: of the same shape, 0 normal, 1 anomaly, 255 ignored.

    Returns:
        (4,) int64: true positives, false positives, false negatives, true negatives.
    """
    flagged = flagged.bool()
    changed, unchanged = mask == ANOMALY, mask == NORMAL
    return torch.stack([(changed & flagged).sum(), (unchanged & flagged).sum(), (changed & ~flagged).sum(), (unchanged & ~flagged).sum()])


def change_figures(outcomes: Tensor) -> ChangeFigures:
    """Compute the figures of one confusion.

    Args:
        outcomes: (4,) counts as `confusion` orders them.

    Source: Cohen, "A coefficient of agreement for nominal scales", 1960, for kappa.
    """
    hit, alarm, miss, rest = outcomes.detach().double().cpu()
    total = hit + alarm + miss + rest
    accuracy = (hit + rest) / total
    chance = ((hit + alarm) * (hit + miss) + (rest + miss) * (rest + alarm)) / total**2
    figures = (
        hit / (hit + alarm),
        hit / (hit + miss),
        2 * hit / (2 * hit + alarm + miss),
        hit / (hit + alarm + miss),
        accuracy,
        (accuracy - chance) / (1 - chance),
    )
    return ChangeFigures(*(float(figure) for figure in figures))
