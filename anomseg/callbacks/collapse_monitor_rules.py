"""What counts as a collapse: limits of figures, and the judge that turns a record of figures into verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from anomseg.functional.collapse import lost_progress

DIVERGED = "diverged"


@dataclass(frozen=True)
class CollapseLimits:
    """Say at which value a figure is that of a collapse; each figure is free of the scale of the data.

    Attributes:
        variance_ratio: below, reconstructions are of one colour.
        distance_ratio: below, all inputs give one reconstruction.
        score_spread: below, score maps are constant; standard deviation over root mean square.
        score_distance: below, all inputs give one score map; distance between maps over their standard deviation.
        skill: at or below, the mean image is the better reconstruction.
        copied: above, defects of every kind are copied and not repaired.
        feature_spread: below, features lie on a point; standard deviation over the largest size they have had.
        feature_rank: below, features lie on a line; the effective rank.
        dead_units: above, a layer is dead; share of units that say the same whatever is shown.
        weight_std: below, a layer is dead; standard deviation of its weights over their own at the start.
        moved: below, nothing is learnt; how far any layer has turned away from its start.
        lost_skill: drop below the best skill at which a training has diverged.
        lost_progress: share of the drop of the loss that is lost again at which a training has diverged, if it has also risen far.
        loss_rise: that far: above the best loss by this many times its size. Losses whose targets move, such as those of a sphere of
            moving radius, rise threefold without harm.
        patience: checks in a row, without getting better, after which a verdict is given, >= 1; NaN and infinity are told at once.
        min_steps: optimiser steps before which only divergence is judged: a net that has hardly begun draws grey as well.
    """

    variance_ratio: float = 0.05
    distance_ratio: float = 0.05
    score_spread: float = 1e-5
    score_distance: float = 1e-3
    skill: float = 0.0
    copied: float = 0.85
    feature_spread: float = 1e-3
    feature_rank: float = 1.05
    dead_units: float = 0.95
    weight_std: float = 0.05
    moved: float = 1e-5
    lost_skill: float = 0.5
    lost_progress: float = 0.5
    loss_rise: float = 9.0
    patience: int = 2
    min_steps: int = 32

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"Expected patience >= 1 check, but got {self.patience}.")


@dataclass(frozen=True)
class Verdict:
    """Say what has collapsed.

    Attributes:
        epoch: in which it was found, from 0.
        word: what it is, such as "constant output".
        figure: name of the figure that tells.
        value: of the figure.
        limit: that it has passed.
        advice: what to do.
    """

    epoch: int
    word: str
    figure: str
    value: float
    limit: float
    advice: str

    def __str__(self) -> str:
        return f"{self.word} (epoch {self.epoch}: {self.figure} {self.value:.3g}, limit {self.limit:.3g}). {self.advice}"


@dataclass(frozen=True)
class Findings:
    """Hold what one check has measured.

    Attributes:
        figures: values by name; those that the data cannot give are missing or NaN.
        steps: optimiser steps done.
        layers: names of the layers that figures of single layers are about.
        finite: whether outputs and loss are finite.
        loss_terms: names of the loss terms; where they change, losses before and after do not compare.
    """

    figures: Mapping[str, float]
    steps: int
    layers: Mapping[str, str] = field(default_factory=dict)
    finite: bool = True
    loss_terms: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Rule:
    """Name a collapse by one figure, on which side of its limit it lies, and the words whose consequence it may be."""

    word: str
    figure: str
    side: Literal["below", "above"]
    advice: str
    hidden_by: tuple[str, ...] = ()


IDLE, CONSTANT, SAME = "not learning", "constant output", "same output for every input"
_GROWTH = 1.5  # figures near 0 that grow by this factor from check to check belong to a slow learner
_CLOSER = 0.65  # other figures get better where their distance to the limit shrinks to this share
_MORE_SKILL = 0.01  # gain between two checks of a net that begins to see more than the mean image
_GROWING = frozenset({"variance_ratio", "distance_ratio", "score_spread", "score_distance", "feature_spread", "moved"})
_LEVEL = 0.5  # standard deviations of the images between their mean and that of a constant output that is not just their mean colour
_GREY = "The output is the mean colour: take a wider bottleneck or a first skip, less weight on blurring losses, or train longer."
_BLACK = (
    "The output lies {level:+.1f} standard deviations beside the images: take a linear output head (ReLU and sigmoid cannot reach "
    "normalised targets), a lower learning rate with warm-up, and GELU or LeakyReLU against dead units."
)
_LAYER = "Look for ReLU units that never fire, a learning rate or weight decay that is too high, and a branch without gradient."

RULES = (
    _Rule(
        IDLE,
        "moved",
        "below",
        "No weight has moved: check the learning rate, that parameters are not frozen, and that the loss depends on them.",
    ),
    _Rule(CONSTANT, "variance_ratio", "below", "", (IDLE,)),
    _Rule(
        CONSTANT, "score_spread", "below", "The score says nothing: lower the learning rate, and look at the terms of the loss.", (IDLE,)
    ),
    _Rule(
        SAME,
        "distance_ratio",
        "below",
        "The net draws the mean image and does not look at its input: widen the bottleneck, and check that the input reaches it.",
        (IDLE, CONSTANT),
    ),
    _Rule(SAME, "score_distance", "below", "The map does not depend on the image: check that the input reaches it.", (IDLE, CONSTANT)),
    _Rule(
        "worse than the mean image",
        "skill",
        "below",
        "Check the sign and the range of the loss (SSIM is 1 for equal images: the loss is 1 - SSIM), that output and target are in one "
        "unit, and the learning rate.",
        (IDLE, CONSTANT, SAME),
    ),
    _Rule(
        "identity shortcut",
        "copied",
        "above",
        "Defects are copied: train on corrupted inputs with clean targets, check that the target is not corrupted too, predict hidden "
        "pixels (masked), or drop skips.",
        (IDLE,),
    ),
    _Rule(
        "bottleneck collapsed",
        "feature_spread",
        "below",
        "Features lie on a point, and distances between them are rounding: lower the learning rate, use norm layers, add a term that "
        "keeps features apart, or drop the skips that make the bottleneck idle.",
        (IDLE,),
    ),
    _Rule(
        "bottleneck collapsed", "feature_rank", "below", "Features vary in one direction alone: add a term that keeps them apart.", (IDLE,)
    ),
    _Rule("dead layer", "dead_units", "above", _LAYER, (IDLE,)),
    _Rule("dead layer", "weight_std", "below", _LAYER, (IDLE,)),
)
_DIVERGED = "Lower the learning rate, let it fall (cosine), clip gradients at norm 1, and take the weights of an earlier epoch."


class Judge:
    """Keep the record of a training, and give a verdict once a figure has stayed beyond its limit.

    Args:
        limits: see `CollapseLimits`.
    """

    def __init__(self, limits: CollapseLimits) -> None:
        self.limits = limits
        self.sound = True  # whether nothing was beyond its limit at the last check
        self._streaks: dict[str, int] = {}
        self._before: dict[str, float] = {}
        self._losses: list[float] = []
        self._skills: list[float] = []
        self._terms: frozenset[str] = frozenset()
        self._rising_since: int | None = None  # the epoch
        self._risen = 0  # checks in a row
        self._said: set[str] = set()

    def judge(self, epoch: int, found: Findings) -> list[Verdict]:
        """Judge one check.

        Args:
            epoch: of training, from 0.
            found: what was measured.

        Returns:
            New verdicts, each word once in a training.
        """
        judged = found.finite and found.steps >= self.limits.min_steps
        beyond = [rule for rule in RULES if self._beyond(rule, found)] if judged else []
        held = [rule for rule in beyond if self._held(rule, found) >= self.limits.patience]
        self._streaks = {rule.figure: self._streaks[rule.figure] for rule in beyond}
        diverged, words = self._divergence(epoch, found), {rule.word for rule in beyond}
        self.sound = found.finite and not beyond and self._rising_since is None
        self._before = dict(found.figures)
        shown = {DIVERGED: diverged} if diverged else {}
        for rule in held:
            if not words.intersection(rule.hidden_by) and rule.word not in shown:
                shown[rule.word] = self._verdict(epoch, rule, found)
        new = [verdict for word, verdict in shown.items() if word not in self._said]
        self._said.update(shown)
        return new

    def _beyond(self, rule: _Rule, found: Findings) -> bool:
        value = found.figures.get(rule.figure, math.nan)
        limit: float = getattr(self.limits, rule.figure)
        return value > limit if rule.side == "above" else value <= limit  # False for NaN

    def _held(self, rule: _Rule, found: Findings) -> int:
        """Count the checks in a row beyond the limit; one that is clearly better than the one before begins anew."""
        value, before = found.figures[rule.figure], self._before.get(rule.figure, math.nan)
        limit: float = getattr(self.limits, rule.figure)
        closer = value > _GROWTH * before if rule.figure in _GROWING else abs(value - limit) < _CLOSER * abs(before - limit)
        if rule.word in (CONSTANT, SAME):
            closer = closer or found.figures.get("skill", 0.0) > max(self._before.get("skill", math.inf), 0.0) + _MORE_SKILL
        self._streaks[rule.figure] = 1 if closer else self._streaks.get(rule.figure, 0) + 1
        return self._streaks[rule.figure]

    def _verdict(self, epoch: int, rule: _Rule, found: Findings) -> Verdict:
        layer, level = found.layers.get(rule.figure), found.figures.get("level", 0.0)
        advice = rule.advice or (_GREY if abs(level) < _LEVEL else _BLACK.format(level=level))
        word = f"{rule.word} {layer}" if layer else rule.word
        return Verdict(epoch, word, rule.figure, found.figures[rule.figure], getattr(self.limits, rule.figure), advice)

    def _divergence(self, epoch: int, found: Findings) -> Verdict | None:
        """Find a loss or a skill that is far worse than its best and does not get better, or that is not finite."""
        if not found.finite:
            return Verdict(epoch, f"{DIVERGED} at epoch {epoch}", "loss", found.figures.get("loss", math.nan), math.inf, _DIVERGED)
        if found.loss_terms != self._terms:  # a new term is a new loss
            self._terms, self._losses = found.loss_terms, []
        self._losses += [found.figures["loss"]] if "loss" in found.figures else []
        self._skills += [found.figures["skill"]] if math.isfinite(found.figures.get("skill", math.nan)) else []
        signs = [one for one in (self._fallen_skill(), self._risen_loss()) if one]
        if not signs:
            self._rising_since, self._risen = None, 0
            return None
        self._rising_since, self._risen = epoch if self._rising_since is None else self._rising_since, self._risen + 1
        verdict = Verdict(epoch, f"{DIVERGED} at epoch {self._rising_since}", *signs[0], _DIVERGED)
        return verdict if self._risen >= self.limits.patience else None

    def _fallen_skill(self) -> tuple[str, float, float] | None:
        if len(self._skills) < 2 or max(self._skills) <= 0 or self._skills[-1] > self._skills[-2] + 0.05:
            return None
        limit = max(self._skills) - self.limits.lost_skill
        return ("skill", self._skills[-1], limit) if self._skills[-1] < limit else None

    def _risen_loss(self) -> tuple[str, float, float] | None:
        if len(self._losses) < 2:
            return None
        last, before, best = self._losses[-1], self._losses[-2], min(self._losses)
        risen = last - best >= self.limits.loss_rise * abs(best) and last > best
        falling = before - last > 0.1 * (before - best)
        lost = lost_progress(self._losses)
        return ("lost_progress", lost, self.limits.lost_progress) if risen and not falling and lost > self.limits.lost_progress else None
