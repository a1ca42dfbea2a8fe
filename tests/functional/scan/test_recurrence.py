import pytest
import torch

from anomseg.functional.scan.recurrence import doubling_scan, reference_scan


def operands(length, state=2, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    u, delta, rates = draw(2, 4, length), draw(2, 4, length).abs(), -draw(4, state).abs()
    return u, delta, rates, draw(2, groups, state, length), draw(2, groups, state, length), draw(2, 4, state)


def test_reference__is_the_closed_form_of_constant_operands():
    steps, rate = 6, -0.7
    ones = torch.ones(1, 1, steps, dtype=torch.float64)
    y, last = reference_scan(ones, ones, ones[:, :, :1] * rate, ones[:, None], 3 * ones[:, None], torch.zeros(1, 1, 1, dtype=torch.float64))
    decay = torch.tensor(rate, dtype=torch.float64).exp()
    expected = (1 - decay ** torch.arange(1, steps + 1)) / (1 - decay)  # a geometric series
    torch.testing.assert_close(y[0, 0], 3 * expected)
    torch.testing.assert_close(last[0, 0, 0], expected[-1])


def test_reference__gives_each_group_its_own_sides():
    u, delta, rates, enter, leave, initial = operands(5)
    y, _ = reference_scan(u, delta, rates, enter, leave, initial)
    for group in range(2):
        own, side = slice(2 * group, 2 * group + 2), slice(group, group + 1)
        alone, _ = reference_scan(u[:, own], delta[:, own], rates[own], enter[:, side], leave[:, side], initial[:, own])
        torch.testing.assert_close(y[:, own], alone)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("reverse", [False, True])
def test_doubling__equals_the_loop(length, reverse):
    given = operands(length)
    for found, expected in zip(doubling_scan(*given, reverse=reverse), reference_scan(*given, reverse=reverse), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scan", [reference_scan, doubling_scan])
def test_reverse__equals_flipping_time_before_and_after(scan):
    u, delta, rates, enter, leave, initial = operands(9)
    y, last = scan(u, delta, rates, enter, leave, initial, reverse=True)
    flipped, there = scan(u.flip(-1), delta.flip(-1), rates, enter.flip(-1), leave.flip(-1), initial)
    torch.testing.assert_close(y, flipped.flip(-1))
    torch.testing.assert_close(last, there)
