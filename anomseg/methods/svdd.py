"""SVDD of pixel descriptors: normal pixels are drawn into a sphere, and the descriptor of a pixel tells whether it belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.errors import NotFittedError
from anomseg.functional.descriptor_statistics import effective_rank, spread
from anomseg.functional.smoothing import gaussian
from anomseg.functional.svdd_scores import DescriptorScore
from anomseg.functional.virtual_anomalies import PUBLISHED, VirtualAnomaly, apply_all
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.svdd_fit import DescribedBatch, DescriptorFit, ScoreRule
from anomseg.methods.svdd_inputs import Inputs, Texture
from anomseg.methods.svdd_training import SVDDTraining, reconstruction_loss, svdd_losses
from anomseg.methods.training_data import RefitClock, counted_pixels, normal_pixels, step_generator, training_batches
from anomseg.nets.descriptor import DescriptorNet, DescriptorSpec
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.nets.patch_descriptor import PatchDescriptor
from anomseg.optimisation import Optimisation
from anomseg.sample import finite_pixels

OWN_RULES = ("ratio", "margin_ratio", "two_sided")


class SVDD(AnomalySegmenter):
    """Describe every pixel by its surroundings, and score how badly it fits the description of normal pixels.

    Training draws the descriptors of normal pixels (mask 0) into a sphere, pushes those of a virtually anomalous copy of the image away,
    and rebuilds the image from them. Pixels of other classes, void pixels and those without data touch no loss and no statistic of normal
    ones. After each epoch one pass over the training data in evaluation mode moves the centre, sets the radius and fits distributions.

    Which side of the centre anomalies lie on is not known without labels: what differs from the normal class may be *plainer* than it. The
    score rule `ratio` therefore compares two Gaussians of descriptors, that of normal pixels and that of all pixels of the training images,
    which takes no label of an anomaly: a pixel is anomalous where its kind is common in the scenes, but rare among normal pixels.
    `margin_ratio` adds the margin d − R² of the sphere to such a ratio of the net's inputs; with the `contrast` objective both estimate the
    same quantity. `two_sided` counts a uniform sample of the Mahalanobis distances of normal *training* pixels, which are not held out:
    normal pixels of new images lie somewhat farther, so that its p-values are too small on the far side. The others are those of
    `anomseg.functional.svdd_scores`.

    Args:
        in_channels: bands of the images.
        descriptor: describes the net; see `anomseg.nets.descriptor`.
        recipe: see `SVDDTraining`; the default is the published one, `DEEP_SVDD` the plain baseline, `CONTRAST` ours.
        texture: filter bank before the net, whose channels it sees in the place of bands; None for none.
        virtual: what makes the virtually anomalous copy, in this order; None for `anomseg.functional.virtual_anomalies.PUBLISHED`.
        score_rule: as above.
        standardise: bands by mean and deviation of the normal `training` pixels, or of each `image`, which takes the light out.
        learn_from: `normal` pixels of the mask, or `all` pixels with data where no truth may be used, as in a single unlabelled scene.
        smoothing: standard deviation in pixels of a Gaussian over the score, 0 for none.
        seed: of the virtual anomalies.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range, or a ratio is asked for where all pixels count as normal.
        NotFittedError: scored before fitting.

    Source: Li et al., AAAI 2023, arXiv 2301.13422 (descriptors, losses, Mahalanobis score); Ruff et al., ICML 2018 (Deep SVDD). The
        ratios, the contrast and the smoothing are ours.
    """

    def __init__(
        self,
        in_channels: int = 3,
        descriptor: DescriptorSpec | None = None,
        recipe: SVDDTraining | None = None,
        texture: Texture | None = None,
        virtual: Sequence[VirtualAnomaly] | None = None,
        score_rule: ScoreRule = "ratio",
        standardise: Literal["training", "image"] = "training",
        learn_from: Literal["normal", "all"] = "normal",
        smoothing: float = 0.0,
        seed: int = 0,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(calibration, optimisation)
        rules = (*OWN_RULES, *get_args(DescriptorScore))
        if score_rule not in rules or standardise not in ("training", "image") or learn_from not in ("normal", "all"):
            raise ValueError(
                f"Expected score_rule of {rules}, standardise 'training' or 'image' and learn_from 'normal' or 'all', "
                f"but got {score_rule!r}, {standardise!r} and {learn_from!r}."
            )
        if in_channels < 1 or smoothing < 0:
            raise ValueError(f"Expected in_channels >= 1 and smoothing >= 0 pixels, but got {in_channels} and {smoothing}.")
        self.recipe: SVDDTraining = build(recipe, SVDDTraining) or SVDDTraining()
        if learn_from == "all" and (score_rule in ("ratio", "margin_ratio") or self.recipe.objective == "contrast"):
            raise ValueError(
                f"Expected score_rule='mahalanobis' or another of one distribution with learn_from='all', but got {score_rule!r} and the "
                f"objective {self.recipe.objective!r}: where all pixels are normal there is nothing to compare them with."
            )
        self.in_channels, self.score_rule, self.standardise, self.learn_from = in_channels, score_rule, standardise, learn_from
        self.smoothing, self.seed = smoothing, seed
        self.descriptor: DescriptorSpec = build(descriptor) or PatchDescriptor()
        self.texture: Texture | None = build(texture, Texture)
        self.virtual: tuple[VirtualAnomaly, ...] = tuple(build(one) for one in (PUBLISHED if virtual is None else virtual))
        self.inputs = Inputs(in_channels, self.texture, standardise)
        self.net: DescriptorNet = self.descriptor.build(self.inputs.channels)
        self.fitted = DescriptorFit()
        self.learnt_radius = nn.Parameter(torch.tensor(float(self.recipe.radius_start)), requires_grad=self.recipe.objective == "contrast")
        self._refit = RefitClock()

    def on_train_start(self) -> None:
        """Take the statistics of the inputs and the first centre from the training data."""
        self._refit.begin()
        if not self.inputs.fitted:
            self.inputs.fit(lambda: ((batch["image"], self._normal_pixels(batch)) for batch in training_batches(self)), self.device)
            self.fitted.begin(self._described(), self.recipe, self.device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the losses of a batch on its normal pixels."""
        image, valid = self.inputs(batch["image"]), self._normal_pixels(batch)
        out, counted = self.net(image, valid), self._counted_pixels(batch)
        losses = {}
        if self.recipe.weights[2]:
            losses["reconstruction"] = self.recipe.weights[2] * reconstruction_loss(image, out.reconstruction, valid)
        if not self._warming_up():
            copy = None
            if self.recipe.diverse:
                drawn = apply_all(self.virtual, image, step_generator(self, self.seed, batch_idx))
                copy = self.net(drawn, valid).descriptor
            radius = self.learnt_radius if self.recipe.objective == "contrast" else self.fitted.radius
            losses |= svdd_losses(out.descriptor, copy, self.fitted.centre, radius, valid, self.recipe, counted)
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(image))
        # DDP wants every parameter in every loss; the heads take turns, and a learnt radius has no part in the warm-up.
        learnt = [p.sum() for p in (*self.net.parameters(), self.learnt_radius) if p.requires_grad]
        idle = torch.stack(learnt).sum() * 0.0
        return torch.stack(list(losses.values())).sum() + idle

    def on_validation_start(self) -> None:
        """Fit the distributions, and after an epoch centre and radius, before anything is scored with them."""
        if self._refit.before_validation(self):
            self._refresh(ended=self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    def on_train_epoch_end(self) -> None:
        """Fit centre, radius and distributions where training or a checkpoint needs them before the next validation."""
        if self._refit.after_epoch(self, always=self.recipe.moves):
            self._refresh(ended=True)

    def on_train_end(self) -> None:
        """Fit them to the last weights where a callback stopped the training at the end of an epoch without a validation."""
        if self._refit.at_end(self):
            self._refresh(ended=True)

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by the rule of descriptors; see the base class."""
        if not self.fitted.covariance.numel():
            raise NotFittedError("Expected a fitted SVDD, but it holds no statistics of normal descriptors. Call `trainer.fit` first.")
        if image.shape[1] != self.in_channels:
            raise ValueError(f"Expected images of {self.in_channels} bands, as in training, but got {image.shape[1]}.")
        valid, inputs = finite_pixels(image), self.inputs(image)
        score = self.fitted.score(inputs, self.net(inputs).descriptor, self.score_rule)
        score = gaussian(score, self.smoothing, valid) if self.smoothing else score
        return torch.where(valid, score, 0.0)

    def diagnostics(self) -> dict[str, Tensor]:
        """Give the radius, and the spread and effective rank of normal descriptors, which fall to 0 and 1 in a collapse."""
        matrix = self.fitted.covariance
        if not matrix.numel():
            return {}
        return {"radius": self.fitted.radius, "descriptor_spread": spread(matrix), "descriptor_rank": effective_rank(matrix)}

    def _warming_up(self) -> bool:
        """Say whether the reconstruction alone is learnt; without it there is nothing to warm up by."""
        return self.recipe.weights[2] > 0 and self.current_epoch < self.recipe.warmup * (self.trainer.max_epochs or 1)

    def _refresh(self, *, ended: bool) -> None:
        """Fit to the present weights."""
        if self.recipe.objective == "contrast":
            self.fitted.radius = self.learnt_radius.detach().abs().clone()
        epoch, warming_up = self.current_epoch, self._warming_up()
        self.fitted.refresh(self._described(), self.recipe, epoch, warming_up=warming_up, ended=ended)

    @torch.no_grad()
    def _described(self) -> Iterator[DescribedBatch]:
        """Describe the training data in evaluation mode."""
        with evaluation_mode(self.net):
            for batch in training_batches(self):
                inputs = self.inputs(batch["image"])
                yield DescribedBatch(inputs, self.net(inputs).descriptor, self._normal_pixels(batch), self._counted_pixels(batch))

    def _normal_pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """Find the pixels with data that count as normal: (B, H, W) bool."""
        return normal_pixels(batch) if self.learn_from == "normal" else finite_pixels(batch["image"])

    def _counted_pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """Find the pixels that normal ones are compared with: (B, H, W) bool."""
        return counted_pixels(batch) if self.learn_from == "normal" else finite_pixels(batch["image"])
