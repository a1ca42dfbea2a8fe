"""Mean intersection over union of the known classes, from one confusion matrix over all pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from anomseg.sample import IGNORE


class MeanIoU(Metric):
    """Count predicted against true classes over all images; the mean is taken over the classes that occur in truth or prediction.

    Args:
        classes: K, at least 2.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: fewer than two classes.
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if classes < 2:
            raise ValueError(f"Expected two or more classes, but got {classes}.")
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (B, H, W) integers, 0 to K - 1.
            label: (B, H, W) integers, 0 to K - 1, or 255 for pixels that do not count.

        Raises:
            ValueError: shapes differ, or a label or a prediction where one counts is no class; the message lists those found.
        """
        if predicted.shape != label.shape:
            raise ValueError(f"Expected predictions and labels of one shape, but got {tuple(predicted.shape)} and {tuple(label.shape)}.")
        counted = label != IGNORE
        truth, guess = label[counted].long(), predicted[counted].long()
        self._check(truth, f"labels 0 to {self.classes - 1}, or 255 for void", "Map ids to classes first.")
        self._check(guess, f"predictions 0 to {self.classes - 1}", "Take the argmax over the known classes alone, or raise `classes`.")
        cells = torch.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.confusion = self.confusion + cells.view(self.classes, self.classes)  # not in place: the default state may be shared

    def _check(self, ids: Tensor, expected: str, advice: str) -> None:
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.classes):
            found = torch.unique(ids[(ids < 0) | (ids >= self.classes)])[:8].tolist()
            raise ValueError(f"Expected {expected}, but got {found}. {advice}")

    def ious(self) -> Tensor:
        """Compute the IoU of each class: (K,) float64, NaN where a class occurs in neither."""
        hits = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        return hits / union.double()

    def compute(self) -> Tensor:
        """Return () float64, NaN where nothing was counted."""
        return self.ious().nanmean()
