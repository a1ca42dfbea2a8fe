import math

import pytest
import torch

from anomseg.functional.collapse import (
    copied_share,
    dead_share,
    distance_ratio,
    error_contrast,
    lost_progress,
    mean_distance,
    relative_spread,
    singular_rank,
    skill,
    std_ratio,
    turned,
    update_ratio,
    variance_ratio,
)


def images(seed=0, batch=4, bands=3):
    return torch.rand(batch, bands, 6, 8, generator=torch.Generator().manual_seed(seed))


def everywhere(batch=4):
    return torch.ones(batch, 6, 8, dtype=torch.bool)


def valid_mask():
    return torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(9)) < 0.7


PAIRED = {"variance": variance_ratio, "distance": distance_ratio, "skill": skill}


@pytest.mark.parametrize("a", [0.0, 0.3, 2.0])
def test_ratios__of_a_scaled_image_are_its_square_and_its_factor(a):
    x, valid = images().double(), everywhere()
    assert variance_ratio(a * x + 5, x, valid).item() == pytest.approx(a * a, abs=1e-12)
    assert distance_ratio(a * x + 5, x, valid).item() == pytest.approx(a, abs=1e-12)


def test_variance_ratio__is_zero_for_one_colour_an_image_and_distance_ratio_for_one_image_for_all():
    x, valid = images(), everywhere()
    grey = x.mean((2, 3), keepdim=True).expand_as(x)
    assert variance_ratio(grey, x, valid) < 1e-12
    assert distance_ratio(grey, x, valid) > 0.05
    mean = x.mean(0, keepdim=True).expand_as(x)
    assert distance_ratio(mean, x, valid) == 0
    assert variance_ratio(mean, x, valid) > 0.1


def test_mean_distance__of_two_constant_images_is_their_difference():
    x = torch.stack([torch.zeros(2, 6, 8), torch.full((2, 6, 8), 3.0)])
    assert mean_distance(x, everywhere(2)).item() == 3.0


def test_skill__is_one_for_perfect_and_zero_for_the_mean_of_the_others():
    x, valid = images(), everywhere()
    others = (x.sum(0) - x) / 3
    assert skill(x, x, valid) == 1
    assert skill(others, x, valid).item() == pytest.approx(0, abs=1e-6)
    assert skill(torch.zeros_like(x), x, valid) < 0
    halfway = (x + others) / 2
    assert skill(halfway, x, valid).item() == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("figure", PAIRED.values(), ids=PAIRED)
@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf])
def test_figure__is_equal_whatever_lies_outside_the_valid_pixels(figure, junk):
    x, out, valid = images(), images(1), valid_mask()
    spoilt = [one.masked_fill(~valid[:, None], junk) for one in (out, x)]
    assert torch.equal(figure(*spoilt, valid), figure(out, x, valid))


@pytest.mark.parametrize("figure", PAIRED.values(), ids=PAIRED)
def test_figure__is_free_of_scale(figure):
    x, out, valid = images().double(), images(1).double(), valid_mask()
    torch.testing.assert_close(figure(1e-9 * out, 1e-9 * x, valid), figure(out, x, valid))


@pytest.mark.parametrize("figure", [distance_ratio, skill])
def test_figure__of_a_single_image_is_not_a_number(figure):
    assert figure(images(1, 1), images(0, 1), everywhere(1)).isnan()


def test_variance_ratio__of_flat_images_is_not_a_number():
    assert variance_ratio(images(), torch.ones(4, 3, 6, 8), everywhere()).isnan()


def corrupted_images():
    x = images()
    defect = torch.zeros(4, 6, 8, dtype=torch.bool)
    defect[:, 1:4, 2:5] = True
    return x, torch.where(defect[:, None], images(5), x), defect


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_copied_share__is_the_share_of_the_defect_that_is_kept(share):
    x, given, _ = corrupted_images()
    out = x + share * (given - x)
    assert copied_share(out, x, given, everywhere()).item() == pytest.approx(share, abs=1e-6)


def test_copied_share__ignores_void_pixels_and_errors_elsewhere():
    x, given, defect = corrupted_images()
    out = x + 0.5 * (given - x)
    noisy = torch.where(defect[:, None], out, images(8))
    assert copied_share(noisy, x, given, everywhere()).item() == pytest.approx(0.5, abs=1e-6)
    valid = valid_mask()
    spoilt = [one.masked_fill(~valid[:, None], math.nan) for one in (out, x, given)]
    assert copied_share(*spoilt, valid).item() == pytest.approx(0.5, abs=1e-6)
    assert copied_share(out, x, x, everywhere()).isnan()


def test_error_contrast__is_one_for_equal_errors_and_their_ratio_otherwise():
    _, given, defect = corrupted_images()
    assert error_contrast(given + 0.1, given, defect, everywhere()).item() == pytest.approx(1, abs=1e-5)
    out = given + torch.where(defect[:, None], 0.3, 0.1)
    assert error_contrast(out, given, defect, everywhere()).item() == pytest.approx(9, rel=1e-5)
    valid = valid_mask()
    spoilt = [one.masked_fill(~valid[:, None], math.nan) for one in (out, given)]
    assert error_contrast(*spoilt, defect, valid).item() == pytest.approx(9, rel=1e-5)


def test_singular_rank__counts_directions():
    g = torch.Generator().manual_seed(0)
    line = torch.randn(50, 1, generator=g) * torch.tensor([[1.0, 2.0, -1.0]])
    assert singular_rank(line).item() == pytest.approx(1)
    assert singular_rank(torch.cat([torch.eye(5), -torch.eye(5)])).item() == pytest.approx(5)
    assert singular_rank(torch.cat([torch.eye(5), -torch.eye(5)]).T.repeat(1, 4)).item() <= 4 + 1e-9
    two = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    p = torch.tensor([0.75, 0.25])
    assert singular_rank(two).item() == pytest.approx(float((-(p * p.log()).sum()).exp()))
    assert singular_rank(torch.ones(7, 3)) == 0


def test_singular_rank__does_not_depend_on_scale_place_or_rotation():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=g).double()
    q = torch.linalg.qr(torch.randn(6, 6, generator=g).double()).Q
    torch.testing.assert_close(singular_rank(1e-9 * (x @ q) + 1e-9), singular_rank(x))


def test_relative_spread__finds_a_point_at_any_scale():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).double()
    for scale in (1e-11, 1.0, 1e8):
        assert relative_spread(scale * x).item() == pytest.approx(relative_spread(x).item())
        assert relative_spread(scale * (1 + 1e-8 * x)) < 2e-8
    assert relative_spread(x) > 0.9
    assert relative_spread(torch.full((5, 3), 0.1)) == 0
    assert relative_spread(torch.zeros(5, 3)) == 0
    assert relative_spread(1e-11 * x, scale=1.0) < 2e-11  # it was of size 1 once


def test_dead_share__counts_units_without_variation():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 3] = 0.0, 0.7
    assert dead_share(x) == 0.5
    assert dead_share(torch.zeros(5, 3)) == 1
    assert dead_share(1e-12 * torch.randn(30, 4)) == 0


def test_update_ratio__is_the_relative_distance():
    w = torch.tensor([3.0, 4.0])
    assert update_ratio(w + torch.tensor([0.0, 0.5]), w) == pytest.approx(0.1)
    assert update_ratio(w, torch.zeros(2)).isnan()


def test_turned__does_not_count_a_decay():
    w = torch.tensor([3.0, 4.0]).double()
    assert turned(0.2 * w, w) < 1e-12
    assert turned(w + 0.1 * torch.tensor([-4.0, 3.0]), w).item() == pytest.approx(0.1)
    assert turned(torch.ones(1), torch.ones(1)).isnan()


def test_std_ratio__is_relative_to_the_layers_own_start():
    w = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert std_ratio(0.25 * w + 3, w).item() == pytest.approx(0.25, rel=1e-5)
    assert std_ratio(w, torch.zeros(20, 5)).isnan()


@pytest.mark.parametrize(
    ("losses", "lost"),
    [
        ([3.0], 0),
        ([3.0, 1.0], 0),
        ([3.0, 1.0, 2.0], 0.5),
        ([3.0, 1.0, 5.0], 2),
        ([1.0, 2.0], math.inf),
        ([1.0, 0.5, math.nan], math.inf),
        ([math.nan, 1.0, 0.5], 0),
        ([-1.0, -3.0, -2.0], 0.5),
    ],
)
def test_lost_progress__is_the_share_of_the_gain_that_is_gone(losses, lost):
    assert lost_progress(losses) == lost


def test_figures__say_what_does_not_fit():
    with pytest.raises(ValueError, match="of one shape"):
        variance_ratio(images()[:, :, :4], images(), everywhere())
    with pytest.raises(ValueError, match="bool"):
        skill(images(), images(), everywhere().long())
