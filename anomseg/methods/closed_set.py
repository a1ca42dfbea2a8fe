"""What all methods share that stand on a closed-set segmentation net: its weights, its classes, mIoU beside the figures of anomalies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.checkpoint_file import read_checkpoint
from anomseg.config import build
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.exporting import is_exporting
from anomseg.functional.smoothing import centre, gaussian
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.svdd_inputs import channel_statistics
from anomseg.methods.training_data import training_batches
from anomseg.metrics.segmentation import MeanIoU
from anomseg.nets.segmentation import CompactSegmenter, SegmentationNet, SegmentationSpec, widen_head
from anomseg.optimisation import Optimisation
from anomseg.sample import ANOMALY, IGNORE, fill_nodata, finite_pixels, flat_truth


class ClosedSetSegmenter(AnomalySegmenter):
    """Hold a segmentation net of K known classes: statistics of the bands, mIoU beside the figures of anomalies, classes in predictions.

    Batches carry `label` (B, H, W): class 0 to K - 1, or 255 where there is none, and `mask`, which is 1 on outliers.

    Args:
        classes: K, the known classes, at least 2.
        net: see `SegmentationSpec`.
        in_channels: bands of the image.
        outputs: outputs of the net, K or more; `widen_head` adds those beyond K.
        segmenter: checkpoint of a trained segmenter whose weights `fit` starts from; None starts from fresh ones. It is not needed later:
            own checkpoints hold all weights, also to resume from.
        smoothing: standard deviation in pixels of a Gaussian over the score; 0 for none.
        centred: subtract from the score its mean over the pixels of the frame, so that a frame in strange light, which the net doubts
            everywhere, does not stand above all others. The score of a pixel then depends on the whole of the image that is given.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        net: SegmentationSpec | None,
        in_channels: int,
        outputs: int,
        segmenter: str | None,
        smoothing: float,
        centred: bool,
        calibration: Calibration | None,
        optimisation: Optimisation | None,
    ) -> None:
        super().__init__(calibration, build(optimisation, Optimisation) or Optimisation(lr=2e-3, warmup=0.05, schedule="poly"))
        if classes < 2 or in_channels < 1 or not smoothing >= 0:
            raise ValueError(
                f"Expected classes >= 2, in_channels >= 1 and smoothing >= 0, but got {classes}, {in_channels} and {smoothing}."
            )
        self.classes, self.in_channels, self.segmenter = classes, in_channels, segmenter
        self.smoothing, self.centred = smoothing, centred
        self.net: SegmentationSpec = build(net) or CompactSegmenter()
        self.network: SegmentationNet = self.net.build(in_channels, classes)
        if outputs > classes:
            widen_head(self.network, outputs - classes)
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.zeros(in_channels))
        self.val_miou, self.test_miou = MeanIoU(classes), MeanIoU(classes)

    @final
    def setup(self, stage: str) -> None:
        """Compare the classes with those of the data, and freeze what is not trained; without a trainer, also take trained weights.

        Raises:
            ValueError: the data module has another number of classes.
        """
        if stage != "fit":
            return
        if self.learns:
            self._check_classes()
        if self._trainer is None:
            self._take_weights()
        self.prepare()

    def _take_weights(self) -> None:
        """Take the weights of `segmenter`, or the ready ones that the description of the net names, where there are none yet.

        Raises:
            FileNotFoundError: the file of `segmenter` is missing.
            CheckpointError: it holds another net or another number of classes.
            ValueError: ready weights expect other bands.
        """
        if bool(self.std.any()):
            return
        if self.segmenter is not None:
            self.start_from(self.segmenter)
        elif (bands := self.net.ready(self.described)) is not None:
            self._take_bands(*bands)
        if bool(self.std.any()):
            self.begin_trained()
        else:
            self.begin_fresh()

    def _check_classes(self) -> None:
        named = getattr(getattr(self._trainer, "datamodule", None), "classes", None)
        if isinstance(named, list | tuple) and named and len(named) != self.classes:
            raise ValueError(
                f"Expected a data module of {self.classes} classes, but it has {len(named)}: {list(named)[:24]}. Set classes={len(named)}."
            )

    def _take_bands(self, mean: Tensor, std: Tensor) -> None:
        if (self.in_channels,) != mean.shape or mean.shape != std.shape:
            raise ValueError(
                f"Expected ready weights for in_channels={self.in_channels} bands, but they come with statistics of {len(mean)} and "
                f"{len(std)}. Set in_channels to what the net was trained on."
            )
        self.mean, self.std = mean.to(self.mean), std.to(self.std)

    def begin_fresh(self) -> None:
        """Warn or refuse where a first fit begins with fresh weights; nothing by default."""

    def begin_trained(self) -> None:
        """Go on from trained weights that were just taken, before a first fit; nothing by default."""

    def prepare(self) -> None:
        """Freeze what is not trained, before a fit, resumed or not; nothing by default."""

    def measure(self) -> None:
        """Take from the training data what the method needs beside the bands, before the first step; nothing by default."""

    @property
    def described(self) -> SegmentationNet:
        """Give the net that `net` describes."""
        return self.network

    @final
    def on_train_start(self) -> None:
        """Take trained weights, or the statistics of the bands from the training images; a resumed training keeps its own.

        Not before: a checkpoint to resume from is read after `setup`, and then no other file is needed.
        """
        self._take_weights()
        if not bool(self.std.any()):
            images = ((batch["image"], finite_pixels(batch["image"])) for batch in training_batches(self))
            self.mean, self.std = (value.to(self.device) for value in channel_statistics(images, self.in_channels))
        self.measure()

    def logits(self, image: Tensor) -> Tensor:
        """Compute all outputs of the net, (B, outputs, H, W), of an image (B, C, H, W).

        Raises:
            ValueError: the image has other bands.
            NotFittedError: neither trained nor started from trained weights.
        """
        return cast(Tensor, self.network(self.normalised(image)))

    def normalised(self, image: Tensor) -> Tensor:
        """Bring the bands to the statistics of the training images, 0 where there is no data; raises as `logits` does."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected images (B, {self.in_channels}, H, W), but got {tuple(image.shape)}. Set in_channels to their bands."
            )
        if not is_exporting() and not bool(self.std.any()):
            raise NotFittedError("Expected a trained net, but it holds no statistics of the bands. Call `trainer.fit` first.")
        return fill_nodata((image - self.mean[:, None, None]) / self.std[:, None, None])[0]

    def score(self, image: Tensor) -> Tensor:
        """Score by the read-out, and keep the known class that fits best, `classes` (B, H, W), for mIoU and `predict`."""
        logits = self.logits(image)
        self.further_maps = {"classes": self.votes(logits).argmax(1)}
        with torch.autocast(image.device.type, enabled=False):
            score = self.read(logits.float())
        if self.smoothing or self.centred:
            data = finite_pixels(image)
            score = gaussian(score, self.smoothing, data) if self.smoothing else score
            score = centre(score, data) if self.centred else score
        return score

    def votes(self, logits: Tensor) -> Tensor:
        """Take what speaks for each known class, (B, K, H, W), from all outputs (B, outputs, H, W): their own by default."""
        return logits[:, : self.classes]

    @abstractmethod
    def read(self, logits: Tensor) -> Tensor:
        """Turn all outputs (B, outputs, H, W) float32 into scores (B, H, W), higher is more anomalous."""

    def on_validation_batch_end(self, outputs: Any, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the classes of a validation batch."""
        self._count_classes("val_miou", self.val_miou, batch)

    def on_test_batch_end(self, outputs: Any, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the classes of a test batch."""
        self._count_classes("test_miou", self.test_miou, batch)

    def _count_classes(self, name: str, metric: MeanIoU, batch: Mapping[str, Any]) -> None:
        if "label" in batch and "classes" in self.further_maps and not self.trainer.sanity_checking:
            label = flat_truth(batch)["label"].long().masked_fill(~finite_pixels(batch["image"]), IGNORE)
            metric.update(self.further_maps["classes"], label)
            self.log(name, metric, on_step=False, on_epoch=True, batch_size=len(label))

    def training_truth(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Give the class of each pixel, 255 where nothing is learnt, and which are outliers, (B, H, W) each.

        Raises:
            TypeError: labels are no integers.
            ValueError: there is no label, or one that is no class.
        """
        if "label" not in batch:
            raise ValueError(
                f"Expected training batches with 'label', class ids 0 to {self.classes - 1}, but got {sorted(batch)}. "
                "Use a data module that serves classes, such as DrivingDataModule."
            )
        if batch["label"].is_floating_point():
            raise TypeError(f"Expected batch['label'] to be an integer tensor, but got {batch['label'].dtype}. Cast it with .long().")
        data = finite_pixels(batch["image"])
        outlier = (batch["mask"] == ANOMALY) & data if "mask" in batch else torch.zeros_like(data)
        label = batch["label"].long().masked_fill(~data | outlier, IGNORE)
        if int(label.masked_fill(label == IGNORE, 0).amax()) >= self.classes or int(label.amin()) < 0:
            found = torch.unique(label[((label >= self.classes) & (label != IGNORE)) | (label < 0)])[:8].tolist()
            raise ValueError(f"Expected labels 0 to {self.classes - 1}, or 255 for void, but got {found}. Set classes to their number.")
        return label, outlier

    def start_from(self, path: str) -> None:
        """Take weights and statistics of the bands of a trained segmenter; outputs beyond its own keep their fresh weights.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it holds another net or another number of classes.
        """
        checkpoint = read_checkpoint(path)
        held, theirs = checkpoint["state_dict"], checkpoint["hyper_parameters"].get("classes")
        # Shapes alone do not tell: one class more has the shape of an output to abstain.
        if isinstance(theirs, int) and theirs != self.classes:
            raise CheckpointError(
                f"Expected a net trained for {self.classes} classes in '{path}', but it was trained for {theirs}. Set classes={theirs}, or "
                "take another checkpoint."
            )
        stored = {name.removeprefix("network."): value for name, value in held.items() if name.startswith("network.")}
        own = self.described.state_dict()
        for name, value in stored.items():
            mine = own.get(name)
            if mine is not None and value.ndim and mine.shape[1:] == value.shape[1:] and len(value) == self.classes < len(mine):
                stored[name] = torch.cat([value.to(mine), mine[self.classes :]])
        unlike = sorted(name for name in stored if name not in own or own[name].shape != stored[name].shape)
        missing = sorted(set(own) - set(stored))
        bands = [held.get(name, torch.empty(0)) for name in ("mean", "std")]
        if unlike or missing or any(value.shape != self.mean.shape for value in bands):
            shapes = {name: tuple(stored[name].shape) for name in unlike[:3]}
            raise CheckpointError(
                f"Expected the weights of {type(self.net).__name__} for {self.classes} classes and {self.in_channels} bands in '{path}', "
                f"but it holds {shapes} and statistics of {len(bands[0])} bands, and lacks {missing[:3]}. Give net=, classes= and "
                "in_channels= as the segmenter was trained with; outputs are added here, not there."
            )
        self.described.load_state_dict(stored)
        self._take_bands(*bands)
