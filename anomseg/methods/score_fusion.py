"""One map from several methods: what to do where no single one finds all kinds of anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from anomseg.calibration.base import Calibration
from anomseg.checkpoint_file import read_checkpoint
from anomseg.config import arguments_of, build
from anomseg.errors import CheckpointError
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.position_statistics import BorderStatistics, PlaceLevel, fit_together, peaks_of_places
from anomseg.methods.training_data import gathered_objects, normal_pixels, training_batches

FusionRule = Literal["max", "mean"]
_NO_PART = {"calibration", "optimisation"}  # of what a trained method was given


class ScoreFusion(AnomalySegmenter):
    """Score a pixel by the worst, or the mean, of what several methods say of it, each in its own units of what is normal.

    Raw scores of two methods share no scale. Each is standardised over the normal training pixels: with ``level="peak"`` over the highest
    one of every image, so that a method with wild maxima does not set those of all; with ``level="mean"`` over all of them. The maximum
    says that a pixel is as anomalous as its worst evidence, and lets one method see what is small and sharp and another what is wide and
    faint; the mean trusts what the methods agree on. Methods are fitted in turn, each as it would be alone, then all scales in one pass.
    A method that learns by descent comes trained, from a checkpoint, and stays as it is. A fusion may be one of the methods.

    Args:
        methods: at least one; their calibrations and optimisations play no part.
        rule: of the fusion, `max` or `mean`.
        limits: for each method, how many deviations above the usual normal pixel of `level` its scores may come close to, or None; higher
            ones keep their order below it. A method of limit 1 ranks the pixels that no other one sees, and raises no alarm by itself.
        level: what a score is measured against, the `peak` of each normal image or the `mean` of its pixels. Peaks want dozens of whole
            images; a single scene wants the mean.
        weights: of the mean, above 0, one for each method; None weighs all alike.
        checkpoints: for each method that learns by descent (`learns` is True) the file of its training, None for the others. Files are
            read when the fusion is fitted; its own checkpoint holds all weights.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: there is no method, one learns by descent and has no checkpoint, or an argument is unknown; in fitting, no pixel is
            normal, or a single image holds all of them and ``level="peak"``.
        FileNotFoundError: in fitting, a checkpoint is not there.
        CheckpointError: in fitting, a checkpoint is that of another method, or of one with other arguments.
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
        weights: Sequence[float] | None = None,
        checkpoints: Sequence[str | Path | None] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        self.methods: list[AnomalySegmenter] = build(list(methods))
        self.rule, self.limits, self.level = rule, None if limits is None else list(limits), level
        self.weights = None if weights is None else list(weights)
        self.checkpoints = None if checkpoints is None else [None if file is None else str(file) for file in checkpoints]
        if rule not in get_args(FusionRule) or level not in get_args(PlaceLevel):
            raise ValueError(
                f"Expected rule of {get_args(FusionRule)} and level of {get_args(PlaceLevel)}, but got {rule!r} and {level!r}."
            )
        if self.limits is not None and len(self.limits) != len(self.methods):
            raise ValueError(f"Expected a limit or None for each of the {len(self.methods)} methods, but got limits={self.limits}.")
        if self.weights is not None and (rule != "mean" or len(self.weights) != len(self.methods) or not min(self.weights) > 0):
            raise ValueError(
                f"Expected a weight above 0 for each of the {len(self.methods)} methods, and rule='mean', "
                f"but got weights={self.weights} and rule={rule!r}."
            )
        if self.checkpoints is not None and len(self.checkpoints) != len(self.methods):
            raise ValueError(
                f"Expected a checkpoint or None for each of the {len(self.methods)} methods, but got checkpoints={self.checkpoints}."
            )
        files = self.checkpoints or [None] * len(self.methods)
        untrained = [type(method).__name__ for method, file in zip(self.methods, files, strict=True) if method.learns and file is None]
        if untrained or not self.methods:
            raise ValueError(
                "Expected methods that learn nothing by descent, such as RX, PositionGaussian or FeatureLibrary, or a checkpoint of each "
                f"other one, but got {untrained or 'none'} without. Train a net alone first, and give its file by checkpoints=[...]."
            )
        needless = [type(method).__name__ for method, file in zip(self.methods, files, strict=True) if not method.learns and file]
        if needless:
            raise ValueError(f"Expected no checkpoint for methods that are fitted here, but got one for {needless}. Give None for them.")
        # What a method would step, and the clock by which Lightning counts its progress, are no part of this one's loss.
        self.parts = nn.ModuleList(method.requires_grad_(False) for method in self.methods)
        self.scales = nn.ModuleList(BorderStatistics(cuts=()) for _ in self.methods)

    def on_train_start(self) -> None:
        """Take the weights of trained methods, fit each other one, then the scales of all in one pass."""
        for method, file in zip(self.methods, self.checkpoints or [None] * len(self.methods), strict=True):
            if file is not None:
                _take_trained(method, file)
        for method in self.methods:
            if method.learns:
                continue
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
        if self.rule == "max":
            return stacked.amax(0)
        weights = stacked.new_tensor(self.weights or [1.0] * len(found))
        return torch.einsum("m,mbhw->bhw", weights / weights.sum(), stacked)


def _take_trained(method: AnomalySegmenter, file: str) -> None:
    """Load the state of a trained method of the same class and arguments."""
    checkpoint = read_checkpoint(file)
    saved = dict(checkpoint["hyper_parameters"])
    mine = {"_class_path": f"{type(method).__module__}.{type(method).__qualname__}", **arguments_of(method)}
    other = sorted(name for name in (saved.keys() | mine.keys()) - _NO_PART if saved.get(name) != mine.get(name))
    if other:
        told = ", ".join(f"{name}={saved.get(name)!r} for {mine.get(name)!r}" for name in other)
        raise CheckpointError(
            f"Expected '{file}' to hold a {type(method).__name__} of the arguments that the fusion gives it, but it differs: {told}. "
            "Give the method the arguments it was trained with; `anomseg.load` builds it so."
        )
    method.configure_model()
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=method.strict_loading)
