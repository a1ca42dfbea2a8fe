import torch
from torch import nn

from anomseg.nets.masked_norm import MaskedBatchNorm


def pair():
    ours, theirs = MaskedBatchNorm(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    return ours, theirs


def test_masked_batch_norm__equals_torch_where_all_is_valid():
    ours, theirs = pair()
    for seed in range(3):
        x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 4 + 1
        torch.testing.assert_close(ours(x, torch.ones(2, 5, 6, dtype=torch.bool)), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_masked_batch_norm__takes_no_statistics_from_other_pixels():
    x = torch.randn(2, 3, 5, 6)
    valid = torch.rand(2, 5, 6) < 0.5
    other = torch.where(valid[:, None], x, 1e6)
    first, second = MaskedBatchNorm(3), MaskedBatchNorm(3)
    kept = valid[:, None].expand_as(x)
    assert torch.equal(first(x, valid)[kept], second(other, valid)[kept])
    assert torch.equal(first.running_var, second.running_var)


def test_masked_batch_norm__keeps_its_statistics_without_valid_pixels():
    norm = MaskedBatchNorm(3)
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(norm(x, torch.zeros(1, 4, 4, dtype=torch.bool)), norm.eval()(x))
    assert norm.num_batches_tracked == 0


def test_masked_batch_norm__trains_in_true_half_precision():
    x, valid = 3 + torch.randn(4, 5, 9, 9), torch.rand(4, 9, 9) < 0.7
    whole, half = MaskedBatchNorm(5), MaskedBatchNorm(5).bfloat16()
    expected, found = whole(x, valid), half(x.bfloat16(), valid)
    assert found.dtype == half.running_mean.dtype == half.running_var.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half.running_mean.float(), whole.running_mean, rtol=0.02, atol=0.01)
