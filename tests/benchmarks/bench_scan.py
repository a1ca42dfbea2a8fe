"""Compare the selective scan with autograd over its recurrence and with mambapy: python tests/benchmarks/bench_scan.py --threads 2.

All in one run, taken in turns, so that the load of the machine falls on each alike; the smallest of the repeats counts (of the recurrence,
which is slow, one of them). mambapy (`pip install mambapy`) takes part where it is installed. Memory is the growth of the peak resident
size over one forward and backward pass, in a process of its own; it is read from /proc, so under Linux alone.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anomseg.functional.scan import scan_backend, selective_scan

Scan = Callable[..., Tensor]
SIZES = [(384, 4096, 1), (96, 4096, 16)]  # channels, tokens, states


def recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    state, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[-1]):
        step = delta[..., t, None]
        state = torch.exp(step * A) * state + step * u[..., t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, -1)


def by_mambapy(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    # No dependency: type checkers find the package on some machines and not on others.
    from mambapy.pscan import pscan  # type: ignore[import-not-found,unused-ignore]

    step, value = delta.transpose(1, 2).unsqueeze(-1), u.transpose(1, 2).unsqueeze(-1)
    states = pscan(torch.exp(step * A), step * B.transpose(1, 2).unsqueeze(2) * value)
    return (states @ C.transpose(1, 2).unsqueeze(-1)).squeeze(3).transpose(1, 2)


SCANS: dict[str, Scan] = {"anomseg": selective_scan, "recurrence": recurrence, "mambapy": by_mambapy}


def operands(channels: int, tokens: int, states: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    given = draw(1, channels, tokens) - 0.5, draw(1, channels, tokens) * 0.5, -2 * draw(channels, states)
    return [x.requires_grad_() for x in (*given, draw(1, states, tokens) - 0.5, draw(1, states, tokens) - 0.5)]


def timed(scan: Scan, given: list[Tensor]) -> tuple[float, float]:
    """Give the seconds of the forward pass, and of it with the backward pass."""
    slope = torch.ones_like(given[0])
    start = time.perf_counter()
    y = scan(*given)
    middle = time.perf_counter()
    torch.autograd.grad(y, given, slope)
    return middle - start, time.perf_counter() - start


def peak(name: str, size: tuple[int, int, int], threads: int) -> float:
    """Give the megabytes that one forward and backward pass adds to a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", name, *map(str, size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def grow(name: str, size: tuple[int, int, int]) -> None:
    timed(SCANS[name], operands(2, 20, 2))
    given = operands(*size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_resident()
    timed(SCANS[name], given)
    print((peak_resident() - before) / 1024)


def peak_resident() -> int:
    """Read the largest resident size so far, in kilobytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def errors(size: tuple[int, int, int]) -> tuple[float, float]:
    """Give the largest errors of output and gradients, each relative to its largest value, against the recurrence in float64."""
    given = operands(size[0], 1024, size[2])
    exact = [x.detach().double().requires_grad_() for x in given]
    y, truth = selective_scan(*given), selective_scan(*exact, backend="pure")
    gradients = zip(torch.autograd.grad(y.sum(), given), torch.autograd.grad(truth.sum(), exact), strict=True)

    def relative(a: Tensor, b: Tensor) -> float:
        return float((a - b).detach().abs().max() / b.detach().abs().max())

    return relative(y, truth), max(relative(a, b) for a, b in gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        channels, tokens, states = map(int, options.peak[1:])
        grow(options.peak[0], (channels, tokens, states))
        return
    names = ["anomseg", "recurrence"] + (["mambapy"] if importlib.util.find_spec("mambapy") else [])
    print(f"{scan_backend('cpu').backend}, torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats")
    print(f"{'channels x tokens x states':>26} {'scan':>10} {'forward ms':>10} {'+ backward':>10} {'ratio':>7} {'extra MB':>9}")
    for size in SIZES:
        given = operands(*size)
        best = dict.fromkeys(names, (float("inf"), float("inf")))
        for repeat in range(options.repeats):
            for name in names:
                if name != "recurrence" or repeat == 0:
                    found = timed(SCANS[name], given)
                    best[name] = min(best[name][0], found[0]), min(best[name][1], found[1])
        for name in names:
            forward, both = (1000 * x for x in best[name])
            ratio, memory = best[name][1] / best["anomseg"][1], peak(name, size, options.threads)
            print(f"{' x '.join(map(str, size)):>26} {name:>10} {forward:>10.1f} {both:>10.1f} {ratio:>7.1f} {memory:>9.0f}")
        print("largest relative error of output, gradients: {:.1e}, {:.1e}".format(*errors(size)))


if __name__ == "__main__":
    main()
