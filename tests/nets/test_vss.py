import copy

import pytest
import torch
from torch.nn import functional as F

from anomseg.functional.scan import selective_scan, use_scan_backend
from anomseg.nets.vss import ChannelScan, Mlp, SelectiveScan2D, StateSpace, VSSBlock


def literal(block, u):
    """Four sequences, each projected, scanned and laid back on its own, in the order in which it is read."""
    space, (batch, channels, height, width) = block.space, u.shape
    weight = space.project.weight.view(4, -1, channels)
    total = torch.zeros_like(u)
    for k in range(4):
        tokens = (u if k % 2 == 0 else u.transpose(2, 3)).flatten(2)
        tokens = tokens.flip(-1) if k >= 2 else tokens
        low, enter, leave = torch.split(torch.einsum("od,bdl->bol", weight[k], tokens), [space.rank, space.state, space.state], 1)
        own = slice(k * channels, (k + 1) * channels)
        delta = torch.einsum("dr,brl->bdl", space.step[k], low)
        y = selective_scan(
            tokens, delta, space.rates()[own], enter, leave, space.skip[own], None, space.step_bias[own], True, backend="pure"
        )
        y = y.flip(-1) if k >= 2 else y
        shape = (batch, channels, height, width) if k % 2 == 0 else (batch, channels, width, height)
        total += y.view(shape) if k % 2 == 0 else y.view(shape).transpose(2, 3)
    return total


@pytest.mark.parametrize("state", [1, 3])
def test_selective_scan__equals_four_sequences_scanned_one_by_one(state):
    torch.manual_seed(0)
    block = SelectiveScan2D(6, ratio=1.5, state=state)
    u = torch.randn(2, 9, 5, 7)
    torch.testing.assert_close(block._scan(u), literal(block, u), rtol=1e-4, atol=1e-5)


def test_selective_scan__lets_every_pixel_see_every_other_one():
    torch.manual_seed(0)
    block = SelectiveScan2D(4)
    x = torch.randn(1, 4, 6, 7, requires_grad=True)
    block(x)[0, :, 2, 3].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_state_space__starts_with_steps_in_their_range_and_rates_of_1_to_n():
    space = StateSpace(32, 2, 4)
    steps = F.softplus(space.step_bias)
    assert 0.99e-3 < steps.min() < steps.max() < 0.101
    torch.testing.assert_close(space.rates(), -torch.arange(1.0, 5.0).expand(64, 4))


def test_state_space__keeps_what_must_not_decay_on_one_axis():
    vectors = {name for name, p in StateSpace(8, 4, 2).named_parameters() if p.ndim < 2}
    assert vectors == {"step_bias", "log_rate", "skip"}


@pytest.mark.parametrize("block", [VSSBlock(6, "group"), SelectiveScan2D(6), ChannelScan(6, grid=4, width=8)])
def test_block__under_autocast_stays_near_full_precision(block):
    x = torch.randn(2, 6, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y.float(), block(x), rtol=0.1, atol=0.1)


def test_vss_block__is_two_residuals():
    block = VSSBlock(4, "group", mlp_ratio=0)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x + block.scan(x))
    full = VSSBlock(4, "group")
    y = x + full.scan(x)
    torch.testing.assert_close(full(x), y + full.mlp(y))


def test_vss_block__trains_all_its_parameters():
    block = VSSBlock(4, "batch")
    block(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters() if p.numel() > 4)


def test_channel_scan__gates_channels_between_once_and_twice():
    block = ChannelScan(5, grid=4, width=8)
    x = torch.rand(2, 5, 9, 11) + 0.5
    ratio = block(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert 1 < ratio.min() < ratio.max() < 2


def test_channel_scan__lets_every_channel_see_every_other_one():
    torch.manual_seed(0)
    block = ChannelScan(5, grid=2, width=8)
    x = torch.randn(1, 5, 4, 4, requires_grad=True)
    block(x)[0, 2].sum().backward()
    assert (x.grad.abs().sum((2, 3)) > 0).all()


def test_mlp__treats_pixels_alone():
    mlp, x = Mlp(3), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(mlp(x)[..., 1:2, 2:3], mlp(x[..., 1:2, 2:3]))


def test_block__runs_on_the_backend_that_was_asked_for():
    block, x = VSSBlock(4, "group"), torch.randn(1, 4, 5, 4)
    with use_scan_backend("pure"):
        written_out = block(x)
    torch.testing.assert_close(block(x), written_out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [VSSBlock(6, "group"), VSSBlock(6, "batch", state=2), ChannelScan(6, grid=4, width=8)])
def test_block__in_half_precision_stays_near_full_precision(block):
    x = torch.randn(2, 6, 6, 5)
    half = copy.deepcopy(block).bfloat16()
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(x), rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad is not None for p in half.parameters())


@pytest.mark.parametrize("block", [SelectiveScan2D(4), ChannelScan(4, grid=2, width=8)])
def test_block__takes_an_empty_batch(block):
    assert block(torch.zeros(0, 4, 6, 5)).shape == (0, 4, 6, 5)
