"""Change detection by a network: two dates of a scene go in, a logit of change comes out for every pixel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.errors import NotFittedError
from anomseg.exporting import is_exporting
from anomseg.functional.change_vector import difference_gate, gated_logits, standardise_dates
from anomseg.functional.score_curves import f1_max
from anomseg.functional.symmetries import Views, check_views, mean_over_views
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.change_training import ChangeTraining, CollapseWatch, deep_loss, open_truth
from anomseg.methods.svdd_inputs import channel_statistics
from anomseg.methods.training_data import counted_pixels, gathered_objects, training_batches
from anomseg.metrics.change import ChangeConfusion
from anomseg.metrics.scene_metrics import SceneMetrics, all_metrics
from anomseg.nets.change_heads import ChangeOutput, upsampled
from anomseg.nets.change_mamba import BASE, SMALL, TINY, TINY_DETAIL, ChangeMambaSpec, ChangeMambaUNet
from anomseg.nets.siamese_unet import SiameseConvUNet, SiameseUNetSpec
from anomseg.optimisation import Optimisation
from anomseg.sample import ANOMALY, IGNORE, fill_nodata, finite_pixels, with_void

PRIOR_BATCHES = 32  # enough to know a share, and no second reading of a large data set
_UNKNOWN = 1e-300  # a threshold until a test begins; torchmetrics takes no metric of another threshold for the same
PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE, "tiny_detail": TINY_DETAIL}
Standardise = Literal["training", "image"]
Preset = Literal["tiny", "small", "base", "tiny_detail"]


class ChangeSegmenter(AnomalySegmenter):
    """Teach a network of two dates, find the threshold on the validation pairs, score with the mean over both orders of the dates.

    A validation logs `val_f1`, the best F1 over all thresholds, and keeps that threshold in a buffer, which checkpoints hold: choose the
    checkpoint by `val_f1`, and decide on new scenes with `change_map`. Nothing is chosen on test pairs: `test_change_f1` and its
    companions are figures at that threshold, `test_f1_max` is the best that any would reach.

    Args:
        in_channels: bands of a date.
        recipe: see `ChangeTraining`.
        gate: difference between the dates, in standard deviations of the bands, at which a pixel may count as changed without reserve;
            below, its probability is scaled down (`difference_gate`). None for no gate: change need not show in the raw bands.
        gate_bands: the gate compares so many bands, the first ones; None for all.
        symmetric: score the mean of both orders of the dates, at twice the cost; else the given order alone.
        views: score the mean over so many views of a pair, for scenes seen from above, which have no up and no sides: 1 for the pair as
            it is, 4 for its mirror images, 8 for these turned by 90 degrees, too, at as many times the cost.
        standardise: bands by mean and deviation of the `training` pairs, or those of each date of each `image`, which takes out light.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range.
        NotFittedError: scored before training.
    """

    threshold: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int,
        recipe: ChangeTraining | None,
        gate: float | None,
        gate_bands: int | None,
        symmetric: bool,
        views: Views,
        standardise: Standardise,
        calibration: Calibration | None,
        optimisation: Optimisation | None,
    ) -> None:
        super().__init__(calibration, build(optimisation, Optimisation) or Optimisation(lr=2e-3, weight_decay=5e-4, warmup=0.05))
        if in_channels < 1 or standardise not in ("training", "image") or (gate is not None and not gate > 0):
            raise ValueError(
                "Expected in_channels >= 1, standardise 'training' or 'image' and gate > 0 or None, "
                f"but got {in_channels}, {standardise!r} and {gate}."
            )
        if gate_bands is not None and not 1 <= gate_bands <= in_channels:
            raise ValueError(f"Expected gate_bands of 1 to {in_channels}, the bands of a date, or None for all, but got {gate_bands}.")
        check_views(views)
        self.in_channels, self.symmetric, self.views, self.standardise = in_channels, symmetric, views, standardise
        self.gate, self.gate_bands = gate, gate_bands
        self.recipe: ChangeTraining = build(recipe, ChangeTraining) or ChangeTraining()
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.zeros(in_channels))
        self.register_buffer("threshold", torch.zeros(()))
        self._watch = CollapseWatch(self.recipe.patience)
        figures = all_metrics()
        figures.add_metrics({"change": ChangeConfusion(_UNKNOWN)})
        self.test_metrics = SceneMetrics(figures, "test_")

    @property
    @abstractmethod
    def net(self) -> nn.Module:
        """Give the network: two dates (B, C, H, W) in, `ChangeOutput` out, with `spec.multiple` and `set_prior`."""

    def on_train_start(self) -> None:
        """Take the statistics of the bands, and the share of change, from the training pairs; a resumed training keeps its own."""
        self._watch = CollapseWatch(self.recipe.patience)
        if not bool(self.std.any()):
            pairs = ((b["image"].flatten(0, 1), counted_pixels(b).repeat_interleave(2, 0)) for b in self._training_pairs())
            self.mean, self.std = (value.to(self.device) for value in channel_statistics(pairs, self.in_channels))
            cast(Any, self.net).set_prior(self.recipe.prior or self._change_share())

    def on_train_epoch_start(self) -> None:
        """Begin to count predicted change."""
        self._watch.begin()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the losses of a batch at the main output and at every level of the decoder."""
        dates, gate = self._inputs(batch["image"])
        out: ChangeOutput = self.net(dates[:, 0], dates[:, 1])
        size = (dates.shape[-2], dates.shape[-1])
        multiple: int = cast(Any, self.net).spec.multiple
        maps = [out.logits.float(), *(upsampled(one.float(), multiple, size) for one in out.auxiliary)]
        mask = with_void(batch["mask"], ~finite_pixels(batch["image"]))
        losses = deep_loss(maps, mask, self.recipe, self.global_step, gate)
        self._watch.update(maps[0], open_truth(mask, gate))
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(dates))
        # DDP wants every parameter in every loss, also that of a level without a weight.
        idle = torch.stack([one.sum() for one in out.auxiliary]).sum() * 0.0 if out.auxiliary else 0.0
        return torch.stack(list(losses.values())).sum() + idle

    def on_train_epoch_end(self) -> None:
        """Warn where the net has stopped to predict change."""
        self._watch.end()

    def on_test_start(self) -> None:
        """Judge test pairs at the threshold that validation found, besides the figures of all methods."""
        for figures in (self.test_metrics.pooled, self.test_metrics.scene, self.test_metrics.categories.blank):
            cast(ChangeConfusion, figures["change"]).threshold = float(self.threshold)

    def score(self, image: Tensor) -> Tensor:
        """Score (B, 2, C, H, W) by the logit of change; see the base class."""
        if not is_exporting() and not bool(self.std.any()):
            raise NotFittedError("Expected a trained network, but it holds no statistics of the bands. Call `trainer.fit` first.")
        dates, gate = self._inputs(image)
        logits = mean_over_views(self._logits, dates, views=self.views)
        return logits if gate is None else gated_logits(logits, gate)

    def _logits(self, dates: Tensor) -> Tensor:
        logits: Tensor = self.net(dates[:, 0], dates[:, 1]).logits.float()
        return (logits + self.net(dates[:, 1], dates[:, 0]).logits.float()) / 2 if self.symmetric else logits

    @torch.no_grad()
    def change_map(self, image: Tensor) -> Tensor:
        """Decide by the threshold of the last validation: (B, H, W) bool; False where there is no data."""
        return (self.score_map(image) >= self.threshold) & finite_pixels(image)

    def diagnostics(self) -> dict[str, Tensor]:
        """Keep the validation's best threshold; give it with its F1, and the predicted and true share of change in training."""
        f1, threshold = f1_max(self.validation_metrics.counts())
        if bool(torch.isfinite(f1)):
            self.threshold = threshold.to(self.threshold)
        shares = {name: torch.tensor(value, device=self.device) for name, value in self._watch.shares().items()}
        return {"val_f1": f1, "threshold": self.threshold, **shares}

    def _inputs(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardise and fill (B, 2, C, H, W), and compute the gate (B, H, W) where there is one."""
        if image.ndim != 5 or image.shape[1] != 2 or image.shape[2] != self.in_channels:
            raise ValueError(
                f"Expected pairs of shape (B, 2, {self.in_channels}, H, W), but got {tuple(image.shape)}. "
                "Stack both dates, and set in_channels to their bands."
            )
        by_image = self.standardise == "image"
        dates = standardise_dates(image) if by_image else (image - self.mean[:, None, None]) / self.std[:, None, None]
        dates, _ = fill_nodata(dates)
        seen = dates[:, :, : self.gate_bands]
        gate = None if self.gate is None else difference_gate(seen[:, 0], seen[:, 1], self.gate)
        return dates, gate

    def _training_pairs(self) -> Iterator[Mapping[str, Any]]:
        for batch in training_batches(self):
            image = batch["image"]
            if "mask" not in batch or image.ndim != 5 or image.shape[1] != 2:
                raise ValueError(
                    f"Expected training batches with 'mask' and 'image' (B, 2, C, H, W), but got {sorted(batch)} and {tuple(image.shape)}."
                )
            yield batch

    @torch.no_grad()
    def _change_share(self) -> float:
        """Count the share of change among the pixels that are learnt from, in [0.001, 0.5]."""
        changed, counted = 0, 0
        for batch in islice(self._training_pairs(), PRIOR_BATCHES):
            mask = open_truth(with_void(batch["mask"], ~finite_pixels(batch["image"])), self._inputs(batch["image"])[1])
            changed += int((mask == ANOMALY).sum())
            counted += int((mask != IGNORE).sum())
        parts = gathered_objects((changed, counted))
        share = float(sum(part[0] for part in parts) / max(sum(part[1] for part in parts), 1))
        return min(max(share, 1e-3), 0.5)


class ChangeMamba(ChangeSegmenter):
    """Detect change by a light U-shaped network of selective scans that read both dates together.

    Args:
        in_channels: bands of a date.
        spec: a preset, or a `ChangeMambaSpec`.
        recipe: see `ChangeTraining`.
        gate: see `ChangeSegmenter`.
        gate_bands: see `ChangeSegmenter`.
        symmetric: see `ChangeSegmenter`.
        views: see `ChangeSegmenter`.
        standardise: see `ChangeSegmenter`.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; AdamW with warm-up by default.

    Source: see `anomseg.nets.change_mamba`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        spec: ChangeMambaSpec | Preset = "tiny",
        recipe: ChangeTraining | None = None,
        gate: float | None = None,
        gate_bands: int | None = None,
        symmetric: bool = True,
        views: Views = 1,
        standardise: Standardise = "training",
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(in_channels, recipe, gate, gate_bands, symmetric, views, standardise, calibration, optimisation)
        if isinstance(spec, str) and spec not in PRESETS:
            raise ValueError(f"Expected a preset of {', '.join(PRESETS)} or a ChangeMambaSpec, but got {spec!r}.")
        self.spec: ChangeMambaSpec | Preset = build(spec, ChangeMambaSpec)
        self.network = ChangeMambaUNet(in_channels, PRESETS[self.spec] if isinstance(self.spec, str) else self.spec)

    @property
    def net(self) -> ChangeMambaUNet:
        """Give the network."""
        return self.network


class SiameseUNet(ChangeSegmenter):
    """Detect change by a plain Siamese U-Net, the baseline that is taught in the same way.

    Args:
        in_channels: bands of a date.
        spec: see `SiameseUNetSpec`.
        recipe: see `ChangeTraining`.
        gate: see `ChangeSegmenter`.
        gate_bands: see `ChangeSegmenter`.
        symmetric: see `ChangeSegmenter`.
        views: see `ChangeSegmenter`.
        standardise: see `ChangeSegmenter`.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; AdamW with warm-up by default.

    Source: see `anomseg.nets.siamese_unet`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        spec: SiameseUNetSpec | None = None,
        recipe: ChangeTraining | None = None,
        gate: float | None = None,
        gate_bands: int | None = None,
        symmetric: bool = True,
        views: Views = 1,
        standardise: Standardise = "training",
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(in_channels, recipe, gate, gate_bands, symmetric, views, standardise, calibration, optimisation)
        self.spec: SiameseUNetSpec = build(spec, SiameseUNetSpec) or SiameseUNetSpec()
        self.network = SiameseConvUNet(in_channels, self.spec)

    @property
    def net(self) -> SiameseConvUNet:
        """Give the network."""
        return self.network
