"""The density of normal pixels' colours and textures: what to try before a network where some classes are normal."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.errors import NotFittedError
from anomseg.functional.descriptor_statistics import descriptor_moments
from anomseg.functional.ledoit_wolf import FourthMoments, merge_moments
from anomseg.functional.mixture import GaussianMixture, fit_mixture, mixture_energy
from anomseg.functional.pixel_sample import PixelSample, add_pixels, join_samples
from anomseg.functional.rx import mahalanobis
from anomseg.functional.smoothing import gaussian
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.svdd_fit import LogRatio
from anomseg.methods.svdd_inputs import Inputs, Texture
from anomseg.methods.training_data import counted_pixels, gathered_objects, normal_pixels, training_batches
from anomseg.sample import finite_pixels

SAMPLE = 1 << 15
"""Pixels that a mixture is fitted to, drawn uniformly from all normal ones."""


class NormalDensity(AnomalySegmenter):
    """Score a pixel by how improbable its colour and texture are among the normal training pixels.

    Nothing is learnt by descent: three passes over the training data gather moments (float64, merged over batches and ranks) or a bounded
    sample. Pixels that are void or without data touch nothing. Those of other classes touch the ratio alone, as unlabelled ones.

    - `gaussian`: squared Mahalanobis distance, which is RX on the filter bank, or on the bands without `texture`.
    - `mixture`: −ln p of a mixture of Gaussians.
    - `ratio`: ln p_all − ln p_normal with two Gaussians, the first over all pixels of the training images. What is *plainer* than the
      normal class has a high density under every model of normal pixels alone; the ratio finds it, provided that those images hold it.

    Args:
        in_channels: bands of the images.
        model: as above.
        texture: the filter bank; None for the bands alone.
        components: of the mixture.
        standardise: bands by mean and deviation of the normal `training` pixels, or of each `image`, which takes the light out.
        smoothing: standard deviation in pixels of a Gaussian over the score, 0 for none.
        seed: of the mixture.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range; in fitting, the images have another band count, or no pixel is normal.
        NotFittedError: scored before fitting.
    """

    learns = False
    mean: Tensor
    covariance: Tensor
    weight: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        model: Literal["gaussian", "mixture", "ratio"] = "ratio",
        texture: Texture | None = None,
        components: int = 20,
        standardise: Literal["training", "image"] = "training",
        smoothing: float = 8.0,
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if model not in ("gaussian", "mixture", "ratio") or standardise not in ("training", "image"):
            raise ValueError(
                f"Expected model 'gaussian', 'mixture' or 'ratio' and standardise 'training' or 'image', but got {model!r} and "
                f"{standardise!r}."
            )
        if in_channels < 1 or components < 1 or smoothing < 0:
            raise ValueError(f"Expected in_channels and components >= 1 and smoothing >= 0, got {in_channels}, {components}, {smoothing}.")
        self.in_channels, self.model, self.components, self.standardise = in_channels, model, components, standardise
        self.smoothing, self.seed = smoothing, seed
        self.texture: Texture | None = build(texture, Texture)
        self.inputs = Inputs(in_channels, self.texture, standardise)
        self.ratio = LogRatio()
        for name in ("weight", "mean", "covariance"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def on_train_start(self) -> None:
        """Fit everything, in passes over the training data."""
        self.inputs.fit(lambda: ((batch["image"], normal_pixels(batch)) for batch in training_batches(self)), self.device)
        if self.model == "mixture":
            self._fit_mixture()
        else:
            self._fit_moments()

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W); see the base class."""
        if not (self.mean if self.model == "mixture" else self.ratio.mean).numel():
            raise NotFittedError("Expected a fitted NormalDensity, but it holds no statistics. Call `trainer.fit` first.")
        if image.shape[1] != self.in_channels:
            raise ValueError(f"Expected images of {self.in_channels} bands, as in training, but got {image.shape[1]}.")
        valid, inputs = finite_pixels(image), self.inputs(image)
        if self.model == "mixture":
            score = mixture_energy(inputs, GaussianMixture(self.weight, self.mean, self.covariance)).float()
        elif self.model == "gaussian":
            score = mahalanobis(inputs, self.ratio.mean, self.ratio.precision)
        else:
            score = self.ratio.score(inputs)
        score = gaussian(score, self.smoothing, valid) if self.smoothing else score
        return torch.where(valid, score, 0.0)

    def _fit_moments(self) -> None:
        found: tuple[FourthMoments, FourthMoments] | None = None
        for batch in training_batches(self):
            inputs = self.inputs(batch["image"])
            new = descriptor_moments(inputs, normal_pixels(batch)), descriptor_moments(inputs, counted_pixels(batch))
            found = new if found is None else (merge_moments(found[0], new[0]), merge_moments(found[1], new[1]))
        parts = [part for part in gathered_objects(found) if part is not None]
        normal, everything = (reduce(merge_moments, kind) for kind in zip(*parts, strict=True))
        self.ratio.fit(normal, everything, self.device)

    def _fit_mixture(self) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1009 + self.global_rank)
        found: PixelSample | None = None
        for batch in training_batches(self):
            found = add_pixels(found, self.inputs(batch["image"]).movedim(1, -1)[normal_pixels(batch)].cpu(), SAMPLE, generator)
        parts = [part for part in gathered_objects(found) if part is not None]
        pixels = join_samples(parts, SAMPLE).pixels
        mixture = fit_mixture(pixels, self.components, self.seed, iterations=40, tolerance=1e-2, ridge=1e-2)
        self.weight, self.mean, self.covariance = (t.to(self.device) for t in (mixture.weight, mixture.mean, mixture.covariance))
