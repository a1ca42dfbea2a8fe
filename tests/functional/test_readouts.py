import math

import pytest
import torch

from anomseg.functional.readouts import largest_logit, largest_probability, softmax_entropy, standardized_max_logit


def logits(seed=0):
    return 3 * torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_largest_probability__is_one_minus_the_softmax_s_largest():
    torch.testing.assert_close(largest_probability(logits()), 1 - logits().softmax(1).amax(1))
    assert largest_probability(torch.tensor([200.0, 0.0]).view(1, 2, 1, 1)) == 0


def test_largest_logit__is_its_negative():
    assert torch.equal(largest_logit(logits()), -logits().amax(1))


def test_softmax_entropy__runs_from_certain_to_uniform():
    certain = torch.tensor([100.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert softmax_entropy(certain) < 1e-30
    torch.testing.assert_close(softmax_entropy(torch.zeros(1, 3, 1, 1)), torch.ones(1, 1, 1))
    p = logits().softmax(1)
    torch.testing.assert_close(softmax_entropy(logits()), -(p * p.log()).sum(1) / math.log(5))


def test_standardized_max_logit__has_mean_zero_and_deviation_one_in_each_class():
    z = torch.randn(1, 3, 60, 70, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    top, predicted = z.max(1)
    mean = torch.stack([top[predicted == k].mean() for k in range(3)])
    std = torch.stack([top[predicted == k].std(correction=0) for k in range(3)])
    found = standardized_max_logit(z, mean, std)
    for k in range(3):
        own = found[predicted == k]
        torch.testing.assert_close(own.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(own.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="of 3 classes"):
        standardized_max_logit(z, mean[:2], std[:2])


@pytest.mark.parametrize("readout", [largest_probability, largest_logit, softmax_entropy])
def test_readouts__are_finite_in_half_precision_and_do_not_see_the_order_of_classes(readout):
    z = logits().bfloat16()
    found = readout(z)
    assert found.dtype == torch.float32
    assert torch.isfinite(readout(1e4 * z)).all()
    torch.testing.assert_close(readout(z.flip(1)), found)
    with pytest.raises(ValueError, match="two or more classes"):
        readout(z[:, :1])
