"""Measure every choice of direct detection: python tests/benchmarks/bench_direct_ablation.py train|table --maps FOLDER [--arms NAME ...].

`train` fits one net for each scene, arm and seed and keeps its map in FOLDER (a run that was stopped goes on where it was); `table` prints
the AUROC of every arm on HYDICE and in the mean over the scenes, as mean and standard deviation over the seeds, alone and fused with
the classical map, of the mean map of the seeds, and what a choice leave-one-scene-out gives. ANOMSEG_DATA names the folder that holds
hyperspectral/*.mat.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_direct import measured, snpr, standard
from torch import Tensor

from anomseg.data.read_scene import find_scenes, read_scene
from anomseg.functional.area_rx import fused_rx
from anomseg.functional.rx import global_rx
from anomseg.functional.simulation import AnomalySimulation
from anomseg.methods.direct import DirectDetection, DirectTraining

ONE = DirectTraining(nets=1, norm="none")  # the default when the ablation was made; it led to batch norm


def arm(**changes: Any) -> dict[str, Any]:
    return {"recipe": replace(ONE, **changes)}


ABLATION: dict[str, dict[str, Any]] = {
    "default": arm(),
    "cross-entropy only": arm(losses="cross_entropy"),
    "ranking only": arm(losses="ranking"),
    "instance norm": arm(norm="instance"),
    "batch norm": arm(norm="batch"),
    "teacher global RX": arm(teacher="global"),
    "teacher local RX": arm(teacher="local"),
    "teacher area filter": arm(teacher="area"),
    "threshold 0.5": arm(labels="threshold"),
    "no pseudo labels, nothing ignored": arm(teacher="none"),
    "no pseudo labels, top 5 % of global RX ignored": arm(teacher="global", positive_share=0.0, ignored_share=0.05),
    "no pseudo labels, top 3 % of area filter ignored": arm(teacher="area", positive_share=0.0, ignored_share=0.03),
    "no pseudo labels, top 5 % of fusion ignored": arm(teacher="fusion", positive_share=0.0, ignored_share=0.05),
    "pseudo labels, nothing ignored": arm(ignored_share=0.0),
    "one round of self-training": arm(rounds=1),
    "two rounds of self-training": arm(rounds=2),
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "components 8": {"components": 8, **arm()},
    "components 30": {"components": 30, **arm()},
    "area 15": {"area": 15, **arm()},
    "area 60": {"area": 60, **arm()},
    "positives 0.5 %": arm(positive_share=0.005, ignored_share=0.045),
    "positives 2 %": arm(positive_share=0.02, ignored_share=0.03),
    "ignored 2 %": arm(ignored_share=0.02),
    "ignored 8 %": arm(ignored_share=0.08),
    "negative weight 0.05": arm(negative_weight=0.05),
    "negative weight 0.2": arm(negative_weight=0.2),
    "implants 12": arm(implants=12),
    "implants 48": arm(implants=48),
    "crop 20": arm(crop=20),
    "crop 80": arm(crop=80),
    "lr 0.0015": arm(lr=1.5e-3),
    "lr 0.006": arm(lr=6e-3),
    "density 12": {"simulation": AnomalySimulation(density=12.0), **arm()},
    "density 50": {"simulation": AnomalySimulation(density=50.0), **arm()},
    "strength 0.5 to 3": {"simulation": AnomalySimulation(strength=(0.5, 3.0)), **arm()},
    "strength 2 to 12": {"simulation": AnomalySimulation(strength=(2.0, 12.0)), **arm()},
    "no large areas": {"simulation": AnomalySimulation(large=0.0), **arm()},
}
ARMS = ABLATION | CONSTANTS


def scenes() -> list[tuple[str, Tensor, Tensor]]:
    held = [read_scene(path) for path in find_scenes(str(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / "*.mat"))]
    return [(scene.name, scene.image[None], scene.mask[None]) for scene in held]


def train(folder: Path, arms: list[str], seeds: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held = scenes()
    for seed in seeds:
        for name in arms:
            start, made = time.perf_counter(), 0
            for scene, image, _ in held:
                path = folder / f"{name}--{seed}--{scene}.pt"
                if not path.exists():
                    torch.save(DirectDetection(seed=seed, **ARMS[name]).score(image).half(), path)
                    made += 1
            print(f"{name}, seed {seed}: {made} maps in {time.perf_counter() - start:.0f} s", flush=True)


def figures(folder: Path, name: str, classical: list[Tensor]) -> Tensor | None:
    """Read an arm's maps: (seeds + 1, 2, scenes) AUROC alone and fused; the last row is of the seeds' mean map."""
    held = scenes()
    seeds = sorted({path.stem.split("--")[1] for path in folder.glob(f"{name}--*.pt")})
    maps = [[folder / f"{name}--{seed}--{scene}.pt" for scene, _, _ in held] for seed in seeds]
    complete = [[standard(torch.load(path).float()) for path in row] for row in maps if all(path.exists() for path in row)]
    if not complete:
        return None
    complete.append([standard(torch.stack(column).mean(0)) for column in zip(*complete, strict=True)])
    values = [
        [[measured(m, t) for m, (_, _, t) in zip(row, held, strict=True)],
         [measured(m + c, t) for m, c, (_, _, t) in zip(row, classical, held, strict=True)]]
        for row in complete
    ]  # fmt: skip
    return torch.tensor(values)


def signal(folder: Path, held: list[tuple[str, Tensor, Tensor]], classical: list[Tensor]) -> None:
    """Print the SNPR of global RX, the classical fusion and the mean map of the default's seeds, mean over the scenes."""
    paths = [sorted(folder.glob(f"default--*--{scene}.pt")) for scene, _, _ in held]
    net = [torch.stack([standard(torch.load(path).float()) for path in row]).mean(0) for row in paths]
    maps = {"global RX": [global_rx(image) for _, image, _ in held], "classical fusion": classical, "default": net}
    for power in (28, 693):
        for name, scores in maps.items():
            values = [snpr(score, mask, power) for score, (_, _, mask) in zip(scores, held, strict=True)]
            cells = " ".join(f"{v:.1f}" for v in values)
            print(f"SNPR after rank^{power}, {name}: {cells}  mean {sum(values) / len(values):.1f}")


def table(folder: Path, arms: list[str]) -> None:
    held = scenes()
    hydice = [scene for scene, _, _ in held].index("hydice_urban")
    classical = [standard(fused_rx(image)) for _, image, _ in held]
    found = {name: value for name in arms if (value := figures(folder, name, classical)) is not None}
    print("arm | seeds | mean | HYDICE | worst | mean fused | HYDICE fused | worst fused | mean map: alone, fused")
    for name, value in found.items():
        cells = []
        for kind in (0, 1):
            runs = value[:-1, kind]
            for column in (runs.mean(1), runs[:, hydice], runs.min(1).values):
                cells.append(f"{column.mean():.4f} ± {column.std(correction=min(1, len(runs) - 1)):.4f}")
        both = "  ".join(f"{v.mean():.4f} / {v.min():.4f}" for v in value[-1])
        print(f"{name} | {len(value) - 1} | " + " | ".join(cells) + f" | {both}")
    signal(folder, held, classical)
    for kind, title in ((0, "alone"), (1, "fused")):
        means = torch.stack([value[:-1, kind].mean(0) for value in found.values()])  # (arms, scenes)
        others = (means.sum(1, keepdim=True) - means) / (len(held) - 1)
        chosen = others.argmax(0)
        values = means[chosen, torch.arange(len(held))]
        print(f"leave-one-scene-out, {title}: {values.mean():.4f}, worst {values.min():.4f}, chose {[list(found)[i] for i in chosen]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["train", "table"])
    parser.add_argument("--maps", type=Path, required=True, help="folder of the maps")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help=f"any of {list(ARMS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.action == "train":
        train(options.maps, options.arms, options.seeds)
    else:
        table(options.maps, options.arms)


if __name__ == "__main__":
    main()
