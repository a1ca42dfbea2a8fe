import math

import pytest
import torch
from torch import Tensor

from anomseg.functional.svdd import (
    contrast_loss,
    diversity_loss,
    image_distances,
    linear_quantile,
    one_class_loss,
    soft_boundary_loss,
    squared_distance,
)

CENTRE = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
RADIUS = 1.5


def descriptors(seed: int = 0, batch: int = 3, size: int = 7) -> Tensor:
    return torch.randn(batch, 3, size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def valid_mask(seed: int = 1, batch: int = 3, size: int = 7) -> Tensor:
    """Two thirds valid, the second image empty."""
    valid = torch.rand(batch, size, size + 2, generator=torch.Generator().manual_seed(seed)) < 0.66
    if batch > 1:
        valid[1] = False
    return valid


def boundary(**options):
    return lambda z, other, valid: soft_boundary_loss(z, CENTRE, RADIUS, valid, **options)


def diversity(**options):
    return lambda z, other, valid: diversity_loss(z, other, valid, **options)


BOUNDARIES = {
    "pixel": {},
    "max": {"reduction": "max"},
    "mean": {"reduction": "mean"},
    "quantile": {"reduction": "quantile"},
    "quantile-0.5": {"reduction": "quantile", "q": 0.5},
}
DIVERSITIES = {
    "element": {},
    "div-mean": {"reduction": "mean"},
    "div-min": {"reduction": "min"},
    "div-max": {"reduction": "max"},
    "div-quantile": {"reduction": "quantile"},
    "div-quantile-0.02": {"reduction": "quantile", "q": 0.02},
    "div-radius": {"reduction": "quantile", "q": 0.9, "radius": 2.0},
}
LOSSES = {
    **{name: boundary(**options) for name, options in BOUNDARIES.items()},
    **{name: diversity(**options) for name, options in DIVERSITIES.items()},
    "one-class": lambda z, other, valid: one_class_loss(z, CENTRE, valid),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def slow_quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def slow_reduction(values: list[float], reduction: str, q: float) -> float:
    if reduction == "quantile":
        return slow_quantile(values, q)
    return {"max": max, "min": min, "mean": lambda v: sum(v) / len(v)}[reduction](values)


def slow_pixels(z: Tensor, valid: Tensor):
    """For each image with a valid pixel, the list of its valid descriptors."""
    for image, keep in zip(z, valid, strict=True):
        found = [image[:, i, j].tolist() for i in range(keep.shape[0]) for j in range(keep.shape[1]) if keep[i, j]]
        if found:
            yield found


def slow_squares(a: list[float], b: list[float]) -> list[float]:
    return [(x - y) ** 2 for x, y in zip(a, b, strict=True)]


def slow_boundary(z: Tensor, valid: Tensor, reduction: str = "pixel", q: float = 0.98) -> float:
    losses = []
    for pixels in slow_pixels(z, valid):
        d = [sum(slow_squares(p, CENTRE.tolist())) for p in pixels]
        if reduction == "pixel":
            excess = sum(max(0.0, x - RADIUS**2) for x in d) / len(d)
        else:
            excess = max(0.0, slow_reduction(d, reduction, q) - RADIUS**2)
        losses.append(RADIUS**2 + excess / 0.1)
    return sum(losses) / len(losses)


def slow_diversity(
    z: Tensor, other: Tensor, valid: Tensor, reduction: str = "element", q: float = 0.5, radius: float | None = None
) -> float:
    losses = []
    for pixels, copies in zip(slow_pixels(z, valid), slow_pixels(other, valid), strict=True):
        squares = [slow_squares(p, c) for p, c in zip(pixels, copies, strict=True)]
        if reduction == "element":
            entries = [x for s in squares for x in s]
            reduced = sum(entries) / len(entries)
        else:
            reduced = slow_reduction([sum(s) for s in squares], reduction, q)
        losses.append(1 / ((reduced if radius is None else abs(reduced - radius**2)) + 1e-3))
    return sum(losses) / len(losses)


# ---- equality with literal loops


@pytest.mark.parametrize("options", BOUNDARIES.values(), ids=BOUNDARIES)
def test_soft_boundary_loss__equals_a_loop_over_pixels(options):
    z, valid = descriptors() * 1.3, valid_mask()
    assert float(soft_boundary_loss(z, CENTRE, RADIUS, valid, **options)) == pytest.approx(slow_boundary(z, valid, **options), rel=1e-12)


@pytest.mark.parametrize("options", DIVERSITIES.values(), ids=DIVERSITIES)
def test_diversity_loss__equals_a_loop_over_pixels(options):
    z, other, valid = descriptors(), descriptors(5), valid_mask()
    assert float(diversity_loss(z, other, valid, **options)) == pytest.approx(slow_diversity(z, other, valid, **options), rel=1e-12)


def test_one_class_loss__equals_a_loop_over_pixels():
    z, valid = descriptors(), valid_mask()
    means = [sum(sum(slow_squares(p, CENTRE.tolist())) for p in pixels) / len(pixels) for pixels in slow_pixels(z, valid)]
    assert float(one_class_loss(z, CENTRE, valid)) == pytest.approx(sum(means) / len(means), rel=1e-12)


def test_squared_distance__is_the_sum_over_channels():
    z = descriptors()
    expected = sum((z[:, k] - CENTRE[k]) ** 2 for k in range(3))
    torch.testing.assert_close(squared_distance(z, CENTRE), expected, rtol=1e-14, atol=0)


def test_squared_distance__of_half_precision_is_computed_in_single_precision():
    z = 300 * descriptors().half()  # its square overflows half precision
    distance = squared_distance(z, CENTRE)
    assert torch.equal(distance, squared_distance(z.float(), CENTRE))
    assert bool(distance.isfinite().all())


@pytest.mark.parametrize("q", [0.0, 0.02, 0.5, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("count", [1, 2, 51, 1000])
def test_linear_quantile__equals_torch(q, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    torch.testing.assert_close(linear_quantile(values, q), torch.quantile(values, q), rtol=1e-12, atol=0)


# ---- properties


@every_loss
def test_loss__has_the_gradient_of_finite_differences(loss):
    z, other = (descriptors(s, 2, 3).requires_grad_() for s in (0, 5))
    valid = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(2)) < 0.7
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, valid) + 0 * b[:, :, 0, 0].sum(), (z, other))


def test_soft_boundary_loss__is_least_at_the_radius_that_leaves_a_share_nu_outside():
    z, valid = descriptors(batch=1, size=30), torch.ones(1, 30, 32, dtype=torch.bool)
    distance = image_distances(z, CENTRE, valid)[0].sort().values.sqrt()
    losses = torch.stack([soft_boundary_loss(z, CENTRE, r, valid, nu=0.2) for r in distance])
    assert float((distance > distance[losses.argmin()]).double().mean()) == pytest.approx(0.2, abs=2 / len(distance))


def test_soft_boundary_loss__of_descriptors_within_the_sphere_is_the_squared_radius_with_zero_gradient():
    z = (0.1 * descriptors()).requires_grad_()
    loss = soft_boundary_loss(z, CENTRE, RADIUS, valid_mask())
    loss.backward()
    assert float(loss.detach()) == RADIUS**2
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_soft_boundary_loss__with_the_maximum_moves_one_pixel_of_each_image():
    z = descriptors(batch=2).requires_grad_()
    soft_boundary_loss(z, CENTRE, 0.1, torch.ones(2, 7, 9, dtype=torch.bool), reduction="max").backward()
    moved = (z.grad != 0).any(1)
    assert moved.flatten(1).sum(1).tolist() == [1, 1]
    assert torch.equal(moved.flatten(1).int().argmax(1), squared_distance(z, CENTRE).flatten(1).argmax(1))


def test_soft_boundary_loss__trains_a_radius_that_takes_a_gradient():
    radius = torch.tensor(RADIUS, dtype=torch.float64, requires_grad=True)
    valid = valid_mask()
    soft_boundary_loss(2 * descriptors(), CENTRE, radius, valid).backward()
    outside = torch.stack([(d > RADIUS**2).double().mean() for d in image_distances(2 * descriptors(), CENTRE, valid)]).mean()
    assert float(radius.grad) == pytest.approx(2 * RADIUS * (1 - float(outside) / 0.1), rel=1e-12)


def test_diversity_loss__is_a_thousand_with_zero_gradient_where_both_branches_agree():
    z, other = descriptors().requires_grad_(), descriptors().requires_grad_()
    loss = diversity_loss(z, other, valid_mask())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1000)
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_diversity_loss__gives_both_branches_opposite_gradients():
    z, other = descriptors().requires_grad_(), descriptors(5).requires_grad_()
    diversity_loss(z, other, valid_mask()).backward()
    assert torch.equal(z.grad, -other.grad)
    assert float(z.grad.abs().sum()) > 0


def test_diversity_loss__detaches_the_second_branch_on_request():
    z, other, both = descriptors().requires_grad_(), descriptors(5).requires_grad_(), descriptors().requires_grad_()
    diversity_loss(z, other, valid_mask(), detach_virtual=True).backward()
    diversity_loss(both, descriptors(5), valid_mask()).backward()
    assert other.grad is None
    assert torch.equal(z.grad, both.grad)


def test_diversity_loss__does_not_grow_with_channels_when_averaged_over_elements():
    z, other, valid = descriptors(), descriptors(5), valid_mask()
    twice = diversity_loss(torch.cat((z, z), 1), torch.cat((other, other), 1), valid)
    torch.testing.assert_close(twice, diversity_loss(z, other, valid), rtol=1e-12, atol=0)


@every_loss
def test_loss__is_the_mean_of_its_images_however_many_pixels_they_have(loss):
    z, other, valid = descriptors(), descriptors(5), valid_mask()
    singles = [loss(z[i : i + 1], other[i : i + 1], valid[i : i + 1]) for i in (0, 2)]
    torch.testing.assert_close(loss(z, other, valid), torch.stack(singles).mean(), rtol=1e-14, atol=0)


@every_loss
def test_loss__does_not_see_a_permutation_of_pixels(loss):
    z, other, valid = descriptors(), descriptors(5), valid_mask()
    torch.testing.assert_close(loss(z.flip(2, 3), other.flip(2, 3), valid.flip(1, 2)), loss(z, other, valid), rtol=1e-12, atol=0)


@every_loss
def test_loss__of_half_precision_is_computed_in_single_precision(loss):
    z, other, valid = descriptors().half(), descriptors(5).half(), valid_mask()
    assert torch.equal(loss(z, other, valid), loss(z.float(), other.float(), valid))


# ---- void


@every_loss
@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf, -math.inf])
def test_loss_and_gradient__are_bit_equal_whatever_lies_outside_the_valid_pixels(loss, junk):
    valid = valid_mask()
    clean = [descriptors(s).requires_grad_() for s in (0, 5)]
    dirty = [torch.where(valid[:, None], x.detach(), junk).requires_grad_() for x in clean]
    results = [loss(*pair, valid) for pair in (clean, dirty)]
    assert torch.equal(*results)
    for pair, result in zip((clean, dirty), results, strict=True):
        (result + 0 * pair[1].flatten()[:0].sum()).backward()
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a.grad, b.grad)
        assert not (a.grad.movedim(1, -1)[~valid] != 0).any()
    assert float(clean[0].grad.abs().sum()) > 0


@every_loss
def test_loss__is_zero_with_zero_gradient_where_nothing_is_valid(loss):
    z = torch.full((2, 3, 4, 4), math.nan, requires_grad=True)
    value = loss(z, z.detach(), torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert float(value.detach()) == 0.0
    assert torch.equal(z.grad, torch.zeros_like(z))


# ---- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, v: soft_boundary_loss(z, CENTRE, 1.0, v, nu=0.0), "nu in"),
        (lambda z, v: soft_boundary_loss(z, CENTRE, 1.0, v, reduction="min"), "reduction of"),
        (lambda z, v: soft_boundary_loss(z, CENTRE, 1.0, v, reduction="quantile", q=98), "q in"),
        (lambda z, v: soft_boundary_loss(z, CENTRE[:2], 1.0, v), r"\(3, 3, 7, 9\)|\(1, 3"),
        (lambda z, v: one_class_loss(z, CENTRE, v.long()), "int64"),
        (lambda z, v: one_class_loss(z, CENTRE, v[:, :-1]), r"\(3, 6, 9\)"),
        (lambda z, v: one_class_loss(z[0], CENTRE, v), r"\(3, 7, 9\)"),
        (lambda z, v: diversity_loss(z, z[:, :2], v), r"\(3, 2, 7, 9\)"),
        (lambda z, v: diversity_loss(z, z, v, reduction="pixel"), "reduction of"),
        (lambda z, v: squared_distance(z, CENTRE[None]), r"\(1, 3\)"),
    ],
)
def test_svdd__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(descriptors(), valid_mask())


def test_contrast_loss__equals_a_loop_over_images():
    z, valid, radius = descriptors(), valid_mask(), torch.tensor(1.2, dtype=torch.float64)
    data = valid | (torch.rand(valid.shape, generator=torch.Generator().manual_seed(4)) < 0.5)
    expected = []
    for one, near, every in zip(z, valid, data, strict=True):
        if near.any():
            margin = (one - CENTRE[:, None, None]).square().sum(0) - radius.square()
            expected.append(torch.log1p(margin[near].exp()).mean() + torch.log1p((-margin[every]).exp()).mean())
    torch.testing.assert_close(contrast_loss(z, CENTRE, radius, valid, data), torch.stack(expected).mean())


def test_contrast_loss__has_the_gradient_of_finite_differences_and_none_without_normal_pixels():
    z, valid = descriptors(size=4).requires_grad_(), valid_mask(size=4)
    radius = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    everything = torch.ones_like(valid)
    assert torch.autograd.gradcheck(lambda x, r: contrast_loss(x, CENTRE, r, valid, everything), (z, radius))
    loss = contrast_loss(z, CENTRE, radius, torch.zeros_like(valid), everything)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not z.grad.any()


def test_contrast_loss__is_least_at_the_log_ratio_of_densities():
    # one channel, centre 0: normal pixels at d = 1, all pixels half at d = 1 and half at d = 9, told apart by a free margin for each
    margins = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([margins], max_iter=50)

    def loss():
        optimiser.zero_grad()
        z = torch.cat([(margins + 4).sqrt()])[None, None, None, [0, 0, 1, 1]]
        valid = torch.tensor([[[True, True, False, False]]])
        value = contrast_loss(z, torch.zeros(1, dtype=torch.float64), torch.tensor(2.0), valid, torch.ones_like(valid))
        value.backward()
        return value

    optimiser.step(loss)
    assert float(margins[0].detach()) == pytest.approx(math.log(0.5), abs=1e-3)
    assert float(margins[1].detach()) > 3


def test_contrast_loss__reads_no_pixel_without_data():
    z, valid, radius = descriptors(), valid_mask(), torch.tensor(1.2)
    data = valid.clone()
    data[:, :2] = True
    poisoned = torch.where(data[:, None], z, torch.nan)
    assert torch.equal(contrast_loss(z, CENTRE, radius, valid, data), contrast_loss(poisoned, CENTRE, radius, valid, data))
