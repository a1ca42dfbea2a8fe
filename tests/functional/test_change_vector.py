import math

import pytest
import torch

from anomseg.functional.change_vector import change_magnitude, difference_gate, gated_logits, smallest_change, standardise_dates


def pair(bands=4, size=(10, 12), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(2, bands, *size, generator=g), torch.rand(2, bands, *size, generator=g)


def test_change_magnitude__equals_its_formulas():
    before, after = pair()
    d = (after - before).double()
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=1)
    expected = {"mean": d.abs().mean(1), "euclidean": d.norm(dim=1), "largest": d.abs().amax(1), "angle": cosine.acos()}
    for norm, value in expected.items():
        torch.testing.assert_close(change_magnitude(before, after, norm), value.float(), rtol=1e-5, atol=1e-6)


def test_change_magnitude__angle_does_not_see_brightness_and_resolves_small_angles():
    before, _ = pair()
    assert change_magnitude(before, 3 * before, "angle").max() < 1e-6
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-5])
    small = change_magnitude(u.view(1, 2, 1, 1), v.view(1, 2, 1, 1), "angle")
    assert float(small) == pytest.approx(1e-5, rel=1e-3)
    assert not change_magnitude(torch.zeros(1, 2, 1, 1), v.view(1, 2, 1, 1), "angle").any()


def test_standardise_dates__takes_out_gain_and_offset_of_each_band():
    image = torch.stack(pair(), 1)
    changed = image * torch.tensor([2.0, 0.5]).view(1, 2, 1, 1, 1) + torch.tensor([1.0, -3.0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(standardise_dates(changed), standardise_dates(image), rtol=1e-4, atol=1e-4)


def test_standardise_dates__ignores_pixels_without_data():
    image = torch.stack(pair(), 1)
    hole, poisoned = image.clone(), image.clone()
    hole[:, 0, 0, :3] = torch.nan
    poisoned[:, 0, 0, :3] = torch.nan
    poisoned[:, 1, :, :3] = 1e6
    a, b = standardise_dates(hole), standardise_dates(poisoned)
    assert a[..., :3, :].isnan().all()
    torch.testing.assert_close(a[..., 3:, :], b[..., 3:, :])


def test_standardise_dates__of_a_constant_band_is_zero():
    assert not standardise_dates(torch.full((1, 2, 1, 4, 4), 7.0)).any()


@pytest.mark.parametrize("norm", ["mean", "euclidean", "largest", "angle"])
def test_smallest_change__forgives_a_shift_within_its_reach(norm):
    before, _ = pair(size=(16, 16))
    after = before.roll((1, -2), (2, 3))
    inner = (..., slice(3, -3), slice(3, -3))
    assert smallest_change(before, after, 2, norm)[inner].max() < 1e-6
    assert smallest_change(before, after, 1, norm)[inner].mean() > 0.01


def test_smallest_change__equals_a_literal_search():
    before, after = pair(2, (6, 5))
    found = smallest_change(before, after, 1, "mean")
    for y in range(6):
        for x in range(5):
            near = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if 0 <= y + i < 6 and 0 <= x + j < 5]
            appeared = min((after[0, :, y, x] - before[0, :, i, j]).abs().mean() for i, j in near)
            vanished = min((before[0, :, y, x] - after[0, :, i, j]).abs().mean() for i, j in near)
            assert float(found[0, y, x]) == pytest.approx(float(max(appeared, vanished)), abs=1e-6)


@pytest.mark.parametrize("appears", [False, True])
def test_smallest_change__keeps_what_appears_and_what_vanishes(appears):
    empty, full = torch.zeros(1, 1, 11, 11), torch.zeros(1, 1, 11, 11)
    full[..., 5, 5] = 1
    dates = (empty, full) if appears else (full, empty)
    assert smallest_change(*dates, 2)[0, 5, 5] == 1


def test_smallest_change__does_not_take_missing_data_for_a_match():
    before, after = pair(1, (7, 7))
    before[:, :, 3, 3] = torch.nan
    found = smallest_change(before, after, 1)
    assert found[:, 3, 3].isnan().all()
    assert torch.isfinite(found).sum() == found.numel() - len(found)


def test_gated_logits__multiply_probabilities():
    g = torch.Generator().manual_seed(1)
    z, gate = 4 * torch.randn(50, generator=g, dtype=torch.float64), torch.rand(50, generator=g, dtype=torch.float64)
    torch.testing.assert_close(torch.sigmoid(gated_logits(z, gate)), gate * torch.sigmoid(z))


def test_gated_logits__keep_an_open_gate_and_are_finite_behind_a_closed_one():
    z = torch.tensor([-80.0, -1.0, 0.0, 3.0, 80.0], requires_grad=True)
    assert torch.equal(gated_logits(z, torch.ones(5)), z)
    closed = gated_logits(z, torch.zeros(5))
    closed.sum().backward()
    assert torch.isfinite(closed).all()
    assert torch.isfinite(z.grad).all()
    assert closed.max() <= math.log(1e-6) + 1e-3


def test_difference_gate__opens_with_the_largest_band_difference():
    before = torch.zeros(1, 2, 1, 3)
    after = torch.tensor([[0.0, 0.5, -4.0], [0.0, -1.0, 1.0]]).view(1, 2, 1, 3)
    assert difference_gate(before, after, 2.0).tolist() == [[[0.0, 0.5, 1.0]]]


def test_functions__refuse_what_does_not_fit():
    before, after = pair()
    for call in (
        lambda: change_magnitude(before, after[:, :2]),
        lambda: change_magnitude(before, after, "l7"),
        lambda: smallest_change(before, after, -1),
        lambda: difference_gate(before, after, 0.0),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()
