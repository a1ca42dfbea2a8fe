import pytest
import torch
from torch.nn import functional as F

from anomseg.nets.context_net import ContextNet, lift, lifted_channels, ring_mean


def test_ring_mean__equals_the_mean_written_out():
    z = torch.rand(1, 2, 11, 12)
    ring = ring_mean(z, 3, 7)
    window = z[0, :, 2:9, 3:10]
    expected = (window.sum((1, 2)) - z[0, :, 4:7, 5:8].sum((1, 2))) / (49 - 9)
    torch.testing.assert_close(ring[0, :, 5, 6], expected)
    corner = (z[0, :, :4, :4].sum((1, 2)) - z[0, :, :2, :2].sum((1, 2))) / (16 - 4)
    torch.testing.assert_close(ring[0, :, 0, 0], corner)


def test_ring_mean__averages_the_pixels_with_data_alone():
    z, valid = torch.rand(2, 2, 11, 12), torch.rand(2, 11, 12) < 0.5
    assert torch.equal(ring_mean(z, 3, 7, torch.ones_like(valid)), ring_mean(z, 3, 7))
    poisoned = torch.where(valid[:, None], z, torch.nan)
    ring = torch.zeros(11, 12, dtype=torch.bool)
    ring[2:9, 3:10], ring[4:7, 5:8] = True, False
    expected = torch.stack([one[:, ring & keep].mean(1) for one, keep in zip(z, valid, strict=True)])
    torch.testing.assert_close(ring_mean(poisoned, 3, 7, valid)[:, :, 5, 6], expected)
    assert not ring_mean(poisoned, 3, 7, torch.zeros_like(valid)).any()


def test_lift__is_zero_without_data_and_sees_a_collar_as_the_border():
    z, details = torch.randn(1, 3, 20, 18), torch.randn(1, 3, 20, 18)
    valid = torch.zeros(1, 26, 31, dtype=torch.bool)
    valid[:, :20, :18] = True
    wide = lift(*(F.pad(plane, (0, 13, 0, 6)) for plane in (z, details)), 4, valid)
    torch.testing.assert_close(wide[..., :20, :18], lift(z, details, 4))
    assert not wide[:, :, ~valid[0]].any()


def test_lift__of_a_constant_image_is_finite():
    zeros = torch.zeros(2, 3, 8, 9)
    assert torch.isfinite(lift(zeros, zeros)).all()
    assert lift(torch.rand(2, 3, 8, 9), zeros).shape == (2, lifted_channels(3), 8, 9)


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("size", [(9, 9), (17, 30)])
def test_context_net__gives_a_logit_for_each_pixel_and_learns_everywhere(norm, size):
    net = ContextNet(4, width=8, norm=norm)
    logit = net(torch.randn(2, 4, *size))
    assert logit.shape == (2, *size)
    logit.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_context_net__without_norm_treats_a_batch_as_single_images():
    net = ContextNet(4, width=8).eval()
    z = torch.randn(3, 4, 12, 12)
    assert torch.allclose(net(z), torch.cat([net(one[None]) for one in z]), atol=1e-6)


def test_context_net__skips_blocks_in_training_only():
    net = ContextNet(4, width=8, depth_drop=0.5)
    z = torch.randn(1, 4, 12, 12)
    torch.manual_seed(0)
    assert len({float(net(z).sum()) for _ in range(16)}) > 1
    net.eval()
    assert torch.equal(net(z), net(z))
