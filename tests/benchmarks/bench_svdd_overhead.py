"""Compare training of SVDD by a trainer with a bare PyTorch loop over the same net: python tests/benchmarks/bench_svdd_overhead.py.

Both do the same arithmetic: inputs, virtual anomalies, net on image and copy, losses, backward, AdamW, schedule. `with statistics` adds to
both the pass over the training data that moves the centre after an epoch.
"""

import argparse
import logging
import time
import warnings

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from anomseg.functional.virtual_anomalies import apply_all
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_fit import DescribedBatch
from anomseg.methods.svdd_training import SVDDTraining, reconstruction_loss, svdd_losses
from anomseg.sample import finite_pixels

Batch = dict[str, Tensor]


def batches(steps: int, size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, size, size, generator=generator) < 0.2).long()
    return [{"image": torch.rand(4, 3, size, size, generator=generator), "mask": mask} for _ in range(steps)]


def by_trainer(data: list[Batch]) -> float:
    method = SVDD(recipe=SVDDTraining(warmup=0.0))
    loader = DataLoader(data, batch_size=None)  # type: ignore[arg-type]  # any list is a dataset, but not to the types of torch
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(method, loader)
    return time.perf_counter() - start


def by_loop(data: list[Batch], statistics: bool) -> float:
    method = SVDD(recipe=SVDDTraining(warmup=0.0))
    start = time.perf_counter()
    normal = [batch["mask"] == 0 for batch in data]
    method.inputs.fit(lambda: ((b["image"], n) for b, n in zip(data, normal, strict=True)), torch.device("cpu"))

    @torch.no_grad()
    def described() -> list[DescribedBatch]:
        method.net.eval()
        found = []
        for batch, keep in zip(data, normal, strict=True):
            inputs = method.inputs(batch["image"])
            found.append(DescribedBatch(inputs, method.net(inputs).descriptor, keep, finite_pixels(inputs)))
        method.net.train()
        return found

    method.fitted.begin(described(), method.recipe, torch.device("cpu"))
    optimiser, schedule = method.optimisation.build(method, len(data))
    generator = torch.Generator().manual_seed(0)
    for batch, valid in zip(data, normal, strict=True):
        image = method.inputs(batch["image"])
        out = method.net(image, valid)
        copy = method.net(apply_all(method.virtual, image, generator), valid).descriptor
        losses = svdd_losses(out.descriptor, copy, method.fitted.centre, method.fitted.radius, valid, method.recipe, valid)
        loss = torch.stack(list(losses.values())).sum() + reconstruction_loss(image, out.reconstruction, valid)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    if statistics:
        method.fitted.refresh(described(), method.recipe, 0, warming_up=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = batches(options.steps, options.size)
    times = [(by_trainer(data), by_loop(data, True), by_loop(data, False)) for _ in range(options.repeats)]
    trainer, loop, bare = (min(kind) for kind in zip(*times, strict=True))
    print(f"trainer {trainer:.2f} s, loop with statistics {loop:.2f} s, loop without {bare:.2f} s")
    print(f"overhead of the module {100 * (trainer / loop - 1):.1f} %; the statistics of an epoch cost {100 * (loop / bare - 1):.1f} %")


if __name__ == "__main__":
    main()
