"""Direct detection: a small net learns one scene's anomaly map from pseudo labels and simulated anomalies, without a label."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.area_filter import area_details
from anomseg.functional.area_rx import area_filtered_rx, fused_rx, gaussian
from anomseg.functional.pseudo_labels import rank_labels
from anomseg.functional.ranking import hinge, logistic, pairwise_auroc_loss, sigmoid
from anomseg.functional.rx import global_rx
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.side_loss import side_loss
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.methods.base import AnomalySegmenter
from anomseg.nets.context_net import ContextNet, Norm, lift, lifted_channels
from anomseg.nets.deviation_unet import DeviationUNet, tdd_layout, uniadrs_layout
from anomseg.sample import ANOMALY, IGNORE

SURROGATES = {"hinge": hinge, "logistic": logistic, "sigmoid": sigmoid}
KEPT_MAPS = 16


@dataclass(frozen=True)
class DirectTraining:
    """Describe what the net of a scene learns from, and how.

    Attributes:
        teacher: detector whose top pixels are pseudo anomalies: `fusion` of area filter and local RX, `area`, `global`, or `none`,
            with which nothing is ignored either.
        positive_share: share of the pixels at the top of the teacher's map that is labelled anomalous.
        ignored_share: share below those that is neither trained as background nor as anomaly.
        losses: cross-entropy, the pairwise ranking loss, or both.
        surrogate: of the ranking loss.
        negative_weight: weight of normal pixels in the cross-entropy; anomalous ones weigh 1.
        nets: nets that are trained from different weights and draws, and averaged; a single one is a matter of luck on hard scenes.
        implants: how often anomalies are simulated anew for each net.
        steps: optimiser steps for each of them, on four random crops each.
        crop: side of a crop in pixels; smaller scenes are taken whole.
        lr: peak learning rate of AdamW, falling to 0 by a cosine.
        net: the small `ContextNet`, or the layout of a paper (`tdd`, `uniadrs`) on the same features, with its side outputs.
        width: share of the paper's channels, above 0; 1 is made for a GPU.
        norm: normalisation inside the small net.
        rounds: rounds of self-training after the first: the map becomes the teacher of a student with dropout and stochastic depth.
    """

    teacher: Literal["fusion", "area", "global", "none"] = "fusion"
    positive_share: float = 0.01
    ignored_share: float = 0.04
    losses: Literal["both", "cross_entropy", "ranking"] = "both"
    surrogate: Literal["hinge", "logistic", "sigmoid"] = "hinge"
    negative_weight: float = 0.1
    nets: int = 3
    implants: int = 24
    steps: int = 5
    crop: int = 40
    lr: float = 3e-3
    net: Literal["context", "tdd", "uniadrs"] = "context"
    width: float = 0.125
    norm: Norm = "none"
    rounds: int = 0


@dataclass
class _Lesson:
    """Hold what one scene teaches: its components, its features, and the labels of its own pixels."""

    scene: WhitenedScene
    label: Tensor
    area: int
    spread: Tensor = field(init=False)
    features: Tensor = field(init=False)

    def __post_init__(self) -> None:
        details = area_details(self.scene.z, self.area)
        spread = details.flatten(1).std(1)[:, None, None]
        self.spread = torch.where(spread > 1e-6, spread, torch.inf)
        self.features = lift(self.scene.z[None], (details / self.spread)[None])[0]

    def simulate(self, simulation: AnomalySimulation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Implant anomalies: (channels, H, W) features and (H, W) labels, pseudo labels standing where nothing was implanted."""
        z, label = simulation.implant(self.scene, self.label == IGNORE, generator)
        untouched = (z == self.scene.z).all(0)
        label = torch.where(untouched & (self.label == ANOMALY), ANOMALY, label)
        features = lift(z[None], (area_details(z, self.area) / self.spread)[None])[0]
        return features, label


class DirectDetection(AnomalySegmenter):
    """Output the anomaly map directly, by a net that is trained for each scene on that scene, without a label.

    A scene is whitened to its first principal components. Pseudo labels come from a classical detector, further anomalies are implanted
    (`AnomalySimulation`), and a small net learns both with cross-entropy and a ranking loss. The map is the mean over three nets, the last
    snapshots of each, and the eight flips and rotations. Scoring a scene trains its net: about half a minute for 10,000 pixels on one core;
    the maps of the last 16 scenes are kept. Any number of bands works, one band as well: only components enter the net.

    Args:
        components: principal components, at least 1; above the number of bands it is reduced to that.
        area: pixels, above the largest target; see `AreaRX`.
        fused: add the classical fusion's map (both as standard scores), which is more often right than either.
        recipe: see `DirectTraining`.
        simulation: see `AnomalySimulation`.
        seed: of everything that is drawn; a scene's map depends on the scene and the seed alone.
        calibration: see `AnomalySegmenter`.

    Source: Li et al., TDD (TGRS 2024) and UniADRS (TIP 2024) for one-step detection on simulated anomalies; the lifted components, pseudo
    labels by rank and the fit to a single scene are ours.
    """

    learns = False

    def __init__(
        self,
        components: int = 15,
        area: int = 30,
        fused: bool = False,
        recipe: DirectTraining | None = None,
        simulation: AnomalySimulation | None = None,
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if components < 1 or area < 2:
            raise ValueError(f"Expected components >= 1 and area >= 2 pixels, but got {components} and {area}.")
        self.components, self.area, self.fused, self.seed = components, area, fused, seed
        self.recipe: DirectTraining = build(recipe, DirectTraining) or DirectTraining()
        self.simulation: AnomalySimulation = build(simulation, AnomalySimulation) or AnomalySimulation()
        self._maps: dict[bytes, Tensor] = {}

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W); see the base class. Trains a net for every image that is not among the last 16."""
        return torch.stack([self._remembered(one) for one in image])

    def _remembered(self, image: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            held = image.detach().cpu().float().clone()
            key = hashlib.blake2b(held.numpy().tobytes(), digest_size=16).digest()
            if key not in self._maps:
                self._maps[key] = self._detect(held, image.device)
                while len(self._maps) > KEPT_MAPS:
                    del self._maps[next(iter(self._maps))]
            return self._maps[key].to(image.device)

    def _detect(self, image: Tensor, device: torch.device) -> Tensor:
        """Train on one (C, H, W) scene and give its (H, W) map."""
        scene = WhitenedScene.of(image, self.components)
        if not bool(scene.z.any()):
            return torch.zeros(scene.valid.shape)  # a constant scene, as RX scores it
        recipe = self.recipe
        teacher = score = self._teacher_map(image)
        classical = teacher if recipe.teacher == "fusion" or not self.fused else fused_rx(image[None], area=self.area)[0]
        for turn in range(1 + recipe.rounds):
            shares = (recipe.positive_share, recipe.ignored_share) if turn or recipe.teacher != "none" else (0.0, 0.0)
            label = rank_labels(teacher, *shares, scene.valid)
            lesson = _Lesson(scene, label, self.area)
            maps = []
            for net in range(recipe.nets):
                seed = recipe.nets * (self.seed * (1 + recipe.rounds) + turn) + net
                score = teach(lesson, recipe, self.simulation, seed, student=turn > 0, device=device)
                maps.append(_standard(checked_map(score, label, scene.valid), scene.valid))
            teacher = score = torch.stack(maps).mean(0)
        score = gaussian(score[None], 0.5, scene.valid[None])[0]
        if self.fused:
            score = _standard(score, scene.valid) + _standard(classical, scene.valid)
        return torch.where(scene.valid, score, 0.0)

    def _teacher_map(self, image: Tensor) -> Tensor:
        if self.recipe.teacher == "none":
            return torch.zeros(image.shape[1:])
        if self.recipe.teacher == "fusion":
            return fused_rx(image[None], area=self.area)[0]
        return global_rx(image[None])[0] if self.recipe.teacher == "global" else area_filtered_rx(image[None], area=self.area)[0]


def teach(
    lesson: _Lesson, recipe: DirectTraining, simulation: AnomalySimulation, seed: int, *, student: bool, device: torch.device
) -> Tensor:
    """Train a net on one scene and give its mean map, (H, W) logits on the CPU.

    Args:
        lesson: the scene and its labels.
        recipe: how to train.
        simulation: what to implant.
        seed: of weights and of everything that is drawn.
        student: whether the net has dropout and stochastic depth.
        device: where the net is trained.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = lifted_channels(len(lesson.scene.z))
        net = _net(channels, recipe, 0.2 if student else 0.0).to(device)
        optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.implants * recipe.steps)
        total, snapshots = torch.zeros(lesson.label.shape), 0
        for turn in range(recipe.implants):
            features, label = lesson.simulate(simulation, generator)
            net.train()
            for _ in range(recipe.steps):
                crops, truth = _crops(features, label, recipe.crop, generator)
                loss = _loss(_outputs(net, crops.to(device)), truth.to(device), recipe, generator)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
            late = turn >= 0.6 * recipe.implants and (recipe.implants - turn) % max(1, recipe.implants // 20) == 0
            if late or turn == recipe.implants - 1:
                total += _flipped_mean(net.eval(), lesson.features.to(device)).cpu()
                snapshots += 1
    return total / snapshots


def _net(channels: int, recipe: DirectTraining, drop: float) -> nn.Module:
    if recipe.net == "context":
        return ContextNet(channels, norm=recipe.norm, dropout=drop, depth_drop=drop)
    layout = tdd_layout() if recipe.net == "tdd" else uniadrs_layout()
    return DeviationUNet(channels, replace(layout, dropout=drop, stochastic_depth=drop), recipe.width)


def _outputs(net: nn.Module, features: Tensor) -> list[Tensor]:
    """Give logits (B, 1, h, w), finest first; one output of the small net, six of a paper's."""
    given = net(features)
    return given if isinstance(given, list) else [given[:, None]]


def _loss(outputs: list[Tensor], label: Tensor, recipe: DirectTraining, generator: torch.Generator) -> Tensor:
    logit = outputs[0][:, 0]
    loss = logit.sum() * 0.0
    counted = label != IGNORE
    if recipe.losses != "ranking" and len(outputs) > 1:
        loss = loss + side_loss(outputs, label, 1.0, recipe.negative_weight)
    elif recipe.losses != "ranking" and bool(counted.any()):
        target, weight = (label == ANOMALY).float(), torch.where(label == ANOMALY, 1.0, recipe.negative_weight) * counted
        entropy = functional.binary_cross_entropy_with_logits(logit, target, weight, reduction="sum")
        loss = loss + entropy / weight.sum()
    if recipe.losses != "cross_entropy":
        loss = loss + pairwise_auroc_loss(logit, label, generator=generator, n_pairs=1024, surrogate=SURROGATES[recipe.surrogate])
    return loss


def _crops(features: Tensor, label: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut four random crops, each flipped and turned at random."""
    height, width = label.shape
    side = min(side, height, width)
    crops, truths = [], []
    for _ in range(4):
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        turns, flip = int(torch.randint(4, (), generator=generator)), bool(torch.rand((), generator=generator) < 0.5)
        window = (..., slice(top, top + side), slice(left, left + side))
        pair = [plane[window].rot90(turns, (-2, -1)) for plane in (features, label)]
        crop, truth = (plane.flip(-1) if flip else plane for plane in pair)
        crops.append(crop)
        truths.append(truth)
    return torch.stack(crops), torch.stack(truths)


@torch.no_grad()
def _flipped_mean(net: nn.Module, features: Tensor) -> Tensor:
    """Average the logits over the eight flips and rotations of a scene."""
    total = torch.zeros(features.shape[1:], device=features.device)
    for turns in range(4):
        for flip in (False, True):
            view = features.rot90(turns, (-2, -1))
            logit = _outputs(net, (view.flip(-1) if flip else view)[None])[0][0, 0]
            total += (logit.flip(-1) if flip else logit).rot90(-turns, (-2, -1))
    return total / 8


def checked_map(score: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Refuse a collapsed map, and turn an inverted one, both judged without the truth.

    Args:
        score: (H, W) mean logits.
        label: (H, W) pseudo labels; without pseudo anomalies only a collapse is looked for.
        valid: (H, W) bool.

    Returns:
        The map, negated with a warning where it ranks pseudo anomalies below the rest.

    Raises:
        RuntimeError: the map is constant or not finite.
    """
    held = score[valid]
    if not bool(torch.isfinite(held).all()) or float(held.std()) < 1e-6 * (1 + float(held.abs().mean())):
        raise RuntimeError(
            f"Expected a map with contrast, but the net gave {float(held.min()):.3g} to {float(held.max()):.3g}: it collapsed. "
            "Lower recipe.lr, use losses='cross_entropy', or look whether the scene is constant."
        )
    positives, counted = label == ANOMALY, valid & (label != IGNORE)
    if bool(positives.any()):
        agreement = float(auroc(count_scores([score[counted]], [score[positives]])))
        if agreement < 0.5:
            warnings.warn(
                f"The map ranks the pseudo anomalies low (AUROC {agreement:.2f}) and was inverted. Check recipe.teacher on this scene.",
                stacklevel=2,
            )
            return -score
    return score


def _standard(score: Tensor, valid: Tensor) -> Tensor:
    held = score[valid]
    return (score - held.mean()) / held.std().clamp_min(1e-12)
