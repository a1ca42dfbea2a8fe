"""Measure the dense patch net against its patches one by one: python tests/benchmarks/bench_patch_descriptor.py [--size 128] [--repeats 3].

Three ways to the same descriptors of one RGB image, on one thread: the dense net, all patches cut out first and sent through the
undilated net in batches of 1,024, and every patch by itself. Then what a training step of `PatchDescriptor` costs, scale by scale.
Times are processor seconds, the best of the repeats, which a busy machine distorts least. One by one is timed on a sixteenth of the
patches and multiplied.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.nets.patch_descriptor import PATCH, DensePatchNet, PatchDescriptor

SHARE = 16


def patches_of(image: Tensor) -> Tensor:
    """Cut (1, C, H, W) into its zero-padded patches: (H · W, C, 15, 15)."""
    cut = F.unfold(F.pad(image, (PATCH // 2,) * 4), PATCH)[0].T
    return cut.reshape(-1, image.shape[1], PATCH, PATCH)


def undilated(net: DensePatchNet, patches: Tensor) -> Tensor:
    """Describe (N, C, 15, 15) as published: (N, D)."""
    x = F.max_pool2d(F.relu(net.first(patches)), 2)
    x = F.max_pool2d(F.relu(net.second(x)), 2)
    return net.last(F.relu(net.third(x))).flatten(1)


def seconds(work: Callable[[], Tensor], learn: bool, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        with torch.set_grad_enabled(learn):
            out = work()
        if learn:
            out.square().mean().backward()
        best = min(best, time.process_time() - start)
    return best


def compare(size: int, repeats: int) -> None:
    """Print the table of three ways."""
    torch.manual_seed(0)
    net, image = DensePatchNet(3, 5), torch.randn(1, 3, size, size)
    patches = patches_of(image)
    some = patches[:: SHARE + 1][: len(patches) // SHARE]  # from all columns
    with torch.no_grad():
        dense, cut = net(image)[0].flatten(1).T, torch.cat([undilated(net, part) for part in patches.split(1024)])
    print(f"{size} x {size} pixels, largest difference {float((dense - cut).abs().max()):.1e} of values up to {float(cut.abs().max()):.1f}")
    print(f"{'':34}{'forward':>12}{'ratio':>8}{'and backward':>16}{'ratio':>8}")
    whole = [seconds(lambda: net(image), learn, repeats) for learn in (False, True)]
    batched = [seconds(lambda: in_batches(net, image), learn, max(1, repeats - 1)) for learn in (False, True)]
    alone = [seconds(lambda: one_by_one(net, some), learn, 1) * len(patches) / len(some) for learn in (False, True)]
    for name, (forward, both) in {"dense": whole, "patches, 1,024 at once": batched, "patches, one by one": alone}.items():
        print(f"{name:34}{forward:>10.3f} s{forward / whole[0]:>8.1f}{both:>14.3f} s{both / whole[1]:>8.1f}")


def in_batches(net: DensePatchNet, image: Tensor) -> Tensor:
    return torch.cat([undilated(net, part) for part in patches_of(image).split(1024)])


def one_by_one(net: DensePatchNet, patches: Tensor) -> Tensor:
    return torch.cat([undilated(net, patch[None]) for patch in patches])


def steps(repeats: int) -> None:
    """Print what a training step costs."""
    print(f"\n{'one image, bands x rows x columns':34}{'forward':>12}{'and backward':>24}")
    for scales in ((0.5, 1.0, 2.0), (0.5,), (1.0,), (2.0,)):
        for shape in ((3, 256, 256), (3, 400, 400)) if len(scales) > 1 else ((3, 256, 256),):
            net, image = PatchDescriptor(scales=scales).build(3), torch.randn(1, *shape)
            valid = torch.ones(1, *shape[1:], dtype=torch.bool)
            forward, both = (seconds(lambda n=net, i=image, v=valid: torch.cat(n(i, v), 1), learn, repeats) for learn in (False, True))
            print(f"{f'{shape}, scales {scales}':34}{forward:>12.3f} s{both:>22.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare(arguments.size, arguments.repeats)
    steps(arguments.repeats)
