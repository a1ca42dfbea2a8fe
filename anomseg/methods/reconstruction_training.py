"""How a reconstruction net is taught: the weights of the losses, and the losses of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch import Tensor

from anomseg.config import check_choices
from anomseg.functional.overlap import focal_loss
from anomseg.functional.similarity import edge_distance, inner, loose_cosine_loss, msgms_loss, ssim_loss, weighted_mean
from anomseg.methods.reconstruction_inputs import ReconstructionInputs
from anomseg.nets.autoencoder_contract import Rebuilt, on_grid
from anomseg.nets.autoencoder_features import feature_distance
from anomseg.sample import ANOMALY, IGNORE

Encode = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class ReconstructionLoss:
    """Weigh the losses; 0 switches one off. Residuals count in standard deviations of the bands.

    Attributes:
        l1: of the mean absolute residual.
        l2: of the mean squared residual.
        ssim: of 1 - SSIM, in the range that the training images have.
        msgms: of 1 - MSGMS, in the same range.
        edges: of the mean absolute residual of Sobel gradients.
        features: of the mean squared distance in the features of `feature_net`.
        levels: of the loose cosine loss; nets that rebuild features alone have it.
        focal: of the focal loss of the head of defects; nets with such a head alone have it.
        focus: how much more than others a corrupted pixel weighs in `l1`, `l2` and `features`.
        feature_net: a `random` fixed net, or the encoder of the average net (`ema`).
        easy: see `anomseg.functional.similarity.loose_cosine_loss`.
        damping: as `easy`.
    """

    l1: float = 0.0
    l2: float = 1.0
    ssim: float = 1.0
    msgms: float = 0.0
    edges: float = 0.0
    features: float = 0.0
    levels: float = 1.0
    focal: float = 1.0
    focus: float = 0.0
    feature_net: Literal["random", "ema"] = "random"
    easy: float = 0.9
    damping: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        weights = astuple(self)[:9]
        if min(weights) < 0:
            raise ValueError(f"Expected weights >= 0, but got {self}.")
        if not any(weights[:6]):
            raise ValueError(f"Expected a weight above 0 of l1, l2, ssim, msgms, edges or features, but got {self}: no image is rebuilt.")


def reconstruction_losses(
    target: Tensor,
    rebuilt: Rebuilt,
    valid: Tensor,
    defect: Tensor | None,
    logits: Tensor | None,
    recipe: ReconstructionLoss,
    inputs: ReconstructionInputs,
    encode: Encode | None = None,
    stride: int = 1,
) -> dict[str, Tensor]:
    """Compute the weighted losses of a batch on its valid pixels.

    Args:
        target: (B, C, H, W) clean images, standardised, 0 where not valid.
        rebuilt: what the net made.
        valid: (B, H, W) bool.
        defect: (B, H, W) 1 where the input was corrupted, or None.
        logits: (B, H, W) of the head of defects, or None.
        recipe: see `ReconstructionLoss`.
        inputs: knows the range of the bands.
        encode: gives the maps that `features` compares; needed where it weighs anything.
        stride: pixels along one point of the levels.

    Returns:
        () each; those without a weight are left out.
    """
    image = torch.where(valid[:, None], rebuilt.image.float(), 0.0)
    residual = image - target
    weight = valid.float() if defect is None else valid.float() * (1 + recipe.focus * (defect == ANOMALY))
    # A range measured once would stop a training by a single bright augmentation; what leaves it is cut in the target alone.
    unit, unit_target = inputs.in_unit_range(image), inputs.in_unit_range(target).clamp(0.0, 1.0)
    losses: dict[str, Callable[[], Tensor]] = {
        "l1": lambda: weighted_mean(residual.abs(), weight),
        "l2": lambda: weighted_mean(residual.square(), weight),
        "ssim": lambda: ssim_loss(unit, unit_target, valid=valid),
        "msgms": lambda: msgms_loss(unit, unit_target, valid=valid),
        "edges": lambda: weighted_mean(edge_distance(image, target, valid), inner(valid).float()),
        "levels": lambda: _level_loss(rebuilt, valid, recipe, stride),
    }
    if encode is not None:
        losses["features"] = lambda: weighted_mean(feature_distance(encode(image), encode(target), _size(image)), weight)
    if not rebuilt.levels:
        del losses["levels"]
    if logits is not None and defect is not None:
        losses["focal"] = lambda: focal_loss(logits, torch.where(valid, defect, IGNORE))
    return {name: getattr(recipe, name) * loss() for name, loss in losses.items() if getattr(recipe, name)}


def _level_loss(rebuilt: Rebuilt, valid: Tensor, recipe: ReconstructionLoss, stride: int) -> Tensor:
    weight = on_grid(valid, _size(rebuilt.levels[0]), stride)
    pairs = zip(rebuilt.levels, rebuilt.targets, strict=True)
    return torch.stack([loose_cosine_loss(a, b, weight, recipe.easy, recipe.damping) for a, b in pairs]).mean()


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
