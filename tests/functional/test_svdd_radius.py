import math

import pytest
import torch
from torch import Tensor

from anomseg.functional.score_histogram import count_scores
from anomseg.functional.score_pages import fold_scores, merge_pages
from anomseg.functional.svdd import image_distances
from anomseg.functional.svdd_radius import boundary_radius, largest_distances, mean_radius, quantile_radius

CENTRE = torch.tensor([0.3, -0.2, 0.1])
CELLS = 1 << 16


def descriptors(seed: int = 0, batch: int = 6, size: int = 9) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def every_distance(z: Tensor, valid: Tensor | None = None) -> Tensor:
    return torch.cat(image_distances(z, CENTRE, torch.ones_like(z[:, 0], dtype=torch.bool) if valid is None else valid))


def valid_mask(seed: int = 1, batch: int = 6, size: int = 9) -> Tensor:
    """Two thirds valid, the second image empty."""
    valid = torch.rand(batch, size, size, generator=torch.Generator().manual_seed(seed)) < 0.66
    valid[1] = False
    return valid


def slow_distances(z: Tensor, valid: Tensor) -> list[list[float]]:
    found = []
    for image, keep in zip(z.double(), valid, strict=True):
        pixels = [image[:, i, j] for i in range(len(keep)) for j in range(len(keep)) if keep[i, j]]
        found.append([sum((float(p[k]) - float(CENTRE[k])) ** 2 for k in range(3)) for p in pixels])
    return [d for d in found if d]


def test_mean_radius__equals_a_loop_over_images():
    z, valid = descriptors(), valid_mask()
    outermost = [math.sqrt(max(d)) for d in slow_distances(z, valid)]
    assert float(mean_radius(largest_distances(z, CENTRE, valid))) == pytest.approx(sum(outermost) / len(outermost), rel=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 1.0])
def test_quantile_radius__equals_a_loop_over_images(q):
    z, valid = descriptors(), valid_mask()
    outermost = sorted(math.sqrt(max(d)) for d in slow_distances(z, valid))
    place = q * (len(outermost) - 1)
    low, high = outermost[math.floor(place)], outermost[math.ceil(place)]
    expected = low + (place - math.floor(place)) * (high - low)
    assert float(quantile_radius(largest_distances(z, CENTRE, valid), q)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5, 1.0])
def test_boundary_radius__equals_a_loop_over_pixels(nu):
    z, valid = descriptors(), valid_mask()
    ordered = sorted(math.sqrt(x) for d in slow_distances(z, valid) for x in d)
    expected = next(r for i, r in enumerate(ordered) if (i + 1) / len(ordered) >= 1 - nu - 1e-12)
    counts = count_scores([every_distance(z, valid)], [])
    assert float(boundary_radius(counts, nu)) == pytest.approx(expected, rel=1e-6)


def test_boundary_radius__leaves_at_most_a_share_nu_outside():
    distance = every_distance(descriptors(size=40))
    radius = boundary_radius(count_scores([distance], []), 0.1)
    assert 0.0998 < float((distance.double().sqrt() > radius * (1 + 1e-7)).double().mean()) <= 0.1


def test_boundary_radius__of_batches_folded_apart_is_that_of_all_at_once():
    distances = [every_distance(descriptors(seed, size=40)) for seed in range(4)]
    whole = boundary_radius(count_scores(distances, []))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        pages = merge_pages([fold_scores([distances[i]], [], cells=CELLS) for i in order], cells=CELLS)
        assert float(boundary_radius(pages.counts())) == pytest.approx(float(whole), rel=1e-3)
    assert torch.equal(boundary_radius(pages.counts()), boundary_radius(fold_scores(distances, [], cells=CELLS).counts()))


def test_largest_distances__gives_one_value_for_each_image_with_a_valid_pixel():
    z, valid = descriptors(), valid_mask()
    expected = torch.tensor([max(d) for d in slow_distances(z, valid)], dtype=torch.float64)
    torch.testing.assert_close(largest_distances(z, CENTRE, valid), expected, rtol=1e-6, atol=0)
    assert len(expected) == 5


@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf])
def test_largest_distances__are_bit_equal_whatever_lies_outside_the_valid_pixels(junk):
    z, valid = descriptors(), valid_mask()
    assert torch.equal(largest_distances(torch.where(valid[:, None], z, junk), CENTRE, valid), largest_distances(z, CENTRE, valid))


def test_largest_distances__are_none_where_nothing_is_valid_and_carry_no_gradient():
    z = descriptors().requires_grad_()
    assert largest_distances(z, CENTRE, torch.zeros(6, 9, 9, dtype=torch.bool)).numel() == 0
    assert not largest_distances(z, CENTRE, valid_mask()).requires_grad


@pytest.mark.parametrize("rule", [mean_radius, quantile_radius])
def test_radius__refuses_an_epoch_without_valid_pixels(rule):
    with pytest.raises(ValueError, match="M >= 1"):
        rule(torch.empty(0))


def test_boundary_radius__refuses_an_epoch_without_valid_pixels_and_a_wrong_share():
    with pytest.raises(ValueError, match="but got none"):
        boundary_radius(count_scores([torch.empty(0)], []))
    with pytest.raises(ValueError, match="nu in"):
        boundary_radius(count_scores([torch.ones(3)], []), 10.0)
