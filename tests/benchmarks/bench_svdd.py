"""Measure SVDD and NormalDensity where one class is normal: python tests/benchmarks/bench_svdd.py [--arms NAME ...] [--seeds N].

The six tasks of bench_class_as_normal.py through RemoteSensingDataModule and a Lightning trainer, one configuration for all. Prints the
pixel AUROC of every score rule of the trained net, with and without smoothing. ANOMSEG_DATA names the folder with remote_sensing/.
`--arms simple` runs the densities that no net is needed for, `--arms A4` the published options of SVDD.
"""

import argparse
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.image_split import NameSplit
from anomseg.data.mask_rules import full_mask
from anomseg.data.remote_sensing import RemoteSensingDataModule
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.smoothing import gaussian
from anomseg.methods.normal_density import NormalDensity
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_fit import ScoreRule
from anomseg.methods.svdd_inputs import Texture
from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD, SVDDTraining
from anomseg.nets.descriptor import PixelDescriptor
from anomseg.nets.patch_descriptor import PatchDescriptor
from anomseg.optimisation import Optimisation

RULES: tuple[ScoreRule, ...] = ("dist", "abs", "abs_inner_half", "recenter", "mahalanobis", "two_sided", "ratio", "margin_ratio")
OURS: dict[str, Any] = {"recipe": CONTRAST, "texture": Texture(), "descriptor": PixelDescriptor()}
FAST = Optimisation(lr=3e-3, weight_decay=1e-3)
V2 = SVDDTraining()


SIMPLE: dict[str, dict[str, Any]] = {
    "RX, bands": {"model": "gaussian"},
    "RX, filter bank 1-4": {"model": "gaussian", "texture": Texture((1.0, 2.0, 4.0), 0.0)},
    "RX, log filter bank 1-16": {"model": "gaussian", "texture": Texture()},
    "RX, log filter bank 1-16, light of the image out": {"model": "gaussian", "texture": Texture(), "standardise": "image"},
    "mixture of 20, log filter bank 1-16": {"model": "mixture", "texture": Texture()},
    "mixture of 20, log filter bank 1-16, light of the image out": {"model": "mixture", "texture": Texture(), "standardise": "image"},
    "ratio, log filter bank 1-16": {"model": "ratio", "texture": Texture()},
}


def grid(**changes: Any) -> dict[str, Any]:
    return {"recipe": replace(V2, **changes), "descriptor": PatchDescriptor()}


ARMS: dict[str, dict[str, Any]] = {
    "contrast on texture": {**OURS, "optimisation": FAST},
    "contrast on patches of texture": {
        "recipe": CONTRAST,
        "texture": Texture(),
        "descriptor": PatchDescriptor(latent=16, scales=(0.5, 1.0)),
        "optimisation": FAST,
    },
    "contrast on patches": {"recipe": CONTRAST, "descriptor": PatchDescriptor(latent=16), "optimisation": FAST},
    "published": grid(),
    "published on texture": {"recipe": V2, "texture": Texture(), "descriptor": PixelDescriptor(latent=5)},
    "deep SVDD on texture": {"recipe": DEEP_SVDD, "texture": Texture(), "descriptor": PixelDescriptor(latent=16)},
    "deep SVDD": {"recipe": DEEP_SVDD, "descriptor": PatchDescriptor(norm="none", bias=False)},
    **SIMPLE,
}
for reduction in ("pixel", "max", "mean", "quantile"):
    for radius in ("mean_max", "quantile", "one_minus_nu"):
        ARMS[f"A4 {reduction}, radius {radius}"] = grid(reduction=reduction, radius=radius)
for diversity in ("none", "mean", "quantile", "min", "max"):
    ARMS[f"A4 diversity {diversity}"] = grid(diversity=diversity)
ARMS["A4 diversity quantile against radius"] = grid(diversity="quantile", against_radius=True)
ARMS["A4 copy without gradient"] = grid(detach_virtual=True)
ARMS["A4 fixed centre"] = grid(centre_every=0)
ARMS["A4 centre every 5 epochs"] = grid(centre_every=5)
ARMS["A4 diversity 0.1"] = grid(weights=(1.0, 0.1, 1.0))
ARMS["A4 no reconstruction"] = grid(weights=(1.0, 1.0, 0.0))


def tasks(root: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Describe the data modules of the six tasks; the seed splits the road tiles."""
    stems = sorted(path.stem for path in (root / "aerial_roads" / "image").glob("*.png"))
    order = torch.randperm(len(stems), generator=torch.Generator().manual_seed(seed)).tolist()
    split = NameSplit(tuple(stems[i] for i in order[:35]), (), tuple(stems[i] for i in order[35:]))
    road = {"root": root / "aerial_roads", "layout": "image_label", "split": split, "crops": 4}
    found = {"roads": {**road, "classes": ClassAsNormal((1,))}, "all but roads": {**road, "classes": ClassAsNormal((0,))}}
    for name in ("background", "agriculture"):
        for a, b in (("0", "1"), ("1", "0")):
            found[f"{name} {a}->{b}"] = {
                "root": root / "loveda",
                "layout": "loveda_flat",
                "classes": ClassAsNormal((name,)),
                "split": NameSplit((a,), (), (b,)),
                "crops": 140,
            }
    return found


Method = SVDD | NormalDensity


def fitted(options: dict[str, Any], arm: dict[str, Any], epochs: int, seed: int, tile: int = 128) -> tuple[Method, RemoteSensingDataModule]:
    pl.seed_everything(seed, verbose=False)
    crops = max(1, round(options["crops"] * (128 / tile) ** 2))
    data = RemoteSensingDataModule(**{**options, "crops": crops}, tile=tile, batch_size=4, calibration_share=0.05, seed=seed)
    method: Method
    if "model" in arm:
        method = NormalDensity(seed=seed, smoothing=0.0, **arm)
    else:
        method = SVDD(seed=seed, score_rule="mahalanobis" if arm["recipe"].objective == "one_class" else "ratio", **arm)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    trainer.fit(method, data)
    return method.eval(), data


def scored(method: Method, image: Tensor) -> dict[str, Tensor]:
    """Score an image by every rule."""
    if isinstance(method, NormalDensity):
        return {method.model: method.score(image)}
    inputs = method.inputs(image)
    described = method.net(inputs).descriptor
    found = {rule: method.fitted.score(inputs, described, rule) for rule in RULES}
    return found | {"input_ratio": method.fitted.input_ratio.score(inputs)}


@torch.no_grad()
def measured(method: Method, data: RemoteSensingDataModule, smoothing: list[float]) -> dict[tuple[str, float], float]:
    scores: dict[tuple[str, float], list[Tensor]] = {}
    truths = []
    for index in range(len(whole := data.scene_dataset("test", full_mask, tiled=False))):
        sample = whole[index]
        image, mask = sample["image"][None], sample["mask"]
        truths.append(mask)
        for rule, raw in scored(method, image).items():
            for s in smoothing:
                scores.setdefault((rule, s), []).append((gaussian(raw, s) if s else raw)[0])
    mask = torch.cat([t.flatten() for t in truths])
    found = {}
    for key, maps in scores.items():
        flat = torch.cat([m.flatten() for m in maps])
        found[key] = float(auroc(count_scores([flat[mask != 255]], [flat[mask == 1]])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--arms", nargs="*", default=["contrast on texture", "published", "deep SVDD"], help=f"any of {list(ARMS)}, A4 or simple"
    )
    parser.add_argument("--tasks", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--tile", type=int, default=128, help="side of the crops; larger ones are fewer, of the same area")
    parser.add_argument("--smoothing", type=float, nargs="*", default=[0.0, 8.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    root = Path(os.environ["ANOMSEG_DATA"]) / "remote_sensing"
    groups = {"A4": [arm for arm in ARMS if arm.startswith("A4")], "simple": list(SIMPLE)}
    for name in [arm for given in options.arms for arm in groups.get(given, [given])]:
        for seed in range(options.seeds):
            start = time.perf_counter()
            found, radii, failed = {}, [], ""
            for task, described in tasks(root, seed).items():
                if options.tasks and task not in options.tasks:
                    continue
                try:
                    method, data = fitted(described, ARMS[name], options.epochs, seed, options.tile)
                except RuntimeError as error:
                    failed = f"{task}: {error}"
                    break
                if isinstance(method, SVDD):
                    radii.append(f"{float(method.fitted.radius):.3g}/{float(method.diagnostics()['descriptor_rank']):.1f}")
                found[task] = measured(method, data, options.smoothing)
            seconds = time.perf_counter() - start
            print(f"{name}, seed {seed}, {list(found)}, radius/rank {radii}, {seconds:.0f} s {failed}", flush=True)
            for key in next(iter(found.values()), {}):
                values = [figures[key] for figures in found.values()]
                cells = " ".join(f"{v:.3f}" for v in values)
                print(f"   {key[0]:<16} {key[1]:>4.0f} px  {cells}  mean {sum(values) / len(values):.3f}", flush=True)


if __name__ == "__main__":
    main()
