"""Measure methods on inspected surfaces: python tests/benchmarks/bench_surfaces.py --output DIR --sets tiles cracks boards all.

Tiles are Magnetic-Tile at half size, split by session; cracks are patches of CrackForest, split by image; boards are DeepPCB at half size,
templates as normal images, split by design; places are the same, split by place, so that every design trains. `all` trains one model on
tiles, cracks and boards. Every arm of a set and seed sees the same images. Each result is a JSON file in the output folder, and is not
measured again. ANOMSEG_DATA names the folder with industrial and change/deeppcb.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from anomseg.data.augment import FlipRotate
from anomseg.data.defects import Blend, ColourShift, Corruption, Crack, CutPaste, Hole, PerlinTexture, Scar, default_defects
from anomseg.data.industrial import IndustrialDataModule
from anomseg.data.industrial_sets import IndustrialSet
from anomseg.data.industrial_split import SessionSplit
from anomseg.functional.bootstrap import bootstrap_auroc
from anomseg.functional.score_curves import auroc, average_precision, f1_max
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.class_router import ClassRouting
from anomseg.methods.feature_library import FeatureLibrary
from anomseg.methods.feature_library_parts import PatchPosition
from anomseg.methods.position_gaussian import PositionGaussian
from anomseg.methods.position_statistics import BorderStatistics
from anomseg.methods.reconstruction import Reconstruction
from anomseg.methods.reconstruction_score import ReconstructionScore
from anomseg.methods.reconstruction_training import ReconstructionLoss
from anomseg.methods.score_fusion import ScoreFusion
from anomseg.metrics.pixel import image_scores
from anomseg.metrics.region import PerRegionOverlap
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.feature_encoder import FilterBankFeatures, RandomPyramid, TimmFeatures
from anomseg.optimisation import Optimisation

RATE = Optimisation(2e-3, warmup=0.05)
HEAD = AutoencoderSpec(width=16, depth=3, skips="all", defect_head=True)
SHARP = ReconstructionScore(l1=0.0, msgms=0.0, defect=1.0, smoothing=0.0)
PLAIN = AutoencoderSpec(width=16, depth=4, skips="none")


WIDE = ((7, 15), (13, 31))


def wide() -> PositionGaussian:
    return PositionGaussian(families=["contrasts", "streaks"], windows=WIDE, smoothing=16.0)


def sides() -> PositionGaussian:
    """Make the middle one: the edges of patches that look normal inside, of a fifth of a tile."""
    return PositionGaussian(families=["contrasts"], windows=WIDE[1:], smoothing=4.0)


def placed(views: int = 1) -> Reconstruction:
    """Make a net whose score is in units of its place, as smooth as that of the Gaussians beside it."""
    return Reconstruction(1, HEAD, scoring=replace(SHARP, smoothing=2.0), views=views, position=BorderStatistics(), optimisation=RATE)


def with_net(checkpoint: Path, views: int = 1) -> ScoreFusion:
    """Fuse a trained `placed` net, which counts for a quarter beside the Gaussians, with the two wider methods."""
    sharp = ScoreFusion([PositionGaussian(), placed(views)], rule="mean", weights=[1.0, 0.25], checkpoints=[None, checkpoint])
    return ScoreFusion([sharp, wide(), sides()], limits=[None, 1.0, 2.0])


def library(encoder: Any, border: float = 0.0, **options: Any) -> FeatureLibrary:
    return FeatureLibrary(1, encoder, position=PatchPosition(border=border) if border else None, coreset=4000, memory=40000, **options)


ARMS: dict[str, tuple[Callable[..., AnomalySegmenter], str]] = {  # how it is made, and what it trains on
    "gaussian, one place": (lambda: PositionGaussian(cuts=()), "whole"),
    "gaussian": (lambda: PositionGaussian(), "whole"),
    "gaussian, mean": (lambda: PositionGaussian(level="mean"), "whole"),
    "gaussian, wide": (lambda: PositionGaussian(level="mean", windows=WIDE, smoothing=6.0), "whole"),
    "gaussian, wide streaks": (wide, "whole"),
    "fusion": (lambda: ScoreFusion([PositionGaussian(), wide()], limits=[None, 1.0]), "whole"),
    "fusion, three": (lambda: ScoreFusion([PositionGaussian(), wide(), sides()], limits=[None, 1.0, 2.0]), "whole"),
    "fusion, net": (with_net, "whole"),  # of the net that another arm, see NETS, has trained for this set and seed
    "fusion, mirrored net": (partial(with_net, views=4), "whole"),
    "fusion, no limit": (lambda: ScoreFusion([PositionGaussian(), wide()]), "whole"),
    "derivatives alone": (lambda: PositionGaussian(families=["derivatives"], scales=(1, 2, 4)), "whole"),
    "derivatives, one place": (lambda: PositionGaussian(families=["derivatives"], cuts=(), scales=(1, 2, 4), smoothing=1.0), "whole"),
    "lines, one place": (lambda: PositionGaussian(families=["lines"], cuts=()), "whole"),
    "dark lines, one place": (lambda: PositionGaussian(families=["lines"], cuts=(), lines="dark"), "whole"),
    "all families": (lambda: PositionGaussian(families=["derivatives", "contrasts", "energies", "lines"]), "whole"),
    "contrasts alone": (lambda: PositionGaussian(families=["contrasts"]), "whole"),
    "library, resnet18": (lambda: library(TimmFeatures()), "whole"),
    "library, pyramid": (lambda: library(RandomPyramid(), normalise="whiten"), "whole"),
    "library, filters": (lambda: library(FilterBankFeatures(), normalise="whiten"), "whole"),
    "library, filters, border": (lambda: library(FilterBankFeatures(), 1.0, normalise="standardise", patch=1), "whole"),
    "library, filters, routed": (lambda: library(FilterBankFeatures(), normalise="whiten", routing=ClassRouting(restrict=True)), "whole"),
    "plain autoencoder": (
        lambda: Reconstruction(
            1,
            PLAIN,
            ReconstructionLoss(),
            ReconstructionScore(l1=0.0, l2=1.0, ssim=1.0, msgms=0.0),
            optimisation=RATE,
        ),
        "crops",
    ),
    "denoising": (
        lambda: Reconstruction(1, HEAD, scoring=ReconstructionScore(l1=1.0, msgms=1.0, defect=2.0), optimisation=RATE),
        "corrupted crops",
    ),
    "denoising, place": (
        lambda: Reconstruction(
            1, HEAD, scoring=ReconstructionScore(l1=1.0, msgms=1.0, defect=2.0), reach=32.0, position=BorderStatistics(), optimisation=RATE
        ),
        "corrupted crops",
    ),
    "denoising, small defects": (  # the logits of defects alone, as they are: sharp peaks
        lambda: Reconstruction(1, HEAD, scoring=SHARP, optimisation=RATE),
        "crops with small defects",
    ),
    "denoising, small defects, placed": (placed, "crops with small defects"),
    "denoising, small defects, placed, mirrored": (partial(placed, views=4), "crops with small defects"),
    "denoising, small defects, mirrored": (
        lambda: Reconstruction(1, HEAD, scoring=SHARP, views=4, optimisation=RATE),
        "crops with small defects",
    ),
    "denoising, small defects, eight views": (
        lambda: Reconstruction(1, HEAD, scoring=SHARP, views=8, optimisation=RATE),
        "crops with small defects",
    ),
    "denoising, small defects, turned": (  # and trained on turned and mirrored crops
        lambda: Reconstruction(1, HEAD, scoring=SHARP, views=4, optimisation=RATE),
        "turned crops with small defects",
    ),
    "denoising, lines": (
        lambda: Reconstruction(1, HEAD, scoring=ReconstructionScore(l1=0.0, msgms=0.0, defect=1.0), optimisation=RATE),
        "crops with lines",
    ),
    "denoising, defects alone": (
        lambda: Reconstruction(1, HEAD, scoring=ReconstructionScore(l1=0.0, msgms=0.0, defect=1.0, smoothing=3.0), optimisation=RATE),
        "corrupted crops",
    ),
}


NETS = {  # which arm trains the net of a fusion
    "fusion, net": "denoising, small defects, placed",
    "fusion, mirrored net": "denoising, small defects, placed, mirrored",
}


def images(which: str, trains_on: str, seed: int) -> IndustrialDataModule:
    data = Path(os.environ["ANOMSEG_DATA"])
    sets = {
        "tiles": IndustrialSet(data / "industrial" / "magnetic_tile", "magnetic_tile", size=0.5),
        "cracks": IndustrialSet(data / "industrial" / "crackforest", "crackforest"),
        "boards": IndustrialSet(data / "change" / "deeppcb", "deeppcb", size=0.5),
    }
    # Boards of designs that trained, at other places of them; a place tests by both of its images or by none.
    places = SessionSplit(r"/(\d+)$", gap=0)
    sets["places"] = replace(sets["boards"], split=places, test_defects="split")
    chosen = [sets[name] for name in ("tiles", "cracks", "boards")] if which == "all" else [sets[which]]
    if which == "all" and trains_on != "whole":  # an epoch draws about as many crops from each set
        chosen = [replace(part, repeats=times) for part, times in zip(chosen, (6, 1, 10), strict=True)]
    crops: dict[str, Any] = (
        {} if trains_on == "whole" else {"tile": 96, "crops": 1, "batch_size": 8}
    )  # evaluated in batches of one data set and size
    small = Corruption(
        (
            Hole(size=(0.001, 0.02)),
            ColourShift(size=(0.001, 0.02)),
            CutPaste(size=(0.002, 0.03)),
            Blend(size=(0.002, 0.03)),
            Crack(size=(0.002, 0.02)),
        ),
        max_defects=4,
    )
    corruption = {
        "corrupted crops": Corruption(tuple(kind for kind in default_defects() if not isinstance(kind, Crack))),
        "crops with small defects": small,
        "turned crops with small defects": small,
        "crops with lines": Corruption((Crack(), Scar(), PerlinTexture(), Blend()), max_defects=1),
    }.get(trains_on)
    augment = FlipRotate() if trains_on.startswith("turned") else None
    return IndustrialDataModule(chosen, channels=1, seed=seed, corruption=corruption, augment=augment, **crops)


@torch.no_grad()
def measured(method: AnomalySegmenter, data: IndustrialDataModule) -> dict[str, Any]:
    tops: dict[str, list[float]] = {"": [], "_top": []}  # highest pixel, and mean of the highest hundredth, as `image_metrics`
    labels, names, pixels, truths = [], [], [], []
    regions: dict[str, PerRegionOverlap] = {}
    for batch in data.test_dataloader():
        score = method.score_map(batch["image"])
        regions.setdefault(batch["category"][0], PerRegionOverlap(0.3)).update(score, batch["mask"])
        for kind, top in (("", None), ("_top", 0.01)):
            tops[kind] += image_scores(score, batch["mask"], batch["image_label"], top)[0].tolist()
        for index, name in enumerate(batch["name"]):
            kept = batch["mask"][index] != 255
            labels.append(int(batch["image_label"][index]))
            names.append(name.split("/")[:2])
            pixels.append(score[index][kept])
            truths.append(batch["mask"][index][kept] == 1)
    images_, labels_ = {kind: torch.tensor(values) for kind, values in tops.items()}, torch.tensor(labels)

    def image_figures(chosen: Any) -> dict[str, float]:
        index = torch.tensor([bool(c) for c in chosen])
        return {
            f"image_auroc{kind}": float(auroc(count_scores([values[index]], [values[index & (labels_ == 1)]])))
            for kind, values in images_.items()
        }

    def pixel_figures(chosen: Any) -> dict[str, float]:
        flat = [p for p, c in zip(pixels, chosen, strict=True) if c]
        true = [p[t] for p, t, c in zip(pixels, truths, chosen, strict=True) if c]
        counts = count_scores(flat, true)
        return {"auroc": float(auroc(counts)), "ap": float(average_precision(counts)), "f1_max": float(f1_max(counts)[0])}

    everything = [True] * len(names)
    found: dict[str, Any] = {**image_figures(everything), "pixel": pixel_figures(everything)}
    for kind, values in images_.items():
        interval = bootstrap_auroc(values, labels_)
        found[f"image_auroc{kind}_interval"] = [float(interval.low), float(interval.high)]
    categories = sorted({category for category, _ in names})
    for category in categories:
        mine = [c == category for c, _ in names]
        of_category: dict[str, Any] = {**image_figures(mine), "pixel": pixel_figures(mine)}
        of_category["pixel"]["aupro"] = float(regions[category].compute())
        good = {defect for (c, defect), label in zip(names, labels, strict=True) if c == category and label == 0}
        for defect in sorted({d for c, d in names if c == category} - good):
            index = [c == category and (d == defect or d in good) for c, d in names]
            of_category.setdefault("defects", {})[defect] = image_figures(index)
        if any(d.endswith("Uneven") for c, d in names if c == category):
            of_category["pixel_without_uneven"] = pixel_figures([c == category and not d.endswith("Uneven") for c, d in names])
        found[category] = of_category
    found["mean_over_class"] = {
        f"image_auroc{kind}": float(np.mean([found[c][f"image_auroc{kind}"] for c in categories])) for kind in images_
    }
    return found


def measure(which: str, arm: str, seed: int, options: argparse.Namespace) -> None:
    def of_arm(name: str) -> Path:
        return options.output / f"{which}_{name.replace(', ', '-').replace(' ', '_')}_{seed}.json"

    file = of_arm(arm)
    if file.exists():
        return
    pl.seed_everything(seed, verbose=False)
    make, trains_on = ARMS[arm]
    given = [of_arm(NETS[arm]).with_suffix(".ckpt")] if arm in NETS else []
    method, data = make(*given), images(which, trains_on, seed)
    limit: dict[str, Any] = {"max_epochs": 1} if trains_on == "whole" else {"max_steps": options.steps, "max_epochs": -1}
    begun = time.process_time()
    trainer = pl.Trainer(
        **limit,
        accelerator="cpu",
        precision="32-true" if trains_on == "whole" else "bf16-mixed",
        gradient_clip_val=None if trains_on == "whole" else 1.0,
        check_val_every_n_epoch=None if trains_on != "whole" else 1,
        val_check_interval=options.steps if trains_on != "whole" else None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    fitted = time.process_time() - begun
    if arm in NETS.values():
        trainer.save_checkpoint(file.with_suffix(".ckpt"), weights_only=True)
    result = {"set": which, "arm": arm, "seed": seed, "fit_s": round(fitted, 1), **measured(method.eval(), data)}
    result["score_s"] = round(time.process_time() - begun - fitted, 1)
    file.write_text(json.dumps(result, indent=1))
    print(json.dumps({k: v for k, v in result.items() if k not in ("pixel",)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["tiles", "cracks", "boards"], choices=["tiles", "cracks", "boards", "places", "all"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of 8 crops, for the nets")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for which in options.sets:
        for seed in options.seeds:
            for arm in options.arms:
                measure(which, arm, seed, options)


if __name__ == "__main__":
    main()
