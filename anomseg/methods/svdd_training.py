"""What an SVDD of pixels learns from, and how: the recipe, and the loss of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anomseg.config import check_choices
from anomseg.functional.svdd import BoundaryReduction, DiversityReduction, contrast_loss, diversity_loss, one_class_loss, soft_boundary_loss

Objective = Literal["soft_boundary", "one_class", "contrast"]
Radius = Literal["mean_max", "quantile", "one_minus_nu"]


@dataclass(frozen=True)
class SVDDTraining:
    """Describe the losses of an SVDD and the rules of its centre and radius.

    Attributes:
        objective: `soft_boundary`; `one_class`, which has no radius in its loss; or `contrast`, whose radius is learnt, see
            `anomseg.functional.svdd.contrast_loss`.
        reduction: of the soft boundary: every `pixel`, or the `max`, `mean` or `quantile` of an image.
        quantile: level of the quantile reduction, in [0, 1].
        nu: share of normal pixels that may lie outside, in (0, 1].
        radius: rule at the end of an epoch: mean or `quantile` of the images' largest distances, or the 1 − ν quantile of all.
        radius_quantile: level of the `quantile` rule, in [0, 1].
        radius_start: radius during the warm-up and the epoch after it, in units of the descriptors.
        radius_falls: let the radius fall only; a rise is the sign that the sphere loses its pixels.
        diversity: reduction of the distance between an image and its virtually anomalous copy, or `none`.
        diversity_quantile: level of its quantile, in [0, 1].
        against_radius: charge the distance's difference from R² instead of the distance.
        detach_virtual: no gradient through the copy.
        weights: of the SVDD, diversity and reconstruction losses, each at least 0.
        warmup: share of the epochs that train on the reconstruction alone, in [0, 1).
        centre_every: epochs after which the centre is moved to the mean of the images' mean descriptors; 0 keeps the first one.
    """

    objective: Objective = "soft_boundary"
    reduction: BoundaryReduction = "pixel"
    quantile: float = 0.98
    nu: float = 0.1
    radius: Radius = "mean_max"
    radius_quantile: float = 0.9
    radius_start: float = 3.0
    radius_falls: bool = False
    diversity: DiversityReduction | Literal["none"] = "element"
    diversity_quantile: float = 0.5
    against_radius: bool = False
    detach_virtual: bool = False
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    warmup: float = 0.1
    centre_every: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        levels = (self.quantile, self.radius_quantile, self.diversity_quantile)
        if not all(0 <= level <= 1 for level in levels) or not 0 < self.nu <= 1:
            raise ValueError(f"Expected quantiles in [0, 1] and nu in (0, 1], but got {levels} and {self.nu}.")
        if len(self.weights) != 3 or min(self.weights) < 0 or not any(self.weights):
            raise ValueError(f"Expected three weights >= 0, not all 0, but got {self.weights}.")
        if not 0 <= self.warmup < 1 or self.centre_every < 0 or self.radius_start < 0:
            raise ValueError(
                "Expected warmup in [0, 1), centre_every >= 0 and radius_start >= 0, "
                f"but got {self.warmup}, {self.centre_every} and {self.radius_start}."
            )

    @property
    def moves(self) -> bool:
        """Tell whether the centre or the radius in the loss changes from epoch to epoch."""
        return self.objective == "soft_boundary" or self.centre_every > 0

    @property
    def diverse(self) -> bool:
        """Tell whether a virtually anomalous copy is needed."""
        return self.diversity != "none" and self.weights[1] > 0


DEEP_SVDD = SVDDTraining(objective="one_class", diversity="none", weights=(1.0, 0.0, 0.0), warmup=0.0, centre_every=0)
"""Plain one-class Deep SVDD: a fixed centre and nothing else; give the descriptor `bias=False`."""


CONTRAST = SVDDTraining(objective="contrast", diversity="none", weights=(1.0, 0.0, 0.0), radius_start=1.0, warmup=0.0, centre_every=0)
"""Normal pixels against all pixels of the same images: no virtual anomaly and no reconstruction is needed to keep from collapsing."""


def svdd_losses(
    descriptors: Tensor,
    virtual: Tensor | None,
    centre: Tensor,
    radius: Tensor,
    valid: Tensor,
    recipe: SVDDTraining,
    data: Tensor,
) -> dict[str, Tensor]:
    """Compute the weighted losses of a batch of descriptors.

    Args:
        descriptors: (B, D, H, W).
        virtual: the same of the virtually anomalous copies, or None where the recipe needs none.
        centre: (D,).
        radius: () >= 0.
        valid: (B, H, W) bool, the normal pixels that count.
        recipe: see `SVDDTraining`.
        data: (B, H, W) bool, all pixels with data that are not void.

    Returns:
        `svdd` and, where there are copies, `diversity`, each times its weight.
    """
    if recipe.objective == "contrast":
        svdd = contrast_loss(descriptors, centre, radius, valid, data)
    elif recipe.objective == "one_class":
        svdd = one_class_loss(descriptors, centre, valid)
    else:
        svdd = soft_boundary_loss(descriptors, centre, radius, valid, reduction=recipe.reduction, nu=recipe.nu, q=recipe.quantile)
    losses = {"svdd": recipe.weights[0] * svdd}
    if virtual is not None and recipe.diversity != "none":
        diversity = diversity_loss(
            descriptors,
            virtual,
            valid,
            reduction=recipe.diversity,
            q=recipe.diversity_quantile,
            radius=radius if recipe.against_radius else None,
            detach_virtual=recipe.detach_virtual,
        )
        losses["diversity"] = recipe.weights[1] * diversity
    return losses


def reconstruction_loss(image: Tensor, rebuilt: Tensor, valid: Tensor) -> Tensor:
    """Average the squared error over the bands of the valid pixels.

    Args:
        image: (B, C, H, W).
        rebuilt: (B, C, H, W).
        valid: (B, H, W) bool; no other pixel is read.

    Returns:
        () >= 0; 0 with zero gradients where nothing is valid.
    """
    chosen = valid[:, None].expand_as(image)
    error = (image[chosen] - rebuilt[chosen]).square()
    return error.mean() if error.numel() else rebuilt.flatten()[:0].sum()
