"""Measure simple detectors where one class is normal and the rest anomalous: python tests/benchmarks/bench_class_as_normal.py [--seeds N].

ANOMSEG_DATA names the folder that holds remote_sensing/aerial_roads and remote_sensing/loveda. Six tasks: roads normal, everything but
roads normal (35 training and 15 test tiles, mean over seeded splits), LoveDA background and agriculture normal, from tile 0 to tile 1 and
back. A detector is fitted to pixels of the normal class of the training tiles; test labels serve the figure alone: pixel AUROC over all
test pixels with data, anomaly = positive.

Rows named "ratio" score ln q(x) - ln p(x), p fitted to normal pixels and q to pixels whatever their class, never told which is which:
"train" takes q from the training tiles, other classes included, "test" from the test tiles, which leaves other classes of the training
tiles out but scores only tiles that it has seen.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomseg.functional.filter_bank import filter_bank, gaussian_filter
from anomseg.functional.mixture import fit_mixture, log_likelihood
from anomseg.functional.rx import covariance, mahalanobis, pixel_statistics, regularised_precision
from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores

SAMPLE = 30_000  # pixels that a detector is fitted to
Score = Callable[[Tensor], Tensor]  # (C, H, W) -> (H, W)


@dataclass(frozen=True)
class Tile:
    image: Tensor  # (3, H, W) in [0, 1]
    label: Tensor  # (H, W); roads 0 and 1, LoveDA 0 to 7 with 0 for no data


@dataclass(frozen=True)
class Task:
    name: str
    train: list[int]
    test: list[int]
    normal: int


@dataclass(frozen=True)
class Detector:
    name: str
    components: int = 1  # 0: Mahalanobis distance
    sigmas: tuple[float, ...] | None = None  # None: the bands alone
    log_floor: float = 0.0
    standardised: bool = False
    reference: str = "none"  # where q comes from: none, train, test


def mixtures(sigmas: tuple[float, ...], floor: float, standardised: bool, name: str) -> list[Detector]:
    return [Detector(f"mixture {k}, {name}", k, sigmas, floor, standardised) for k in (5, 20)]


PLAIN, WIDE = (1.0, 2.0, 4.0), (1.0, 4.0, 16.0)
DETECTORS = [
    Detector("RX, bands", 0),
    Detector("RX, bands, standardised", 0, standardised=True),
    Detector("RX, bank 1-4", 0, PLAIN),
    *mixtures(PLAIN, 0.0, False, "bank 1-4"),
    Detector("RX, log bank 1-16", 0, WIDE, 0.01),
    Detector("RX, log bank 1-16, standardised", 0, WIDE, 0.01, True),
    *mixtures(WIDE, 0.01, True, "log bank 1-16, standardised"),
    *(
        Detector(f"ratio {reference} {k}, log bank 1-16{name}", k, WIDE, 0.01, standardised, reference)
        for reference in ("train", "test")
        for k in (1, 5)
        for standardised, name in ((False, ""), (True, ", standardised"))
        if k == 1 or not standardised
    ),
]


def read_tiles(root: Path) -> list[Tile]:
    """Read the 50 road tiles and then the 2 tiles of LoveDA."""

    def opened(path: Path) -> Tensor:
        return torch.from_numpy(np.array(Image.open(path)))

    roads = sorted((root / "aerial_roads" / "image").glob("*.png"))
    pairs = [(path, root / "aerial_roads" / "label" / path.name) for path in roads]
    tiles = [Tile(opened(image).permute(2, 0, 1) / 255, (opened(label) > 127).long()) for image, label in pairs]
    loveda = [(root / "loveda" / "img_dir" / f"{i}.png", root / "loveda" / "ann_dir" / f"{i}.png") for i in (0, 1)]
    return tiles + [Tile(opened(image).permute(2, 0, 1) / 255, opened(label).long()) for image, label in loveda]


def tasks(seeds: int) -> list[Task]:
    found = []
    for seed in range(seeds):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed)).tolist()
        found += [Task("roads", order[:35], order[35:], 1), Task("all but roads", order[:35], order[35:], 0)]
    for name, label in (("background", 1), ("agriculture", 7)):
        found += [Task(f"{name} 0->1", [50], [51], label), Task(f"{name} 1->0", [51], [50], label)]
    return found


def described(image: Tensor, detector: Detector) -> Tensor:
    if detector.standardised:
        image = (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True)
    return image if detector.sigmas is None else filter_bank(image[None], detector.sigmas, detector.log_floor)[0]


def drawn(features: Sequence[Tensor], chosen: Sequence[Tensor], seed: int) -> Tensor:
    """Draw pixels at random from the chosen ones of several tiles: (N, C)."""
    generator, counts = torch.Generator().manual_seed(seed), torch.stack([c.sum() for c in chosen])
    share = min(1.0, SAMPLE / float(counts.sum()))
    keep = [c & (torch.rand(c.shape, generator=generator) < share) for c in chosen]
    return torch.cat([f[:, k].T for f, k in zip(features, keep, strict=True)])


def energy(pixels: Tensor, components: int) -> Score:
    if components == 0:
        statistics = pixel_statistics(pixels)
        precision = regularised_precision(covariance(statistics), statistics.count)
        return lambda tile: mahalanobis(tile[None], statistics.mean, precision)[0].sqrt()
    mixture = fit_mixture(pixels, components, iterations=40, tolerance=1e-2, ridge=1e-2)
    return lambda tile: -log_likelihood(tile.flatten(1).T, mixture).float().view(tile.shape[1:])


def measure(detector: Detector, task: Task, tiles: list[Tile], features: list[Tensor], smoothing: Sequence[float]) -> list[float]:
    normal = [tiles[i].label == task.normal for i in task.train]
    data = [tiles[i].label > 0 if i >= 50 else torch.ones_like(tiles[i].label, dtype=torch.bool) for i in task.test]
    score = energy(drawn([features[i] for i in task.train], normal, 0), detector.components)
    maps = [score(features[i]) for i in task.test]
    if detector.reference != "none":
        source = task.train if detector.reference == "train" else task.test
        anything = [tiles[i].label >= (1 if i >= 50 else 0) for i in source]
        other = energy(drawn([features[i] for i in source], anything, 1), detector.components)
        maps = [one - other(features[i]) for one, i in zip(maps, task.test, strict=True)]
    figures = []
    for sigma in smoothing:
        smooth = maps if sigma == 0 else [gaussian_filter(one[None, None], sigma)[0, 0] for one in maps]
        scores = torch.cat([one[d] for one, d in zip(smooth, data, strict=True)])
        truth = torch.cat([tiles[i].label[d] != task.normal for i, d in zip(task.test, data, strict=True)])
        figures.append(float(auroc(count_scores([scores], [scores[truth]]))))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="random splits of the road tiles")
    parser.add_argument("--smoothing", type=float, nargs="*", default=[0.0, 8.0, 24.0], help="Gaussians over the map, in pixels")
    parser.add_argument("--only", default="", help="run detectors whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tiles, plan = read_tiles(Path(os.environ["ANOMSEG_DATA"]) / "remote_sensing"), tasks(options.seeds)
    names = list(dict.fromkeys(task.name for task in plan))
    print(f"{'detector, smoothing':<58} {' | '.join(names)} | mean | seconds without the features")
    features: list[Tensor] = []
    before = None
    for detector in (d for d in DETECTORS if options.only in d.name):
        kind = (detector.sigmas, detector.log_floor, detector.standardised)
        if kind != before:  # detectors with the same features follow one another
            features.clear()
            features += [described(tile.image, detector) for tile in tiles]
            before = kind
        start = time.perf_counter()
        figures = [measure(detector, task, tiles, features, options.smoothing) for task in plan]
        seconds = time.perf_counter() - start
        for index, sigma in enumerate(options.smoothing):
            found = {n: [f[index] for f, t in zip(figures, plan, strict=True) if t.name == n] for n in names}
            means = [sum(v) / len(v) for v in found.values()]
            cells = " ".join(f"{value:.3f}" for value in means)
            print(f"{detector.name + f', {sigma:g} px':<58} {cells}  {sum(means) / len(means):.3f}  {seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
