"""Compare RX with `spectral` in one run: python tests/benchmarks/bench_rx.py [--full] [scene.mat].

`spectral` needs minutes for a whole scene with windows. Without --full it is timed on every fifth row and column from the first
row on, so that border and interior take part in their shares, and scaled up by the number of pixels; the table says so.
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import spectral
import torch
from scipy.io import loadmat
from spectral.algorithms.detectors import RX
from spectral.algorithms.spatial import map_outer_window_stats

from anomseg.functional.rx import global_rx, local_rx

INNER, OUTER, STEP = 5, 21, 5


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(call: Callable[[], Any], repeats: int = 1) -> tuple[Any, float, float]:
    """Return the result, the best time in seconds and the rise of the resident memory in MB, sampled every 5 ms."""
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    watcher.start()  # only now: watching the memory slows short calls down
    result = call()
    done.set()
    watcher.join()
    return result, best, max(0.0, peak[0] - before)


def spectral_local(cube: np.ndarray, step: int) -> np.ndarray:
    detector = RX()

    def score(background: Any, pixel: np.ndarray) -> Any:
        detector.set_background(background)
        return detector(pixel)

    every = (None, None, step)
    return map_outer_window_stats(score, cube, INNER, OUTER, dim_out=1, rslice=every, cslice=every)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", nargs="?", help="a .mat file with the key 'data' (H, W, C); random pixels without it")
    parser.add_argument("--full", action="store_true", help="run spectral on every pixel")
    arguments = parser.parse_args()
    spectral.settings.show_progress = False
    generator = np.random.default_rng(0)
    cube = (
        loadmat(arguments.scene)["data"] if arguments.scene else generator.normal(size=(100, 100, 189)) @ generator.normal(size=(189, 189))
    )
    cube = cube.astype(np.float32).astype(np.float64)
    image = torch.from_numpy(cube).float().permute(2, 0, 1)[None]
    step = 1 if arguments.full else STEP

    global_rx(image), local_rx(image[..., : OUTER + 4, :], INNER, OUTER), spectral.rx(cube)  # warm up
    ours, ours_time, ours_memory = measure(lambda: global_rx(image), repeats=5)
    theirs, their_time, their_memory = measure(lambda: spectral.rx(cube), repeats=5)
    rows = [("global", ours_time, their_time, ours_memory, their_memory, ours[0].numpy(), theirs)]
    ours, ours_time, ours_memory = measure(lambda: local_rx(image, INNER, OUTER), repeats=2)
    theirs, their_time, their_memory = measure(lambda: spectral_local(cube, step))
    scaled = their_time * cube.shape[0] * cube.shape[1] / theirs.size
    rows.append(("local", ours_time, scaled, ours_memory, their_memory, ours[0, ::step, ::step].numpy(), theirs))

    print(f"cube {cube.shape}, windows ({INNER}, {OUTER}), {torch.get_num_threads()} threads")
    print(f"spectral's local RX was run on {theirs.size} of {cube.shape[0] * cube.shape[1]} pixels and scaled up")
    print(f"{'':8}{'ours s':>9}{'spectral s':>12}{'ratio':>8}{'ours MB':>9}{'spectral MB':>13}{'max rel. diff.':>16}")
    for name, a, b, memory, their, score, expected in rows:
        print(f"{name:8}{a:9.3f}{b:12.3f}{b / a:8.1f}{memory:9.0f}{their:13.0f}{np.max(np.abs(score - expected) / expected):16.1e}")
    print(f"peak resident memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
