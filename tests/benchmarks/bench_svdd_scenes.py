"""Measure SVDD of spectra on unlabelled scenes: python tests/benchmarks/bench_svdd_scenes.py [--epochs N] [--seeds N].

A net for each scene of hyperspectral/*.mat in the folder that ANOMSEG_DATA names, as examples/configs/svdd_hyperspectral.yaml describes it;
prints AUROC of several score rules beside global RX.
"""

import argparse
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from anomseg.data.hyperspectral import HyperspectralDataModule
from anomseg.data.read_scene import find_scenes, read_scene
from anomseg.functional.rx import global_rx
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_fit import ScoreRule
from anomseg.methods.svdd_training import SVDDTraining
from anomseg.nets.descriptor import PixelDescriptor

RULES: tuple[ScoreRule, ...] = ("mahalanobis", "two_sided", "dist", "abs", "recenter")


def measured(score: torch.Tensor, mask: torch.Tensor) -> float:
    return float(auroc(count_scores([score.flatten()], [score[mask == 1]])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--latent", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    quiet: dict[str, Any] = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    paths = find_scenes(str(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / "*.mat"))
    for seed in range(options.seeds):
        found: dict[str, list[float]] = {"global RX": []} | {rule: [] for rule in RULES}
        start = time.perf_counter()
        for path in paths:
            scene = read_scene(path)
            image, mask = scene.image[None], scene.mask
            assert mask is not None
            pl.seed_everything(seed, verbose=False)
            descriptor, recipe = PixelDescriptor(latent=options.latent), SVDDTraining(diversity="element")
            method = SVDD(image.shape[1], descriptor, recipe, score_rule="mahalanobis", learn_from="all", seed=seed)
            trainer = pl.Trainer(
                max_epochs=options.epochs, check_val_every_n_epoch=options.epochs, accelerator="cpu", logger=False, **quiet
            )
            trainer.fit(method, HyperspectralDataModule(str(path)))
            with torch.no_grad():
                inputs = method.eval().inputs(image)
                described = method.net(inputs).descriptor
                for rule in RULES:
                    found[rule].append(measured(method.fitted.score(inputs, described, rule)[0], mask))
            found["global RX"].append(measured(global_rx(image)[0], mask))
        seconds = (time.perf_counter() - start) / len(paths)
        for name, values in found.items():
            cells = " ".join(f"{v:.4f}" for v in values)
            print(
                f"{name:<14} seed {seed}  {cells}  mean {sum(values) / len(values):.4f}  worst {min(values):.3f}  {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
