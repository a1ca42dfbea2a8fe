import pytest
import torch
from torch import nn

from anomseg.nets.segmentation import widen_head
from anomseg.nets.segmentation_module import TrainedModule


class Half(nn.Module):
    """A net of other origin: logits at half of the resolution."""

    def __init__(self, named=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.named = named

    def forward(self, image):
        return {"out": self.body(image)} if self.named else self.body(image)


@pytest.mark.parametrize("named", [False, True])
def test_trained_module__gives_its_own_logits_at_the_size_of_the_image(named):
    module = Half(named)
    net, image = TrainedModule(module).build(3, 4), torch.rand(2, 3, 10, 14)
    expected = nn.functional.interpolate(module.body(image), (10, 14), mode="bilinear")
    assert torch.equal(net(image), expected)


def test_trained_module__with_a_named_head_takes_further_outputs_and_leaves_yours_as_it_is():
    module, image = Half(), torch.rand(1, 3, 8, 8)
    spec, before = TrainedModule(module, head="body.2"), TrainedModule(module).build(3, 4)
    for _ in range(2):
        net = spec.build(3, 4)
        widen_head(net)
        assert (net.head.out_channels, net.added, net.decoder) == (5, 1, [])
        torch.testing.assert_close(net(image)[:, :4], before(image))
        assert torch.equal(net.features(image), module.body[1](module.body[0](image)))
        assert torch.equal(net.decide(net.features(image), (8, 8)), net(image))
    nn.init.zeros_(net.module.body[0].weight)
    assert module.body[2].out_channels == 4
    assert module.body[0].weight.any()


def test_trained_module__refuses_a_head_of_other_classes():
    for outputs in (3, 5):
        with pytest.raises(ValueError, match=f"Expected a module of {outputs} classes, but its head 'body.2' has 4"):
            TrainedModule(Half(), head="body.2").build(3, outputs)


def test_revise__includes_what_the_module_does_after_its_head():
    class Aligned(Half):
        def forward(self, image):
            grown = nn.functional.interpolate(self.body(image), image.shape[-2:], mode="bilinear", align_corners=True)
            return grown + torch.arange(4.0).view(4, 1, 1)

    module, image = Aligned(), torch.rand(2, 3, 10, 14)
    net = TrainedModule(module, head="body.2").build(3, 4)
    known, changed = net.revise(image, lambda features: features + 1)
    assert torch.equal(known, module(image))
    with torch.no_grad():
        module.body[2].bias += module.body[2].weight.sum((1, 2, 3))  # what a change of 1 in each channel adds
    torch.testing.assert_close(changed, module(image))
    assert torch.equal(net(image), known)


def test_ready__gives_the_bands_that_the_module_expects():
    module = Half()
    mean, std = TrainedModule(module, std=(0.2, 0.3, 0.4)).ready(TrainedModule(module).build(3, 4))
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert std.tolist() == pytest.approx([0.2, 0.3, 0.4])
    mean, std = TrainedModule(module).ready(TrainedModule(module).build(3, 4))
    assert (mean.tolist(), std.tolist()) == ([0.0] * 3, [1.0] * 3)


def test_ready__asks_for_bands_where_it_finds_no_convolution():
    net = TrainedModule(nn.Identity()).build(3, 3)
    with pytest.raises(ValueError, match="mean and std of the bands"):
        TrainedModule(nn.Identity()).ready(net)


def test_trained_module__says_what_is_missing():
    with pytest.raises(ValueError, match="checkpoints hold its weights alone"):
        TrainedModule().build(3, 4)
    with pytest.raises(ValueError, match=r"last ones are .*body.2"):
        TrainedModule(Half(), head="body.1")
    with pytest.raises(ValueError, match=r"Expected logits \(B, 5.* got \(1, 4"):
        TrainedModule(Half()).build(3, 5)(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="Expected the name of the module's last"):
        TrainedModule(Half()).build(3, 4).features(torch.rand(1, 3, 8, 8))
