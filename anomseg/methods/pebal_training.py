"""How a segmentation net learns to abstain: the terms of the loss, and margins that fit the net."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anomseg.functional.abstention import abstention_loss, energy_penalty
from anomseg.functional.energy import energy_hinge, energy_smoothness, energy_sparsity, free_energy
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.segmenter import class_loss
from anomseg.methods.training_data import gathered_objects, training_batches
from anomseg.sample import ANOMALY, IGNORE, NORMAL

MARGIN_BATCHES = 16  # enough to know two means
MOST_IMAGES = 256  # looked at for an outlier: of images that show one in ten, so many show none once in 10^11 times
PUBLISHED_MARGINS = (-12.0, -6.0)
"""Margins of inliers and outliers that suit a WideResNet38 trained for weeks; the energies of a small net never go that low."""


_CURE = "Give the data module a source of outliers, such as OutlierPaste((SyntheticOutliers(),)), or void_as_outliers=True."


@dataclass(frozen=True)
class PEBALLoss:
    """Weigh the terms; 0 switches one off.

    Attributes:
        abstention: of the abstention loss; without it inliers are learnt by plain cross-entropy of the known classes.
        outlier: of the outliers within the abstention loss.
        energy: of the hinge, sparsity and smoothness of the free energy together.
        sparsity: of the norm of the outliers' energies.
        smoothness: of the mean squared step of the energy; 19.44 is the published 3e-6 on a sum over 8 crops of 900 x 900.
        uniform: of the outliers' cross-entropy to the uniform distribution of the known classes (maximum entropy), which can do without
            abstention and energy.
        floor: least penalty for abstaining, where it is bounded.
    """

    abstention: float = 1.0
    outlier: float = 0.1
    energy: float = 0.1
    sparsity: float = 5e-4
    smoothness: float = 19.44
    uniform: float = 0.0
    floor: float = 1.0

    def __post_init__(self) -> None:
        terms = (self.abstention, self.outlier, self.energy, self.sparsity, self.smoothness, self.uniform, self.floor)
        if min(terms) < 0:
            raise ValueError(f"Expected weights of at least 0, but got {self}. 0 switches a term off.")


def pebal_losses(
    logits: Tensor, label: Tensor, outlier: Tensor, margins: tuple[float, float], recipe: PEBALLoss, *, bounded: bool = True
) -> dict[str, Tensor]:
    """Compute the weighted terms of a batch, in float32.

    Args:
        logits: (B, K + 1, H, W), the last output to abstain.
        label: (B, H, W) class 0 to K - 1, 255 for void and outliers.
        outlier: (B, H, W) bool.
        margins: of the energies of inliers and outliers.
        recipe: see `PEBALLoss`.
        bounded: detach the penalty and keep it above the floor; False is the published form, which collapses on nets of low confidence.

    Returns:
        `classes`, and `energy` and `uniform` where they weigh anything, () each; a term without pixels is 0.
    """
    wide = logits.float()
    known = wide[:, :-1]
    energy = free_energy(known)
    if recipe.abstention:
        penalty = energy_penalty(energy, recipe.floor if bounded else 0.0, detach=bounded)
        losses = {"classes": recipe.abstention * abstention_loss(wide, penalty, label, outlier, recipe.outlier, energy)}
    else:
        losses = {"classes": class_loss(known, label)}
    if recipe.energy:
        mask = torch.where(outlier, ANOMALY, torch.where(label == IGNORE, IGNORE, NORMAL))
        terms = energy_hinge(energy, mask, *margins) + recipe.sparsity * energy_sparsity(energy, mask)
        losses["energy"] = recipe.energy * (terms + recipe.smoothness * energy_smoothness(energy))
    if recipe.uniform:
        cost = -known.log_softmax(1).mean(1)
        losses["uniform"] = recipe.uniform * torch.where(outlier, cost, 0.0).sum() / outlier.sum().clamp_min(1)
    return losses


MAX_ENTROPY = PEBALLoss(abstention=0.0, energy=0.0, uniform=0.5)
"""Maximised entropy (Chan, Rottmann and Gottschalk, ICCV 2021): cross-entropy, and outliers to the uniform distribution, as means over
their pixels; the published 0.1 and 0.9 weigh sums, in which outliers are few. Score by `entropy`."""


@torch.no_grad()
def energy_sums(energies: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Count the inliers and the outliers of batches, and sum their energies and the squares of these.

    Args:
        energies: energy, inliers and outliers of batches, (B, H, W) each, the latter bool.

    Returns:
        (2, 3) float64; those of several ranks add up.
    """
    total = torch.zeros(2, 3, dtype=torch.float64)
    for energy, *groups in energies:
        for row, group in enumerate(groups):
            values = energy[group].double().cpu()
            total[row] += torch.stack([torch.tensor(float(values.numel()), dtype=torch.float64), values.sum(), values.square().sum()])
    return total


def first_batches(method: ClosedSetSegmenter) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
    """Serve the first training batches of this rank, and further ones where no outlier is among them.

    Returns:
        `MARGIN_BATCHES` batches with their class and outliers as `training_truth` gives them; without outliers, as many as hold
        `MOST_IMAGES`, or all.
    """
    found, images = False, 0
    for number, batch in enumerate(training_batches(method, whole=True), 1):  # a trial of a few steps needs an outlier, too
        label, outlier = method.training_truth(batch)
        found, images = found or bool(outlier.any()), images + len(label)
        yield batch, label, outlier
        if number >= MARGIN_BATCHES and (found or images >= MOST_IMAGES):
            return


def require_outliers(method: ClosedSetSegmenter) -> None:
    """Look for outliers in the first training batches of all ranks.

    Raises:
        ValueError: there is none, so that nothing could be learnt from them.
    """
    images, found = 0, 0
    for _, label, outlier in first_batches(method):
        images, found = images + len(label), found + int(outlier.sum())
    if not sum(gathered_objects(found)):
        raise ValueError(f"Expected outliers (mask 1) in the first {images} training images, but there are none. {_CURE}")


def measured_margins(sums: Tensor) -> tuple[float, float]:
    """Put the margins a little outside of the mean energies of a net.

    With means e of inliers and o of outliers, the margins are e - g and o + g, g being half of the inliers' standard deviation: both
    hinges have something to do, and nothing that the net could reach by shrinking its logits alone.

    Args:
        sums: (2, 3) of inliers and outliers, see `energy_sums`.

    Returns:
        Margins of inliers and outliers.

    Raises:
        ValueError: there is no outlier, or no inlier.
    """
    count, first, second = sums.unbind(1)
    if not bool((count > 0).all()):
        counted = f"{int(count[0])} and {int(count[1])} pixels"
        raise ValueError(f"Expected inliers and outliers (mask 1) in the training batches, but counted {counted}. {_CURE}")
    mean = first / count
    gap = 0.5 * float((second[0] / count[0] - mean[0].square()).clamp_min(0.0).sqrt())
    low, high = float(mean[0]) - gap, float(mean[1]) + gap
    return low, max(low, high)
