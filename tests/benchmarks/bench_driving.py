"""Measure read-outs and outlier training on CamVid with held-out classes: python tests/benchmarks/bench_driving.py --output DIR.

For each split by sequence and each protocol a closed-set net is trained; from it, for an equal time of the processor, a control trains on
without outliers and each arm with them. All are tested on pasted objects, which come from cut-outs of their own and are pasted in another
way, and on the held-out classes of the test sequence. The read-out of an arm is declared here, before it is measured. Each result is a JSON
file in the output folder, and is not measured again. ANOMSEG_DATA names the folder with driving/camvid, outliers and textures.
"""

import argparse
import json
import os
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast, get_args

import lightning.pytorch as pl
import torch
from bench_change import StepTimes

from anomseg.data.driving import DrivingDataModule
from anomseg.data.driving_augment import MirrorZoom
from anomseg.data.group_split import GroupSplit
from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import OutlierSource, RGBACutouts, SyntheticOutliers, TextureCrops
from anomseg.functional.score_curves import auroc, average_precision, f1_max, fpr_at_tpr
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.smoothing import centre
from anomseg.methods.closed_set import ClosedSetSegmenter
from anomseg.methods.pebal import PEBAL, ScoreRule
from anomseg.methods.pebal_training import PEBALLoss
from anomseg.methods.readouts import MSP, Energy, Entropy, MaxLogit, StandardizedMaxLogit
from anomseg.methods.segmenter import Segmenter
from anomseg.metrics.components import ComponentF1
from anomseg.metrics.segmentation import MeanIoU
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.optimisation import Optimisation
from anomseg.sample import finite_pixels

PATTERN = r"^(0001TP|0006R0|0016E5_0[0-7]|0016E5_08)"
SPLITS = {
    "1": (GroupSplit(PATTERN, test=("0001TP",)), 1),  # dusk
    "2": (GroupSplit(r"^(0001TP|0006R0|0016E5)", test=("0016E5",)), 4),  # day
}
HELD_OUT = {"a": ("bicyclist",), "b": ("pedestrian", "bicyclist")}
READOUTS = {"msp": MSP(), "max_logit": MaxLogit(), "entropy": Entropy(), "energy": Energy(), "sml": StandardizedMaxLogit()}
ARMS: dict[str, dict[str, Any]] = {
    "pebal, void, class decoder": {"void": True, "class_decoder": True, "score_rule": "ensemble"},
    "pebal": {},
    "pebal, void": {"void": True},
    "pebal, inner void": {"void": True, "rim": 3},
    "gentle energy, void": {"void": True, "recipe": PEBALLoss(energy=0.03)},
    "no abstention, void": {"void": True, "recipe": PEBALLoss(abstention=0.0)},
    "no energy, void": {"void": True, "recipe": PEBALLoss(energy=0.0)},
    "no smoothness or sparsity, void": {"void": True, "recipe": PEBALLoss(smoothness=0.0, sparsity=0.0)},
    "maximum entropy, void": {"void": True, "recipe": PEBALLoss(abstention=0.0, energy=0.0, uniform=0.5)},
    "maximum entropy, inner void": {"void": True, "rim": 3, "recipe": PEBALLoss(abstention=0.0, energy=0.0, uniform=0.5)},
    "maximum entropy, gently": {"void": True, "rim": 3, "recipe": PEBALLoss(abstention=0.0, energy=0.0, uniform=0.1)},
    "outliers seen, not learnt": {"recipe": PEBALLoss(abstention=0.0, energy=0.0)},
    "cut-outs alone": {"sources": "cutouts"},
    "decoder alone, void": {"void": True, "trainable": "decoder"},
    "from fresh weights, void": {"void": True, "fresh": True},  # for the minutes of both trainings
    "as published": {"paper_faithful": True},
}
# The read-out that an arm is judged by on each test, from seed 6 on (seed 0: energy, 1 to 3: entropy; 4 and 5: of an earlier design).
DECLARED = {"pasted": "energy", "held_out": "ensemble, centred"}


def sources(kind: str, data: Path, part: Literal["train", "test"]) -> tuple[OutlierSource, ...]:
    cutouts = RGBACutouts(str(data / "outliers"), "index.csv", part)
    if kind == "cutouts":
        return (cutouts,)
    textures = (
        TextureCrops(str(data / "industrial" / "crackforest" / "image")),
        TextureCrops(str(data / "remote_sensing" / "aerial_roads" / "image")),
    )
    return (cutouts, *textures, SyntheticOutliers())


def frames(options: argparse.Namespace, split: str, protocol: str, **chosen: Any) -> DrivingDataModule:
    parts, step = SPLITS[split]
    data = Path(os.environ["ANOMSEG_DATA"])
    test = OutlierPaste(sources("cutouts", data, "test"), 1.0, (1, 1), (0.1, 0.35), colour=0.1, blur=1.2, edge="hard")
    return DrivingDataModule(
        data / "driving" / "camvid",
        "camvid",
        HELD_OUT[protocol],
        split=parts,
        size=(180, 240),
        test_paste=test,
        test_step=step,
        augment=MirrorZoom(1.5, 0.5),
        batch_size=8,
        seed=options.seed,
        **chosen,
    )


def trained(
    make: Any, data: DrivingDataModule, minutes: float, options: argparse.Namespace, folder: Path
) -> tuple[ClosedSetSegmenter, int]:
    """Train for as many steps as fit into the minutes of a core, which a few steps of a net that is thrown away tell."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    common: dict[str, Any] = {**quiet, "limit_val_batches": 0, "accelerator": "cpu", "precision": options.precision, "max_epochs": -1}
    watch = StepTimes()
    pl.seed_everything(options.seed, verbose=False)
    pl.Trainer(max_steps=24, callbacks=[watch], **common).fit(make(), data)
    typical = median(b - a for a, b in pairwise(watch.ends[8:]))
    steps = max(int(60 * minutes / typical), 1)
    pl.seed_everything(options.seed, verbose=False)
    method = make()
    trainer = pl.Trainer(max_steps=steps, gradient_clip_val=5.0, **common)
    trainer.fit(method, data)
    trainer.save_checkpoint(folder / "latest.ckpt")
    return method.eval(), steps


@torch.no_grad()
def figures(method: ClosedSetSegmenter, data: DrivingDataModule) -> dict[str, Any]:
    """Measure every read-out that a method has on the test frames, as it is and less the mean of each frame."""
    data.setup("test")
    maps: dict[str, list[torch.Tensor]] = {}
    masks, miou = [], MeanIoU(method.classes)

    def keep(name: str, score: torch.Tensor, image: torch.Tensor) -> None:
        maps.setdefault(name, []).append(score)
        maps.setdefault(f"{name}, centred", []).append(centre(score, finite_pixels(image)))

    for batch in data.test_dataloader():
        logits = method.logits(batch["image"]).float()
        miou.update(method.votes(logits).argmax(1), batch["label"])
        masks.append(batch["mask"])
        if isinstance(method, PEBAL):
            for rule in get_args(ScoreRule):
                if rule == "ensemble" and method.classifier is None:
                    continue
                method.score_rule = rule
                keep(rule, method.read(logits), batch["image"])
        else:
            segmenter = cast(Segmenter, method)
            for name, readout in READOUTS.items():
                segmenter.readout = readout
                keep(name, segmenter.read(logits), batch["image"])
    truth = torch.cat(masks)
    found: dict[str, Any] = {"miou": float(miou.compute())}
    for name, parts in maps.items():
        score = torch.cat(parts)
        pixels, true = score[truth != 255], truth[truth != 255] == 1
        counts = count_scores([pixels], [pixels[true]])
        components = ComponentF1(float(f1_max(counts)[1]), (20, 5))
        components.update(score, truth)
        found[name] = {
            "auroc": float(auroc(counts)),
            "ap": float(average_precision(counts)),
            "fpr95": float(fpr_at_tpr(counts)),
            "component_f1": components.figures().f1,
        }
    return found


def both_tests(method: ClosedSetSegmenter, split: str, protocol: str, options: argparse.Namespace) -> dict[str, Any]:
    return {kind: figures(method, frames(options, split, protocol, test_with=kind)) for kind in ("pasted", "held_out")}


def measure(split: str, protocol: str, options: argparse.Namespace) -> None:
    folder = options.output / f"{split}{protocol}_{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    clean = frames(options, split, protocol)
    common: dict[str, Any] = {"classes": len(clean.classes), "net": CompactSegmenter(options.width, norm=options.norm)}
    base = folder / "base.ckpt"

    def keep(name: str, method: ClosedSetSegmenter, steps: int) -> None:
        result = {"split": split, "protocol": protocol, "seed": options.seed, "arm": name, "steps": steps}
        result |= both_tests(method, split, protocol, options)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1))
        print(json.dumps(result), flush=True)

    rate = Optimisation(4e-3, warmup=0.05, schedule="poly")
    if not base.exists():
        method, steps = trained(
            lambda: Segmenter(**common, balance=options.balance, optimisation=rate), clean, options.minutes, options, folder
        )
        (folder / "latest.ckpt").rename(base)
        keep("base", method, steps)
    fine = Optimisation(options.lr, warmup=0.05, schedule="poly")
    if not (folder / "control.json").exists():
        method, steps = trained(
            lambda: Segmenter(**common, balance=options.balance, segmenter=str(base), optimisation=fine),
            clean,
            options.fine_minutes,
            options,
            folder,
        )
        (folder / "latest.ckpt").rename(folder / "control.ckpt")
        keep("control", method, steps)
    for name in options.arms:
        if (folder / f"{name}.json").exists():
            continue
        chosen = dict(ARMS[name])
        data = Path(os.environ["ANOMSEG_DATA"])
        paste = OutlierPaste(sources(chosen.pop("sources", "all"), data, "train"), options.probability)
        mixed = frames(options, split, protocol, paste=paste, void_as_outliers=chosen.pop("void", False), void_rim=chosen.pop("rim", 0))

        start, minutes = {"segmenter": str(base), "optimisation": fine}, options.fine_minutes
        if chosen.pop("fresh", False):
            start, minutes = {"optimisation": rate}, options.minutes + options.fine_minutes

        def make(start: dict[str, Any] = start, chosen: dict[str, Any] = chosen) -> PEBAL:
            return PEBAL(**common, **start, **chosen)

        method, steps = trained(make, mixed, minutes, options, folder)
        keep(name, method, steps)


def table(output: Path) -> str:
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*/*.json"))]
    lines = [
        "| split, held out | arm | read-out | mIoU | pasted AUROC / AP / FPR95 / F1* | held out AUROC / AP / FPR95 / F1* |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for name in (key for key in result["pasted"] if key != "miou"):
            cells = [
                f"{v['auroc']:.3f} / {v['ap']:.3f} / {v['fpr95']:.3f} / {v['component_f1']:.3f}"
                for v in (result["pasted"][name], result["held_out"][name])
            ]
            where = f"{result['split']}{result['protocol']}"
            shown = f"**{name}**" if name in DECLARED.values() and "abstain" in result["pasted"] else name
            lines.append(f"| {where} | {result['arm']} | {shown} | {result['held_out']['miou']:.3f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", default=["1b", "2b", "1a", "2a"], help="split and protocol")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=["pebal, void, class decoder"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0, help="of one core for the closed-set net")
    parser.add_argument("--fine-minutes", type=float, default=4.0, help="of one core for the control and each arm")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--norm", default="batch", choices=["batch", "group"], help="seeds 0 and 1 were measured with group")
    parser.add_argument("--balance", default="none", choices=["none", "log"], help="of classes; seeds 0 and 1 were measured with log")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--probability", type=float, default=0.7)
    parser.add_argument("--precision", default="bf16-mixed")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", module="lightning.*")
    for pair in options.pairs:
        measure(pair[0], pair[1], options)
    print(table(options.output))


if __name__ == "__main__":
    main()
