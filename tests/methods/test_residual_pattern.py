import pytest
import torch

from anomseg.checkpoint import load
from anomseg.functional.energy import free_energy
from anomseg.functional.readouts import softmax_entropy
from anomseg.methods.residual_pattern import RPL, RPLLoss, residual_losses
from anomseg.methods.segmenter import Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.segmentation_module import TrainedModule
from anomseg.optimisation import Optimisation
from tests.methods.driving import loader, trainer

NET = CompactSegmenter(width=12, levels=3, norm="batch")
STEPS = Optimisation(3e-3, schedule="constant")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segmenter")
    method, loop = Segmenter(3, NET, optimisation=STEPS), trainer(folder, 6)
    loop.fit(method, loader(outliers=False, count=16), loader(seed=1))
    loop.save_checkpoint(folder / "segmenter.ckpt")
    return str(folder / "segmenter.ckpt"), method.eval(), loop.test(method, loader(seed=2), verbose=False)[0]


def test_rpl__finds_outliers_with_the_classes_bit_for_bit_as_before(segmenter, tmp_path):
    torch.manual_seed(0)
    path, before, figures = segmenter
    steps = Optimisation(1e-2, schedule="constant")
    method, loop = RPL(3, NET, segmenter=path, channels=8, optimisation=steps), trainer(tmp_path, 10)
    loop.fit(method, loader(count=16), loader(seed=1))
    after = loop.test(method, loader(seed=2), verbose=False)[0]
    assert after["test_miou"] == figures["test_miou"]
    assert after["test_ap"] > max(figures["test_ap"], 0.6)
    image = next(iter(loader(seed=2)))["image"]
    with torch.no_grad():
        assert torch.equal(method.eval().logits(image)[:, :3], before.logits(image))
    loop.save_checkpoint(tmp_path / "own.ckpt")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "own.ckpt").score_map(image), method.score_map(image))


def test_rpl__of_a_module_of_your_own_has_its_classes_bit_for_bit_whatever_it_does_after_its_head(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
            self.head = torch.nn.Conv2d(8, 3, 1)

        def forward(self, image):
            logits = self.head(self.body(image)) + torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)
            return torch.nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)

    torch.manual_seed(0)
    module, image = Own().eval(), next(iter(loader(seed=2)))["image"]
    method = RPL(3, TrainedModule(module, head="head"), channels=8, optimisation=STEPS)
    trainer(tmp_path).fit(method, loader(), loader(seed=1))
    with torch.no_grad():
        logits, before = method.eval().logits(image), module(image)
    assert torch.equal(logits[:, :3], before)
    assert not torch.allclose(logits[:, 3:], before)


def test_residual_losses__are_the_published_terms():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 8, 5, 6, generator=g)
    known, changed = logits[:, :4], logits[:, 4:]
    outlier = torch.rand(2, 5, 6, generator=g) < 0.3
    inlier = ~outlier & (torch.rand(2, 5, 6, generator=g) < 0.8)
    found = residual_losses(logits, inlier, outlier, RPLLoss(2.0, 3.0, 4.0, 0.5))
    picked = changed.movedim(1, -1)[inlier]
    torch.testing.assert_close(found["classes"], 2 * torch.nn.functional.cross_entropy(picked, known.argmax(1)[inlier]))
    torch.testing.assert_close(found["entropy"], 3 * (softmax_entropy(changed) - softmax_entropy(known)).square()[inlier].mean())
    torch.testing.assert_close(found["energy"], 4 * (free_energy(changed) - free_energy(known)).square()[inlier].mean())
    torch.testing.assert_close(found["outlier"], 0.5 * (-free_energy(changed)).clamp_min(0)[outlier].mean())


def test_published_losses__do_not_see_that_all_energies_rise():
    g = torch.Generator().manual_seed(0)
    known = 2 * torch.randn(1, 4, 5, 6, generator=g) + 6
    inlier = torch.rand(1, 5, 6, generator=g) < 0.8
    lowered = torch.cat([known, known - 20], 1)
    published = residual_losses(lowered, inlier, ~inlier, RPLLoss(energy=0.0))
    same = residual_losses(torch.cat([known, known], 1), inlier, ~inlier, RPLLoss(energy=0.0))
    torch.testing.assert_close(published["classes"], same["classes"])
    assert sum(published.values()) < sum(same.values())
    assert sum(residual_losses(lowered, inlier, ~inlier, RPLLoss()).values()) > sum(same.values())


def test_residual_losses__send_no_gradient_through_void_pixels_and_the_frozen_net():
    logits = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inlier, outlier = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    inlier[:, 0], outlier[:, 1] = True, True
    torch.stack(list(residual_losses(logits, inlier, outlier, RPLLoss()).values())).sum().backward()
    assert not logits.grad[:, :3].any()
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, 3:, :2].any()


@pytest.mark.parametrize("case", ["no outlier", "outliers alone", "void"])
def test_residual_losses__of_any_batch_are_finite(case):
    logits = torch.randn(1, 6, 4, 4).requires_grad_()
    every, none = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    groups = {"no outlier": (every, none), "outliers alone": (none, every), "void": (none, none)}[case]
    total = torch.stack(list(residual_losses(logits, *groups, RPLLoss()).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_rpl__says_what_is_wrong(segmenter, tmp_path):
    with pytest.raises(ValueError, match=r"SyntheticOutliers\(\)"):
        trainer(tmp_path).fit(RPL(3, NET, segmenter=segmenter[0]), loader(outliers=False), loader(seed=1))
    with pytest.raises(ValueError, match="segmenter="):
        trainer(tmp_path).fit(RPL(3, NET), loader(), loader(seed=1))
    with pytest.raises(ValueError, match="channels"):
        RPL(3, NET, channels=1)
    with pytest.raises(ValueError, match="at least 0"):
        RPLLoss(classes=-1.0)
