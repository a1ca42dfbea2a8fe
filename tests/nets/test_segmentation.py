import pytest
import torch

from anomseg.nets.deeplab import DeepLabV3Plus
from anomseg.nets.segmentation import CompactSegmenter, second_decoder, widen_head
from anomseg.nets.segmentation_module import TrainedModule
from anomseg.nets.wide_resnet import WideResNet38


@pytest.mark.parametrize("size", [(48, 64), (45, 61), (16, 16), (5, 7)])
def test_compact_net__gives_logits_of_any_size(size):
    net = CompactSegmenter(width=8).build(3, 5)
    assert net(torch.rand(1, 3, *size)).shape == (1, 5, *size)
    assert torch.isfinite(net.train()(torch.rand(1, 3, *size))).all()


def test_compact_net__decides_from_its_features():
    net = CompactSegmenter(width=8).build(3, 5).eval()
    image = torch.rand(2, 3, 40, 56)
    assert torch.equal(net.decide(net.features(image), (40, 56)), net(image))
    parts = {id(p) for module in net.decoder for p in module.parameters()}
    assert parts
    assert not parts & {id(p) for p in net.stages.parameters()}


def test_revise__gives_the_logits_before_and_after_a_change_of_the_features():
    net, image = CompactSegmenter(width=8).build(3, 5).eval(), torch.rand(2, 3, 30, 50)
    known, changed = net.revise(image, lambda features: features * 2)
    assert torch.equal(known, net(image))
    assert torch.equal(changed, net.decide(net.features(image) * 2, (30, 50)))


@pytest.mark.parametrize("rows", [1, 3])
def test_widen_head__keeps_what_the_net_gave(rows):
    net = CompactSegmenter(width=8).build(3, 5).eval()
    image = torch.rand(1, 3, 32, 32)
    before = net(image)
    widen_head(net, rows)
    after = net(image)
    assert after.shape[1] == 5 + rows
    assert net.added == rows
    torch.testing.assert_close(after[:, :5], before)
    assert after[:, 5:].abs().sum() > 0
    with pytest.raises(ValueError, match="one or more outputs"):
        widen_head(net, 0)


@pytest.mark.parametrize(
    "spec", [CompactSegmenter(width=8), DeepLabV3Plus(reduction=16), WideResNet38(16)], ids=lambda spec: type(spec).__name__
)
def test_second_decoder__decides_what_the_net_encodes_by_weights_of_its_own(spec):
    torch.manual_seed(0)
    net, image = spec.build(3, 5).eval(), torch.rand(1, 3, 64, 96)
    known = net(image)
    widen_head(net)
    wide = net(image)
    other = second_decoder(net)
    maps = net.encode(image)
    assert torch.equal(net.decide(net.assemble(maps), (64, 96)), wide)
    torch.testing.assert_close(other.decide(other.assemble(maps), (64, 96)), known)
    assert other.added == 0
    assert {id(p) for p in net.parameters()}.isdisjoint(map(id, other.parameters()))
    held = {id(p) for part in (*other.decoder, other.head) for p in part.parameters()}
    assert {id(p) for p in other.parameters()} == held
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert torch.equal(net(image), wide)


def test_second_decoder__wants_a_net_that_names_one():
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1))
    net = TrainedModule(own, head="1").build(3, 3)
    assert torch.equal(net.assemble(net.encode(torch.ones(1, 3, 8, 8))), net.features(torch.ones(1, 3, 8, 8)))
    with pytest.raises(ValueError, match="ModuleNet names none"):
        second_decoder(net)


def test_compact_segmenter__learns_in_a_batch_of_one():
    net = CompactSegmenter(width=4, levels=2).build(2, 2)
    net(torch.rand(1, 2, 16, 16)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    with pytest.raises(ValueError, match="levels >= 2"):
        CompactSegmenter(levels=1)
