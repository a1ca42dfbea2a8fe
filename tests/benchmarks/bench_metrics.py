"""Compare pixel metrics with torchmetrics and scikit-learn in one run: python tests/benchmarks/bench_metrics.py [--threads 2] [--no-sweep].

First the time for AUROC and average precision of scores in [0, 1] (outside of that range torchmetrics would apply a sigmoid), fed in 20
updates. Then the errors against scikit-learn on scores of many ranges. One thread is the default, since sorting uses no more.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from anomseg.functional.score_curves import auroc, auroc_bound, average_precision, fpr_at_tpr
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.score_pages import fold_scores
from anomseg.metrics.pixel import PixelAUROC, PixelAveragePrecision

UPDATES = 20


def distributions(pixels: int, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw scores and truth of many ranges; about one pixel in 50 is anomalous."""
    random = np.random.default_rng(seed)
    truth = random.random(pixels) < 0.02
    noise = random.standard_normal(pixels).astype(np.float32)

    def normal(centre: float, spread: float, far: float, wide: float) -> np.ndarray:
        return np.where(truth, far + wide * noise, centre + spread * noise).astype(np.float32)

    one = np.zeros(pixels, bool)
    one[pixels // 3] = True
    zeros = np.where(random.random(pixels) < 1e-5, 0, normal(1000, 0.1, 1000.2, 0.1)).astype(np.float32)
    signed = np.where(random.random(pixels) < 0.5, -0.0, 0.0).astype(np.float32)
    cauchy = -np.abs(random.standard_cauchy(pixels)) * np.where(truth, 0.3, 1.0)
    return {
        "uniform": (np.where(truth, np.sqrt(random.random(pixels)), random.random(pixels)).astype(np.float32), truth),
        "N(30,5) / N(45,5)": (normal(30, 5, 45, 5), truth),
        "energies": (normal(-18, 2.5, -11, 3), truth),
        "log-normal, sigma 3": (np.exp(normal(0, 3, 3, 3)), truth),
        "below 1e-6": (np.exp(normal(-18, 1, -16.5, 1)).clip(0, 1e-6).astype(np.float32), truth),
        "1000 +- 0.1": (normal(1000, 0.1, 1000.2, 0.1), truth),
        "-5000 +- 0.05": (normal(-5000, 0.05, -4999.9, 0.05), truth),
        "heavy ties": (np.round(normal(3, 1, 5, 1)), truth),
        "-|Cauchy|": (cauchy.astype(np.float32), truth),
        "1 anomalous pixel": (normal(0, 1, 0, 1) + np.where(one, 1, 0).astype(np.float32), one),
        "1000 and zeros": (zeros, truth),
        "-0.0 and 0.0": (np.where(random.random(pixels) < 0.9, signed, normal(0, 1, 1, 1)).astype(np.float32), truth),
    }


def best_time(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, best


def fed(metrics: MetricCollection, score: Tensor, mask: Tensor) -> dict[str, Tensor]:
    metrics.reset()
    for s, m in zip(score.chunk(UPDATES), mask.chunk(UPDATES), strict=True):
        metrics.update(s, m)
    return metrics.compute()


def state_bytes(metrics: MetricCollection) -> int:
    held: dict[int, int] = {}
    for metric in metrics.values(copy_state=False):
        assert isinstance(metric, Metric)
        for name in metric._defaults:
            state = getattr(metric, name)
            held |= {t.data_ptr(): t.numel() * t.element_size() for t in (state if isinstance(state, list) else [state])}
    return sum(held.values())


def compare_times(pixels: int, run: int) -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(random.random(-(-pixels // run)) < 0.05, run)[:pixels]
    score = torch.from_numpy(np.where(truth, random.beta(3, 2, pixels), random.beta(2, 3, pixels)).astype(np.float32))
    mask = torch.from_numpy(truth.astype(np.int64))
    maps, truths = score.view(UPDATES, 1, -1), mask.view(UPDATES, 1, -1)
    ours = MetricCollection([PixelAUROC(), PixelAveragePrecision()])
    theirs = MetricCollection([BinaryAUROC(), BinaryAveragePrecision()])
    rows = {
        "anomseg": best_time(lambda: [float(v) for v in fed(ours, maps, truths).values()], 9),
        "torchmetrics, exact": best_time(lambda: [float(v) for v in fed(theirs, score, mask).values()], 2),
        "scikit-learn": best_time(lambda: [f(mask.numpy(), score.numpy()) for f in (roc_auc_score, average_precision_score)], 1),
    }
    print(f"{pixels:,} pixels in {UPDATES} updates\n{'':22}{'AUROC':>12}{'AP':>12}{'seconds':>10}{'ratio':>8}")
    for name, (values, seconds) in rows.items():
        print(f"{name:22}{values[0]:12.8f}{values[1]:12.8f}{seconds:10.3f}{seconds / rows['anomseg'][1]:8.1f}")
    print(f"state: anomseg {state_bytes(ours):,} bytes, torchmetrics {state_bytes(theirs):,} bytes")


def sweep(pixels: int) -> None:
    print(f"\nerrors against scikit-learn at {pixels:,} pixels\n{'':22}{'':8}{'AUROC':>10}{'bound':>10}{'AP':>10}{'FPR95':>10}{'ms':>8}")
    for name, (score, truth) in distributions(pixels).items():
        rates, hits, _ = roc_curve(truth, score, drop_intermediate=False)
        exact = (roc_auc_score(truth, score), average_precision_score(truth, score), rates[np.argmax(hits >= 0.95)])
        scores, anomalous = [torch.from_numpy(score)], [torch.from_numpy(score[truth])]
        for kind, count in (("grid", lambda s, a: count_scores(s, a)), ("folded", lambda s, a: fold_scores(s, a).counts())):
            counts, seconds = best_time(lambda c=count, s=scores, a=anomalous: c(s, a), 2)
            errors = [abs(float(f(counts)) - e) for f, e in zip((auroc, average_precision, fpr_at_tpr), exact, strict=True)]
            bound = float(auroc_bound(counts))
            print(f"{name:22}{kind:8}{errors[0]:10.1e}{bound:10.1e}{errors[1]:10.1e}{errors[2]:10.1e}{1e3 * seconds:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", type=int, default=10_000_000)
    parser.add_argument("--no-sweep", action="store_true", help="time only")
    parser.add_argument("--run", type=int, default=100, help="anomalous pixels in a row, as in a mask of regions; 1 scatters them")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compare_times(arguments.pixels, arguments.run)
    if not arguments.no_sweep:
        sweep(arguments.pixels)


if __name__ == "__main__":
    main()
