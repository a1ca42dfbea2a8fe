"""Passes over the training data outside of training steps: which batches a rank sees, which pixels count, and what the ranks found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader

from anomseg.config import arguments_of
from anomseg.sample import IGNORE, NORMAL, finite_pixels, flat_truth


def training_batches(method: pl.LightningModule, *, whole: bool = False) -> Iterator[Mapping[str, Any]]:
    """Serve this rank's part of the training data once, on the device and in the precision of the method.

    In training, ranks must have equally many samples, so some are repeated. Here none is, and the ranks' parts join to the whole. Their
    order is drawn, so that the first batches hold samples of all kinds. Where the trainer limits the batches of an epoch, by
    `limit_train_batches`, `overfit_batches` or `fast_dev_run`, the pass ends after as many.

    Args:
        method: tells the trainer, the device and the rank.
        whole: go on beyond such a limit, for callers that look for something rare and end by a bound of their own.
    """
    loader = method.trainer.train_dataloader or ()
    world = method.trainer.world_size
    if (
        isinstance(loader, DataLoader)
        and (world > 1 or loader.persistent_workers)  # such workers serve one pass at a time: ours would end that of training
        and loader.batch_size is not None
        and isinstance(loader.dataset, Sized)
    ):
        order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0)).tolist()
        loader = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=loader.sampler if world == 1 else order[method.global_rank :: world],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
    for batch in loader if whole else _limited(loader, method.trainer):
        converted = method.trainer.precision_plugin.convert_input(batch)
        yield flat_truth(method.trainer.strategy.batch_to_device(converted, method.device))


def _limited(loader: Iterable[Any], trainer: pl.Trainer) -> Iterable[Any]:
    """End a pass where an epoch that the user has shortened ends."""
    limit = trainer.limit_train_batches
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return loader
    return islice(loader, int(trainer.num_training_batches))


def normal_pixels(batch: Mapping[str, Any]) -> Tensor:
    """Find the pixels with data of mask 0, or all with data where there is no mask: (B, H, W) bool."""
    data = finite_pixels(batch["image"])
    return data & (batch["mask"] == NORMAL) if "mask" in batch else data


def counted_pixels(batch: Mapping[str, Any]) -> Tensor:
    """Find the pixels with data that are not void, of any class, as unlabelled ones: (B, H, W) bool."""
    data = finite_pixels(batch["image"])
    return data & (batch["mask"] != IGNORE) if "mask" in batch else data


def gathered_objects(part: Any) -> list[Any]:
    """Collect one object from each rank; alone, it is a list of one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def own_rank() -> int:
    """Give the number of this process among those that train together, 0 where it is alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0


def step_generator(method: pl.LightningModule, seed: int, batch_idx: int) -> torch.Generator:
    """Seed what a training step draws: on the processor, and different for every batch of every step on every rank.

    Args:
        method: tells the step and the rank.
        seed: of the method.
        batch_idx: number of the batch in its epoch; it tells batches apart whose gradients are joined to one step.
    """
    joined = method.trainer.accumulate_grad_batches if method._trainer else 1
    state = (seed * 1_000_003 + method.global_step) * 1009 + method.global_rank
    return torch.Generator().manual_seed(state + (batch_idx % joined) * 10_000_019)


class RefitClock:
    """Tell when that is due again which a method fits to its weights by passes over the training data.

    It is due before each validation of a training, which scores with it, and when the training ends, with a validation or without: the
    last weights are never scored with statistics of earlier ones. A method asks in the hook that each function names; the answer is yes at
    most once between two steps.
    """

    def __init__(self) -> None:
        self._step = -1

    def begin(self) -> None:
        """Forget the steps of an earlier training; in `on_train_start`."""
        self._step = -1

    def before_validation(self, method: pl.LightningModule) -> bool:
        """Ask in `on_validation_start`; never due in a sanity check or outside of a training."""
        return method.trainer.state.fn == "fit" and not method.trainer.sanity_checking and self._due(method)

    def after_epoch(self, method: pl.LightningModule, *, always: bool = False) -> bool:
        """Ask in `on_train_epoch_end`: due where nothing validates, and where the training ends as far as is known; or `always`."""
        return (always or not method.trainer.enable_validation or _ends(method.trainer)) and self._due(method)

    def at_end(self, method: pl.LightningModule) -> bool:
        """Ask in `on_train_end`: due where a callback stopped the training at the end of an epoch without a validation."""
        return self._due(method)

    def _due(self, method: pl.LightningModule) -> bool:
        new = self._step != method.global_step
        self._step = method.global_step
        return new


def _ends(trainer: pl.Trainer) -> bool:
    """Say at the end of an epoch whether it is the last one, before callbacks have their say."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return 0 < epochs <= trainer.current_epoch + 1 or 0 <= steps <= trainer.global_step or trainer.should_stop


def check_before_fit(method: pl.LightningModule, epochs: int) -> None:
    """Refuse what a training would stumble over at its end, and warn where it ends before its first validation, which calibrates.

    Args:
        method: whose constructor arguments the checkpoints of its trainer are to hold.
        epochs: of the training; -1 without an end.

    Raises:
        TypeError: a checkpoint is to be written, and it could not hold an argument.
    """
    trainer = method.trainer
    if trainer.checkpoint_callbacks:
        arguments_of(method)
    every = trainer.check_val_every_n_epoch or 1
    if 0 < epochs < every and trainer.enable_validation:
        warnings.warn(
            f"No validation falls into {epochs} epochs with one every {every}: scores stay uncalibrated, and a checkpoint that is chosen "
            "by a validation figure is never written. Lower check_val_every_n_epoch, or train for longer.",
            stacklevel=4,
        )
