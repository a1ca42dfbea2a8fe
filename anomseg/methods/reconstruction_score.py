"""How residuals become one score: terms in units of their own spread over normal pixels, weighed, pooled and smoothed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.functional.similarity import cosine_distance, msgms, ssim
from anomseg.functional.smoothing import gaussian
from anomseg.methods.reconstruction_inputs import ReconstructionInputs
from anomseg.methods.reconstruction_training import Encode
from anomseg.nets.autoencoder_contract import Rebuilt, at_pixels
from anomseg.nets.autoencoder_features import feature_distance

TERMS = ("l1", "l2", "ssim", "msgms", "features", "levels", "level_error", "defect")
OF_LEVELS = ("levels", "level_error")
SAMPLE = 4096  # pixels for each batch that is looked at, from which the spread of the terms is taken; drawn from all of them alike


@dataclass(frozen=True)
class ReconstructionScore:
    """Weigh the terms of a score; each counts in robust standard deviations above its median over normal training pixels.

    Attributes:
        l1: of the mean absolute residual over the bands.
        l2: of the mean squared residual over the bands.
        ssim: of 1 - SSIM.
        msgms: of 1 - MSGMS.
        features: of the distance in features; see `ReconstructionLoss.feature_net`.
        levels: of 1 - cos between rebuilt and true features, the mean over their groups; wants a net that rebuilds features.
        level_error: of the mean squared difference between them, in standard deviations of the features.
        defect: of the logits of the head of defects; wants a net with one.
        pooling: sides in pixels, odd, of square windows whose means are averaged; 1 is the pixel itself.
        smoothing: standard deviation in pixels of a Gaussian over the score; 0 for none.
    """

    l1: float = 1.0
    l2: float = 0.0
    ssim: float = 0.0
    msgms: float = 1.0
    features: float = 0.0
    levels: float = 0.0
    level_error: float = 0.0
    defect: float = 0.0
    pooling: tuple[int, ...] = (1,)
    smoothing: float = 2.0

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in TERMS]
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"Expected weights >= 0, not all of them 0, but got {self}: the score would be constant.")
        if not self.pooling or min(self.pooling) < 1 or not all(side % 2 for side in self.pooling) or not self.smoothing >= 0:
            raise ValueError(f"Expected odd windows and smoothing >= 0, but got {self.pooling} and {self.smoothing}.")

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms that weigh anything."""
        return tuple(name for name in TERMS if getattr(self, name))


OF_FEATURES = ReconstructionScore(level_error=1.0)
"""What a net that rebuilds features is scored by: they, and the picture that is read from them. Where an encoder has random weights the
directions of features say little (`levels`): normal noise turns those that are short."""


def score_terms(
    target: Tensor,
    rebuilt: Rebuilt,
    logits: Tensor | None,
    valid: Tensor,
    scoring: ReconstructionScore,
    inputs: ReconstructionInputs,
    encode: Encode | None = None,
    stride: int = 1,
) -> Tensor:
    """Compute the raw terms of a batch: (B, T, H, W) float32, in the order of `ReconstructionScore.terms`; see `reconstruction_losses`."""
    size = (target.shape[-2], target.shape[-1])
    image = torch.where(valid[:, None], rebuilt.image.float(), 0.0)
    unit, unit_target = inputs.in_unit_range(image), inputs.in_unit_range(target)
    maps: dict[str, Callable[[], Tensor]] = {
        "l1": lambda: (image - target).abs().mean(1),
        "l2": lambda: (image - target).square().mean(1),
        "ssim": lambda: 1 - ssim(unit, unit_target, valid=valid).mean(1),
        "msgms": lambda: 1 - msgms(unit, unit_target, valid=valid),
        "levels": lambda: _over_levels(rebuilt, cosine_distance, size, stride),
        "level_error": lambda: _over_levels(rebuilt, lambda a, b: (a.float() - b.float()).square().mean(1), size, stride),
    }
    if encode is not None:
        maps["features"] = lambda: feature_distance(encode(image), encode(target), size)
    if logits is not None:
        maps["defect"] = lambda: logits.float()
    return torch.stack([maps[name]() for name in scoring.terms], 1)


def _over_levels(rebuilt: Rebuilt, distance: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """Average a distance over the groups of levels and bring it to the pixels."""
    points = torch.stack([distance(a, b) for a, b in zip(rebuilt.levels, rebuilt.targets, strict=True)]).mean(0)
    return at_pixels(points, size, stride)


def robust_spread(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the median and 1.4826 times the median absolute deviation of (N, T), (T,) each.

    A term that is the same for more than half of the samples is measured by its standard deviation, a constant one by 1.
    """
    centre = samples.median(0).values
    scale = 1.4826 * (samples - centre).abs().median(0).values
    scale = torch.where(scale > 0, scale, samples.std(0, correction=0))
    return centre, torch.where(scale > 0, scale, 1.0)


def combined(terms: Tensor, valid: Tensor, centre: Tensor, scale: Tensor, scoring: ReconstructionScore) -> Tensor:
    """Weigh, pool and smooth terms (B, T, H, W): (B, H, W) float32, 0 where not valid; void pixels shape no other."""
    weight = torch.tensor([getattr(scoring, name) for name in scoring.terms], device=terms.device)
    standard = (terms.float() - centre[:, None, None]) / scale[:, None, None]
    score = torch.where(valid, (standard * weight[:, None, None]).sum(1), 0.0)
    score = torch.stack([_pooled(score, valid, side) for side in scoring.pooling]).mean(0)
    score = gaussian(score, scoring.smoothing, valid) if scoring.smoothing else score
    return torch.where(valid, score, 0.0)


def _pooled(score: Tensor, valid: Tensor, side: int) -> Tensor:
    """Average the valid pixels of a window around every pixel."""
    if side == 1:
        return score
    pair = torch.stack([score, valid.float()], 1)
    # Side by side along rows, then columns: the sums of a large window at the price of its two sides.
    sums = F.avg_pool2d(F.avg_pool2d(pair, (1, side), 1, (0, side // 2)), (side, 1), 1, (side // 2, 0))
    return sums[:, 0] / sums[:, 1].clamp_min(1e-6)
