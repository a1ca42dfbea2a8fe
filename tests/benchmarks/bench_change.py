"""Measure change detectors on DeepPCB, one board group left out at a time: python tests/benchmarks/bench_change.py --output DIR.

Every sixth pair of the other groups validates and gives the threshold; nothing is chosen on the group that tests. Networks train for
`--steps` steps, or fewer where these would exceed `--minutes` of one core's time; pairs are prepared before. Each result is a JSON file
in the output folder, and is not measured again: use one folder for each `--shift`, `--reach`, `--crop`, `--lr` and `--window`. A net
whose weights lie there, such as those from the folder of another `--window`, is judged without training. Nets called
"registered" see the template as read and, as a second band, moved onto the test; they need a shift. ANOMSEG_DATA names the folder with
change/deeppcb.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

import lightning.pytorch as pl
import torch

from anomseg.data.augment import FlipRotate
from anomseg.data.change import ChangeDataModule
from anomseg.data.image_split import NameSplit
from anomseg.data.pair_augment import PairAugmentation
from anomseg.data.pair_transform import Binarise, GlobalShift, LocalShift, PairTransform
from anomseg.functional.score_curves import auroc, average_precision, f1_max
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.change import ChangeMamba, ChangeSegmenter, SiameseUNet
from anomseg.methods.change_classical import IRMAD, ChangeVector
from anomseg.methods.change_training import ChangeTraining
from anomseg.nets.change_mamba import TINY
from anomseg.nets.siamese_unet import SiameseUNetSpec
from anomseg.optimisation import Optimisation

GROUPS = ("00041", "12000", "12100", "12300", "13000")
RECIPE = ChangeTraining(pixel="bce", overlap="dice")
EARLY = SiameseUNetSpec(width=32, levels=3, fusion="early", fold=4)


def learnt(**options: Any) -> dict[str, Any]:
    # The template comes first in training and in use, so the order of the dates says something: nothing is swapped.
    return {
        "in_channels": 1,
        "recipe": RECIPE,
        "symmetric": False,
        "optimisation": Optimisation(lr=2e-3, weight_decay=5e-4, warmup=0.05),
        **options,
    }


def registered(**options: Any) -> dict[str, Any]:
    """Learn from the dates as read and, behind them, from the template moved onto the test."""
    return learnt(in_channels=2, **options, **({"gate_bands": 1} if "gate" in options else {}))


METHODS: dict[str, Callable[[], AnomalySegmenter]] = {
    "difference": lambda: ChangeVector("mean", standardise=False),
    "smoothed_difference": lambda: ChangeVector("mean", standardise=False, smoothing=2.0, sharpen=True),
    "shifted_difference": lambda: ChangeVector("mean", standardise=False, reach=3),
    "irmad": lambda: IRMAD(),
    "unet": lambda: SiameseUNet(**learnt(spec=EARLY)),
    "unet_gate": lambda: SiameseUNet(**learnt(spec=EARLY, gate=1.0)),
    "siamese_gate": lambda: SiameseUNet(**learnt(spec=replace(EARLY, fusion="both"), gate=1.0)),
    "mamba_tiny": lambda: ChangeMamba(**learnt(spec="tiny")),
    "mamba_tiny_gate": lambda: ChangeMamba(**learnt(spec="tiny", gate=1.0)),
    "mamba_tiny_detail": lambda: ChangeMamba(**learnt(spec="tiny_detail")),
    "unet_gate_registered": lambda: SiameseUNet(**registered(spec=EARLY, gate=1.0)),
    "siamese_gate_registered": lambda: SiameseUNet(**registered(spec=replace(EARLY, fusion="both"), gate=1.0)),
    "mamba_tiny_gate_registered": lambda: ChangeMamba(**registered(spec="tiny", gate=1.0)),
    "unet_registered": lambda: SiameseUNet(**registered(spec=EARLY)),
    "siamese_registered": lambda: SiameseUNet(**registered(spec=replace(EARLY, fusion="both"))),
    "mamba_tiny_detail_gate_registered": lambda: ChangeMamba(**registered(spec="tiny_detail", gate=1.0)),
    "mamba_tiny_detail_registered": lambda: ChangeMamba(**registered(spec="tiny_detail")),
    "mamba_tiny_focal_gate": lambda: ChangeMamba(**learnt(spec="tiny", gate=1.0, recipe=ChangeTraining())),
}

# What each axis of the network does: `tiny` with one thing changed, or, without any scan, with three.
AXES: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    **{f"encoder_{kind}": {"encoder": kind} for kind in ("shared_vss", "separate_vss", "shared_cnn")},
    **{f"arrangement_{kind}": {"arrangements": (kind,)} for kind in ("split", "cat")},
    "arrangement_split_interleave": {"arrangements": ("split", "interleave")},
    **{f"decoder_{kind}": {"decoder": kind} for kind in ("none", "channel", "spatial")},
    **{f"enhancement_{kind}": {"enhancement": kind} for kind in ("none", "first_order", "second_order", "scan")},
    "difference_plain": {"difference": False},
    "difference_signed": {"signed": True},
    **{f"fusion_{kind}": {"gate": kind} for kind in ("soft", "dai", "tanh")},
    **{f"skip_{kind}": {"skip": kind} for kind in ("se", "none")},
    "no_scan": {"encoder": "shared_cnn", "decoder": "none", "enhancement": "none"},
}


def ablated(changes: dict[str, Any]) -> ChangeMamba:
    return ChangeMamba(**registered(spec=replace(TINY, **changes), gate=1.0))


ABLATIONS = {f"{axis}_gate_registered": partial(ablated, changes) for axis, changes in AXES.items()}
METHODS_AND_AXES: dict[str, Callable[[], AnomalySegmenter]] = {**METHODS, **ABLATIONS}


class Once(PairTransform):
    """Prepare each pair once, however often and for whichever stage it is read."""

    def __init__(self, steps: list[PairTransform]) -> None:
        self.steps = steps
        self.kept: dict[bytes, torch.Tensor] = {}

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        key = hashlib.sha1(pair.numpy().tobytes()).digest()
        if key not in self.kept:
            for step in self.steps:
                pair = step(pair)
            self.kept[key] = pair
        return self.kept[key]


def pairs(group: str, options: argparse.Namespace, register: bool) -> ChangeDataModule:
    root = Path(os.environ["ANOMSEG_DATA"]) / "change" / "deeppcb"
    names = sorted(path.stem for path in (root / "test").iterdir())
    rest = [name for name in names if not name.startswith(group)]
    val = rest[::6]
    split = NameSplit(tuple(n for n in rest if n not in val), tuple(val), tuple(n for n in names if n.startswith(group)))
    prepare: list[PairTransform] = [Binarise()]
    if options.reach:
        prepare.append(LocalShift(options.shift, keep=register, reach=options.reach))
    elif options.shift:
        prepare.append(GlobalShift(options.shift, keep=register))
    return ChangeDataModule(
        root,
        "deeppcb",
        split=split,
        prepare=[Once(prepare)],
        augment=PairAugmentation(FlipRotate()),
        crops=options.crops,
        tile=options.crop,
        batch_size=options.batch,
        overlap=options.overlap,
        evaluate_on=options.window or "tiles",
        seed=options.seed,
        cache_bytes=2**32,
    )


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return pl.Trainer(default_root_dir=folder, accelerator=options.pop("accelerator", "cpu"), max_epochs=-1, **quiet, **options)


class StepTimes(pl.Callback):
    """Take down when each training step ends, in seconds of the processor."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def typical(self) -> float:
        """Give the median seconds of a step; the first reads images and is left out."""
        return max(median(b - a for a, b in pairwise(self.ends[1:])), 1e-3)


def at_rate(make: Callable[[], AnomalySegmenter], rate: float) -> ChangeSegmenter:
    method = cast(ChangeSegmenter, make())
    method.optimisation = replace(method.optimisation, lr=rate)
    return method


def taught(make: Callable[[], ChangeSegmenter], data: ChangeDataModule, options: argparse.Namespace) -> tuple[ChangeSegmenter, int]:
    """Train for as many steps as the budget of minutes allows, which a few steps of a net that is thrown away tell.

    Pairs are prepared before the clock starts: that is done once, whatever is trained.
    """
    for pair in data.scenes_of("train"):
        pair()
    common = {"limit_val_batches": 0, "gradient_clip_val": 1.0, "accelerator": options.accelerator}
    pl.seed_everything(options.seed, verbose=False)
    watch = StepTimes()
    trainer(options.output, max_steps=8, callbacks=[watch], **common).fit(make(), data)
    steps = max(min(options.steps, int(60 * options.minutes / watch.typical)), 1)
    pl.seed_everything(options.seed, verbose=False)
    method = make()
    trainer(options.output, max_steps=steps, **common).fit(method, data)
    return method, steps


@torch.no_grad()
def scored(method: AnomalySegmenter, loader: Any) -> list[tuple[torch.Tensor, torch.Tensor, str]]:
    found = []
    for batch in loader:
        maps = method.score_map(batch["image"].to(method.device)).cpu()
        parts = zip(maps, batch["mask"], batch["name"], strict=True)
        found += [(score[mask != 255], mask[mask != 255], name) for score, mask, name in parts]
    return found


def counts(found: list[tuple[torch.Tensor, torch.Tensor, str]]) -> Any:
    scores, truth = (torch.cat([one[i] for one in found]) for i in (0, 1))
    return count_scores([scores], [scores[truth == 1]])


def f1(flagged: torch.Tensor, truth: torch.Tensor) -> float:
    return float(2 * (flagged & (truth == 1)).sum() / (flagged.sum() + (truth == 1).sum()).clamp_min(1))


def called(name: str, views: int) -> str:
    return name if views == 1 else f"{name}_views{views}"


def result_file(name: str, group: str, options: argparse.Namespace) -> Path:
    return cast(Path, options.output / f"{name}_{group}_{options.seed}.json")


def measure(name: str, group: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train once, and judge by the mean of each number of views; a detector that learns nothing is judged as it is."""
    data, make = pairs(group, options, name.endswith("_registered")), METHODS_AND_AXES[name]
    facts = {"group": group, "seed": options.seed}
    untaught = make()
    if not isinstance(untaught, ChangeSegmenter):
        return [{"method": name, **facts, "steps": 0, "cpu_seconds": 0.0, **judged(untaught.eval(), data)}]
    kept = result_file(name, group, options).with_suffix(".pt")
    if not kept.exists():
        begun = time.process_time()
        taught_one, steps = taught(partial(at_rate, make, options.lr), data, options)
        facts |= {"steps": steps, "cpu_seconds": round(time.process_time() - begun, 1)}
        torch.save({**facts, "weights": taught_one.state_dict()}, kept)
    held = torch.load(kept)
    facts = {key: value for key, value in held.items() if key != "weights"}
    method = make().eval()
    method.load_state_dict(held["weights"])
    results = []
    for views in options.views:
        method.views = views
        results.append({"method": called(name, views), **facts, **judged(method, data)})
    return results


def judged(method: AnomalySegmenter, data: ChangeDataModule) -> dict[str, Any]:
    data.setup("fit")
    val_f1, threshold = f1_max(counts(scored(method, data.val_dataloader())))
    data.setup("test")
    test = scored(method, data.test_dataloader())
    held = counts(test)
    wrong = [(int((s < threshold)[t == 1].sum()), int((s >= threshold)[t != 1].sum()), name) for s, t, name in test]
    return {
        "parameters": sum(p.numel() for p in method.parameters()),
        "val_f1": float(val_f1),
        "f1": f1(torch.cat([s for s, _, _ in test]) >= threshold, torch.cat([t for _, t, _ in test])),
        "f1_best": float(f1_max(held)[0]),
        "f1_median_image": median(f1(s >= threshold, t) for s, t, _ in test),
        "worst_images": sorted(wrong, key=lambda one: -one[0] - one[1])[:8],  # pixels missed, pixels flagged wrongly, name
        "ap": float(average_precision(held)),
        "auroc": float(auroc(held)),
    }


def table(output: Path) -> str:
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]
    lines = [
        "| method | seeds | " + " | ".join(GROUPS) + " | mean F1 | median image | best F1 | AP | AUROC |",
        "|---" * (len(GROUPS) + 7) + "|",
    ]
    for name in dict.fromkeys(r["method"] for r in results):
        own = [r for r in results if r["method"] == name]
        cells = []
        for group in GROUPS:
            values = [r["f1"] for r in own if r["group"] == group]
            cells.append(f"{mean(values):.3f}" if values else "")
        tail = [f"{mean(r[key] for r in own):.3f}" for key in ("f1", "f1_median_image", "f1_best", "ap")]
        lines.append(
            f"| {name} | {len({r['seed'] for r in own})} | " + " | ".join([*cells, *tail, f"{mean(r['auroc'] for r in own):.4f}"]) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS_AND_AXES, "axes"], default=list(METHODS), help="axes: all of them")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--window", type=int, default=0, help="pixels of a side that is judged at once; 0 for those of a crop")
    parser.add_argument("--overlap", type=int, default=0, help="pixels that neighbouring windows share; each is counted once")
    parser.add_argument("--shift", type=int, default=0, help="most pixels of global registration; 0 for none, which the gate needs")
    parser.add_argument("--reach", type=int, default=0, help="pixels that each place moves by beside that; 0 for global registration alone")
    parser.add_argument("--views", type=int, nargs="+", default=[1], help="judge the mean of so many views, each number in turn")
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    names = [name for method in options.methods for name in (ABLATIONS if method == "axes" else [method])]
    for seed in options.seeds:
        for group in options.groups:
            for name in names:
                options.seed = seed
                if all(result_file(called(name, views), group, options).exists() for views in options.views):
                    continue
                for result in measure(name, group, options):
                    result_file(result["method"], group, options).write_text(json.dumps(result, indent=1))
                    print(json.dumps(result), flush=True)
    print(table(options.output))


if __name__ == "__main__":
    main()
