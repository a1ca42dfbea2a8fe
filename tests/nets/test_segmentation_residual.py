import pytest
import torch

from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.segmentation_residual import ResidualPattern, ResidualPatternNet


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_residual_pattern_net__leaves_the_frozen_net_bit_for_bit(norm):
    base = CompactSegmenter(8, 2, norm).build(3, 4).eval()
    image = torch.rand(2, 3, 24, 32)
    with torch.no_grad():
        before = base(image)
    net = ResidualPatternNet(base, 8)
    found = net(image)
    assert torch.equal(found[:, :4], before)
    torch.testing.assert_close(found[:, 4:], before)  # a fresh pattern adds 0
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        net.train()(image)[:, 4:].square().mean().backward()
        optimiser.step()
    moved = net(image)
    assert torch.equal(moved[:, :4], before)
    assert not torch.allclose(moved[:, 4:], before)


def test_residual_pattern_net__decides_from_features_as_from_the_image():
    torch.manual_seed(0)
    net, image = ResidualPatternNet(CompactSegmenter(8, 2).build(3, 4), 8).eval(), torch.rand(2, 3, 24, 32)
    torch.nn.init.normal_(net.pattern.out.weight)
    with torch.no_grad():
        assert torch.equal(net.decide(net.features(image), (24, 32)), net(image))


def test_residual_pattern_net__trains_the_pattern_alone():
    net = ResidualPatternNet(CompactSegmenter(8, 2, "batch").build(3, 4), 8)
    learnt = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert learnt == {"pattern"}
    assert not any(module.training for module in net.train().base.modules())
    assert net.pattern.training
    assert net.head is net.base.head
    assert net.decoder == [net.pattern]


def test_residual_pattern__is_zero_at_first_and_takes_a_single_place():
    pattern = ResidualPattern(6, 8)
    assert not pattern(torch.rand(1, 6, 1, 1)).any()
    pattern(torch.rand(1, 6, 5, 5)).sum().backward()
    assert pattern.out.weight.grad.any()
