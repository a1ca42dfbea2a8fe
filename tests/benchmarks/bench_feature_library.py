"""Measure the feature library: python tests/benchmarks/bench_feature_library.py [--data industrial/magnetic_tile] [--images 60].

Three tables, on one thread, in processor seconds.

1. The greedy coreset against the plain loop, which takes the distance of every vector to each new centre. The loop is timed on its first
   centres and multiplied; both choose the same ones.
2. Nearest neighbours against `torch.cdist` and its minimum, with the memory that each adds.
3. With `--data`, the library on Magnetic-Tile against a plain PatchCore of the same encoder (an untrained timm ResNet-18) on the same
   images, each in a process of its own: all patches stacked, the plain loop in a random projection, `torch.cdist`. Where anomalib can be
   imported, its PatchcoreModel runs as well. Images are halved and their exposure taken out by log((I + 0.02) / (median + 0.02)); good
   tiles are split by session.
"""

import argparse
import importlib.util
import json
import logging
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anomseg.data.picture_io import read_picture
from anomseg.functional.coreset import greedy_coreset, random_projection
from anomseg.functional.nearest import nearest
from anomseg.methods.feature_library import DIMENSIONS, FeatureLibrary
from anomseg.methods.feature_library_parts import PatchPosition
from anomseg.nets.feature_encoder import EncoderNet, FilterBankFeatures, TimmFeatures, joined_levels
from anomseg.sample import collate

ENCODER = TimmFeatures("resnet18", (2, 3), seed=0)
METHODS = {
    "plain": "plain PatchCore",
    "anomalib": "anomalib's PatchcoreModel",
    "library": "FeatureLibrary as PatchCore",
    "bounded": "FeatureLibrary, memory 8,192",
    "placed": "the same, l2, border",
    "placed_4096": "the same, memory 4,096",
    "border": "FeatureLibrary, border",
    "bank": "FeatureLibrary, filter bank, border",
}


def peak() -> float:
    """Give the peak memory of this process in MB; `resource` would count that of the process that started it as well."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def seconds(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    best, out = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        out = work()
        best = min(best, time.process_time() - start)
    return best, out


def vectors(count: int, size: int, rank: int) -> Tensor:
    """Draw vectors of about `rank` dimensions, as patch features are, of varied density."""
    g = torch.Generator().manual_seed(0)
    near = torch.randn(count, rank, generator=g) @ torch.randn(rank, size, generator=g) * torch.rand(count, 1, generator=g)
    return near + 0.1 * torch.randn(count, size, generator=g)


def plain_loop(x: Tensor, count: int, start: int) -> list[int]:
    chosen, smallest = [start], None
    while len(chosen) < count:
        distance = torch.linalg.norm(x - x[chosen[-1]], dim=1)
        smallest = distance if smallest is None else torch.minimum(smallest, distance)
        chosen.append(int(smallest.argmax()))
    return chosen


def compare_coresets() -> None:
    print(f"{'vectors, dimensions, centres':34}{'plain loop':>14}{'greedy_coreset':>18}{'ratio':>8}{'radius ratio':>16}")
    for count, size, rank, centres in ((20000, 128, 8, 400), (20000, 128, 8, 2000), (20000, 256, 20, 2000), (60000, 384, 12, 600)):
        x = vectors(count, size, rank)
        timed = min(centres, 100)
        slow, chosen = seconds(lambda x=x, n=timed: plain_loop(x, n, 0))
        fast, _ = seconds(lambda x=x, n=centres: greedy_coreset(x, n, 0), 2)
        first = greedy_coreset(x, timed, 0)
        ratio = float(first.radius / torch.cdist(x, x[chosen]).amin(1).max())
        slow *= centres / timed
        print(f"{f'{count}, {size}, {centres}':34}{slow:>12.1f} s{fast:>16.2f} s{slow / fast:>8.0f}{ratio:>16.6f}")


def added_memory(work: str, shape: tuple[int, int, int]) -> float:
    """Give the MB that a call adds to the peak of a fresh process."""
    code = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r}); torch.set_num_threads(1)\n"
        "from bench_feature_library import nearest, peak\n"
        f"x, y = torch.rand({shape[0]}, {shape[2]}), torch.rand({shape[1]}, {shape[2]})\n"
        "nearest(x[:64], y[:64]); torch.cdist(x[:64], y[:64]).min(1)\n"
        f"before = peak(); {work}; print(peak() - before)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def compare_searches() -> None:
    print(f"\n{'queries, library, dimensions':34}{'torch.cdist':>22}{'nearest':>22}{'time':>8}{'memory':>8}")
    for shape in ((10000, 5000, 384), (20000, 2000, 64), (4000, 10000, 1024)):
        x = vectors(shape[0] + shape[1], shape[2], 8)
        queries, library = x[: shape[0]].contiguous(), x[shape[0] :].contiguous()
        theirs, _ = seconds(lambda q=queries, y=library: torch.cdist(q, y).min(1), 3)
        ours, _ = seconds(lambda q=queries, y=library: nearest(q, y), 3)
        much, little = added_memory("torch.cdist(x, y).min(1)", shape), added_memory("nearest(x, y)", shape)
        cells = f"{f'{theirs:.2f} s, {much:.0f} MB':>22}{f'{ours:.2f} s, {little:.0f} MB':>22}"
        print(f"{', '.join(map(str, shape)):34}{cells}{ours / theirs:>8.2f}{little / much:>8.2f}")


def read_tile(path: Path) -> dict[str, Any]:
    """Read a tile at half size: three equal bands, mask, name and kind."""
    grey = read_picture(path).mean(0, keepdim=True)
    grey = F.avg_pool2d(grey[None], 2)[0]
    image = ((grey + 0.02) / (grey.median() + 0.02)).log().expand(3, -1, -1).contiguous()
    kind, truth = path.parts[-3].removeprefix("MT_"), path.with_suffix(".png")
    mask = torch.zeros(image.shape[1:], dtype=torch.int64)
    if kind != "Free":
        defect = (read_picture(truth)[0] > 0.5).float()[None, None]
        mask = (F.max_pool2d(defect, 2)[0, 0] > 0).long()
    return {"image": image, "mask": mask, "name": f"{kind}/{path.stem}"}


def tiles(root: Path, images: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split the good tiles by session, about 70 of 100 to train; all others test."""
    numbered = sorted((int(re.search(r"num_(\d+)", path.stem)[1]), path) for path in root.glob("MT_Free/Imgs/*.jpg"))
    sessions: list[list[Path]] = []
    for (before, _), (number, path) in zip([(-(10**9), Path()), *numbered], numbered, strict=False):
        sessions += [[]] if number - before > 1000 else []
        sessions[-1].append(path)
    order = torch.randperm(len(sessions), generator=torch.Generator().manual_seed(seed)).tolist()
    train: list[Path] = []
    test: list[Path] = []
    for index in order:
        (train if len(train) < 0.7 * len(numbered) else test).extend(sessions[index])
    chosen = [train[i] for i in torch.linspace(0, len(train) - 1, min(images, len(train))).long().tolist()]
    defects = sorted(path for path in root.glob("MT_*/Imgs/*.jpg") if "MT_Free" not in path.parts)
    return [read_tile(path) for path in chosen], [read_tile(path) for path in (*test, *defects)]


def auroc(score: Tensor, anomalous: Tensor) -> float:
    order = score.argsort()
    truth = anomalous[order].double()
    above = (truth * (1 - truth).cumsum(0)).sum()
    return float(above / (truth.sum() * (1 - truth).sum()))


class PlainPatchCore:
    """Every patch stacked, the plain loop, `torch.cdist`: PatchCore without any care for memory."""

    def __init__(self, net: EncoderNet, share: float) -> None:
        self.net, self.share = net, share

    def features(self, image: Tensor) -> Tensor:
        x = F.pad(image, (0, -image.shape[-1] % self.net.multiple, 0, -image.shape[-2] % self.net.multiple), mode="replicate")
        return joined_levels(self.net(x, torch.ones(1, *x.shape[-2:], dtype=torch.bool)), 3)

    @torch.no_grad()
    def fit(self, images: list[Tensor]) -> None:
        rows = torch.cat([self.features(image).movedim(1, -1).flatten(0, -2) for image in images])
        projected = random_projection(rows, DIMENSIONS, torch.Generator().manual_seed(0))
        self.library = rows[plain_loop(projected, int(self.share * len(rows)), 0)]

    @torch.no_grad()
    def score(self, image: Tensor) -> Tensor:
        features = self.features(image)
        distance = torch.cdist(features.movedim(1, -1).flatten(0, -2), self.library).amin(1).view(1, 1, *features.shape[2:])
        return blurred(F.interpolate(distance, image.shape[-2:], mode="bilinear"))


def blurred(score: Tensor) -> Tensor:
    t = torch.arange(-16.0, 17.0)
    kernel = (-(t**2) / 32).softmax(0)
    for shape, edges in (((1, 1, -1, 1), (0, 0, 16, 16)), ((1, 1, 1, -1), (16, 16, 0, 0))):
        score = F.conv2d(F.pad(score, edges, mode="replicate"), kernel.view(shape))
    return score[:, 0]


def anomalib_model(train: list[Tensor], share: float) -> tuple[Callable[[], None], Callable[[Tensor], Tensor]]:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False)
    model.feature_extractor.feature_extractor.load_state_dict(ENCODER.build(3).net.state_dict())

    def fit() -> None:
        model.train()
        for image in train:
            model(image)
        model.subsample_embedding(share)
        model.eval()

    return fit, lambda image: model(image).anomaly_map[:, 0]


def library(kind: str, share: float, train: list[dict[str, Any]], folder: str) -> tuple[Callable[[], None], Callable[[Tensor], Tensor]]:
    bank = FilterBankFeatures((1.0, 2.0, 4.0), step=4)
    bounded = {"memory": 8192, "coreset": min(8192, int(share * 500 * len(train)))}
    options: dict[str, Any] = {
        "library": {"normalise": "none", "memory": 1 << 20},
        "bounded": {"normalise": "none", **bounded},
        "placed": {"normalise": "l2", "position": PatchPosition(border=1.0), **bounded},
        "placed_4096": {"normalise": "l2", "position": PatchPosition(border=1.0), **bounded, "memory": 4096},
        "border": {"normalise": "whiten", "position": PatchPosition(border=1.0)},
        "bank": {"normalise": "whiten", "position": PatchPosition(border=1.0), "encoder": bank, "patch": 1},
    }[kind]
    method = FeatureLibrary(**{"in_channels": 3, "encoder": ENCODER, "coreset": share, "smoothing": 4.0, **options})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet)
    loader = DataLoader(train, batch_size=1, collate_fn=collate)
    return lambda: loop.fit(method, loader), lambda image: method.eval().score_map(image)


def measure(kind: str, root: Path, images: int, share: float, seed: int) -> dict[str, float]:
    """Fit and score one method in this process."""
    train, test = tiles(root, images, seed)
    pixels = torch.cat([one["image"][0].flatten() for one in train])
    for one in (*train, *test):
        one["image"] = (one["image"] - pixels.mean()) / pixels.std()
    batches = [one["image"][None] for one in train]
    if kind == "plain":
        plain = PlainPatchCore(ENCODER.build(3), share)
        fit, score = (lambda: plain.fit(batches)), plain.score
    elif kind == "anomalib":
        fit, score = anomalib_model(batches, share)
    else:
        fit, score = library(kind, share, train, "/tmp")
    ENCODER.build(3)(batches[0][..., :96, :96], torch.ones(1, 96, 96, dtype=torch.bool))  # the first call sets up threads and kernels
    before, (fitting, _) = peak(), seconds(fit)
    found: dict[str, float] = {"fit": fitting, "memory": peak() - before}
    with torch.no_grad():
        scoring, maps = seconds(lambda: [score(one["image"][None])[0] for one in test])
    kinds = [one["name"].split("/")[0] for one in test]
    largest, bad = torch.stack([one.max() for one in maps]), torch.tensor([kind != "Free" for kind in kinds])
    found |= {"score": scoring / len(test), "image": auroc(largest, bad)}
    for name, left in (("pixel", ""), ("pixel_without_uneven", "Uneven")):
        kept = [i for i, kind in enumerate(kinds) if kind != left]
        found[name] = auroc(torch.cat([maps[i].flatten() for i in kept]), torch.cat([test[i]["mask"].flatten() for i in kept]) == 1)
    return found


def compare_methods(arguments: argparse.Namespace) -> None:
    print(f"\nMagnetic-Tile, {arguments.images} training tiles, coreset {arguments.coreset:.1%}, split seed {arguments.seed}")
    print(f"{'':38}{'fit':>10}{'added':>10}{'an image':>12}{'image AUROC':>14}{'pixel':>8}{'no Uneven':>12}")
    for kind, title in METHODS.items():
        if kind == "anomalib" and importlib.util.find_spec("anomalib") is None:
            print(f"{title:38}not installed")
            continue
        command = [sys.executable, __file__, "--one", kind, "--data", arguments.data, "--images", str(arguments.images)]
        command += ["--coreset", str(arguments.coreset), "--seed", str(arguments.seed)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        v = json.loads(out.strip().splitlines()[-1])
        print(
            f"{title:38}{v['fit']:>8.1f} s{v['memory']:>7.0f} MB{1000 * v['score']:>9.0f} ms{v['image']:>14.3f}{v['pixel']:>8.3f}"
            f"{v['pixel_without_uneven']:>12.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--coreset", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=METHODS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.one:
        print(json.dumps(measure(arguments.one, Path(arguments.data), arguments.images, arguments.coreset, arguments.seed)))
    else:
        compare_coresets()
        compare_searches()
        if arguments.data:
            compare_methods(arguments)
