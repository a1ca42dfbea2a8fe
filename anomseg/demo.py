"""Fit, test and predict on synthetic scenes: the whole way from scenes to calibrated maps, without a file."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path


def run_demo(words: Sequence[str] = ()) -> Path:
    """Run global and local RX on three hyperspectral scenes, print their figures and write their maps.

    Args:
        words: options as typed after `anomseg demo`.

    Returns:
        The folder with the maps.
    """
    parser = argparse.ArgumentParser(prog="anomseg demo", description="Fit, test and predict on synthetic scenes, in under a minute.")
    parser.add_argument("--output", type=Path, default=Path("anomseg-demo"), help="folder for maps and pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)")
    options = parser.parse_args(list(words))
    start = time.perf_counter()
    import lightning.pytorch as pl

    from anomseg.callbacks.scene_writer import SceneWriter
    from anomseg.data.synthetic import SyntheticDataModule
    from anomseg.methods.rx import RX
    from anomseg.report.tables import figure_table

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", "Image AUROC is undefined.*")  # every scene holds targets
    pl.seed_everything(options.seed, verbose=False)
    for method, label in ((RX(), "global RX"), (RX(mode="local"), "local RX, windows 9 and 25")):
        data = SyntheticDataModule(kind="hyperspectral", count=3, seed=options.seed)
        with tempfile.TemporaryDirectory() as scratch:
            writer = SceneWriter(options.output / method.mode)
            trainer = pl.Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[writer],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=scratch,
                num_sanity_val_steps=0,
            )
            trainer.fit(method, data)
            trainer.test(method, data, verbose=False)
            figures = dict(trainer.callback_metrics)
            trainer.predict(method, data, return_predictions=False)
        print(f"\n{label}, synthetic hyperspectral scenes\n{figure_table(figures)}")
    print(f"\nmaps and pictures: {options.output.resolve()}  ({time.perf_counter() - start:.0f} s)")
    return Path(options.output)
