import math

import pytest
import torch

from anomseg.functional.similarity import (
    cosine_distance,
    edge_distance,
    gradient_magnitude_similarity,
    loose_cosine_loss,
    msgms,
    msgms_loss,
    ssim,
    ssim_loss,
    weighted_mean,
)


def images(bands=2, size=(17, 13), batch=2, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, bands, *size, generator=g, dtype=dtype), torch.rand(batch, bands, *size, generator=g, dtype=dtype)


def holes(batch=2, size=(17, 13), share=0.2):
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(9)) > share


def plain_ssim(x, y, low, high, window, sigma, valid):
    """One pixel after the other, float64."""
    extent, reach = high - low, window // 2
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    out = torch.ones_like(x)
    height, width = x.shape
    for row in range(height):
        for column in range(width):
            if not valid[row, column]:
                continue
            sums = [0.0] * 6
            for r in range(max(row - reach, 0), min(row + reach + 1, height)):
                for c in range(max(column - reach, 0), min(column + reach + 1, width)):
                    if valid[r, c]:
                        w = math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * sigma**2))
                        a, b = float(x[r, c]) - low, float(y[r, c]) - low
                        sums = [s + w * v for s, v in zip(sums, (1.0, a, b, a * a, b * b, a * b), strict=True)]
            ma, mb, aa, bb, ab = (s / sums[0] for s in sums[1:])
            top = (2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2)
            out[row, column] = top / ((ma**2 + mb**2 + c1) * (aa - ma**2 + bb - mb**2 + c2))
    return out


@pytest.mark.parametrize(("window", "sigma", "low"), [(11, 1.5, 0.0), (5, 1.0, -2.0)])
def test_ssim__equals_a_plain_windowed_implementation(window, sigma, low):
    x, y = images(batch=1, bands=1, dtype=torch.float64)
    x, y, valid = x + low, y + low, holes(1)
    expected = plain_ssim(x[0, 0], y[0, 0], low, low + 1, window, sigma, valid[0])
    found = ssim(x, y, (low, low + 1), window, sigma, valid)
    torch.testing.assert_close(found[0, 0], expected)
    torch.testing.assert_close(ssim(x.float(), y.float(), (low, low + 1), window, sigma, valid)[0, 0].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_ssim_loss__of_equal_images_is_exactly_zero(offset):
    x = images()[0] * 3 + offset
    x[:, :, :8] = offset  # flat regions, where variances round below 0
    assert ssim_loss(x, x, (offset, offset + 3)) == 0
    assert ssim_loss(x.bfloat16(), x.bfloat16(), (offset, offset + 3)) == 0


def test_ssim_loss__stays_within_zero_and_two_also_for_what_leaves_the_range():
    y = images()[1]
    for x in (1 - y, -y * 50, y * 1e4, torch.zeros_like(y)):
        assert 0 <= ssim_loss(x, y) <= 2
        assert ssim(x, y).abs().max() <= 1 + 1e-6
    checks = ((torch.arange(17)[:, None] + torch.arange(13)) % 2).float().expand(2, 2, 17, 13)
    assert ssim_loss(1 - checks, checks) > 1.9  # opposite structure, same light


def test_ssim_loss__falls_with_one_step_of_adam():
    y = images()[1]
    x = torch.full_like(y, 0.5).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.02)
    before = ssim_loss(x, y)
    before.backward()
    adam.step()
    assert ssim_loss(x, y) < before - 0.01


def test_ssim_loss__names_the_range_that_a_target_leaves():
    y = torch.randn(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"Expected target values in \[0, 1\], but got -"):
        ssim_loss(y, y)
    valid = (y > 0)[:, 0] & (y < 1)[:, 0]
    assert ssim_loss(y, y, valid=valid) == 0


MEASURES = {
    "ssim": lambda x, y, v: ssim_loss(x, y, valid=v),
    "msgms": lambda x, y, v: msgms_loss(x, y, valid=v),
    "edges": lambda x, y, v: edge_distance(x, y, v).mean(),
    "cosine": lambda x, y, v: loose_cosine_loss(x, y, v.float()),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("poison", [7.0, float("nan"), float("inf")])
def test_void_pixels__touch_no_loss_and_no_gradient(name, poison):
    found = []
    for value in (0.3, poison):
        x, y = images()
        valid = holes()
        x, y = (torch.where(valid[:, None], one, value) for one in (x, y))
        x.requires_grad_()
        loss = MEASURES[name](x, y, valid)
        loss.backward()
        assert loss > 0
        assert torch.isfinite(x.grad).all()
        assert (x.grad.abs().sum(1)[~valid] == 0).all()
        found.append((loss.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", MEASURES)
def test_void_everywhere__costs_nothing(name):
    x, y = images()
    x.requires_grad_()
    loss = MEASURES[name](x, y, torch.zeros(2, 17, 13, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("name", MEASURES)
def test_measures__keep_float32_under_autocast(name):
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        inside = MEASURES[name](x, y, holes())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, MEASURES[name](x, y, holes()))


def test_gradient_similarity__is_one_for_equal_images_and_any_offset():
    x, y = images(dtype=torch.float64)
    assert (gradient_magnitude_similarity(x, x) == 1).all()
    torch.testing.assert_close(gradient_magnitude_similarity(x, x + 5), torch.ones_like(x))
    torch.testing.assert_close(gradient_magnitude_similarity(x, y), gradient_magnitude_similarity(y, x))


def test_gradient_similarity__of_ramps_is_the_closed_form():
    ramp = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    found = gradient_magnitude_similarity(0.02 * ramp, 0.05 * ramp)[0, 0, 5, 5]
    c = 170 / 255**2
    assert found.item() == pytest.approx((2 * 0.02 * 0.05 + c) / (0.02**2 + 0.05**2 + c), rel=1e-3)


def test_gradient_similarity__depends_on_the_extent_of_the_range_alone():
    x, y = images(dtype=torch.float64)
    torch.testing.assert_close(
        gradient_magnitude_similarity(255 * x - 9, 255 * y, (-9, 246)), gradient_magnitude_similarity(x, y), rtol=1e-9, atol=1e-9
    )


def test_msgms__of_one_scale_is_the_mean_over_bands():
    x, y = images()
    torch.testing.assert_close(msgms(x, y, scales=1), gradient_magnitude_similarity(x, y).mean(1))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (33, 18)])
def test_msgms__takes_any_size_and_sees_what_differs(size):
    x, y = images(size=size)
    assert (msgms(x, x) == 1).all()
    similarity = msgms(x, y)
    assert similarity.shape == (2, *size)
    assert ((similarity > 0) & (similarity <= 1 + 1e-6)).all()
    assert min(size) == 1 or msgms_loss(x, y) > 0.05


def test_msgms__sees_coarse_structure_farther_away_than_one_scale_does():
    x = torch.zeros(1, 1, 32, 32)
    x[..., 16:] = 1.0
    y = torch.zeros_like(x)
    assert msgms(x, y, scales=4)[0, 16, 12] < 0.95
    assert msgms(x, y, scales=1)[0, 16, 12] == 1


def test_edge_distance__of_ramps_is_the_difference_of_slopes():
    ramp = torch.arange(9.0).expand(1, 1, 9, 9)
    torch.testing.assert_close(edge_distance(3 * ramp, ramp)[0, 0, 4, 4], torch.tensor(1.0))


def test_cosine_distance__knows_the_same_the_opposite_and_the_right_angle():
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    for other, expected in (((3.0, 6.0), 0.0), ((-1.0, -2.0), 2.0), ((-2.0, 1.0), 1.0), ((0.0, 0.0), 1.0)):
        assert cosine_distance(x, torch.tensor(other).view(1, 2, 1, 1)).item() == pytest.approx(expected, abs=1e-6)


def test_loose_cosine_loss__damps_the_gradients_of_easy_points_alone():
    g = torch.Generator().manual_seed(0)
    target = torch.randn(2, 5, 4, 5, generator=g)
    grads = []
    for easy, damping in ((0.0, 0.1), (0.75, 0.1), (0.75, 1.0)):
        rebuilt = (target + torch.randn(2, 5, 4, 5, generator=torch.Generator().manual_seed(1))).requires_grad_()
        loss = loose_cosine_loss(rebuilt, target, torch.ones(2, 4, 5), easy, damping)
        loss.backward()
        grads.append((loss.detach(), rebuilt.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[2][1])
    share = (grads[1][1] / grads[0][1]).mean(1)
    order = cosine_distance(rebuilt.detach(), target).flatten().argsort()
    torch.testing.assert_close(share.flatten()[order[:30]], torch.full((30,), 0.1))
    torch.testing.assert_close(share.flatten()[order[30:]], torch.ones(10))


def test_loose_cosine_loss__counts_only_images_with_points():
    target = torch.randn(2, 5, 4, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(2, 4, 5)
    weight[1] = 0
    torch.testing.assert_close(loose_cosine_loss(-target, target, weight), torch.tensor(2.0))


def test_weighted_mean__reads_no_value_of_weight_zero():
    values = torch.tensor([[[1.0, float("nan")], [4.0, 2.0]]])
    assert weighted_mean(values, torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])) == 11 / 4


@pytest.mark.parametrize("arguments", [{"window": 4}, {"sigma": 0.0}, {"data_range": 0.0}, {"data_range": (1.0, 1.0)}])
def test_ssim__refuses_what_it_cannot_compute(arguments):
    with pytest.raises(ValueError, match="Expected"):
        ssim(*images(), **arguments)


def test_measures__refuse_images_that_do_not_fit():
    x, y = images()
    with pytest.raises(ValueError, match="of one shape"):
        ssim(x, y[:, :1])
    with pytest.raises(ValueError, match="scales"):
        msgms(x, y, scales=0)
    with pytest.raises(ValueError, match="easy"):
        loose_cosine_loss(x, y, torch.ones(2, 17, 13), easy=1.0)
