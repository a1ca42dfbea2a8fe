"""Features of surfaces: invariance to exposure, closed forms, and pixels without data."""

import math

import pytest
import torch

from anomseg.functional.filter_bank import gaussian_filter
from anomseg.functional.surface_features import (
    check_windows,
    directional_derivatives,
    image_median,
    line_responses,
    log_energies,
    log_light,
    streak_changes,
    window_contrasts,
)


@pytest.fixture
def image():
    return torch.rand(2, 1, 40, 33, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def test_log_light__takes_the_exposure_out(image):
    torch.testing.assert_close(log_light(image * 0.5, 0.0), log_light(image, 0.0))
    assert log_light(image).flatten(1).median(1).values.abs().max() < 1e-6


def test_log_light__keeps_missing_pixels_missing_and_out_of_the_median(image):
    holed = image.clone()
    holed[0, :, 3:5, 4:9] = torch.nan
    light = log_light(holed)
    assert light.isnan().equal(holed.isnan())
    torch.testing.assert_close(light[1], log_light(image)[1])


def test_derivatives__tell_the_direction_of_streaks():
    streaks = (torch.arange(48.0) * 1.3).sin().expand(1, 1, 48, 48) * 0.1
    along, across = directional_derivatives(streaks, (1.0,), floor=1.0)[0, :2, 12:36, 12:36].abs().mean((1, 2))
    assert along < 1e-4
    assert across > 0.01


def test_derivatives__do_not_change_with_the_contrast_of_the_image(image):
    light = log_light(image)
    torch.testing.assert_close(
        directional_derivatives(3 * light, floor=0.0), directional_derivatives(light, floor=0.0), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("described", [directional_derivatives, line_responses, log_energies])
def test_features__do_not_see_what_lies_under_missing_pixels(image, described):
    light = log_light(image)
    light[:, :, 10:14, 10:14] = torch.nan
    found = described(light)
    assert torch.isfinite(found).all()
    assert not found[:, :, 10:14, 10:14].any()
    assert found.shape[-2:] == image.shape[-2:]


def test_energies__rise_where_the_texture_is_rough():
    light = torch.randn(1, 1, 32, 64, generator=torch.Generator().manual_seed(1)) * 0.01
    light[..., 32:] *= 10
    found = log_energies(light)[0]
    assert (found[:, :, 44:].mean((1, 2)) - found[:, :, :20].mean((1, 2)) > 2).all()


def test_energies__of_the_first_order_are_the_first_of_all():
    light = torch.rand(2, 3, 12, 14)
    torch.testing.assert_close(log_energies(light, order=1), log_energies(light)[:, :6])


def test_contrasts__equal_plain_means_of_both_sides(image):
    valid = torch.ones(2, 40, 33, dtype=torch.bool)
    found = window_contrasts(image, valid, ((3, 5),))
    y, x = 20, 15
    upper, lower = image[:, 0, y - 3 : y, x - 2 : x + 3].mean((1, 2)), image[:, 0, y : y + 3, x - 2 : x + 3].mean((1, 2))
    torch.testing.assert_close(found[:, 0, y, x], upper - lower, rtol=1e-4, atol=1e-6)
    left, right = image[:, 0, y - 2 : y + 3, x - 3 : x].mean((1, 2)), image[:, 0, y - 2 : y + 3, x : x + 3].mean((1, 2))
    torch.testing.assert_close(found[:, 1, y, x], left - right, rtol=1e-4, atol=1e-6)


def test_contrasts__of_a_constant_are_zero_up_to_the_border_and_beside_holes(image):
    valid = torch.ones(2, 40, 33, dtype=torch.bool)
    valid[:, 5:9, 5:9] = False
    features = torch.where(valid[:, None], torch.full_like(image, 7.0), torch.nan)
    assert window_contrasts(features, valid).abs().max() < 1e-5


def test_contrasts__reject_even_windows(image):
    with pytest.raises(ValueError, match="odd width"):
        window_contrasts(image, torch.ones(2, 40, 33, dtype=torch.bool), ((3, 4),))
    for windows in ((), ((0, 3),), ((3, 5, 7),)):
        with pytest.raises(ValueError, match="Expected windows"):
            check_windows(windows)


def streaks(seed, columns=64):
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize(("below", "expected"), [("same", 0.0), ("other", 1.0), ("inverted", 2.0)])
def test_streaks__tell_whether_they_go_on(below, expected):
    upper = streaks(0)
    lower = {"same": upper, "other": streaks(1), "inverted": -upper}[below]
    light = torch.cat([upper.expand(32, 64), lower.expand(32, 64)])[None, None]
    found = streak_changes(light, torch.ones(1, 64, 64, dtype=torch.bool), ((7, 31),))
    assert found.shape == (1, 2, 64, 64)
    assert found[0, 0, 32, 20:44].mean() == pytest.approx(expected, abs=0.25)
    assert found[0, 0, 12, 20:44].max() < 0.02  # far from the line
    turned = streak_changes(light.mT, torch.ones(1, 64, 64, dtype=torch.bool), ((7, 31),))
    torch.testing.assert_close(turned[:, 1].mT, found[:, 0])


def test_streaks__equal_plain_profiles_of_both_sides(image):
    valid = torch.ones(2, 40, 33, dtype=torch.bool)
    found = streak_changes(image, valid, ((3, 5),), smoothing=2.0)
    detail = image[:, 0] - gaussian_filter(image, 2.0)[:, 0]
    y, x = 20, 15
    u, v = detail[:, y - 3 : y, x - 2 : x + 3].mean(1), detail[:, y : y + 3, x - 2 : x + 3].mean(1)
    torch.testing.assert_close(found[:, 0, y, x], ((u - v) ** 2).sum(1) / (u**2 + v**2).sum(1), rtol=0.05, atol=1e-3)
    assert ((found >= 0) & (found <= 2)).all()


def test_streaks__do_not_see_what_lies_under_missing_pixels(image):
    valid = torch.ones(2, 40, 33, dtype=torch.bool)
    valid[:, 10:14, 10:14] = False
    spoilt = torch.where(valid[:, None], image, torch.nan)
    found = streak_changes(spoilt, valid)
    torch.testing.assert_close(streak_changes(torch.where(valid[:, None], image, 1e6), valid), found)
    assert torch.isfinite(found).all()
    assert not found[:, :, 10:14, 10:14].any()
    assert not streak_changes(spoilt, torch.zeros_like(valid)).any()
    with pytest.raises(ValueError, match="odd width"):
        streak_changes(image, valid, ((3, 4),))


def test_image_median__is_that_of_the_pixels_with_data():
    features, valid = torch.arange(12.0).view(1, 2, 2, 3), torch.tensor([[[True, True, True], [False, False, False]]])
    assert image_median(features, valid).flatten().tolist() == [1.0, 7.0]
    assert image_median(features, ~valid & False).flatten().tolist() == [0.0, 0.0]


def noisy_line(angle, sign):
    """Draw a faint line through the middle of noise, as dark or as bright as the noise deviates, twice over."""
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2)) * 0.1
    rows, columns = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    across = rows * math.cos(angle) - columns * math.sin(angle)
    return noise + sign * 0.2 * torch.exp(-across.square() / 2), across.abs() < 1


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_lines__answer_on_a_faint_line_of_any_direction_and_sign(angle, sign):
    light, line = noisy_line(angle, sign)
    found = line_responses(light)[0].mean(0)
    away = torch.nn.functional.max_pool2d(line[None].float(), 31, 1, 15)[0] == 0
    inner = torch.zeros_like(line)
    inner[12:-12, 12:-12] = True  # a stroke that the border cuts averages less noise away
    assert float(found[line & inner].median()) > 1.5 * float(found[away & inner].max())


def test_lines__average_specks_away():
    light = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3)) * 0.02
    light[..., 32, 16] += 0.3  # a speck
    light[..., 20:45, 48] += 0.1  # a line a third as bright
    found = line_responses(light)[0].mean(0)
    assert float(found[28:37, 48].mean()) > 1.5 * float(found[28:37, 10:23].max())


def test_lines__are_the_second_derivative_across_a_long_line():
    light = -torch.exp(-(torch.arange(80.0) - 40).square() / 8).expand(1, 1, 80, 80).clone()
    found = line_responses(light, (2.0,), floor=1e9) * 1e9
    # σ² f'' in the middle of a Gaussian of deviation 2, smoothed by one of 2 and by the stroke's own width.
    assert float(found[0, 0, 40, 40]) == pytest.approx(4 * 2 / (2**2 + 2**2 + 0.6**2) ** 1.5, rel=0.01)


def test_lines__of_every_band_stand_side_by_side(image):
    light = log_light(image)
    both = torch.cat([light, light.flip(-1)], 1)
    found = line_responses(both, (1.0, 2.0))
    torch.testing.assert_close(found[:, ::2], line_responses(light, (1.0, 2.0)))
    torch.testing.assert_close(found[:, 1::2].flip(-1), line_responses(light, (1.0, 2.0)), rtol=1e-3, atol=1e-3)


def test_lines__of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="kind of lines"):
        line_responses(torch.zeros(1, 1, 8, 8), kind="grey")


def test_lines__of_one_kind_leave_the_other_out():
    dark, bright = (noisy_line(0.4, sign)[0] for sign in (-1, 1))
    torch.testing.assert_close(line_responses(dark, kind="dark"), line_responses(-dark, kind="bright"))
    both, ours, others = (line_responses(dark, floor=1e6, kind=kind) for kind in ("both", "dark", "bright"))
    torch.testing.assert_close(both, torch.maximum(ours, others), rtol=1e-4, atol=0)
    _, line = noisy_line(0.4, 1)
    assert float(line_responses(dark, kind="dark")[0].mean(0)[line].median()) > 2 * float(
        line_responses(bright, kind="dark")[0].mean(0)[line].median()
    )
