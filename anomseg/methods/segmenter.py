"""Train a closed-set segmentation net, or take a trained one, and score what its classes do not explain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.exporting import is_exporting
from anomseg.functional.running_moments import running_moments
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.readouts import Entropy, Readout, Statistics
from anomseg.methods.training_data import gathered_objects, normal_pixels, training_batches
from anomseg.nets.segmentation import SegmentationSpec
from anomseg.optimisation import Optimisation
from anomseg.sample import IGNORE

Balance = Literal["none", "log"]
_STEP = 4  # of every so many rows and columns the moments are taken


class ReadoutSegmenter(ClosedSetSegmenter):
    """Score by a read-out, and keep the moments of the largest logit of each class that some of them need.

    Args:
        classes: see `ClosedSetSegmenter`.
        net: see `ClosedSetSegmenter`.
        in_channels: see `ClosedSetSegmenter`.
        readout: see `Readout`; `Entropy()` by default.
        segmenter: see `ClosedSetSegmenter`.
        smoothing: see `ClosedSetSegmenter`.
        centred: see `ClosedSetSegmenter`.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`.
    """

    moments: Tensor

    def __init__(
        self,
        classes: int,
        net: SegmentationSpec | None,
        in_channels: int,
        readout: Readout | None,
        segmenter: str | None,
        smoothing: float,
        centred: bool,
        calibration: Calibration | None,
        optimisation: Optimisation | None,
    ) -> None:
        super().__init__(classes, net, in_channels, classes, segmenter, smoothing, centred, calibration, optimisation)
        self.readout: Readout = build(readout) or Entropy()
        self.register_buffer("moments", torch.zeros(3, classes))  # weight, mean and mean square of each class

    def read(self, logits: Tensor) -> Tensor:
        """Score by the read-out; see the base class."""
        if not is_exporting() and not bool(self.moments[0].any()):
            return self.readout(logits, None)
        weight, mean, square = self.moments
        spread = (square - mean.square()).clamp_min(0.0).sqrt()
        seen = weight > 0
        typical = spread[seen].mean().clamp_min(1e-6)  # for a class that was never predicted
        std = torch.where(seen & (spread > 0), spread, typical)
        return self.readout(logits, Statistics(torch.where(seen, mean, mean[seen].mean()), std))

    @torch.no_grad()
    def observe(self, logits: Tensor, label: Tensor) -> None:
        """Bring the moments of each class up to date with a batch of logits; void pixels take no part."""
        self.moments = running_moments(self.moments, self.class_sums(logits, label))

    def class_sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """Count the pixels predicted as each class, and sum their largest logits and the squares of these: (3, K)."""
        top, predicted = logits[:, : self.classes, ::_STEP, ::_STEP].detach().float().max(1)
        counted = label[:, ::_STEP, ::_STEP] != IGNORE
        # One product instead of a selection, whose size a GPU would have to tell first.
        member = ((predicted[..., None] == torch.arange(self.classes, device=top.device)) & counted[..., None]).flatten(0, 2).to(top)
        values = top.flatten()
        with torch.autocast(logits.device.type, enabled=False):
            return torch.stack([torch.ones_like(values), values, values.square()]) @ member


class Segmenter(ReadoutSegmenter):
    """Learn the known classes by cross-entropy; outliers and void pixels teach nothing. `val_miou` tells how well it does.

    Args:
        classes: K, the known classes.
        net: see `SegmentationSpec`; `CompactSegmenter()` by default.
        in_channels: bands of the image.
        readout: what makes the score; `Entropy()` by default.
        balance: weight of a class of share p: 1, or 1 / ln(1.02 + p) (`log`), which helps rare classes.
        segmenter: checkpoint whose weights `fit` starts from, or None.
        smoothing: standard deviation in pixels of a Gaussian over the score; the published 7 x 7 blur is 1.
        centred: see `ClosedSetSegmenter`.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; AdamW at 2e-3 with the poly schedule by default.

    Raises:
        ValueError: an argument is out of its range.

    Source: class weights by Paszke et al., "ENet", 2016, arXiv 1606.02147.
    """

    weights: Tensor

    def __init__(
        self,
        classes: int,
        net: SegmentationSpec | None = None,
        in_channels: int = 3,
        readout: Readout | None = None,
        balance: Balance = "none",
        segmenter: str | None = None,
        smoothing: float = 0.0,
        centred: bool = False,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(classes, net, in_channels, readout, segmenter, smoothing, centred, calibration, optimisation)
        if balance not in ("none", "log"):
            raise ValueError(f"Expected balance 'none' or 'log', but got {balance!r}.")
        self.balance = balance
        self.register_buffer("weights", torch.ones(classes))

    def measure(self) -> None:
        """Count the shares of the classes where they weigh."""
        if self.balance == "log":
            counts = torch.zeros(self.classes, dtype=torch.int64)
            for batch in training_batches(self):
                label, _ = self.training_truth(batch)
                counts += torch.bincount(label[label != IGNORE].cpu(), minlength=self.classes)
            total = torch.stack(gathered_objects(counts)).sum(0)
            self.weights = (1 / torch.log(1.02 + total / total.sum().clamp_min(1))).to(self.weights)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy over the pixels of known classes; 0 where there is none."""
        label, _ = self.training_truth(batch)
        logits = self.logits(batch["image"])
        self.observe(logits, label)
        loss = class_loss(logits, label, self.weights)
        self.log("loss_classes", loss.detach(), batch_size=len(label))
        return loss


def class_loss(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the cross-entropy over the labelled pixels, weighted by class, in float32.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W), 255 for void.
        weights: (K,), or None for 1.

    Returns:
        () >= 0; 0 with a gradient of 0 where no pixel is labelled.
    """
    known = label != IGNORE
    cost = F.cross_entropy(logits.float(), label, weights, ignore_index=IGNORE, reduction="none")
    scale = known.float() if weights is None else torch.where(known, weights[label.masked_fill(~known, 0)], 0.0)
    return cost.sum() / scale.sum().clamp_min(1e-6)


class SegmentationReadout(ReadoutSegmenter):
    """Score by a read-out of a net that is trained already: fitting only calibrates, and takes the moments that a read-out needs.

    The net is that of a `Segmenter` checkpoint, of a published one (`WideResNet38(checkpoint=...)`), or any module of your own
    (`TrainedModule(module)`). For single logits call the read-out itself: ``MSP()(logits)``.

    Args:
        classes: K, as the net has it.
        segmenter: checkpoint of a trained `Segmenter`; needed to fit, and no more afterwards. None where `net` has ready weights.
        net: as the segmenter has it, or with ready weights.
        in_channels: bands of the image.
        readout: what makes the score; `Entropy()` by default.
        smoothing: see `Segmenter`.
        centred: see `ClosedSetSegmenter`.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range.
    """

    learns = False

    def __init__(
        self,
        classes: int,
        segmenter: str | None = None,
        net: SegmentationSpec | None = None,
        in_channels: int = 3,
        readout: Readout | None = None,
        smoothing: float = 0.0,
        centred: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(classes, net, in_channels, readout, segmenter, smoothing, centred, calibration, None)

    def begin_fresh(self) -> None:
        """Refuse to score by fresh weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Expected the checkpoint of a trained segmenter, but got none. Give segmenter=, a net with ready weights such as "
            "TrainedModule(module), or train with Segmenter."
        )

    def prepare(self) -> None:
        """Freeze the weights of the segmenter."""
        self.network.requires_grad_(False)

    @torch.no_grad()
    def measure(self) -> None:
        """Take the moments of the logits over the training images."""
        self.eval()
        total = torch.zeros(3, self.classes, dtype=torch.float64)
        for batch in training_batches(self):
            # A read-out can do without classes.
            known = batch["label"] if "label" in batch else torch.where(normal_pixels(batch), 0, IGNORE)
            label, _ = self.training_truth({**batch, "label": known})
            total += self.class_sums(self.logits(batch["image"]), label).double().cpu()
        total = torch.stack(gathered_objects(total)).sum(0)
        self.moments = torch.cat([total[:1].clamp_max(1.0), total[1:] / total[0].clamp_min(1)]).to(self.moments)
