import itertools

import pytest
import torch

from anomseg.functional.overlap import dice_loss, focal_loss, lovasz_gradient, lovasz_hinge

LOSSES = [focal_loss, dice_loss, lovasz_hinge]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def scene(seed=0, void=0.2, size=9):
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, size, size, generator=g) < 0.2).long()
    logits = 2 * torch.randn(3, size, size, generator=g, dtype=torch.float64)
    mask[torch.rand(mask.shape, generator=g) < void] = 255
    return logits, mask


def jaccard_loss(wrong, truth):
    """1 - IoU of the anomalous class when the pixels of the set `wrong` are predicted wrongly."""
    predicted = truth ^ wrong
    union = (predicted | truth).sum()
    return 1 - (predicted & truth).sum() / union if union else torch.tensor(0.0)


def test_focal_loss__equals_its_formula():
    logits, mask = scene()
    p, y = torch.sigmoid(logits[mask != 255]), mask[mask != 255]
    truth = torch.where(y == 1, p, 1 - p)
    weight = torch.where(y == 1, 0.7, 0.3).double()
    expected = (-weight * (1 - truth) ** 1.5 * truth.log()).mean()
    torch.testing.assert_close(focal_loss(logits, mask, 1.5, 0.7), expected, rtol=1e-6, atol=0)


def test_focal_loss__without_gamma_is_cross_entropy():
    logits, mask = scene()
    keep = mask != 255
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[keep], mask[keep].double())
    torch.testing.assert_close(focal_loss(logits, mask, gamma=0.0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_loss
def test_loss__is_finite_for_logits_of_any_size(loss, dtype):
    logits = torch.tensor([[[-3e4, 3e4, 0.0, -3e4]]], dtype=dtype, requires_grad=True)
    value = loss(logits, torch.tensor([[[1, 0, 1, 0]]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_dice_loss__equals_its_formula_for_a_batch_and_for_each_image():
    logits, mask = scene()

    def formula(z, m):
        p, y = torch.sigmoid(z[m != 255]), m[m != 255].double()
        return 1 - (2 * (p * y).sum() + 0.5) / (p.sum() + y.sum() + 0.5)

    torch.testing.assert_close(dice_loss(logits, mask, smooth=0.5), formula(logits, mask))
    each = torch.stack([formula(z, m) for z, m in zip(logits, mask, strict=True)]).mean()
    torch.testing.assert_close(dice_loss(logits, mask, per_image=True, smooth=0.5), each)


def test_lovasz_gradient__sums_up_jaccard_losses_of_growing_sets():
    truth = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0]).bool()
    expected = [jaccard_loss(torch.arange(8) < k, truth) for k in range(1, 9)]
    torch.testing.assert_close(lovasz_gradient(truth.float()).cumsum(0), torch.stack(expected))


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1], [0, 1], []])
def test_lovasz_gradient__of_few_pixels_is_the_growth_of_the_loss(truth):
    truth = torch.tensor(truth, dtype=torch.bool)
    losses = [jaccard_loss(torch.arange(len(truth)) < k, truth) for k in range(1, len(truth) + 1)]
    torch.testing.assert_close(lovasz_gradient(truth.float()).cumsum(0), torch.tensor(losses))


def test_lovasz_gradient__of_a_million_pixels_does_not_cancel():
    truth = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) < 0.5
    right = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (~truth).cumsum(0)
    expected = torch.diff(1 - right.double() / union, prepend=torch.zeros(1, dtype=torch.float64))
    found = lovasz_gradient(truth.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-15)


def test_lovasz_hinge__is_the_convex_extension_of_the_jaccard_loss():
    # On the corners of the cube of errors an extension is the set function itself: errors 1 where wrong, 0 where right.
    truth = torch.tensor([1, 0, 1, 0, 0]).bool()
    sign = torch.where(truth, 1.0, -1.0)
    for wrong in itertools.product([False, True], repeat=5):
        chosen = torch.tensor(wrong)
        logits = sign * (1 - chosen.float())
        value = lovasz_hinge(logits.view(1, 1, 5), truth.long().view(1, 1, 5))
        torch.testing.assert_close(value, jaccard_loss(chosen, truth).float())


def test_lovasz_hinge__equals_a_sum_over_level_sets():
    # Choquet integral: sum over sorted errors of (m_k - m_{k+1}) times the loss of the k largest.
    logits, mask = scene(void=0.0)
    z, truth = logits[0].flatten(), mask[0].flatten().bool()
    errors = torch.relu(1 - torch.where(truth, z, -z))
    levels = [*errors.sort(descending=True).values.tolist(), 0.0]
    total = sum((a - b) * float(jaccard_loss(errors >= a, truth)) for a, b in itertools.pairwise(levels))
    assert float(lovasz_hinge(logits[:1], mask[:1])) == pytest.approx(total, rel=1e-5)


def test_lovasz_hinge__of_a_batch_is_that_of_one_long_image():
    logits, mask = scene()
    joined = lovasz_hinge(logits.view(1, -1, 9), mask.view(1, -1, 9))
    torch.testing.assert_close(lovasz_hinge(logits, mask, per_image=False), joined)
    assert lovasz_hinge(logits, mask) != joined


def test_lovasz_hinge__sorts_no_more_pixels_than_allowed_and_is_seeded():
    logits, mask = scene()
    few = [float(lovasz_hinge(logits, mask, max_pixels=20, generator=torch.Generator().manual_seed(s))) for s in (1, 1, 2)]
    assert few[0] == few[1] != few[2]
    torch.testing.assert_close(lovasz_hinge(logits, mask, max_pixels=10**6, generator=torch.Generator()), lovasz_hinge(logits, mask))


def test_lovasz_hinge__has_a_gradient_without_a_change():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    lovasz_hinge(logits, torch.zeros(2, 4, 4, dtype=torch.long)).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("per_image", [False, True])
@every_loss
def test_loss__ignores_void_pixels_even_where_they_are_nan(loss, per_image):
    options = {} if loss is focal_loss else {"per_image": per_image}
    logits, mask = scene()
    poisoned = torch.where(mask == 255, torch.nan, logits).requires_grad_()
    value = loss(poisoned, mask, **options)
    value.backward()
    torch.testing.assert_close(value, loss(logits, mask, **options))
    assert not poisoned.grad[mask == 255].any()


@every_loss
def test_loss__is_zero_with_a_gradient_where_all_is_void(loss):
    logits = torch.full((2, 3, 3), torch.nan, requires_grad=True)
    value = loss(logits, torch.full((2, 3, 3), 255))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3, 3))


@pytest.mark.parametrize(
    ("loss", "options"),
    [(focal_loss, {"gamma": -1.0}), (focal_loss, {"alpha": 2.0}), (dice_loss, {"smooth": 0.0}), (lovasz_hinge, {"max_pixels": 5})],
)
def test_loss__refuses_arguments_out_of_range(loss, options):
    with pytest.raises(ValueError, match="Expected"):
        loss(*scene(), **options)


@every_loss
def test_loss__refuses_shapes_that_differ(loss):
    with pytest.raises(ValueError, match=r"one shape \(B, H, W\)"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
