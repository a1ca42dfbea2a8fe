import pytest
import torch

from anomseg.functional.running_moments import running_moments


def sums_of(*values: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.stack([torch.tensor(float(len(v))), v.sum(), v.square().sum()]) for v in values], 1)


def test_running_moments__of_a_first_batch_are_its_own():
    a, b = torch.randn(7), 3 + torch.randn(5)
    held = running_moments(torch.zeros(3, 2), sums_of(a, b))
    torch.testing.assert_close(held[1], torch.stack([a.mean(), b.mean()]))
    torch.testing.assert_close(held[2], torch.stack([a.square().mean(), b.square().mean()]))


def test_running_moments__follow_the_recurrence_of_an_exponential_mean():
    batches = [torch.randn(6) for _ in range(5)]
    held, expected = torch.zeros(3, 1), None
    for batch in batches:
        held = running_moments(held, sums_of(batch), momentum=0.3)
        expected = batch.mean() if expected is None else 0.7 * expected + 0.3 * batch.mean()
    torch.testing.assert_close(held[1, 0], expected)


def test_running_moments__of_a_quantity_without_values_stay():
    first = running_moments(torch.zeros(3, 2), sums_of(torch.ones(4), torch.ones(4)))
    second = running_moments(first, sums_of(torch.zeros(0), 5 * torch.ones(2)))
    assert torch.equal(second[:, 0], first[:, 0])
    assert second[1, 1] > first[1, 1]


def test_running_moments__start_late_for_a_quantity_that_comes_late():
    held = running_moments(torch.zeros(3, 1), sums_of(torch.zeros(0)))
    assert not held.any()
    torch.testing.assert_close(running_moments(held, sums_of(torch.full((3,), 4.0)))[1:, 0], torch.tensor([4.0, 16.0]))


def test_running_moments__refuse_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(3, N\)"):
        running_moments(torch.zeros(3, 2), torch.zeros(3, 1))
