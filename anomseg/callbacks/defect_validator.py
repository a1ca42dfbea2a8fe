"""Validate on normal images with synthetic defects, and say what such a figure is worth."""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from anomseg.callbacks.collapse_monitor_probe import untouched
from anomseg.config import build
from anomseg.data.defects import Defect, default_defects
from anomseg.functional.bootstrap import Interval, bootstrap_auroc, weighted_auroc
from anomseg.methods.base import AnomalySegmenter
from anomseg.metrics.pixel import PixelAUROC, image_scores
from anomseg.sample import ANOMALY, IGNORE, NORMAL, finite_pixels, flat_truth, with_void

VALIDATIONS = 2  # in a row at which a figure must be high to count as saturated


class DefectFigures(NamedTuple):
    """Hold what one kind of defect at one strength gave.

    Attributes:
        auroc: of the pixels of clean and corrupted images.
        image_auroc: of the corrupted images against the clean ones.
        interval: of the image AUROC, 95 %.
    """

    auroc: float
    image_auroc: float
    interval: Interval


class _Held(NamedTuple):
    """Hold a normal image (C, H, W) and its truth (H, W) of 0 and 255, on the CPU."""

    image: Tensor
    truth: Tensor


class _Scored(NamedTuple):
    """Hold the score and the truth of one image, (1, H, W) each, its highest score and its label 0, 1, or 255 without any truth."""

    score: Tensor
    truth: Tensor
    highest: float
    label: int


class _Row(NamedTuple):
    """Hold the score of an image, its label, and a number that it shares with its corrupted copies."""

    score: float
    label: int
    group: int


class DefectValidator(pl.Callback):
    """Put defects into normal validation images after each validation, and measure how well the method finds them.

    A figure of synthetic defects misleads where it is easy, so that each kind and strength has figures of its own, the worst is named, an
    interval says what so few images can tell, and a figure that is saturated (at least 0.999 at two validations in a row) may not choose
    a checkpoint: training ends with the cure where a callback such as `ModelCheckpoint` monitors one.

    Logged, for each defect such as `CutPaste@0.3`: `defects/<defect>/auroc` (pixels) and `defects/<defect>/image_auroc`; further
    `defects/worst_auroc`, `defects/worst_image_auroc` with `_low` and `_high`, `defects/images`, and `defects/select`, the one to monitor:
    the mean of all figures, each cut off at 0.999. The cut makes a saturated figure the same constant for every checkpoint; were it left
    out, the mean would fall at the very moment at which training got better.

    The validator observes: random states, modes, gradients and weights are as they would be without it. The same images get the same
    defects at every validation, if validation images keep their order. With several devices each takes its share of the images.

    Args:
        defects: kinds of defects; `default_defects` by default.
        strengths: each kind is put in at each of these; None keeps the kinds' own.
        images: normal images that are used, drawn among those of the validation data; the cost is one score for each image and defect.
        seed: of that draw, of the defects and of the intervals.
        replicates: of the bootstrap over images, a clean image and its corrupted copy together.
        minimum: a warning says what the interval is where there are fewer images than that.
        saturation: AUROC from which a figure no longer tells checkpoints apart, in (0.5, 1].
        on_saturated: whether to `raise` or to `warn` where a saturated figure is monitored.

    Attributes:
        figures: those of the last validation, by defect.
        saturated: names of the logged figures that are saturated.

    Raises:
        ValueError: an argument is out of its range, or two defects have one name.
        RuntimeError: a saturated figure is monitored.
    """

    def __init__(
        self,
        defects: Sequence[Defect] | None = None,
        strengths: Sequence[float] | None = (0.3, 1.0),
        images: int = 32,
        seed: int = 0,
        replicates: int = 200,
        minimum: int = 20,
        saturation: float = 0.999,
        on_saturated: Literal["raise", "warn"] = "raise",
    ) -> None:
        if images < 1 or replicates < 1 or not 0.5 < saturation <= 1 or on_saturated not in ("raise", "warn"):
            came = f"images {images}, replicates {replicates}, saturation {saturation} and on_saturated '{on_saturated}'"
            raise ValueError(f"Expected images, replicates >= 1, a saturation in (0.5, 1], on_saturated 'raise' or 'warn', but got {came}.")
        self.defects = None if defects is None else tuple(build(defect) for defect in defects)
        self.strengths = None if strengths is None else tuple(strengths)
        self.images, self.seed, self.replicates, self.minimum = images, seed, replicates, minimum
        self.saturation, self.on_saturated = saturation, on_saturated
        self.cases = _cases(default_defects() if self.defects is None else self.defects, self.strengths)
        self.figures: dict[str, DefectFigures] = {}
        self._streaks: dict[str, int] = {}
        self._said: set[str] = set()
        self._restart()

    @property
    def saturated(self) -> list[str]:
        """Name the figures that have been saturated at the last two validations."""
        return [name for name, streak in self._streaks.items() if streak >= VALIDATIONS]

    def _restart(self) -> None:
        self._held: list[_Held] = []
        self._offered = 0
        self._draw = random.Random(self.seed)  # torch's generators cannot be sent to the processes that a trainer spawns

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the images of the last validation."""
        self._restart()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep normal images: a uniform sample of all that come, so that categories that follow one another have their share."""
        room = -(-self.images // trainer.world_size)
        for held in () if trainer.sanity_checking else _normal_images(batch):
            self._offered += 1
            place = len(self._held) if len(self._held) < room else self._draw.randrange(self._offered)
            if place < room:
                self._held[place : place + 1] = [held]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Corrupt, score and log."""
        if trainer.sanity_checking:
            return
        with untouched(pl_module), trainer.precision_plugin.forward_context():
            self.figures, images = self._measured(trainer, cast(AnomalySegmenter, pl_module))
        self._restart()
        if not self.figures:
            self._warn("none", "Found no normal image to put defects into. Validate on images whose mask is 0, or leave this out.")
            return
        values = _values(self.figures, self.saturation)
        pl_module.log_dict({**values, "defects/images": float(images)})
        worst, found = self._by_worst()[0]
        low, high = found.interval
        said = f"{worst}: image AUROC {found.image_auroc:.3f} [{low:.3f}, {high:.3f}] of {images} normal images"
        rank_zero_info(f"Worst synthetic defect {said}; to select by: {values['defects/select']:.4f}.")
        if images < self.minimum:
            self._warn("few", f"Synthetic defects were put into few images ({images} < {self.minimum}), intervals are wide: {said}.")
        if all(found.auroc == found.image_auroc == 0.5 for found in self.figures.values()):
            self._warn("constant", "Every image has one constant score, so that no defect can be told. The method has learnt nothing yet.")
        self._judge(trainer, values)

    def _measured(self, trainer: pl.Trainer, module: AnomalySegmenter) -> tuple[dict[str, DefectFigures], int]:
        """Measure every defect over the images of all ranks, and count these; every rank must call this."""
        clean = [self._scored(trainer, module, held.image, held.truth) for held in self._held]
        rows, pixels = dict[str, list[_Row]](), dict[str, float]()
        for case, (name, defect) in enumerate(self.cases.items()):  # a score for each image and defect
            metric, rows[name] = PixelAUROC().to(module.device), []
            for index, whole in enumerate(clean):
                spoilt = self._scored(trainer, module, *self._spoilt(defect, case, index, trainer.global_rank))
                if spoilt.label != ANOMALY:  # the defect lies where the truth is unknown
                    continue
                for one in (whole, spoilt):
                    metric.update(one.score, one.truth)
                    rows[name].append(_Row(one.highest, one.label, index * trainer.world_size + trainer.global_rank))
            with warnings.catch_warnings():  # a rank may have no image
                warnings.filterwarnings("ignore", ".*is undefined without.*|.*was called before the ``update`` method.*")
                pixels[name] = float(metric.compute())
        gathered = {name: found for name, found in _gathered(rows).items() if found}
        images = len({row.group for found in gathered.values() for row in found})
        return {name: self._figures(pixels[name], found) for name, found in gathered.items()}, images

    def _spoilt(self, defect: Defect, case: int, index: int, rank: int) -> tuple[Tensor, Tensor]:
        held = self._held[index]
        seed = ((self.seed * 1009 + rank) * 1009 + case) * 100_003 + index
        others = [other.image for number, other in enumerate(self._held) if number != index]
        image, changed = defect.apply(held.image, torch.Generator().manual_seed(seed), others)
        void = (held.truth == IGNORE) | ~finite_pixels(image[None])[0]
        return image, with_void(changed, void)

    def _scored(self, trainer: pl.Trainer, module: AnomalySegmenter, image: Tensor, truth: Tensor) -> _Scored:
        score = module.score_map(trainer.precision_plugin.convert_input(image[None].to(module.device)))
        truth = truth[None].to(score.device)
        values, labels = image_scores(score, truth)
        return _Scored(score, truth, float(values), int(labels))

    def _figures(self, pixels: float, rows: Sequence[_Row]) -> DefectFigures:
        scores, labels, groups = (torch.tensor([row[i] for row in rows]) for i in range(3))
        interval = bootstrap_auroc(scores, labels, self.replicates, self.seed, groups=groups)
        once = torch.ones_like(labels)[None]
        figure = float(weighted_auroc(scores, labels, once, groups))
        if math.isnan(figure):  # a single image has no other to be compared with
            figure = float(weighted_auroc(scores, labels, once))
        return DefectFigures(pixels, figure, interval)

    def _judge(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Say which figures are saturated, and refuse to choose by one."""
        for name in values:
            high = name.endswith(("auroc", "/select")) and values[name] >= self.saturation - 1e-9
            self._streaks[name] = self._streaks.get(name, 0) + 1 if high else 0
            if self._streaks[name] == VALIDATIONS:
                self._warn(name, f"'{name}' is saturated: at least {self.saturation} at {VALIDATIONS} validations, and says nothing more.")
        watched = {monitor for callback in _callbacks(trainer) if isinstance(monitor := getattr(callback, "monitor", None), str)}
        for name in sorted(watched & set(self.saturated)):
            message = (
                f"Expected a monitored figure that tells checkpoints apart, but '{name}' has been at least {self.saturation} at "
                f"{self._streaks[name]} validations. Monitor 'defects/select', or make defects harder: lower strengths, smaller sizes."
            )
            if self.on_saturated == "raise" and trainer.state.fn == TrainerFn.FITTING:
                raise RuntimeError(message)
            self._warn(f"monitor {name}", message)

    def _warn(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(message, stacklevel=3)

    def table(self) -> str:
        """Write the figures of the last validation as a Markdown table, the worst image AUROC first."""
        head = ["| defect | pixel AUROC | image AUROC | its 95 % interval |", "|---|---|---|---|"]
        ends = {name: "{:.3f} to {:.3f}".format(*found.interval) for name, found in self.figures.items()}
        return "\n".join([*head, *(f"| {n} | {f.auroc:.4f} | {f.image_auroc:.4f} | {ends[n]} |" for n, f in self._by_worst())])

    def _by_worst(self) -> list[tuple[str, DefectFigures]]:
        return sorted(self.figures.items(), key=lambda item: item[1].image_auroc)

    def state_dict(self) -> dict[str, Any]:
        """Keep how long each figure has been saturated."""
        return {"streaks": dict(self._streaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._streaks = dict(state_dict["streaks"])


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return cast(Any, trainer).callbacks or []  # set by a connector, where type checkers do not see it


def _cases(defects: Sequence[Defect], strengths: Sequence[float] | None) -> dict[str, Defect]:
    """Name each kind of defect at each strength."""
    cases: dict[str, Defect] = {}
    for defect in defects:
        for strength in (defect.strength,) if strengths is None else strengths:
            name = f"{type(defect).__name__}@{strength:g}"
            if name in cases:
                raise ValueError(f"Expected each defect once at each strength, but got '{name}' twice. Give each kind once.")
            cases[name] = dataclasses.replace(defect, strength=strength)
    if not cases:
        raise ValueError("Expected at least one kind of defect and one strength, but got none. Leave the callback out instead.")
    return cases


def _normal_images(batch: Any) -> Iterator[_Held]:
    """Give the images of a batch without an anomaly, where something is known of them and they hold data."""
    batch = flat_truth(batch)
    image = batch["image"]
    if image.ndim != 4:
        raise ValueError(f"Expected images (B, C, H, W) to put defects into, but got {tuple(image.shape)}. Leave DefectValidator out.")
    truth = with_void(batch["mask"], ~finite_pixels(image))
    labels = batch.get("image_label", torch.zeros(len(image), dtype=torch.int64, device=truth.device))
    for one, mask, label in zip(image, truth, labels, strict=True):
        if int(label) == NORMAL and bool((mask == NORMAL).any()) and not bool((mask == ANOMALY).any()):
            yield _Held(one.detach().float().cpu().clone(), mask.cpu())


def _values(figures: Mapping[str, DefectFigures], saturation: float) -> dict[str, float]:
    """Name the figures as they are logged."""
    values = {f"defects/{name}/{kind}": float(getattr(f, kind)) for name, f in figures.items() for kind in ("auroc", "image_auroc")}
    cut = [min(value, saturation) for value in values.values()]
    worst = min(figures.values(), key=lambda f: f.image_auroc)
    return {
        **values,
        "defects/worst_auroc": min(f.auroc for f in figures.values()),
        "defects/worst_image_auroc": worst.image_auroc,
        "defects/worst_image_auroc_low": worst.interval.low,
        "defects/worst_image_auroc_high": worst.interval.high,
        "defects/select": sum(cut) / len(cut),
    }


def _gathered(rows: dict[str, list[_Row]]) -> dict[str, list[_Row]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return {name: [row for part in parts for row in part[name]] for name in rows}
