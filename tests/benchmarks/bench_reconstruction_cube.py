"""Rebuild a hyperspectral cube by all of its bands: python tests/benchmarks/bench_reconstruction_cube.py --scenes hydice_urban.mat.

`Reconstruction` beside RX on one scene and one data module: proof that the module takes any band count, and what it is worth there. Prints
a line of JSON for each. ANOMSEG_DATA names the folder with hyperspectral.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from anomseg.data.hyperspectral import HyperspectralDataModule
from anomseg.methods.reconstruction import Reconstruction
from anomseg.methods.reconstruction_score import ReconstructionScore
from anomseg.methods.reconstruction_training import ReconstructionLoss
from anomseg.methods.rx import RX
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.optimisation import Optimisation


def measure(scene: str, options: argparse.Namespace) -> None:
    data = HyperspectralDataModule(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / scene)
    data.setup("fit")
    bands = int(next(iter(data.train_dataloader()))["image"].shape[1])

    def rebuild() -> Reconstruction:
        return Reconstruction(
            bands,
            AutoencoderSpec(width=16, depth=2, skips="none", bottleneck=8),
            ReconstructionLoss(ssim=0.0),
            ReconstructionScore(l1=0.0, l2=1.0, msgms=0.0, smoothing=0.0),
            optimisation=Optimisation(2e-3, warmup=0.05),
        )

    for make, epochs in ((RX, 1), (rebuild, options.epochs)):
        pl.seed_everything(options.seed, verbose=False)
        method = make()
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        trainer = pl.Trainer(max_epochs=epochs, check_val_every_n_epoch=epochs, gradient_clip_val=1.0, accelerator="cpu", **quiet)
        begun = time.process_time()
        trainer.fit(method, data)
        seconds = time.process_time() - begun
        found = {name: round(float(value), 4) for name, value in trainer.test(method, data, verbose=False)[0].items()}
        kept = {name: found[name] for name in ("test_auroc", "test_ap", "test_fpr95")}
        print(
            json.dumps({"scene": scene, "bands": bands, "method": type(method).__name__, "fit_s": round(seconds, 1), **kept}),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="+", default=["hydice_urban.mat"])
    parser.add_argument("--epochs", type=int, default=150, help="of one step each: the scene is one tile")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for scene in options.scenes:
        measure(scene, options)


if __name__ == "__main__":
    main()
