"""Measure shared weights: python tests/benchmarks/bench_transfer.py each|all|others [--epochs N --nets N --seeds ...].

`each` teaches on one scene and scores every scene (the matrix), `all` teaches on all scenes without their truth and scores them, `others`
teaches on all but one and scores that one. ANOMSEG_DATA names the folder that holds hyperspectral/*.mat.
"""

import argparse
import logging
import os
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from anomseg.data.hyperspectral import HyperspectralDataModule
from anomseg.data.read_scene import find_scenes, read_scene
from anomseg.data.scene import Scene
from anomseg.functional.area_rx import fused_rx
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.direct_training import DirectTraining
from anomseg.methods.direct_transfer import TransferDetection


def taught(paths: list[Path], epochs: int, nets: int, seed: int) -> TransferDetection:
    pl.seed_everything(seed, verbose=False)
    method = TransferDetection(recipe=DirectTraining(nets=nets), seed=seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(method, HyperspectralDataModule([str(path) for path in paths]))
    return method.eval()


def standard(score: Tensor) -> Tensor:
    return (score - score.mean()) / score.std()


def measured(score: Tensor, scene: Scene) -> float:
    return float(auroc(count_scores([score.flatten()], [score[scene.mask == 1]])))


def row(name: str, scores: list[Tensor], scenes: list[Scene], classical: list[Tensor], seconds: float) -> None:
    alone = [measured(score, scene) for score, scene in zip(scores, scenes, strict=True)]
    fused = [measured(standard(s) + standard(c), scene) for s, c, scene in zip(scores, classical, scenes, strict=True)]
    for kind, values in (("alone", alone), ("fused", fused)):
        cells = " ".join(f"{v:.4f}" for v in values)
        print(f"{name:<16} {kind} {cells}  mean {sum(values) / len(values):.4f}  worst {min(values):.4f}  {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["each", "all", "others"])
    parser.add_argument("--epochs", type=int, default=150, help="on one scene; divided by the number of scenes, and tripled, for more")
    parser.add_argument("--nets", type=int, default=1)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    paths = find_scenes(str(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / "*.mat"))
    scenes = [read_scene(path) for path in paths]
    classical = [fused_rx(scene.image[None])[0] for scene in scenes]
    many = 3 * options.epochs // len(paths)
    for seed in options.seeds:
        start = time.perf_counter()
        if options.action == "each":
            for path, scene in zip(paths, scenes, strict=True):
                start = time.perf_counter()
                method = taught([path], options.epochs, options.nets, seed)
                scores = [method.score(other.image[None])[0].detach() for other in scenes]
                row(scene.name, scores, scenes, classical, time.perf_counter() - start)
        elif options.action == "all":
            method = taught(paths, many, options.nets, seed)
            scores = [method.score(scene.image[None])[0].detach() for scene in scenes]
            row(f"all, seed {seed}", scores, scenes, classical, time.perf_counter() - start)
        else:
            scores = []
            for held in range(len(paths)):
                method = taught(paths[:held] + paths[held + 1 :], many, options.nets, seed)
                scores.append(method.score(scenes[held].image[None])[0].detach())
            row(f"others, seed {seed}", scores, scenes, classical, time.perf_counter() - start)


if __name__ == "__main__":
    main()
