"""One map from several methods: what to do where no single one finds all kinds of anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.position_statistics import BorderStatistics, PlaceLevel, fit_together, peaks_of_places
from anomseg.methods.training_data import gathered_objects, normal_pixels, training_batches

FusionRule = Literal["max", "mean"]


class ScoreFusion(AnomalySegmenter):
    """Score a pixel by the worst, or the mean, of what several methods say of it, each in its own units of what is normal.

    Raw scores of two methods share no scale. Each is standardised over the normal training pixels: with ``level="peak"`` over the highest
    one of every image, so that a method with wild maxima does not set those of all; with ``level="mean"`` over all of them. The maximum
    says that a pixel is as anomalous as its worst evidence, and lets one method see what is small and sharp and another what is wide and
    faint; the mean trusts what the methods agree on. Methods are fitted in turn, each as it would be alone, then all scales in one pass.

    Args:
        methods: at least one, none of which learns by descent (`learns` is False); their calibrations and optimisations play no part.
        rule: of the fusion, `max` or `mean`.
        limits: for each method, how many deviations above the usual normal pixel of `level` its scores may come close to, or None; higher
            ones keep their order below it. A method of limit 1 ranks the pixels that no other one sees, and raises no alarm by itself.
        level: what a score is measured against, the `peak` of each normal image or the `mean` of its pixels. Peaks want dozens of whole
            images; a single scene wants the mean.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: there is no method, one learns by descent, or an argument is unknown; in fitting, no pixel is normal, or a single image
            holds all of them and ``level="peak"``.
        NotFittedError: scored before fitting.

    Source: the maximum and sum rules of Kittler et al., "On combining classifiers", IEEE TPAMI 20(3), 1998, here of standardised scores.
    """

    learns = False

    def __init__(
        self,
        methods: Sequence[AnomalySegmenter],
        rule: FusionRule = "max",
        limits: Sequence[float | None] | None = None,
        level: PlaceLevel = "peak",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        self.methods: list[AnomalySegmenter] = build(list(methods))
        self.rule, self.limits, self.level = rule, None if limits is None else list(limits), level
        if rule not in get_args(FusionRule) or level not in get_args(PlaceLevel):
            raise ValueError(
                f"Expected rule of {get_args(FusionRule)} and level of {get_args(PlaceLevel)}, but got {rule!r} and {level!r}."
            )
        if self.limits is not None and len(self.limits) != len(self.methods):
            raise ValueError(f"Expected a limit or None for each of the {len(self.methods)} methods, but got limits={self.limits}.")
        trained = [type(method).__name__ for method in self.methods if method.learns]
        if trained or not self.methods:
            raise ValueError(
                "Expected methods that learn nothing by descent, such as RX, PositionGaussian or FeatureLibrary, "
                f"but got {trained or 'none'}. A net that needs training steps is trained alone."
            )
        # What a method would step, and the clock by which Lightning counts its progress, are no part of this one's loss.
        self.parts = nn.ModuleList(method.requires_grad_(False) for method in self.methods)
        self.scales = nn.ModuleList(BorderStatistics(cuts=()) for _ in self.methods)

    def on_train_start(self) -> None:
        """Fit each method, then the scales of all in one pass."""
        for method in self.methods:
            method.trainer = self.trainer
            try:
                method.on_train_start()
            finally:
                method._trainer = None
        images = 0

        def maps() -> Iterator[list[tuple[Tensor, Tensor]]]:
            nonlocal images
            for batch in training_batches(self):
                normal = normal_pixels(batch)
                images += int(normal.flatten(1).any(1).sum())
                scores = [method.score_map(batch["image"]) for method in self.methods]
                yield [(s, peaks_of_places(s, normal, ()) if self.level == "peak" else normal) for s in scores]

        fit_together([cast(BorderStatistics, scale) for scale in self.scales], maps())
        if self.level == "peak" and sum(gathered_objects(images)) < 2:
            raise ValueError(
                "Expected normal pixels in two training images or more, whose highest scores differ, but got them in one. "
                "Take level='mean' for a single scene."
            )

    def score(self, image: Tensor) -> Tensor:
        """Score images that all of the methods take; see the base class."""
        found = []
        for method, scale, limit in zip(self.methods, self.scales, self.limits or [None] * len(self.methods), strict=True):
            score = method.score_map(image)
            score = scale(score, torch.ones_like(score, dtype=torch.bool))
            found.append(score if limit is None else limit - softplus(limit - score))
        stacked = torch.stack(found)
        return stacked.amax(0) if self.rule == "max" else stacked.mean(0)
