import math

import pytest
import torch

from anomseg.functional.energy import energy_hinge, energy_smoothness, energy_sparsity, free_energy, mean_over


def drawn(shape=(2, 5, 6, 7), seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_free_energy__is_minus_the_logarithm_of_summed_exponentials():
    logits = drawn()
    torch.testing.assert_close(free_energy(logits), -logits.exp().sum(1).log())
    torch.testing.assert_close(free_energy(logits, 2.0), -2 * (logits / 2).exp().sum(1).log())


def test_free_energy__of_huge_logits_in_bfloat16_is_finite_float32():
    energy = free_energy(torch.tensor([[[[9e4]], [[-9e4]]]], dtype=torch.bfloat16))
    assert energy.dtype == torch.float32
    assert torch.isfinite(energy).all()


def test_free_energy__does_not_depend_on_the_order_of_classes():
    logits = drawn()
    torch.testing.assert_close(free_energy(logits), free_energy(logits.flip(1)))


def test_energy_hinge__equals_its_definition():
    energy = torch.tensor([[[-14.0, -10.0, -4.0, -8.0, 3.0]]])
    mask = torch.tensor([[[0, 0, 1, 1, 255]]])
    assert float(energy_hinge(energy, mask)) == pytest.approx(0.5 * ((0 + 4) / 2 + (0 + 4) / 2))
    assert float(energy_hinge(energy[..., :2], mask[..., :2])) == pytest.approx(2.0)  # no outlier: the full weight


def test_energy_hinge__pushes_inliers_down_and_outliers_up_and_leaves_void_alone():
    energy = torch.tensor([[[-8.0, -9.0, -20.0, 0.0, 5.0]]], requires_grad=True)
    mask = torch.tensor([[[0, 1, 0, 1, 255]]])
    energy_hinge(energy, mask).backward()
    inlier, outlier, low, high, void = energy.grad.flatten().tolist()
    assert inlier > 0 > outlier
    assert low == high == void == 0


def test_energy_hinge__of_nothing_is_zero_with_a_gradient():
    energy = torch.zeros(1, 2, 2, requires_grad=True)
    loss = energy_hinge(energy, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss == 0
    assert not energy.grad.any()


def test_energy_sparsity__is_the_norm_of_the_outliers():
    energy = drawn((2, 4, 4)).requires_grad_()
    mask = (drawn((2, 4, 4), 1) > 0).long()
    mask[0, 0] = 255
    torch.testing.assert_close(energy_sparsity(energy, mask), energy[mask == 1].norm())
    assert torch.autograd.gradcheck(lambda e: energy_sparsity(e, mask), energy)
    energy_sparsity(energy, torch.zeros_like(mask)).backward()
    assert torch.isfinite(energy.grad).all()


def test_energy_smoothness__is_a_mean_that_matches_the_published_sum():
    energy = drawn((3, 8, 9))
    total = 0.5 * (energy[:, 1:] - energy[:, :-1]).square().sum() + 0.5 * (energy[:, :, 1:] - energy[:, :, :-1]).square().sum()
    torch.testing.assert_close(energy_smoothness(energy), total / energy.numel())
    assert math.isclose(3e-6 * 8 * 900 * 900, 19.44)


def test_energy_smoothness__of_a_constant_or_a_single_pixel_is_zero():
    assert energy_smoothness(torch.full((1, 5, 5), -3.0)) == 0
    assert energy_smoothness(torch.ones(1, 1, 1)) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: free_energy(torch.zeros(1, 2, 3)),
        lambda: free_energy(torch.zeros(1, 2, 3, 3), 0.0),
        lambda: energy_hinge(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 1.0, 0.0),
        lambda: energy_hinge(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)),
    ],
)
def test_energy_terms__refuse_what_does_not_fit(call):
    with pytest.raises(ValueError, match="Expected"):
        call()


def test_mean_over__takes_the_chosen_alone_and_is_0_with_a_gradient_of_0_without_any():
    values = torch.tensor([1.0, 3.0, torch.nan], requires_grad=True)
    assert float(mean_over(values, torch.tensor([True, True, False]))) == 2.0
    nothing = mean_over(values, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert float(nothing) == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]
