"""Reconstruction: a net learns to rebuild normal images, or their features, and what it cannot rebuild is anomalous."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.errors import NotFittedError
from anomseg.functional.pixel_sample import PixelSample, add_pixels, join_samples
from anomseg.functional.symmetries import Views, check_views, mean_over_views
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.position_statistics import on_whole_images
from anomseg.methods.reconstruction_inputs import ReconstructionInputs, channel_moments
from anomseg.methods.reconstruction_masking import MaskedPrediction
from anomseg.methods.reconstruction_score import OF_FEATURES, OF_LEVELS, SAMPLE, ReconstructionScore, combined, robust_spread, score_terms
from anomseg.methods.reconstruction_training import Encode, ReconstructionLoss, reconstruction_losses
from anomseg.methods.training_data import RefitClock, gathered_objects, normal_pixels, step_generator, training_batches
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.autoencoder_contract import PLACES, Rebuilt, ReconstructionNet, ReconstructionSpec, place_maps
from anomseg.nets.autoencoder_features import RandomFeatures
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.nets.feature_reconstruction import FeatureReconstructionNet
from anomseg.optimisation import Optimisation
from anomseg.sample import finite_pixels


class Reconstruction(AnomalySegmenter):
    """Learn to rebuild normal images, and score what differs.

    Training batches may carry `corrupted`, the image with synthetic defects: the net then sees that and must give `image` back. Without it,
    and without `masked`, the net is a plain autoencoder. Training pixels that are void, of another class or without data are hidden from
    the net and touch no loss. The loss counts in standard deviations of the bands, and the net's last layer is linear.

    Before each validation in a fit and at its end, a pass over at most `fit_batches` training batches, clean and in evaluation mode, takes
    the spread of every term of the score over normal pixels, so that weights of terms compare like with like; `position` is fitted in a
    second one.

    Args:
        in_channels: bands of the images.
        net: describes the net; an `AutoencoderSpec` by default, a `FeatureReconstructionSpec` to rebuild the features of a frozen encoder.
        loss: see `ReconstructionLoss`.
        scoring: see `ReconstructionScore`; by default it fits the net.
        masked: predict each pixel from images that hide it, in training and in scoring; None for not.
        reach: tell the net where a pixel is: column, row, and how near the border of the image is within this many pixels; None for not.
            It wants whole images or crops that carry `window` and `scene_size` and are not flipped.
        ema: decay of an average of the weights that scores and rebuilds in the place of the net, in [0, 1); None for the net itself.
        position: a module with `fit(iterable of (score, valid))` and `forward(score, valid) -> score`, (B, H, W) each, which knows how
            normal scores depend on the place; None for none. It is fitted on whole images; crops are laid where their `window` says, and
                must not be flipped.
        views: score the mean over so many views of an image, for surfaces without an up, a down or sides: 4 for the image and its mirror
            images, 8 for these turned by 90 degrees, too. What a net mistakes in one view it seldom does in all; each takes its time.
        fit_batches: see above, at least 1.
        seed: of masks and of the random feature net.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; AdamW at 1e-3 with a warm-up by default. Clip gradients at 1 in the trainer.

    Raises:
        ValueError: an argument is out of its range, or asks for what the net does not have.
        NotFittedError: scored or rebuilt before training.
    """

    term_centre: Tensor
    term_scale: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        net: ReconstructionSpec | None = None,
        loss: ReconstructionLoss | None = None,
        scoring: ReconstructionScore | None = None,
        masked: MaskedPrediction | None = None,
        reach: float | None = None,
        ema: float | None = None,
        position: nn.Module | None = None,
        views: Views = 1,
        fit_batches: int = 32,
        seed: int = 0,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(calibration, build(optimisation, Optimisation) or Optimisation(lr=1e-3, warmup=0.05))
        self.net: ReconstructionSpec = build(net) or AutoencoderSpec()
        self.loss: ReconstructionLoss = build(loss, ReconstructionLoss) or ReconstructionLoss()
        self.scoring: ReconstructionScore = build(scoring, ReconstructionScore) or default_scoring(self.net)
        self.masked: MaskedPrediction | None = build(masked, MaskedPrediction)
        self.in_channels, self.reach, self.ema, self.fit_batches, self.seed = in_channels, reach, ema, fit_batches, seed
        self.views = views
        self._check()
        self.position: nn.Module | None = build(position)
        self.inputs = ReconstructionInputs(in_channels)
        self.network: ReconstructionNet = self.net.build(in_channels, PLACES if reach is not None else 0)
        self.follower: ReconstructionNet | None = None if ema is None else self.network.follower()
        compares = self.loss.features > 0 or self.scoring.features > 0
        self.random_features = RandomFeatures(in_channels, seed=seed) if compares and self.loss.feature_net == "random" else None
        for name in ("term_centre", "term_scale"):
            self.register_buffer(name, torch.empty(0))
        self._refit = RefitClock()

    @property
    def judged(self) -> ReconstructionNet:
        """Give the net that scores: the average of the weights where there is one."""
        return self.network if self.follower is None else self.follower

    @property
    def feature_multiple(self) -> int:
        """Give what the sides of an image are padded to a multiple of before `features` describes it."""
        return self.network.multiple

    def on_train_start(self) -> None:
        """Take the statistics of bands and features from the training images; a resumed training keeps its own."""
        self._refit.begin()
        if self.inputs.fitted:
            return
        self.inputs.fit((self._checked(batch["image"]), normal_pixels(batch)) for batch in training_batches(self))
        if isinstance(self.network, FeatureReconstructionNet):
            features = channel_moments(self._raw_features(self.network))
            for net in (self.network, self.follower):
                if isinstance(net, FeatureReconstructionNet):
                    net.fit(features.mean, features.std)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the losses of a batch on its normal pixels."""
        valid = normal_pixels(batch)
        corrupted, defect = self._corrupted(batch), batch.get("defect")
        target = self.inputs(self._checked(batch["image"]), valid)
        seen = target if corrupted is None else self.inputs(corrupted, valid & finite_pixels(corrupted))
        place = self._places(batch["image"], batch)
        if self.follower is not None:
            self.follower.eval()
        rebuilt = self.network(seen, place, target) if self.masked is None else self._from_context(self.masked, seen, place, batch_idx)
        # In the place of void the reconstruction is hidden too: the head of defects sees it.
        logits = self.network.judge(seen, torch.where(valid[:, None], rebuilt.image, 0.0), place)
        losses = reconstruction_losses(
            target, rebuilt, valid, defect, logits, self.loss, self.inputs, self._encode(place), self.network.stride
        )
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(target))
        return torch.stack(list(losses.values())).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the average follow the net."""
        if self.follower is not None and self.ema is not None:
            # Early on the average would hold little but the first random weights.
            follow(self.follower, self.network, min(self.ema, (1 + self.global_step) / (10 + self.global_step)))

    def on_validation_start(self) -> None:
        """Fit the spread of the terms, and the position, before anything is scored with them."""
        if self._refit.before_validation(self):
            self._fit_score()

    def on_train_epoch_end(self) -> None:
        """Fit them where no validation does, and where the training ends."""
        if self._refit.after_epoch(self):
            self._fit_score()

    def on_train_end(self) -> None:
        """Fit them to the last weights where a callback stopped the training at the end of an epoch without a validation."""
        if self._refit.at_end(self):
            self._fit_score()

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by weighted residuals; see the base class."""
        if not self.term_scale.numel():
            raise NotFittedError("Expected a trained Reconstruction, but it holds no statistics of residuals. Call `trainer.fit` first.")
        valid = finite_pixels(image)
        score = combined(self._terms(image, valid), valid, self.term_centre, self.term_scale, self.scoring)
        if self.position is not None:
            score = cast(Tensor, self.position(score, valid))
        return torch.where(valid, score, 0.0)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild (B, C, H, W), NaN where there is no data: the same shape in the units of the images, finite everywhere."""
        inputs, place = self._prepared(image, finite_pixels(image))
        return self.inputs.restored(torch.stack([one.image.float() for one in self._rebuilds(inputs, place)]).mean(0))

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Describe (B, C, H, W) by the bottleneck: (B, D, h, w)."""
        return cast(Rebuilt, self.judged(*self._prepared(image, finite_pixels(image)))).features.float()

    def _terms(self, image: Tensor, valid: Tensor) -> Tensor:
        """Compute the raw terms of the score, (B, T, H, W); over several views their mean."""
        return mean_over_views(self._terms_of, image, valid, views=self.views)

    def _terms_of(self, image: Tensor, valid: Tensor) -> Tensor:
        """Compute the raw terms of one view; over several sizes of hidden cells their mean."""
        inputs, place = self._prepared(image, valid)
        found = [
            score_terms(
                inputs,
                one,
                self.judged.judge(inputs, torch.where(valid[:, None], one.image, 0.0), place),  # as in training
                valid,
                self.scoring,
                self.inputs,
                self._encode(place),
                self.judged.stride,
            )
            for one in self._rebuilds(inputs, place)
        ]
        return torch.stack(found).mean(0)

    def _from_context(self, masked: MaskedPrediction, seen: Tensor, place: Tensor | None, batch_idx: int) -> Rebuilt:
        """Rebuild a training batch from images that hide what is to be rebuilt, by masks of this step."""
        generator = step_generator(self, self.seed, batch_idx)
        cell = masked.cells[int(torch.randint(len(masked.cells), (1,), generator=generator))]
        hidden = masked.draw(len(seen), (seen.shape[-2], seen.shape[-1]), cell, generator)
        return masked.predict(self.network, seen, place, hidden.to(seen.device))

    def _rebuilds(self, inputs: Tensor, place: Tensor | None) -> Iterator[Rebuilt]:
        """Rebuild once, or once for each size of hidden cells, by the same masks for every image and whenever it is asked."""
        if self.masked is None:
            yield self.judged(inputs, place)
            return
        for cell in self.masked.cells:
            hidden = self.masked.draw(1, (inputs.shape[-2], inputs.shape[-1]), cell, torch.Generator().manual_seed(self.seed * 1009 + cell))
            yield self.masked.predict(self.judged, inputs, place, hidden.to(inputs.device))

    def _prepared(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.inputs.fitted:
            raise NotFittedError("Expected a trained Reconstruction, but it holds no statistics of the bands. Call `trainer.fit` first.")
        return self.inputs(self._checked(image), valid), self._places(image, {})

    def _encode(self, place: Tensor | None) -> Encode | None:
        """Give the fixed feature net, or the encoder of the average."""
        if self.random_features is not None:
            return self.random_features
        if self.follower is None or not (self.loss.features or self.scoring.features):
            return None
        follower = self.follower
        return lambda image: follower.encoded(image, place)

    def _places(self, image: Tensor, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell where the pixels of a batch are, (B, 3, H, W); crops are placed by their windows, whole images need none."""
        if self.reach is None:
            return None
        size = (image.shape[-2], image.shape[-1])
        maps = []
        for index in range(len(image)):
            window = batch["window"][index] if "window" in batch else (0, 0, *size)
            whole = batch["scene_size"][index] if "scene_size" in batch else size
            part = tuple(window[2:]) == size and tuple(whole) != size  # an image that was resized as a whole is the whole
            maps.append(place_maps(size, self.reach, (window[0], window[1]), tuple(whole)) if part else place_maps(size, self.reach))
        return torch.stack(maps).to(image.device)

    def _corrupted(self, batch: Mapping[str, Any]) -> Tensor | None:
        corrupted = cast("Tensor | None", batch.get("corrupted"))
        if self.net.judges and (corrupted is None or "defect" not in batch):
            raise ValueError(
                f"Expected 'corrupted' and 'defect' in training batches for the head of defects, but got {sorted(batch)}. Give the data "
                "module a corruption, or set defect_head=False."
            )
        if corrupted is None and self.masked is None and self.net.copies and not self.global_step:
            warnings.warn(
                "The net may learn to copy its input: all skips are open, no training image is corrupted and none is masked. Give the data "
                "module a corruption, set masked=MaskedPrediction(), or skips='none'.",
                stacklevel=2,
            )
        if corrupted is not None and corrupted.shape != batch["image"].shape:
            came = f"{tuple(corrupted.shape)} and {tuple(batch['image'].shape)}"
            raise ValueError(f"Expected 'corrupted' and 'image' of one shape, but got {came}. Corrupt after cropping and augmentation.")
        return corrupted

    def _raw_features(self, net: FeatureReconstructionNet) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in islice(training_batches(self), self.fit_batches):
            valid = normal_pixels(batch)
            features = net.raw_features(self.inputs(batch["image"], valid))
            yield features, net.covers(valid, (features.shape[-2], features.shape[-1]))

    @torch.no_grad()
    def _fit_score(self) -> None:
        with evaluation_mode(self):
            found: PixelSample | None = None
            generator, size = torch.Generator().manual_seed(self.seed * 1009 + self.global_rank), SAMPLE * self.fit_batches
            for batch in self._few_batches():
                normal = normal_pixels(batch)
                terms = self._terms(self._hidden(batch, normal), normal).movedim(1, -1)[normal]
                found = add_pixels(found, terms.cpu(), size, generator)
            parts = [part for part in gathered_objects(found) if part is not None]
            centre, scale = robust_spread(join_samples(parts, size).pixels)
            self.term_centre, self.term_scale = centre.to(self.device), scale.to(self.device)
            if self.position is not None:
                cast(Any, self.position).fit(self._normal_scores())

    def _normal_scores(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._few_batches():
            normal = normal_pixels(batch)
            terms = self._terms(self._hidden(batch, normal), normal)
            score = combined(terms, normal, self.term_centre, self.term_scale, self.scoring)
            yield from on_whole_images(score, normal, batch)

    def _few_batches(self) -> Iterator[Mapping[str, Any]]:
        return (batch for batch in islice(training_batches(self), self.fit_batches) if bool(normal_pixels(batch).any()))

    def _hidden(self, batch: Mapping[str, Any], normal: Tensor) -> Tensor:
        """Hide what is not normal from the statistics as it was from the net."""
        return torch.where(normal[:, None], cast(Tensor, batch["image"]), torch.nan)

    def _checked(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected images (B, {self.in_channels}, H, W), but got {tuple(image.shape)}. Set in_channels to the bands of the images."
            )
        return image

    def _check(self) -> None:
        if self.in_channels < 1 or self.fit_batches < 1 or not (self.reach is None or self.reach > 0):
            raise ValueError(
                "Expected in_channels and fit_batches >= 1 and reach > 0 pixels or None, "
                f"but got {self.in_channels}, {self.fit_batches} and {self.reach}."
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"Expected ema in [0, 1) or None, but got {self.ema}. 0.999 is usual for thousands of steps.")
        if self.loss.feature_net == "ema" and self.ema is None and (self.loss.features or self.scoring.features):
            raise ValueError("Expected ema with feature_net='ema', but got None. Set ema=0.99, or feature_net='random'.")
        if self.net.rebuilds_features and self.masked is not None:
            raise ValueError("Expected masked=None with a net that rebuilds features: what an image hides, they do not.")
        check_views(self.views)
        if self.views > 1 and self.reach is not None:
            raise ValueError(f"Expected views=1 with a net that is told the place, but got {self.views}: a mirrored part lies elsewhere.")
        if self.net.judges and not self.loss.focal:
            raise ValueError("Expected focal > 0 with a head of defects, but got 0: it would learn nothing. Set defect_head=False.")
        missing = [*([] if self.net.rebuilds_features else OF_LEVELS), *([] if self.net.judges else ["defect"])]
        for term in self.scoring.terms:
            if term in missing:
                raise ValueError(f"Expected a net that gives the term '{term}' of the score, but got {self.net}. Set its weight to 0.")


def default_scoring(net: ReconstructionSpec) -> ReconstructionScore:
    """Choose the terms that a net is good for: its features, its residuals, or those and its head of defects."""
    return OF_FEATURES if net.rebuilds_features else ReconstructionScore(defect=1.0 if net.judges else 0.0)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, decay: float) -> None:
    """Move a copy towards a net: parameters by 1 - decay of the way, buffers at once; what both share stays."""
    for kept, new in zip(follower.parameters(), leader.parameters(), strict=True):
        if kept is not new:
            kept.lerp_(new, 1 - decay)
    for old, fresh in zip(follower.buffers(), leader.buffers(), strict=True):
        old.copy_(fresh)
