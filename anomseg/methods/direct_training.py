"""How a small net is taught on whitened scenes: the recipe, what one scene teaches, the loss, and the loop over one scene."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomseg.config import check_choices
from anomseg.functional.area_filter import area_details
from anomseg.functional.area_rx import area_filtered_rx, fused_rx, pca_local_rx
from anomseg.functional.pseudo_labels import rank_labels, threshold_labels
from anomseg.functional.ranking import hinge, logistic, pairwise_auroc_loss, sigmoid
from anomseg.functional.rx import global_rx
from anomseg.functional.seeded import seeded
from anomseg.functional.side_loss import side_loss
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.functional.symmetries import mean_over_views
from anomseg.nets.context_net import ContextNet, Norm, lift, lifted_channels
from anomseg.nets.deviation_unet import DeviationUNet, tdd_layout, uniadrs_layout
from anomseg.sample import ANOMALY, IGNORE

SURROGATES = {"hinge": hinge, "logistic": logistic, "sigmoid": sigmoid}
CROPS = 4  # of every optimiser step


@dataclass(frozen=True)
class DirectTraining:
    """Describe what the net of a scene learns from, and how.

    Attributes:
        teacher: detector whose top pixels are pseudo anomalies: `fusion` of area filter and local RX, `area`, `local`, `global`, or
            `none`, with which nothing is ignored either.
        labels: from the teacher's map by `rank`, or by the `threshold` 0.5 of the map scaled to [0, 1], with which nothing is ignored.
        positive_share: share of the pixels at the top of the teacher's map that is labelled anomalous; 0 leaves simulated ones alone.
        ignored_share: share below those that is neither trained as background nor as anomaly.
        losses: cross-entropy, the pairwise ranking loss, or both.
        surrogate: of the ranking loss.
        negative_weight: weight of normal pixels in the cross-entropy; anomalous ones weigh 1.
        nets: nets that are trained from different weights and draws, and averaged; a single one varies on hard scenes.
        implants: how often anomalies are simulated anew for each net.
        steps: optimiser steps for each of them, on four random crops each.
        crop: side of a crop in pixels; smaller scenes are taken whole.
        lr: peak learning rate of AdamW, falling to 0 by a cosine.
        net: the small `ContextNet`, or the layout of a paper (`tdd`, `uniadrs`) on the same features, with its side outputs.
        width: share of the paper's channels, above 0; 1 is made for a GPU.
        norm: normalisation inside the small net.
        rounds: rounds of self-training after the first: the map becomes the teacher of a student with dropout and stochastic depth.
    """

    teacher: Literal["fusion", "area", "local", "global", "none"] = "fusion"
    labels: Literal["rank", "threshold"] = "rank"
    positive_share: float = 0.01
    ignored_share: float = 0.04
    losses: Literal["both", "cross_entropy", "ranking"] = "both"
    surrogate: Literal["hinge", "logistic", "sigmoid"] = "hinge"
    negative_weight: float = 0.1
    nets: int = 5
    implants: int = 24
    steps: int = 5
    crop: int = 40
    lr: float = 3e-3
    net: Literal["context", "tdd", "uniadrs"] = "context"
    width: float = 0.125
    norm: Norm = "batch"
    rounds: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if not (self.positive_share >= 0 and self.ignored_share >= 0 and self.positive_share + self.ignored_share < 1):
            raise ValueError(f"Expected shares >= 0 with a sum below 1, but got {self.positive_share} and {self.ignored_share}.")
        if min(self.nets, self.implants, self.steps, self.crop) < 1 or self.rounds < 0:
            came = f"{self.nets}, {self.implants}, {self.steps}, {self.crop} and {self.rounds}"
            raise ValueError(f"Expected nets, implants, steps and crop >= 1 and rounds >= 0, but got {came}.")
        if not (self.negative_weight > 0 and self.lr > 0 and self.width > 0):
            came = f"{self.negative_weight}, {self.lr} and {self.width}"
            raise ValueError(f"Expected negative_weight, lr and width above 0, but got {came}.")


def scene_key(image: Tensor) -> bytes:
    """Name a (C, H, W) float32 image on the processor by what it holds: 16 bytes that differ where its shape or a value does."""
    digest = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
    digest.update(image.contiguous().numpy().data)
    return digest.digest()


def teacher_map(image: Tensor, recipe: DirectTraining, area: int) -> Tensor:
    """Score one (C, H, W) image by the recipe's teacher: (H, W), zeros for `none`."""
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "fusion": partial(fused_rx, area=area),
        "area": partial(area_filtered_rx, area=area),
        "local": pca_local_rx,
        "global": global_rx,
    }
    return torch.zeros(image.shape[1:]) if recipe.teacher == "none" else maps[recipe.teacher](image[None])[0]


def pseudo_labels(teacher: Tensor, valid: Tensor, recipe: DirectTraining) -> Tensor:
    """Label the pixels of an (H, W) map by the recipe: 0, 1 and 255 where ignored or not valid; a map without contrast has no anomaly."""
    held = teacher[valid]
    if bool((held == held[0]).all()):
        return rank_labels(teacher, 0.0, 0.0, valid)
    if recipe.labels == "threshold":
        return threshold_labels(teacher, valid=valid)
    return rank_labels(teacher, recipe.positive_share, recipe.ignored_share, valid)


@dataclass
class Lesson:
    """Hold what one scene teaches.

    Attributes:
        scene: its whitened components.
        label: (H, W) pseudo labels of its own pixels: 0, 1 and 255.
        area: pixels, above the largest target.
        channels: components that the net expects; missing ones are zero.
        spread: (k, 1, 1) standard deviation of the details of the pixels with data.
        features: (6 channels + 4, H, W) what the net sees of the scene as it is; 0 where there is no data.
    """

    scene: WhitenedScene
    label: Tensor
    area: int
    channels: int
    spread: Tensor = field(init=False)
    features: Tensor = field(init=False)

    def __post_init__(self) -> None:
        details = self._details(self.scene.z)
        spread = details[:, self.scene.valid].std(1)[:, None, None]
        self.spread = torch.where(spread > 1e-6, spread, torch.inf)
        self.features = self._lifted(self.scene.z, details)

    def simulate(self, simulation: AnomalySimulation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Implant anomalies: features and (H, W) labels, pseudo labels standing where nothing was implanted."""
        z, label = simulation.implant(self.scene, self.label == IGNORE, generator)
        untouched = (z == self.scene.z).all(0)
        label = torch.where(untouched & (self.label == ANOMALY), ANOMALY, label)
        return self._lifted(z, self._details(z)), label

    def _details(self, z: Tensor) -> Tensor:
        """Keep the small details of (k, H, W) components; 0 where there is no data."""
        known = torch.where(self.scene.valid, z, torch.nan)  # zeros would join the regions on both sides of a gap
        return torch.where(self.scene.valid, area_details(known, self.area), 0.0)

    def _lifted(self, z: Tensor, details: Tensor) -> Tensor:
        return lift(z[None], (details / self.spread)[None], self.channels, self.scene.valid[None])[0]


def teach(
    lesson: Lesson, recipe: DirectTraining, simulation: AnomalySimulation, seed: int, *, student: bool, device: torch.device
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
    with seeded(seed):
        channels = lifted_channels(lesson.channels)
        net = built_net(channels, recipe, 0.2 if student else 0.0).to(device)
        optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.implants * recipe.steps)
        total, snapshots = torch.zeros(lesson.label.shape), 0
        for turn in range(recipe.implants):
            features, label = lesson.simulate(simulation, generator)
            net.train()
            for _ in range(recipe.steps):
                crops, truth = random_crops(features, label, recipe.crop, CROPS, generator)
                loss = lesson_loss(net, crops.to(device), truth.to(device), recipe, generator)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
            late = turn >= 0.6 * recipe.implants and (recipe.implants - turn) % max(1, recipe.implants // 20) == 0
            if late or turn == recipe.implants - 1:
                total += flipped_mean(net.eval(), lesson.features.to(device)).cpu()
                snapshots += 1
    return total / snapshots


def built_net(channels: int, recipe: DirectTraining, drop: float = 0.0) -> nn.Module:
    """Build the recipe's net for a number of input channels, with a chance of dropout and of stochastic depth."""
    if recipe.net == "context":
        return ContextNet(channels, norm=recipe.norm, dropout=drop, depth_drop=drop)
    layout = tdd_layout() if recipe.net == "tdd" else uniadrs_layout()
    return DeviationUNet(channels, replace(layout, dropout=drop, stochastic_depth=drop), recipe.width)


def _outputs(net: nn.Module, features: Tensor) -> list[Tensor]:
    """Give logits (B, 1, h, w), finest first; one output of the small net, six of a paper's."""
    given = net(features)
    return given if isinstance(given, list) else [given[:, None]]


def lesson_loss(net: nn.Module, features: Tensor, label: Tensor, recipe: DirectTraining, generator: torch.Generator) -> Tensor:
    """Compute the recipe's loss of a net on (B, channels, h, w) features with (B, h, w) labels; pixels labelled 255 have no part."""
    outputs = _outputs(net, features)
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


def random_crops(features: Tensor, label: Tensor, side: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut random crops of (channels, H, W) features and (H, W) labels, each flipped and turned at random; `side` is cut to the scene."""
    height, width = label.shape
    side = min(side, height, width)
    crops, truths = [], []
    for _ in range(count):
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
def flipped_mean(net: nn.Module, features: Tensor) -> Tensor:
    """Average the logits over the eight flips and rotations of a scene."""
    return mean_over_views(lambda view: _outputs(net, view[None])[0][0, 0], features, views=8)
