"""Direct detection: a small net learns one scene's anomaly map from pseudo labels and simulated anomalies, without a label."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.config import build
from anomseg.functional.area_rx import fused_rx
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.functional.smoothing import gaussian
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.direct_training import DirectTraining, Lesson, pseudo_labels, scene_key, teach, teacher_map
from anomseg.sample import ANOMALY, IGNORE

KEPT_MAPS = 16


class DirectDetection(AnomalySegmenter):
    """Output the anomaly map directly, by a net that is trained for each scene on that scene, without a label.

    A scene is whitened to its first principal components. Pseudo labels come from a classical detector, further anomalies are implanted
    (`AnomalySimulation`), and a small net learns both with cross-entropy and a ranking loss. The map is the mean over five nets, the last
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

    least_pixels = 2
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
            key = scene_key(held)
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
        teacher = score = teacher_map(image, recipe, self.area)
        classical = teacher if recipe.teacher == "fusion" or not self.fused else fused_rx(image[None], area=self.area)[0]
        for turn in range(1 + recipe.rounds):
            label = pseudo_labels(teacher, scene.valid, recipe)
            lesson = Lesson(scene, label, self.area, len(scene.z))
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
