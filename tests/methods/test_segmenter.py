import pytest
import torch

from anomseg.methods.readouts import MSP, Energy, StandardizedMaxLogit
from anomseg.methods.segmenter import SegmentationReadout, Segmenter, class_loss
from anomseg.nets.segmentation import CompactSegmenter
from tests.methods.driving import loader, trainer

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
