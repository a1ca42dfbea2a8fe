import pytest
import torch

from anomseg.nets.deeplab import AtrousPyramid, DeepLabV3Plus


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_deeplab__gives_logits_over_a_trunk_of_timm(stride):
    net = DeepLabV3Plus("resnet18", output_stride=stride, reduction=16, fine=8).build(4, 5).eval()
    assert net(torch.rand(1, 4, 64, 96)).shape == (1, 5, 64, 96)
    assert net.trunk(torch.rand(1, 4, 64, 96))[-1].shape[-2:] == (64 // stride, 96 // stride)


def test_deeplab__trains_in_a_batch_of_one_with_group_norm():
    net = DeepLabV3Plus("resnet18", output_stride=32, reduction=8, fine=4).build(3, 2)
    net.trunk.eval()
    net(torch.rand(1, 3, 32, 32)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert all(p is not None for module in net.decoder for p in module.parameters())


def test_atrous_pyramid__sees_the_whole_map():
    pyramid = AtrousPyramid(3, 4).eval()
    x = torch.rand(1, 3, 40, 40)
    moved = x.clone()
    moved[..., 39, 39] += 5
    assert not torch.allclose(pyramid(x)[..., 0, 0], pyramid(moved)[..., 0, 0])


def test_deeplab__says_what_an_encoder_cannot_do():
    with pytest.raises(ValueError, match="output_stride 8, 16 or 32"):
        DeepLabV3Plus(output_stride=4)
    with pytest.raises(ValueError, match="Expected an encoder of timm"):
        DeepLabV3Plus("no_such_encoder").build(3, 2)
