"""Say in words while it happens that a training has collapsed: grey or black output, copies, features on a point, divergence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor

from anomseg.callbacks.collapse_monitor_layers import WeightRecord
from anomseg.callbacks.collapse_monitor_probe import Describes, Probe, feature_rows, method_figures, untouched
from anomseg.callbacks.collapse_monitor_rules import CollapseLimits, Findings, Judge, Verdict
from anomseg.config import build, size_empty_buffers
from anomseg.errors import NotFittedError

Action = Literal["warn", "stop", "restore_best"]


class CollapseMonitor(pl.Callback):
    """Measure a few training images after an epoch, and give a verdict where a method has learnt nothing or has lost what it knew.

    Methods that rebuild images (`reconstruct`) are judged by their reconstructions and by what they do to defects put into the images;
    all others by their score maps. Features (`features`, or the descriptors that a net gives), units, weights and the loss are judged for
    all. Verdicts are "constant output", "same output for every input", "worse than the mean image", "identity shortcut", "bottleneck
    collapsed", "dead layer <name>", "not learning" and "diverged at epoch <n>". Each is warned of once and kept in `verdicts`; the figures
    are logged as `collapse/<figure>`.

    The monitor observes: weights, gradients, modes and random states are as they would be without it. The one exception is the action
    `restore_best`, which the user asks for. Methods that learn nothing by descent are left alone. The record begins with a training, also
    with one that is resumed. With several devices the first one's figures count for all.

    Args:
        every_n_epochs: epochs between two checks, >= 1.
        probes: images that are looked at, the first of the training, >= 1; two or more tell whether the output depends on the input.
        action: `warn`; `stop` the training at the first verdict; or stop it and load the weights of the best sound check
            (`restore_best`): that of the highest skill where images are rebuilt, else of the lowest loss. Checkpoint files that are
            written already are not changed.
        limits: see `CollapseLimits`.
        size: larger images are cropped to the middle of this many pixels a side; None for whole images.
        seed: of the defects.

    Attributes:
        verdicts: what was found, in its order.
        figures: those of the last check.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        probes: int = 8,
        action: Action = "warn",
        limits: CollapseLimits | None = None,
        size: int | None = 256,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 1 or probes < 1 or action not in get_args(Action) or (size is not None and size < 8):
            raise ValueError(
                f"Expected every_n_epochs and probes >= 1, action of {get_args(Action)} and size >= 8 or None, "
                f"but got {every_n_epochs}, {probes}, {action!r} and {size}."
            )
        self.every_n_epochs, self.probes, self.action, self.size, self.seed = every_n_epochs, probes, action, size, seed
        self.limits: CollapseLimits = build(limits, CollapseLimits) or CollapseLimits()
        self.verdicts: list[Verdict] = []
        self.figures: dict[str, float] = {}
        self._loss, self._batches = torch.zeros(()), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a record."""
        self.verdicts, self.figures = [], {}
        self._watching = bool(getattr(pl_module, "learns", True))
        self._judge, self._probe = Judge(self.limits), Probe(self.probes, self.size, self.seed)
        self._weights = WeightRecord(pl_module) if self._watching else None
        self._scale: float | None = None
        self._first_epoch = trainer.current_epoch
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._candidate: tuple[float, int] | None = None
        self._clear_loss()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of the last epoch, now that the method has fitted what it fits after one."""
        self._keep(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the first images, and before the first step the size of their features."""
        wanted = self._watching and not self._probe.full and trainer.current_epoch == self._first_epoch
        if wanted and isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
            first = not len(self._probe.image)
            self._probe.take(batch)
            if first and isinstance(pl_module, Describes):
                with suppress(NotFittedError), untouched(pl_module), trainer.precision_plugin.forward_context():
                    rows = feature_rows(pl_module.features(self._probe.image.to(pl_module.device)), self._probe.valid.to(pl_module.device))
                    self._scale = float(rows.double().square().mean().sqrt())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._loss, self._batches = self._loss + loss.detach().float(), self._batches + 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, log and judge."""
        if not self._watching or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        own = self._measured(trainer, pl_module) if trainer.is_global_zero else Findings({}, 0)
        found = trainer.strategy.broadcast(own, 0)
        self.figures = dict(found.figures)
        self._clear_loss()
        new = self._judge.judge(trainer.current_epoch, found)
        logged = {f"collapse/{name}": value for name, value in found.figures.items() if math.isfinite(value)}
        pl_module.log_dict(logged, sync_dist=True)
        self.verdicts += new
        for verdict in new:
            if trainer.is_global_zero:
                warnings.warn(f"Collapse: {verdict}", stacklevel=2)
        if self.action == "restore_best" and self._judge.sound:
            skilled = "skill" in self.figures
            self._candidate = (self.figures["skill"] if skilled else -self.figures.get("loss", 0.0), trainer.current_epoch)
        if new and self.action != "warn":
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the best weights where that is asked for and something has collapsed."""
        self._keep(pl_module)
        if self.action != "restore_best" or not self.verdicts:
            return
        if self._best is None:
            warnings.warn("No check of this training was sound: the weights stay as they are.", stacklevel=2)
            return
        _, epoch, state = self._best
        size_empty_buffers(pl_module, state)
        pl_module.load_state_dict(state)
        warnings.warn(f"The weights of epoch {epoch} are restored; save a checkpoint to keep them.", stacklevel=2)

    def _measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Findings:
        figures: dict[str, float] = {}
        layers: dict[str, str] = {}
        finite = True
        if len(self._probe.image):
            with untouched(pl_module), trainer.precision_plugin.forward_context():
                figures, layers, finite = method_figures(pl_module, self._probe, self._scale)
        self._scale = max(self._scale or 0.0, figures.get("feature_scale", 0.0)) or None
        if self._weights is not None:
            weights, named = self._weights.figures(pl_module, trainer.global_step)
            figures, layers = {**figures, **weights}, {**layers, **named}
        if self._batches:
            figures["loss"] = float(self._loss) / self._batches
        terms = frozenset(name for name in trainer.callback_metrics if name.startswith("loss_"))
        return Findings(figures, trainer.global_step, layers, finite and math.isfinite(figures.get("loss", 0.0)), terms)

    def _keep(self, pl_module: pl.LightningModule) -> None:
        """Keep the weights of the last check where it is the best sound one."""
        candidate, self._candidate = self._candidate, None
        if candidate is not None and (self._best is None or candidate[0] > self._best[0]):
            self._best = (*candidate, {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()})

    def _clear_loss(self) -> None:
        self._loss, self._batches = torch.zeros(()), 0
