"""How a change network is taught: the recipe, the loss of one batch, and the watch against a map that never says change."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anomseg.config import check_choices
from anomseg.functional.change_vector import gated_logits
from anomseg.functional.overlap import dice_loss, focal_loss, lovasz_hinge
from anomseg.sample import ANOMALY, IGNORE

OPEN = 0.5  # a pixel whose gate is less open than that says nothing about the net


@dataclass(frozen=True)
class ChangeTraining:
    """Describe the losses of a change network.

    Attributes:
        pixel: loss of single pixels, `focal` or cross-entropy (`bce`).
        gamma: of the focal loss, >= 0.
        alpha: of the focal loss: weight of change in [0, 1], or None.
        overlap: loss of whole maps: `lovasz` hinge, `dice` or `none`.
        weights: of both, each >= 0 and not both 0.
        per_image: whether overlap is that of each image, or of the batch.
        auxiliary: weights of the decoder levels' outputs, finest first; those that are not named weigh 0.
        max_pixels: sorted by the Lovász hinge at most; None for all.
        prior: share of change that the outputs start from, in (0, 1); None counts it in the training data.
        patience: epochs with almost no predicted change after which a warning is given, >= 1.
        seed: of the pixels that are drawn for the Lovász hinge.
    """

    pixel: Literal["focal", "bce"] = "focal"
    gamma: float = 2.0
    alpha: float | None = None
    overlap: Literal["lovasz", "dice", "none"] = "lovasz"
    weights: tuple[float, float] = (1.0, 1.0)
    per_image: bool = False
    auxiliary: tuple[float, ...] = (0.5, 0.3, 0.2)
    max_pixels: int | None = None
    prior: float | None = None
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.gamma >= 0 or (self.alpha is not None and not 0 <= self.alpha <= 1):
            raise ValueError(f"Expected gamma >= 0 and alpha in [0, 1] or None, but got {self.gamma} and {self.alpha}.")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"Expected max_pixels >= 1 or None, but got {self.max_pixels}.")
        if len(self.weights) != 2 or min((*self.weights, *self.auxiliary), default=0) < 0 or not any(self.weights):
            raise ValueError(f"Expected two weights >= 0, not both 0, and auxiliary >= 0, but got {self.weights} and {self.auxiliary}.")
        if (self.prior is not None and not 0 < self.prior < 1) or self.patience < 1:
            raise ValueError(f"Expected prior in (0, 1) or None and patience >= 1, but got {self.prior} and {self.patience}.")


def open_truth(mask: Tensor, gate: Tensor | None) -> Tensor:
    """Leave the pixels out that a gate closes: whatever the net says there, the map says no change.

    Args:
        mask: (B, H, W).
        gate: (B, H, W) in [0, 1], or None.

    Returns:
        (B, H, W), 255 where the gate is below a half.
    """
    return mask if gate is None else torch.where(gate < OPEN, IGNORE, mask)


def change_loss(logits: Tensor, mask: Tensor, recipe: ChangeTraining, step: int = 0) -> dict[str, Tensor]:
    """Compute the weighted losses of one map of logits.

    Args:
        logits: (B, H, W).
        mask: (B, H, W), 255 ignored.
        recipe: see `ChangeTraining`.
        step: number of the training step, which with the seed draws the pixels that are sorted.

    Returns:
        `pixel` and, where it weighs anything, `overlap`, () each.
    """
    gamma, alpha = (recipe.gamma, recipe.alpha) if recipe.pixel == "focal" else (0.0, None)
    losses = {"pixel": recipe.weights[0] * focal_loss(logits, mask, gamma, alpha)}
    if recipe.weights[1] and recipe.overlap == "dice":
        losses["overlap"] = recipe.weights[1] * dice_loss(logits, mask, recipe.per_image)
    elif recipe.weights[1] and recipe.overlap == "lovasz":
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        losses["overlap"] = recipe.weights[1] * lovasz_hinge(logits, mask, recipe.per_image, recipe.max_pixels, generator)
    return losses


def deep_loss(maps: Sequence[Tensor], mask: Tensor, recipe: ChangeTraining, step: int = 0, gate: Tensor | None = None) -> dict[str, Tensor]:
    """Compute the losses of the main map and of the decoder levels, all at full resolution.

    Args:
        maps: (B, H, W) logits each, the main one first, then the levels, finest first.
        mask: (B, H, W), 255 ignored.
        recipe: see `ChangeTraining`.
        step: see `change_loss`.
        gate: (B, H, W) that multiplies all maps' probabilities, see `gated_logits`; where it is closed nothing is learnt (`open_truth`).

    Returns:
        The parts of `change_loss` and, where there are levels with a weight, `auxiliary`.
    """
    mask = open_truth(mask, gate)
    if not recipe.per_image:  # the pixels of a batch are one set: find the counted ones once, and not in every loss of every map
        counted = (mask != IGNORE).flatten().nonzero()[:, 0]
        mask, *maps = (_gathered(one, counted) for one in (mask, *maps))
        gate = None if gate is None else _gathered(gate, counted)
    maps = maps if gate is None else [gated_logits(one, gate) for one in maps]
    losses = change_loss(maps[0], mask, recipe, step)
    weighted = [w * sum(change_loss(m, mask, recipe, step).values()) for m, w in zip(maps[1:], recipe.auxiliary, strict=False) if w]
    if weighted:
        losses["auxiliary"] = torch.stack([torch.as_tensor(one) for one in weighted]).sum()
    return losses


def _gathered(values: Tensor, chosen: Tensor) -> Tensor:
    return values.flatten()[chosen][None, None]


class CollapseWatch:
    """Count predicted and true change in training, and warn where the net has stopped to predict any.

    Args:
        patience: epochs in a row with less than a hundredth of the true share.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.silent = 0
        self.begin()

    def begin(self) -> None:
        """Begin an epoch."""
        self.predicted, self.true, self.counted = 0, 0, 0

    @torch.no_grad()
    def update(self, logits: Tensor, mask: Tensor) -> None:
        """Count a batch of logits and truth, (B, H, W) each."""
        counted = mask != IGNORE
        self.predicted += int(((logits > 0) & counted).sum())
        self.true += int((mask == ANOMALY).sum())
        self.counted += int(counted.sum())

    def shares(self) -> dict[str, float]:
        """Give the predicted and the true share of change in this epoch."""
        total = max(self.counted, 1)
        return {"predicted_share": self.predicted / total, "true_share": self.true / total}

    def end(self) -> None:
        """End an epoch; warn at the end of each `patience` silent ones."""
        if not self.true:
            return
        self.silent = self.silent + 1 if self.predicted < 0.01 * self.true else 0
        if self.silent and self.silent % self.patience == 0:
            warnings.warn(
                f"For {self.silent} epochs the net has predicted change on {self.predicted} pixels where {self.true} have changed: it has "
                "collapsed to 'no change'. Use overlap='dice' or 'lovasz', pixel='bce' or alpha=0.75, crops with change, or another "
                "learning rate; look whether the masks fit the images.",
                stacklevel=2,
            )
