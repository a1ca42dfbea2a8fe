"""Measure detectors on a folder of hyperspectral scenes: python tests/benchmarks/bench_direct.py [--arms NAME ...] [--seeds N].

ANOMSEG_DATA names the folder that holds hyperspectral/*.mat. Prints AUROC for each scene, their mean and the worst; for arms that train a
net also fused with the classical map, and the seconds a scene took.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anomseg.data.read_scene import find_scenes, read_scene
from anomseg.functional.area_rx import area_filtered_rx, fused_rx, pca_local_rx
from anomseg.functional.crd import pca_collaborative_representation
from anomseg.functional.rx import global_rx
from anomseg.functional.score_curves import auroc, detectability
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.simulation import AnomalySimulation
from anomseg.methods.direct import DirectDetection, DirectTraining

CLASSICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "global RX": global_rx,
    "area-filtered RX": area_filtered_rx,
    "local RX in components": pca_local_rx,
    "CRD": pca_collaborative_representation,
    "fusion": fused_rx,
}
ARMS: dict[str, dict[str, object]] = {
    "direct": {},
    "cross-entropy": {"recipe": DirectTraining(losses="cross_entropy")},
    "ranking": {"recipe": DirectTraining(losses="ranking")},
    "sigmoid": {"recipe": DirectTraining(surrogate="sigmoid")},
    "instance norm": {"recipe": DirectTraining(norm="instance")},
    "no norm": {"recipe": DirectTraining(norm="none")},
    "teacher none": {"recipe": DirectTraining(teacher="none")},
    "teacher global": {"recipe": DirectTraining(teacher="global")},
    "teacher area": {"recipe": DirectTraining(teacher="area")},
    "positives 0.5 %": {"recipe": DirectTraining(positive_share=0.005, ignored_share=0.045)},
    "positives 2 %": {"recipe": DirectTraining(positive_share=0.02, ignored_share=0.03)},
    "ignored 2 %": {"recipe": DirectTraining(ignored_share=0.02)},
    "ignored 8 %": {"recipe": DirectTraining(ignored_share=0.08)},
    "one net": {"recipe": DirectTraining(nets=1)},
    "implants 12": {"recipe": DirectTraining(implants=12)},
    "implants 48": {"recipe": DirectTraining(implants=48)},
    "one round more": {"recipe": DirectTraining(rounds=1)},
    "components 8": {"components": 8},
    "components 30": {"components": 30},
    "area 15": {"area": 15},
    "area 60": {"area": 60},
    "density 12": {"simulation": AnomalySimulation(density=12.0)},
    "density 50": {"simulation": AnomalySimulation(density=50.0)},
    "no large areas": {"simulation": AnomalySimulation(large=0.0)},
}


def varied(image: Tensor, variant: str) -> Tensor:
    """Change a (1, C, H, W) scene: every second band, a random half of the bands, or noise at 20 dB."""
    generator = torch.Generator().manual_seed(0)
    if variant == "every second band":
        return image[:, ::2]
    if variant == "half of the bands":
        return image[:, torch.randperm(image.shape[1], generator=generator)[: image.shape[1] // 2].sort().values]
    if variant == "20 dB":
        power = image.square().mean((2, 3), keepdim=True)
        return image + torch.randn(image.shape, generator=generator) * (power / 100).sqrt()
    return image


def measured(score: Tensor, mask: Tensor) -> float:
    return float(auroc(count_scores([score.flatten()], [score[mask == 1]])))


def standard(score: Tensor) -> Tensor:
    return (score - score.mean()) / score.std()


HALF = 693
"""Power of the rank before SNPR: a pixel above all but one in a thousand keeps half its weight (0.999^693 = 0.5)."""


def snpr(score: Tensor, mask: Tensor, power: float = HALF) -> float:
    """Compute SNPR after the stated transform: the rank of the score among all pixels, in [0, 1], to a power."""
    rank = score.flatten().argsort().argsort().double() / (score.numel() - 1)
    weight = (rank**power).float().view(score.shape)
    return float(detectability(count_scores([weight.flatten()], [weight[mask == 1]]))["snpr"])


def row(name: str, values: list[float], seconds: float) -> None:
    cells = " ".join(f"{v:.4f}" for v in values)
    print(f"{name:<34} {cells}  mean {sum(values) / len(values):.4f}  worst {min(values):.4f}  {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="*", default=["classical", "direct"], help=f"classical, or any of {list(ARMS)}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", default="", help="flipped, every second band, half of the bands, 20 dB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = [p for p in find_scenes(str(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / "*.mat"))]
    held = [read_scene(path) for path in paths]
    scenes = [(varied(scene.image[None], options.variant), scene.mask[None]) for scene in held]
    if options.variant == "flipped":
        scenes = [(image.flip(-1), mask.flip(-1)) for image, mask in scenes]
    print(" ".join(scene.name for scene in held), options.variant)
    classical = [fused_rx(image) for image, _ in scenes]
    for arm in options.arms:
        for name, detector in CLASSICAL.items() if arm == "classical" else ():
            start = time.perf_counter()
            scores = [detector(image) for image, _ in scenes]
            seconds = (time.perf_counter() - start) / len(scenes)
            row(name, [measured(s, m) for s, (_, m) in zip(scores, scenes, strict=True)], seconds)
            for power in (28, HALF):
                row(f"  SNPR after rank^{power}", [snpr(s, m, power) for s, (_, m) in zip(scores, scenes, strict=True)], 0.0)
        for seed in range(options.seeds if arm != "classical" else 0):
            start = time.perf_counter()
            maps = [DirectDetection(seed=seed, **ARMS[arm]).score(image) for image, _ in scenes]
            seconds = (time.perf_counter() - start) / len(scenes)
            both = [standard(s) + standard(c) for s, c in zip(maps, classical, strict=True)]
            row(f"{arm}, seed {seed}", [measured(s, m) for s, (_, m) in zip(maps, scenes, strict=True)], seconds)
            row(f"{arm} fused, seed {seed}", [measured(s, m) for s, (_, m) in zip(both, scenes, strict=True)], seconds)
            for power in (28, HALF):
                row(f"  SNPR after rank^{power}", [snpr(s, m, power) for s, (_, m) in zip(maps, scenes, strict=True)], 0.0)


if __name__ == "__main__":
    main()
