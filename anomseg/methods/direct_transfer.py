"""Direct detection with one set of weights: taught on some scenes, used on others, of another sensor and band count as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.functional.smoothing import gaussian
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.direct_training import (
    CROPS,
    DirectTraining,
    Lesson,
    built_net,
    flipped_mean,
    lesson_loss,
    pseudo_labels,
    random_crops,
    scene_key,
    teacher_map,
)
from anomseg.methods.training_data import step_generator
from anomseg.nets.context_net import lifted_channels
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.optimisation import Optimisation
from anomseg.sample import ANOMALY, IGNORE

KEPT_LESSONS = 32
UNUSED = ("implants", "lr", "rounds")  # of a recipe


class TransferDetection(AnomalySegmenter):
    """Teach nets on the training scenes as `DirectDetection` does, and keep their weights for any other scene.

    A scene enters as its own first whitened principal components, so nets that were taught on one sensor run on another one; a scene of
    fewer bands than `components` has zeros in the place of the missing ones. The signs of components are arbitrary, so they are drawn anew
    in every step. A step implants anomalies in every scene of the batch and cuts `4 x recipe.steps` crops for each net; one or two hundred
    steps teach. The rate is that of `optimisation` and the length that of the trainer: a recipe that sets `implants`, `lr` or `rounds`,
    which have no part here, is refused.

    Args:
        components: principal components that the nets see, at least 1.
        area: pixels, above the largest target; see `AreaRX`.
        recipe: see `DirectTraining`; `recipe.nets` nets are taught side by side and averaged, by default one without norm.
        simulation: see `AnomalySimulation`.
        seed: of what is implanted and cropped; weights follow torch's global seed.
        calibration: see `AnomalySegmenter`.
        optimisation: see `AnomalySegmenter`.

    Raises:
        ValueError: components or area out of range, or a recipe with other `implants`, `lr` or `rounds` than the defaults.

    Source: as `DirectDetection`; sharing weights through components is ours.
    """

    def __init__(
        self,
        components: int = 15,
        area: int = 30,
        recipe: DirectTraining | None = None,
        simulation: AnomalySimulation | None = None,
        seed: int = 0,
        calibration: Calibration | None = None,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__(calibration, optimisation or Optimisation(lr=3e-3, weight_decay=0.01))
        if components < 1 or area < 2:
            raise ValueError(f"Expected components >= 1 and area >= 2 pixels, but got {components} and {area}.")
        self.components, self.area, self.seed = components, area, seed
        self.recipe: DirectTraining = build(recipe, DirectTraining) or DirectTraining(nets=1, norm="none")
        self.simulation: AnomalySimulation = build(simulation, AnomalySimulation) or AnomalySimulation()
        moved = [name for name in UNUSED if getattr(self.recipe, name) != getattr(DirectTraining, name)]
        if moved:
            raise ValueError(
                f"Expected a recipe whose {', '.join(UNUSED)} are the defaults, but got others for {', '.join(moved)}: shared weights have "
                "no use for them. Set the rate in `optimisation` and the length in the trainer; DirectDetection has rounds."
            )
        self.nets = nn.ModuleList(built_net(lifted_channels(components), self.recipe) for _ in range(self.recipe.nets))
        self._lessons: dict[bytes, Lesson] = {}

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Implant anomalies in each scene of the batch and compute the loss of every net on crops of its own."""
        generator = step_generator(self, self.seed, batch_idx)
        losses = []
        for image in batch["image"]:
            lesson = self._lesson(image)
            features, label = lesson.simulate(self.simulation, generator)
            for net in self.nets:
                crops, truth = random_crops(features, label, self.recipe.crop, CROPS * self.recipe.steps, generator)
                crops = _signs_drawn(crops, self.components, generator).to(self.device)
                losses.append(lesson_loss(net, crops, truth.to(self.device), self.recipe, generator))
        loss = torch.stack(losses).mean()
        self.log("train_loss", loss, batch_size=len(batch["image"]))
        return loss

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) of any band count; see the base class."""
        return torch.stack([self._scored(one) for one in image])

    def diagnostics(self) -> dict[str, Tensor]:
        """Give `teacher_agreement`, the AUROC of the nets against the pseudo labels of a training scene; below 0.5 they are inverted."""
        if not self._lessons or self.recipe.teacher == "none":
            return {}
        lesson = next(reversed(self._lessons.values()))
        score = self._mean_map(lesson)
        counted, positives = lesson.scene.valid & (lesson.label != IGNORE), lesson.label == ANOMALY
        return {"teacher_agreement": torch.as_tensor(auroc(count_scores([score[counted]], [score[positives]])))}

    def _scored(self, image: Tensor) -> Tensor:
        held = image.detach().cpu().float()
        scene = WhitenedScene.of(held, self.components)
        if not bool(scene.z.any()):
            return image.new_zeros(scene.valid.shape)  # a constant scene, as RX scores it
        lesson = Lesson(scene, torch.zeros(scene.valid.shape, dtype=torch.int64), self.area, self.components)
        score = gaussian(self._mean_map(lesson)[None], 0.5, scene.valid[None])[0]
        return torch.where(scene.valid, score, 0.0).to(image.device)

    def _mean_map(self, lesson: Lesson) -> Tensor:
        with evaluation_mode(self.nets):
            return torch.stack([flipped_mean(net, lesson.features.to(self.device)).cpu() for net in self.nets]).mean(0)

    def _lesson(self, image: Tensor) -> Lesson:
        held = image.detach().cpu().float()
        key = scene_key(held)  # not its name, which batches may lack and crops of one scene share
        if key not in self._lessons:
            scene = WhitenedScene.of(held, self.components)
            label = pseudo_labels(teacher_map(held, self.recipe, self.area), scene.valid, self.recipe)
            self._lessons[key] = Lesson(scene, label, self.area, self.components)
            while len(self._lessons) > KEPT_LESSONS:
                del self._lessons[next(iter(self._lessons))]
        return self._lessons[key]


def _signs_drawn(features: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Turn the signs of components at random, one draw for each of (B, channels, h, w) lifted crops."""
    signs = torch.randint(2, (len(features), components, 1, 1), generator=generator).float() * 2 - 1
    signed = features[:, : 2 * components] * signs.repeat(1, 2, 1, 1)
    return torch.cat([signed, features[:, 2 * components :]], dim=1)
