import math

import pytest
import torch
from torch.nn import functional as F

from anomseg.functional.abstention import FLOOR, abstention_log_probability, abstention_loss, energy_penalty
from anomseg.functional.energy import free_energy


def drawn(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(classes=4, size=6, outliers=True):
    logits = 3 * drawn((2, classes + 1, size, size))
    label = torch.randint(0, classes, (2, size, size), generator=torch.Generator().manual_seed(1))
    label[:, 0] = 255
    outlier = torch.zeros(2, size, size, dtype=torch.bool)
    outlier[1, 2:4, 2:5] = outliers
    return logits, energy_penalty(free_energy(logits[:, :-1]), detach=True), label, outlier


def literal(logits, penalty, label, outlier, weight):
    p = logits.softmax(1)
    q = p[:, :-1] + p[:, -1:] / penalty[:, None]
    parts = []
    for images in (~outlier.flatten(1).any(1), outlier.flatten(1).any(1)):
        chosen = images[:, None, None] & (label != 255) & ~outlier
        if chosen.any():
            b, i, j = chosen.nonzero().T
            parts.append(-q[b, label[chosen], i, j].log().mean())
    if outlier.any():
        parts.append(weight * -q.movedim(1, -1)[outlier].clamp_min(1e-7).log().mean())
    return torch.stack(parts).sum()


@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_abstention_loss__equals_the_formula_on_probabilities(outliers, weight):
    logits, penalty, label, outlier = batch(outliers=outliers)
    torch.testing.assert_close(abstention_loss(logits, penalty, label, outlier, weight), literal(logits, penalty, label, outlier, weight))


def test_abstention_loss__without_outliers_or_abstention_is_the_cross_entropy():
    logits, penalty, label, outlier = batch(outliers=False)
    logits[:, -1] = -1e4
    expected = F.cross_entropy(logits[:, :-1], label, ignore_index=255)
    torch.testing.assert_close(abstention_loss(logits, penalty, label, outlier), expected)


def test_abstention_loss__has_a_correct_gradient():
    logits, penalty, label, outlier = batch(classes=2, size=4)
    outlier[1, 1, 1] = True
    assert torch.autograd.gradcheck(lambda z, a: abstention_loss(z, a, label, outlier), (logits.requires_grad_(), penalty.requires_grad_()))


def test_abstention_loss__gives_void_pixels_no_gradient():
    logits, penalty, label, outlier = batch()
    logits.requires_grad_()
    abstention_loss(logits, penalty, label, outlier).backward()
    assert not logits.grad[:, :, 0].any()
    assert logits.grad[:, :, 1:].any()


def test_abstention_loss__of_outliers_does_not_depend_on_the_order_of_classes():
    logits, penalty, label, outlier = batch()
    label = torch.full_like(label, 255)
    swapped = torch.cat([logits[:, :-1].flip(1), logits[:, -1:]], 1)
    torch.testing.assert_close(abstention_loss(logits, penalty, label, outlier), abstention_loss(swapped, penalty, label, outlier))


def test_abstention_loss__of_an_outlier_ends_in_a_uniform_answer_of_ln_k():
    classes = 19
    logits = torch.zeros(1, classes + 1, 4, 4, dtype=torch.float64)
    logits[:, 3] = 12.0
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.3)
    label, outlier = torch.full((1, 4, 4), 255), torch.ones(1, 4, 4, dtype=torch.bool)
    for _ in range(400):
        optimiser.zero_grad()
        loss = abstention_loss(logits, torch.full((1, 4, 4), 36.0, dtype=torch.float64), label, outlier, outlier_weight=1.0)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) == pytest.approx(math.log(classes), abs=1e-3)
    assert float(logits.detach().softmax(1)[:, :-1].max()) == pytest.approx(1 / classes, abs=1e-3)


def test_abstention__pays_where_the_penalty_is_below_the_number_of_classes():
    logits = torch.zeros(1, 20, 4, 4, dtype=torch.float64)
    label, outlier = torch.full((1, 4, 4), 255), torch.ones(1, 4, 4, dtype=torch.bool)
    for penalty, pays in ((10.0, True), (36.0, False)):
        z = logits.clone().requires_grad_()
        abstention_loss(z, torch.full((1, 4, 4), penalty, dtype=torch.float64), label, outlier).backward()
        assert bool((z.grad[:, -1] < 0).all()) == pays


def test_abstention_loss__of_saturated_bfloat16_logits_is_finite():
    logits = torch.tensor([[[[300.0]], [[-300.0]], [[-300.0]]]], dtype=torch.bfloat16).expand(1, 3, 4, 4).clone().requires_grad_()
    label = torch.ones(1, 4, 4, dtype=torch.long)
    outlier = torch.zeros(1, 4, 4, dtype=torch.bool)
    outlier[:, 0] = True
    loss = abstention_loss(logits, torch.full((1, 4, 4), 50.0), label, outlier)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert float(loss.detach()) < 700


def test_abstention_loss__of_a_batch_without_clean_images_or_pixels_is_finite():
    logits, penalty, label, outlier = batch()
    assert torch.isfinite(abstention_loss(logits[1:], penalty[1:], label[1:], outlier[1:]))
    nothing = abstention_loss(logits, penalty, torch.full_like(label, 255), torch.zeros_like(outlier))
    assert nothing == 0


def test_energy_penalty__is_the_blurred_square_with_a_floor():
    energy = drawn((2, 9, 8))
    kernel = torch.exp(-torch.arange(-3.0, 4.0, dtype=torch.float64).square() / 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    expected = F.conv2d(F.pad(energy.square()[:, None], (3, 3, 3, 3), mode="reflect"), kernel[None, None])[:, 0]
    torch.testing.assert_close(energy_penalty(energy, 0.0), expected)
    torch.testing.assert_close(energy_penalty(energy, 1.5), expected.clamp_min(1.5))


def test_energy_penalty__lets_gradients_through_only_when_told():
    energy = drawn((1, 5, 5)).requires_grad_()
    assert not energy_penalty(energy).requires_grad
    energy_penalty(energy, 0.0, detach=False).sum().backward()
    assert energy.grad.any()


def test_abstention_log_probability__floor_is_that_of_the_published_code():
    assert pytest.approx(math.log(1e-7)) == FLOOR
    log_q = abstention_log_probability(torch.tensor([[[[50.0]], [[0.0]], [[-50.0]]]]), torch.tensor([[[4.0]]]))
    assert log_q.shape == (1, 2, 1, 1)
    assert torch.isfinite(log_q).all()


def test_abstention_terms__name_what_is_wrong():
    logits, penalty, label, outlier = batch()
    with pytest.raises(ValueError, match=r"0 to 3.*\[7\]"):
        abstention_loss(logits, penalty, torch.where(label == 2, 7, label), outlier)
    with pytest.raises(ValueError, match="one output more"):
        abstention_log_probability(logits[:, :1], penalty)
    with pytest.raises(ValueError, match="label and outlier"):
        abstention_loss(logits, penalty, label[:, :3], outlier)
    with pytest.raises(ValueError, match="floor"):
        energy_penalty(torch.zeros(1, 5, 5), -1.0)
