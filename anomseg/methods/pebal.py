"""Pixel-wise energy-biased abstention learning: a closed-set net learns to put off its answer on what it has never seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.energy import free_energy
from anomseg.functional.readouts import softmax_entropy
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.pebal_training import PUBLISHED_MARGINS, PEBALLoss, measured_margins, pebal_losses
from anomseg.methods.training_data import gathered_objects, training_batches
from anomseg.nets.segmentation import SegmentationSpec
from anomseg.optimisation import Optimisation
from anomseg.sample import IGNORE

Trainable = Literal["head", "decoder", "all"]
ScoreRule = Literal["energy", "entropy", "abstain", "fusion"]
_MARGIN_BATCHES = 16  # enough to know two means
_MOMENTUM = 0.02


class PEBAL(ClosedSetSegmenter):
    """Fine-tune a segmentation net with one output more, to abstain, on images with pasted or other outliers (mask 1).

    Args:
        classes: K, the known classes.
        net: as the segmenter has it; `CompactSegmenter()` by default.
        in_channels: bands of the image.
        segmenter: checkpoint of a trained `Segmenter`, from whose weights `fit` starts. None starts from fresh weights, which learn the
            classes and to abstain at once: slower, and not what was published.
        recipe: weights of the terms of the loss, see `PEBALLoss`.
        trainable: `head` alone, head and `decoder` as published, or `all`.
        margins: energies of inliers and outliers at which the hinge rests; None measures them on the first batches.
        score_rule: free `energy` of the known classes as published, their `entropy`, the logarithm of the probability to `abstain`, or
            the `fusion` of energy and abstention, each in standard deviations of the inliers.
        paper_faithful: the penalty with gradient and without bound, margins of -12 and -6, and frozen batch norms and dropouts in training
            mode; it collapses on a net whose energies are not that low.
        blur: standard deviation in pixels of a Gaussian over the score; the published 7 x 7 blur is 1.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`; 1e-5 with the poly schedule was published for the WideResNet38, small nets want 1e-3.

    Raises:
        ValueError: an argument is out of its range.

    Source: Tian et al., "Pixel-wise Energy-biased Abstention Learning for Anomaly Segmentation on Complex Urban Driving Scenes", ECCV 2022.
    """

    margin: Tensor
    inliers: Tensor

    def __init__(
        self,
        classes: int,
        net: SegmentationSpec | None = None,
        in_channels: int = 3,
        segmenter: str | None = None,
        recipe: PEBALLoss | None = None,
        trainable: Trainable = "all",
        margins: tuple[float, float] | None = None,
        score_rule: ScoreRule = "energy",
        paper_faithful: bool = False,
        blur: float = 0.0,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(
            classes, net, in_channels, classes + 1, segmenter, blur, calibration, build(optimisation, Optimisation) or Optimisation(1e-3)
        )
        if trainable not in get_args(Trainable) or score_rule not in get_args(ScoreRule):
            raise ValueError(
                f"Expected trainable of {get_args(Trainable)}, score_rule of {get_args(ScoreRule)}, but got {trainable!r}, {score_rule!r}."
            )
        if margins is not None and not (len(margins) == 2 and margins[0] <= margins[1]):
            raise ValueError(f"Expected margins of inliers <= outliers, but got {margins}. {PUBLISHED_MARGINS} are the published ones.")
        self.recipe: PEBALLoss = build(recipe, PEBALLoss) or PEBALLoss()
        self.trainable, self.margins, self.score_rule, self.paper_faithful = trainable, margins, score_rule, paper_faithful
        self.register_buffer("margin", torch.full((2,), torch.nan))
        self.register_buffer("inliers", torch.zeros(3, 2))  # weight, mean and mean square of energy and abstention

    def setup(self, stage: str) -> None:
        """Take the segmenter's weights, and freeze what is not trained."""
        super().setup(stage)
        if stage == "fit":
            kept = {id(p) for module in self._trained() for p in module.parameters()}
            for parameter in self.network.parameters():
                parameter.requires_grad_(id(parameter) in kept)

    def _trained(self) -> list[nn.Module]:
        if self.trainable == "all":
            return [self.network]
        return [self.network.head, *(self.network.decoder if self.trainable == "decoder" else [])]

    def on_train_start(self) -> None:
        """Take the statistics of the bands, and measure the margins; a resumed training keeps its own."""
        super().on_train_start()
        if bool(self.margin.isnan().any()):
            fixed = PUBLISHED_MARGINS if self.paper_faithful and self.margins is None else self.margins
            if fixed is None and self.recipe.energy:
                parts = gathered_objects(measured_margins(self._energies()))
                fixed = cast(tuple[float, float], tuple(sum(part[i] for part in parts) / len(parts) for i in (0, 1)))
            self.margin = torch.tensor(fixed or PUBLISHED_MARGINS).to(self.margin)

    @torch.no_grad()
    def _energies(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give energy, inliers and outliers of the first batches, by the net as it is."""
        training = self.network.training
        self.network.eval()
        for batch in islice(training_batches(self), _MARGIN_BATCHES):
            label, outlier = self.training_truth(batch)
            yield free_energy(self.logits(batch["image"])[:, : self.classes].float()), label != IGNORE, outlier
        self.network.train(training)

    def on_train_epoch_start(self) -> None:
        """Keep frozen parts in evaluation mode, so that their batch norms and dropouts do not drift."""
        if self.trainable != "all" and not self.paper_faithful:
            self.network.eval()
            for module in self._trained():
                module.train()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the terms of the loss; a batch without outliers, or of outliers alone, has those that it can."""
        label, outlier = self.training_truth(batch)
        logits = self.logits(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):
            margins = cast(tuple[float, float], tuple(self.margin.tolist()))
            losses = pebal_losses(logits, label, outlier, margins, self.recipe, bounded=not self.paper_faithful)
            self._observe(logits.detach().float(), label != IGNORE)
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(label))
        total: Tensor = torch.stack(list(losses.values())).sum()
        return total

    @torch.no_grad()
    def _observe(self, logits: Tensor, inlier: Tensor) -> None:
        """Bring the moments of the inliers' energy and abstention up to date."""
        sparse = (..., slice(None, None, 4), slice(None, None, 4))
        values = torch.stack([part[inlier[sparse]] for part in self._parts(logits[sparse])])
        if values.shape[1]:
            new = torch.stack([values.mean(1), values.square().mean(1)])
            weight = _MOMENTUM if bool(self.inliers[0].any()) else 1.0
            self.inliers = torch.cat([torch.ones_like(self.inliers[:1]), torch.lerp(self.inliers[1:], new.to(self.inliers), weight)])

    def _parts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the free energy and the logarithm of the probability to abstain, (B, H, W) each."""
        return free_energy(logits[:, : self.classes]), logits.log_softmax(1)[:, -1]

    def read(self, logits: Tensor) -> Tensor:
        """Score by `score_rule`; see the base class."""
        if self.score_rule == "entropy":
            return softmax_entropy(logits[:, : self.classes])
        energy, abstain = self._parts(logits)
        if self.score_rule == "fusion":
            _, mean, square = self.inliers
            spread = (square - mean.square()).clamp_min(1e-12).sqrt()
            fused: Tensor = (energy - mean[0]) / spread[0] + (abstain - mean[1]) / spread[1]
            return fused
        return energy if self.score_rule == "energy" else abstain

    def diagnostics(self) -> dict[str, Tensor]:
        """Give the mean energy of inliers in training: near 0 the net has learnt to explain everything by abstaining."""
        return {"inlier_energy": self.inliers[1, 0]}
