"""Pixel-wise energy-biased abstention learning: a closed-set net learns to put off its answer on what it has never seen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.energy import free_energy
from anomseg.functional.readouts import softmax_entropy
from anomseg.functional.running_moments import running_moments
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.pebal_training import (
    PUBLISHED_MARGINS,
    PEBALLoss,
    energy_sums,
    first_batches,
    measured_margins,
    pebal_losses,
    require_outliers,
)
from anomseg.methods.segmenter import class_loss
from anomseg.methods.training_data import gathered_objects
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.nets.segmentation import SegmentationNet, SegmentationSpec, second_decoder
from anomseg.optimisation import Optimisation
from anomseg.sample import IGNORE

Trainable = Literal["head", "decoder", "all"]
ScoreRule = Literal["energy", "entropy", "abstain", "fusion", "ensemble"]


class PEBAL(ClosedSetSegmenter):
    """Fine-tune a segmentation net with one output more, to abstain, on images with pasted or other outliers (mask 1).

    Args:
        classes: K, the known classes.
        net: as the segmenter has it; `CompactSegmenter()` by default.
        in_channels: bands of the image.
        segmenter: checkpoint of a trained `Segmenter`, from whose weights `fit` starts. None starts from the ready weights of the net, or
            else, with a warning, from fresh ones, which learn the classes and to abstain at once and need the epochs of both.
        recipe: weights of the terms of the loss, see `PEBALLoss`.
        trainable: `head` alone, head and `decoder` as published, or `all`.
        margins: energies of inliers and outliers at which the hinge rests; None measures them on the first batches. A net of fresh weights
            tells nothing by its energies: there the hinge rests for an epoch, and margins are measured after it.
        score_rule: free `energy` of the known classes as published, their `entropy`, the logarithm of the probability to `abstain`, the
            `fusion` of energy and entropy, each in standard deviations of the inliers, or the `ensemble` of these two and the entropy of
            the class decoder.
        class_decoder: give the classes a second decoder and head on the same encoder, which learn them by cross-entropy alone and answer
            for `classes` and mIoU; the first ones then learn from outliers without harm to the classes. Starts as a copy.
        paper_faithful: the penalty with gradient and without bound, margins of -12 and -6, and frozen batch norms and dropouts in training
            mode; it collapses on a net whose energies are not that low.
        smoothing: standard deviation in pixels of a Gaussian over the score; the published 7 x 7 blur is 1.
        centred: see `ClosedSetSegmenter`.
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
        class_decoder: bool = False,
        paper_faithful: bool = False,
        smoothing: float = 0.0,
        centred: bool = False,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        steps = build(optimisation, Optimisation) or Optimisation(1e-3)
        super().__init__(classes, net, in_channels, classes + 1, segmenter, smoothing, centred, calibration, steps)
        if trainable not in get_args(Trainable) or score_rule not in get_args(ScoreRule):
            raise ValueError(
                f"Expected trainable of {get_args(Trainable)}, score_rule of {get_args(ScoreRule)}, but got {trainable!r}, {score_rule!r}."
            )
        if (trainable == "decoder" or class_decoder) and not self.network.decoder:
            raise ValueError(
                f"Expected a net that names its decoder for trainable='decoder' or class_decoder=True, but {type(self.net).__name__} names "
                "none. Take trainable='head' or 'all', without a class decoder."
            )
        if score_rule == "ensemble" and not class_decoder:
            raise ValueError("Expected class_decoder=True for score_rule='ensemble', but got False. Give it, or take score_rule='fusion'.")
        if margins is not None and not (len(margins) == 2 and margins[0] <= margins[1]):
            raise ValueError(f"Expected margins of inliers <= outliers, but got {margins}. {PUBLISHED_MARGINS} are the published ones.")
        self.recipe: PEBALLoss = build(recipe, PEBALLoss) or PEBALLoss()
        self.trainable, self.margins, self.score_rule, self.paper_faithful = trainable, margins, score_rule, paper_faithful
        self.class_decoder = class_decoder
        self.register_buffer("margin", torch.full((2,), torch.nan))
        self.classifier = second_decoder(self.network) if class_decoder else None
        # Weight, mean and mean square of energy and entropy, and of the entropy of the class decoder.
        self.register_buffer("inliers", torch.zeros(3, 3 if class_decoder else 2))
        self._fresh = self._resting = False  # whether training began with fresh weights, and whether the hinge waits for margins
        self._at = PUBLISHED_MARGINS

    def begin_fresh(self) -> None:
        """Warn where there are no trained weights."""
        self._fresh = True
        warnings.warn(
            "PEBAL starts from fresh weights: it learns the classes and to abstain at once, needs the epochs of both, and shows no "
            "mIoU from before. To fine-tune as published, train a Segmenter first and give its checkpoint as segmenter=.",
            stacklevel=2,
        )

    def begin_trained(self) -> None:
        """Let the class decoder start as the trained one."""
        if self.classifier is not None:
            self.classifier.load_state_dict(second_decoder(self.network).state_dict())

    def prepare(self) -> None:
        """Freeze what is not trained."""
        kept = {id(p) for module in self._trained() for p in module.parameters()}
        for net in self._nets():
            for parameter in net.parameters():
                parameter.requires_grad_(id(parameter) in kept)

    def _nets(self) -> list[SegmentationNet]:
        return [self.network] if self.classifier is None else [self.network, self.classifier]

    def _trained(self) -> list[nn.Module]:
        if self.trainable == "all":
            return [*self._nets()]
        return [part for net in self._nets() for part in (net.head, *(net.decoder if self.trainable == "decoder" else []))]

    def measure(self) -> None:
        """Measure the margins; a resumed training keeps its own, or measures those that were put off."""
        self._keep_frozen()  # here too: a training that is resumed within an epoch does not start it again
        self._resting = False
        if bool(self.margin.isnan().any()):
            fixed = PUBLISHED_MARGINS if self.paper_faithful and self.margins is None else self.margins
            if fixed is None and self.recipe.energy:
                fixed = self._measured()  # also of fresh weights: data without outliers is an error now, and not after an epoch
                self._resting = (self._fresh or self.trainer.ckpt_path is not None) and not self.current_epoch
            else:
                require_outliers(self)
            self._rest_at(fixed or PUBLISHED_MARGINS)
        else:
            self._at = (float(self.margin[0]), float(self.margin[1]))
        self._fresh = False

    def logits(self, image: Tensor) -> Tensor:
        """Compute all outputs: K + 1 of the net, and after them the K of the class decoder; see the base class."""
        return torch.cat(self._decided(image), 1)

    def _decided(self, image: Tensor) -> list[Tensor]:
        filled = self.normalised(image)
        if self.classifier is None:
            return [self.network(filled)]
        maps, size = self.network.encode(filled), (image.shape[-2], image.shape[-1])
        return [net.decide(net.assemble(maps), size) for net in self._nets()]

    def _rest_at(self, margins: tuple[float, float]) -> None:
        self._at = margins
        if not self._resting:  # else the buffer stays empty, so that a training that is resumed measures them
            self.margin = torch.tensor(margins).to(self.margin)

    def _measured(self) -> tuple[float, float]:
        """Measure the margins on the first batches of all ranks, by the net as it is."""

        def energies() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            with evaluation_mode(self.network), torch.no_grad():
                for batch, label, outlier in first_batches(self):
                    logits = self.network(self.normalised(batch["image"]))
                    yield free_energy(logits[:, : self.classes].float()), label != IGNORE, outlier

        return measured_margins(torch.stack(gathered_objects(energy_sums(energies()))).sum(0))

    def on_train_epoch_start(self) -> None:
        """Measure margins that were put off."""
        self._keep_frozen()
        if self._resting and self.current_epoch:
            self._resting = False
            self._rest_at(self._measured())

    def _keep_frozen(self) -> None:
        """Put frozen parts into evaluation mode, so that their norms and dropouts do not drift."""
        if self.trainable != "all" and not self.paper_faithful:
            for net in self._nets():
                net.eval()
            for module in self._trained():
                module.train()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Compute the terms of the loss; a batch without outliers, or of outliers alone, has those that it can."""
        label, outlier = self.training_truth(batch)
        own, *apart = self._decided(batch["image"])
        with torch.autocast(own.device.type, enabled=False):
            recipe = replace(self.recipe, energy=0.0) if self._resting else self.recipe
            losses = pebal_losses(own, label, outlier, self._at, recipe, bounded=not self.paper_faithful)
            if apart:
                losses["class_decoder"] = class_loss(apart[0], label)
            self._observe([own, *apart], label != IGNORE)
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()}, batch_size=len(label))
        total: Tensor = torch.stack(list(losses.values())).sum()
        return total

    @torch.no_grad()
    def _observe(self, outputs: Sequence[Tensor], inlier: Tensor) -> None:
        """Bring the moments of the inliers' scores up to date."""
        sparse = (..., slice(None, None, 4), slice(None, None, 4))
        counted, values = inlier[sparse], self._parts(torch.cat([part[sparse] for part in outputs], 1).float())
        powers = torch.stack([torch.ones_like(values), values, values.square()])
        self.inliers = running_moments(self.inliers, torch.where(counted, powers, 0.0).sum((2, 3, 4)))

    def _parts(self, logits: Tensor) -> Tensor:
        """Compute free energy and entropy of the known classes, and the entropy of the class decoder: (2 or 3, B, H, W)."""
        known, apart = logits[:, : self.classes], logits[:, self.classes + 1 :]
        return torch.stack([free_energy(known), softmax_entropy(known), *([] if self.classifier is None else [softmax_entropy(apart)])])

    def votes(self, logits: Tensor) -> Tensor:
        """Take the logits of the class decoder, or else those of the net for the known classes; see the base class."""
        return logits[:, : self.classes] if self.classifier is None else logits[:, self.classes + 1 :]

    def read(self, logits: Tensor) -> Tensor:
        """Score by `score_rule`; see the base class."""
        if self.score_rule == "abstain":
            return logits[:, : self.classes + 1].log_softmax(1)[:, -1]
        if self.score_rule == "energy":
            return free_energy(logits[:, : self.classes])
        if self.score_rule == "entropy":
            return softmax_entropy(logits[:, : self.classes])
        _, mean, square = self.inliers[..., None, None, None]
        parts = (self._parts(logits) - mean) / (square - mean.square()).clamp_min(1e-12).sqrt()
        fused: Tensor = (parts if self.score_rule == "ensemble" else parts[:2]).sum(0)
        return fused

    def diagnostics(self) -> dict[str, Tensor]:
        """Give the mean energy of inliers in training: near 0 the net has learnt to explain everything by abstaining."""
        return {"inlier_energy": self.inliers[1, 0]}
