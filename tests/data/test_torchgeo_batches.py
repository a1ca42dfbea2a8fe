from typing import NamedTuple

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.methods.rx import RX
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_training import SVDDTraining
from anomseg.nets.descriptor import PixelDescriptor
from anomseg.sample import check_sample


class Box(NamedTuple):
    minx: float
    maxx: float
    miny: float
    maxy: float
    mint: float
    maxt: float


def batch(count=2, size=24):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 4, size, size, generator=generator)
    mask = torch.zeros(count, size, size, dtype=torch.long)
    image[:, :, 5:8, 9:12] += 20
    mask[:, 5:8, 9:12] = 1
    return {"image": image, "mask": mask, "crs": ["EPSG:32633"] * count, "bounds": [Box(0, 10, 0, 10, 0, 1)] * count}


def trainer(folder):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, num_sanity_val_steps=0, default_root_dir=folder, **quiet)


def run(folder, batches):
    runner, method = trainer(folder), RX()
    loader = DataLoader(batches, batch_size=None)
    runner.fit(method, loader, loader)
    (figures,) = runner.test(method, loader, verbose=False)
    return figures, runner.predict(method, loader)


def test_torchgeo_batch__keeps_the_contract():
    check_sample(batch())


def test_torchgeo_batch__is_fitted_tested_and_predicted_unchanged(tmp_path):
    figures, predictions = run(tmp_path, [batch()])
    assert figures["test_auroc"] == 1.0
    assert predictions[0]["heatmap"].shape == (2, 24, 24)


def test_torchgeo_batch__with_a_channel_axis_in_the_mask_gives_the_same_figures(tmp_path):
    flat = batch()
    stacked = {**flat, "mask": flat["mask"][:, None]}
    assert run(tmp_path, [stacked])[0] == pytest.approx(run(tmp_path, [flat])[0], rel=0, abs=0, nan_ok=True)


def test_torchgeo_batch__with_a_channel_axis_in_the_mask_trains_as_without(tmp_path):
    flat, states = batch(), []
    for one in (flat, {**flat, "mask": flat["mask"][:, None]}):
        L.seed_everything(0, verbose=False)
        method, loader = SVDD(4, PixelDescriptor(latent=2, hidden=(4,)), SVDDTraining(warmup=0.0)), DataLoader([one], batch_size=None)
        trainer(tmp_path).fit(method, loader)
        states.append([*method.net.parameters(), method.fitted.covariance])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_torchgeo_batch__stacked_by_torchgeo_itself_is_tested(tmp_path):
    stack_samples = pytest.importorskip("torchgeo.datasets").stack_samples
    whole = batch()
    samples = [{"image": whole["image"][index], "mask": whole["mask"][index]} for index in range(2)]
    figures, _ = run(tmp_path, [stack_samples(samples)])
    assert figures["test_auroc"] == 1.0
