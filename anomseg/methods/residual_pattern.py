"""Residual pattern learning: the closed-set net stays as it is, and a small one beside it learns what should unsettle it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.energy import free_energy, mean_over
from anomseg.functional.readouts import softmax_entropy
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.pebal_training import require_outliers
from anomseg.methods.segmenter import class_loss
from anomseg.nets.segmentation import SegmentationNet, SegmentationSpec
from anomseg.nets.segmentation_residual import ResidualPatternNet
from anomseg.optimisation import Optimisation
from anomseg.sample import IGNORE


@dataclass(frozen=True)
class RPLLoss:
    """Weigh the terms; 0 switches one off.

    Attributes:
        classes: of the inliers' cross-entropy to the class that the frozen net predicts.
        entropy: of the mean squared difference of both entropies, as shares of ln K, over inliers.
        energy: of the mean squared difference of both free energies over inliers; 0 is the published choice. Class probabilities do not
            change when all logits are lowered alike, so without it the residual may raise the energy of every pixel.
        outlier: of the mean over outliers of max(0, -E), which ends where the free energy E reaches 0.
    """

    classes: float = 1.0
    entropy: float = 1.0
    energy: float = 0.1
    outlier: float = 0.05

    def __post_init__(self) -> None:
        if min(self.classes, self.entropy, self.energy, self.outlier) < 0:
            raise ValueError(f"Expected weights of at least 0, but got {self}. 0 switches a term off.")


class RPL(ClosedSetSegmenter):
    """Teach a residual beside a frozen segmentation net to change nothing on inliers and to raise the energy of outliers (mask 1).

    The classes are those of the frozen net, bit for bit, so mIoU cannot fall; the score is read from the logits with the residual.

    Args:
        classes: K, the known classes.
        net: as the segmenter has it, or with ready weights.
        in_channels: bands of the image.
        segmenter: checkpoint of a trained `Segmenter`; needed to fit, and no more afterwards. None where `net` has ready weights.
        recipe: weights of the terms, see `RPLLoss`.
        channels: width of the residual's branches.
        smoothing: see `ClosedSetSegmenter`.
        centred: see `ClosedSetSegmenter`.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; AdamW at 3e-3 with the cosine schedule by default.

    Raises:
        ValueError: an argument is out of its range.

    Source: see `anomseg.nets.segmentation_residual`; without its contrastive term, and with an energy term of ours.
    """

    def __init__(
        self,
        classes: int,
        net: SegmentationSpec | None = None,
        in_channels: int = 3,
        segmenter: str | None = None,
        recipe: RPLLoss | None = None,
        channels: int = 32,
        smoothing: float = 0.0,
        centred: bool = False,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        steps = build(optimisation, Optimisation) or Optimisation(3e-3)
        super().__init__(classes, net, in_channels, classes, segmenter, smoothing, centred, calibration, steps)
        if channels < 2:
            raise ValueError(f"Expected channels >= 2, but got {channels}.")
        self.recipe: RPLLoss = build(recipe, RPLLoss) or RPLLoss()
        self.channels = channels
        self.network = ResidualPatternNet(self.network, channels)

    @property
    def described(self) -> SegmentationNet:
        """Give the frozen net of the known classes."""
        return cast(ResidualPatternNet, self.network).base

    def begin_fresh(self) -> None:
        """Refuse to learn a residual beside fresh weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Expected a trained net to learn a residual for, but got fresh weights. Give segmenter=, the checkpoint of a "
            "Segmenter, or a net with ready weights."
        )

    def measure(self) -> None:
        """Make sure that there are outliers to learn from."""
        require_outliers(self)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the terms of the loss; one without pixels is 0."""
        label, outlier = self.training_truth(batch)
        logits = self.logits(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):
            losses = residual_losses(logits.float(), label != IGNORE, outlier, self.recipe)
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(label))
        total: Tensor = torch.stack(list(losses.values())).sum()
        return total

    def read(self, logits: Tensor) -> Tensor:
        """Score by the free energy of the logits with the residual; see the base class."""
        return free_energy(logits[:, self.classes :])


def residual_losses(logits: Tensor, inlier: Tensor, outlier: Tensor, recipe: RPLLoss) -> dict[str, Tensor]:
    """Compute the weighted terms of a batch.

    Args:
        logits: (B, 2 K, H, W), those of the frozen net first.
        inlier: (B, H, W) bool.
        outlier: (B, H, W) bool.
        recipe: see `RPLLoss`.

    Returns:
        `classes`, `entropy`, `energy` and `outlier`, () each; a term without pixels is 0 with a gradient of 0.
    """
    known, changed = logits.detach().chunk(2, 1)[0], logits.chunk(2, 1)[1]
    apart = (softmax_entropy(changed) - softmax_entropy(known)).square()
    energy = free_energy(changed)
    return {
        "classes": recipe.classes * class_loss(changed, torch.where(inlier, known.argmax(1), IGNORE)),
        "entropy": recipe.entropy * mean_over(apart, inlier),
        "energy": recipe.energy * mean_over((energy - free_energy(known)).square(), inlier),
        "outlier": recipe.outlier * mean_over((-energy).clamp_min(0.0), outlier),
    }
