"""Passes over the training data outside of training steps: which batches a rank sees, which pixels count, and what the ranks found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader

from anomseg.sample import IGNORE, NORMAL, finite_pixels, flat_truth


def training_batches(method: pl.LightningModule) -> Iterator[Mapping[str, Any]]:
    """Serve this rank's part of the training data once, on the device of the method.

    In training, ranks must have equally many samples, so some are repeated. Here none is, and the ranks' parts join to the whole. Their
    order is drawn, so that the first batches hold samples of all kinds.
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
    for batch in loader:
        yield flat_truth(method.trainer.strategy.batch_to_device(batch, method.device))


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


def warn_without_validation(trainer: pl.Trainer) -> None:
    """Warn where a training ends before its first validation, which calibrates."""
    epochs, every = trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
    if 0 < epochs < every and trainer.enable_validation:
        warnings.warn(
            f"No validation falls into {epochs} epochs with one every {every}: scores stay uncalibrated, and a checkpoint that is chosen "
            "by a validation figure is never written. Lower check_val_every_n_epoch, or train for longer.",
            stacklevel=3,
        )
