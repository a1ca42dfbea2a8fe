import math

import pytest
import torch
from torch import Tensor

from anomseg.functional.descriptor_statistics import descriptor_moments, effective_rank, image_means, push_from_zero, spread, valid_pixels
from anomseg.functional.ledoit_wolf import merge_moments
from anomseg.functional.rx import covariance

MOMENTS = ("count", "mean", "scatter", "third", "fourth")


def descriptors(seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 6, 8, generator=torch.Generator().manual_seed(seed))


def valid_mask(seed: int = 1) -> Tensor:
    """Two thirds valid, the second image empty."""
    valid = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed)) < 0.66
    valid[1] = False
    return valid


def test_valid_pixels__gathers_each_image_in_its_order():
    z, valid = descriptors(), valid_mask()
    for image, keep, found in zip(z, valid, valid_pixels(z, valid), strict=True):
        expected = [image[:, i, j] for i in range(6) for j in range(8) if keep[i, j]]
        assert torch.equal(found, torch.stack(expected, 1) if expected else z.new_empty(4, 0))


def test_image_means__skips_images_without_valid_pixels():
    z, valid = descriptors(), valid_mask()
    expected = torch.stack([z[i][:, valid[i]].double().mean(1) for i in (0, 2)])
    torch.testing.assert_close(image_means(z, valid), expected)


def test_descriptor_moments__of_two_batches_merge_to_those_of_both():
    z, valid = descriptors(), valid_mask()
    merged = merge_moments(descriptor_moments(z[:1], valid[:1]), descriptor_moments(z[1:], valid[1:]))
    whole = descriptor_moments(z, valid)
    for name in MOMENTS:
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    pixels = z.movedim(1, -1)[valid].double()
    torch.testing.assert_close(whole.mean, pixels.mean(0))
    torch.testing.assert_close(covariance(whole.second()), torch.cov(pixels.T))


@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf])
def test_figures__are_bit_equal_whatever_lies_outside_the_valid_pixels(junk):
    z, valid = descriptors(), valid_mask()
    dirty = torch.where(valid[:, None], z, junk)
    a, b = descriptor_moments(z, valid), descriptor_moments(dirty, valid)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in MOMENTS)
    assert torch.equal(image_means(z, valid), image_means(dirty, valid))
    for figure in (spread, effective_rank):
        value = figure(covariance(b.second()))
        assert torch.equal(figure(covariance(a.second())), value)
        assert float(value) > 0.5


def test_figures__of_nothing_are_empty():
    nothing = torch.zeros(3, 6, 8, dtype=torch.bool)
    assert image_means(descriptors(), nothing).shape == (0, 4)
    assert float(descriptor_moments(descriptors(), nothing).count) == 0


def test_push_from_zero__keeps_the_sign_and_leaves_large_entries_alone():
    centre = torch.tensor([-0.5, -0.1, -0.02, 0.0, 0.03, 0.1, 0.7])
    assert torch.equal(push_from_zero(centre), torch.tensor([-0.5, -0.1, -0.1, 0.1, 0.1, 0.1, 0.7]))
    assert torch.equal(push_from_zero(centre, 0.0), centre)


def test_spread__is_the_root_mean_square_of_the_deviations_of_the_channels():
    pixels = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1.0, 2.0, 5.0])
    assert float(spread(torch.cov(pixels.T))) == pytest.approx(math.sqrt(float(pixels.var(0).mean())))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank__counts_equal_directions_whatever_their_orientation(rank):
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()).Q[:, :rank]
    assert float(effective_rank(7 * basis @ basis.T)) == pytest.approx(rank, rel=1e-6)


def test_effective_rank__of_unequal_directions_is_the_exponential_of_their_entropy():
    expected = math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert float(effective_rank(torch.diag(torch.tensor([4.0, 1.0, 0.0])))) == pytest.approx(expected)


def test_figures__of_collapsed_descriptors_are_zero():
    assert float(spread(torch.zeros(3, 3))) == 0
    assert float(effective_rank(torch.zeros(3, 3))) == 0


def test_valid_pixels__says_what_it_expected():
    with pytest.raises(ValueError, match="int64"):
        valid_pixels(descriptors(), valid_mask().long())
