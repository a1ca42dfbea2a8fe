import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.methods.readouts import MSP, Energy, StandardizedMaxLogit
from anomseg.methods.segmenter import SegmentationReadout, Segmenter, class_loss
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.segmentation_module import TrainedModule
from anomseg.nets.wide_resnet import WideResNet38
from anomseg.sample import collate
from tests.methods.driving import Stripes, loader, trainer

NET = CompactSegmenter(width=6, levels=2)


def test_class_loss__is_the_weighted_mean_over_labelled_pixels():
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 5, generator=g), torch.randint(3, (2, 4, 5), generator=g)
    weights = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(class_loss(logits, label), torch.nn.functional.cross_entropy(logits, label))
    torch.testing.assert_close(class_loss(logits, label, weights), torch.nn.functional.cross_entropy(logits, label, weights))
    label[0] = 255
    torch.testing.assert_close(class_loss(logits, label), torch.nn.functional.cross_entropy(logits[1:], label[1:]))
    logits.requires_grad_()
    nothing = class_loss(logits, torch.full_like(label, 255))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("balance", ["none", "log"])
def test_segmenter__learns_the_classes_and_scores_what_is_none(tmp_path, balance):
    torch.manual_seed(0)
    method, loop = Segmenter(3, NET, balance=balance, readout=StandardizedMaxLogit()), trainer(tmp_path, 8)
    loop.fit(method, loader(outliers=False, count=16), loader(seed=1))
    figures = loop.test(method, loader(seed=2), verbose=False)[0]
    assert figures["test_miou"] > 0.9
    assert figures["test_auroc"] > 0.7
    assert (method.moments[0] > 0).all()
    assert bool((method.weights == 1).all()) == (balance == "none")


def test_segmenter__learns_nothing_from_outliers_and_void_pixels(tmp_path):
    torch.manual_seed(0)
    method = Segmenter(3, NET)
    method.mean, method.std = torch.zeros(3), torch.ones(3)
    method.log = lambda *_, **__: None
    batch = next(iter(loader(void=4)))
    logits = method.logits(batch["image"]).detach().requires_grad_()
    label, _ = method.training_truth(batch)
    class_loss(logits, label).backward()
    silent = (batch["mask"] != 0)[:, None].expand_as(logits)
    assert not logits.grad[silent].any()
    assert logits.grad[~silent].any()
    batch["label"][:] = 255
    assert method.training_step(batch, 0) == 0


def test_readout__of_a_trained_segmenter_only_calibrates(tmp_path):
    torch.manual_seed(0)
    loop = trainer(tmp_path, 4)
    base = Segmenter(3, NET)
    loop.fit(base, loader(outliers=False), loader(seed=1))
    loop.save_checkpoint(tmp_path / "base.ckpt")
    for readout in (MSP(), Energy(), StandardizedMaxLogit()):
        method, again = SegmentationReadout(3, str(tmp_path / "base.ckpt"), NET, readout=readout), trainer(tmp_path, 5)
        again.fit(method, loader(outliers=False), loader(seed=1))
        assert again.current_epoch == 1
        for name, value in base.network.state_dict().items():
            assert torch.equal(value, method.network.state_dict()[name])
        assert again.test(method, loader(seed=2), verbose=False)[0]["test_auroc"] > 0.5
    with pytest.raises(ValueError, match="checkpoint of a trained segmenter"):
        trainer(tmp_path).fit(SegmentationReadout(3, net=NET), loader(), loader(seed=1))


def test_readout__of_a_published_checkpoint_needs_no_training(tmp_path):
    spec = WideResNet38(16, str(tmp_path / "published.pth"))
    donor = spec.build(3, 3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}}, tmp_path / "published.pth")
    method, loop = SegmentationReadout(3, net=spec, readout=MSP()), trainer(tmp_path)
    loop.fit(method, loader(count=4), loader(count=4, seed=1))
    image = next(iter(loader()))["image"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(method.logits(image), donor.eval()((image - mean) / std))
    loop.save_checkpoint(tmp_path / "own.ckpt")
    (tmp_path / "published.pth").unlink()
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "own.ckpt")(image), method.eval()(image))
    torch.save({"state_dict": spec.build(4, 3).state_dict()}, tmp_path / "published.pth")
    with pytest.raises(ValueError, match="in_channels=4"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(SegmentationReadout(3, net=spec, in_channels=4), loader(), loader())


def test_readout__of_a_module_of_your_own_loads_with_that_module(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    again = copy.deepcopy(module)
    torch.nn.init.zeros_(again[2].weight)
    image = next(iter(loader()))["image"]
    method, loop = SegmentationReadout(3, net=TrainedModule(module), readout=StandardizedMaxLogit()), trainer(tmp_path)
    loop.fit(method, loader(), loader(seed=1))
    with torch.no_grad():
        assert torch.equal(method.logits(image), module(image))
    loop.save_checkpoint(tmp_path / "own.ckpt")
    loaded = SegmentationReadout.load_from_checkpoint(tmp_path / "own.ckpt", net=TrainedModule(again), weights_only=True)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), method.eval()(image))
    with pytest.raises(ValueError, match="checkpoints hold its weights alone"):
        load(tmp_path / "own.ckpt")


def test_segmenter__trains_in_half_precision_and_on_void_frames_one_at_a_time(tmp_path):
    torch.manual_seed(0)
    method, loop = Segmenter(3, NET, balance="log"), trainer(tmp_path, 6, precision="bf16-mixed")
    loop.fit(method, loader(outliers=False, count=16), loader(seed=1))
    assert loop.test(method, loader(seed=2), verbose=False)[0]["test_miou"] > 0.8
    before = method.moments.clone()
    trainer(tmp_path / "void").fit(method, loader(batch_size=1, count=2, void=32), loader(seed=1))
    assert torch.equal(method.moments, before)
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_readout__of_training_images_without_classes_takes_all_normal_pixels(tmp_path):
    class Unlabelled(Stripes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            del sample["label"]
            return sample

    module = torch.nn.Conv2d(3, 3, 1)
    found = []
    for data in (Stripes(), Unlabelled()):
        method = SegmentationReadout(3, net=TrainedModule(module))
        trainer(tmp_path, enable_checkpointing=False).fit(method, DataLoader(data, batch_size=4, collate_fn=collate), loader(seed=1))
        found.append(method.moments)
    assert torch.equal(*found)


def test_standardised_moments__of_a_readout_are_those_of_all_training_pixels(tmp_path):
    module = torch.nn.Conv2d(3, 3, 1)
    method = SegmentationReadout(3, net=TrainedModule(module))
    trainer(tmp_path).fit(method, loader(batch_size=3), loader(seed=1))
    batches = list(loader(batch_size=8))
    with torch.no_grad():
        top, predicted = module(batches[0]["image"])[..., ::4, ::4].max(1)
    counted = batches[0]["label"][:, ::4, ::4] != 255
    for k in range(3):
        chosen = top[counted & (predicted == k)]
        expected = torch.stack([chosen.mean(), chosen.square().mean()]) if len(chosen) else torch.zeros(2)
        torch.testing.assert_close(method.moments[1:, k], expected)


def test_moments__are_those_of_the_training_logits(tmp_path):
    method = Segmenter(3, NET)
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 3, 16, 16, generator=g), torch.zeros(2, 16, 16, dtype=torch.int64)
    label[0] = 255
    method.observe(logits, label)
    top, predicted = logits[1, :, ::4, ::4].max(0)
    for k in range(3):
        torch.testing.assert_close(method.moments[1, k], top[predicted == k].mean())
        torch.testing.assert_close(method.moments[2, k], top[predicted == k].square().mean())
    with pytest.raises(ValueError, match="balance"):
        Segmenter(3, NET, balance="x")


SCRIPT = """
import json, sys
import torch
from anomseg.methods.segmenter import SegmentationReadout, Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from tests.methods.driving import loader, trainer

torch.set_num_threads(1)
torch.manual_seed(0)
devices, folder = int(sys.argv[1]), sys.argv[2]
net = CompactSegmenter(4, 2)
if devices == 1:
    loop = trainer(folder, 2)
    loop.fit(Segmenter(3, net), loader(outliers=False), loader(seed=1))
    loop.save_checkpoint(folder + "/base.ckpt")
loop = trainer(folder, 1, devices=devices, strategy="ddp" if devices > 1 else "auto", enable_checkpointing=False)
method = SegmentationReadout(3, folder + "/base.ckpt", net)
loop.fit(method, loader(batch_size=2), loader(seed=1, batch_size=1))
figures = loop.test(method, loader(seed=2, count=6, batch_size=1), verbose=False)[0]
if loop.is_global_zero:
    open(folder + f"/{devices}.json", "w").write(json.dumps({**figures, "moments": method.moments.flatten().tolist()}))
"""


def test_two_ranks__have_the_figures_of_one(tmp_path):
    root = str(Path(__file__).parents[2])
    (tmp_path / "job.py").write_text(SCRIPT)
    for ranks in ("1", "2"):
        job = [sys.executable, str(tmp_path / "job.py"), ranks, str(tmp_path)]
        done = subprocess.run(job, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": root})
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert one.pop("moments") == pytest.approx(two.pop("moments"), abs=1e-5)
    assert one["test_miou"] == two["test_miou"]
    assert one == pytest.approx(two, abs=1e-6, nan_ok=True)
