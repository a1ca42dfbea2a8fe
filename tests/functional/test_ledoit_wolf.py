from functools import reduce

import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf as reference
from torch import Tensor

from anomseg.functional.ledoit_wolf import fourth_moments, ledoit_wolf, merge_moments
from anomseg.functional.rx import covariance

SHAPES = [(400, 5), (12, 5), (6, 20), (2, 3), (50, 1), (3000, 64)]


def pixels(count: int, size: int, seed: int = 0, offset: float = 3.0) -> Tensor:
    """Skewed and correlated, so that no moment vanishes."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=g, dtype=torch.float64)
    return torch.randn(count, size, generator=g, dtype=torch.float64).exp() @ mixing + offset


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize(("count", "size"), SHAPES)
def test_ledoit_wolf__equals_scikit_learn(count, size):
    x = pixels(count, size)
    expected, shrinkage = reference(x.numpy())
    result = ledoit_wolf(fourth_moments(x))
    close(result.covariance, torch.from_numpy(expected.reshape(size, size)), 1e-8)
    assert float(result.shrinkage) == pytest.approx(shrinkage, abs=1e-8)


def test_ledoit_wolf__becomes_the_sphere_where_the_noise_exceeds_the_distance_from_it():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, shrinkage = reference(x.numpy())
    result = ledoit_wolf(fourth_moments(x))
    assert shrinkage == float(result.shrinkage) == 1.0
    close(result.covariance, torch.from_numpy(expected), 1e-8)


def test_precision__equals_scikit_learn():
    x = pixels(60, 8)
    close(ledoit_wolf(fourth_moments(x)).precision(), torch.from_numpy(LedoitWolf().fit(x.numpy()).precision_), 1e-8)


@pytest.mark.parametrize("sizes", [[100, 100, 100], [1, 2, 297], [0, 5, 0, 295], [300, 0]])
def test_merge_moments__gives_the_moments_of_the_union(sizes):
    x = pixels(300, 6)
    parts = [fourth_moments(part) for part in x.split(sizes)]
    whole = fourth_moments(x)
    for merged in (reduce(merge_moments, parts), reduce(merge_moments, parts[::-1])):
        for name in ("count", "mean", "scatter", "third", "fourth"):
            close(getattr(merged, name), getattr(whole, name))


def test_merge_moments__holds_for_parts_that_lie_far_apart():
    x = torch.cat((pixels(200, 4, offset=-1e3), pixels(300, 4, 1, offset=1e3)))
    merged = merge_moments(fourth_moments(x[:200]), fourth_moments(x[200:]))
    assert float(ledoit_wolf(merged).shrinkage) == pytest.approx(reference(x.numpy())[1], rel=1e-8)


def test_fourth_moments__equal_a_loop_over_pixels():
    x = pixels(40, 3)
    mean = sum(x) / 40
    deviations = [p - mean for p in x]
    moments = fourth_moments(x)
    close(moments.third, sum((y @ y) * y for y in deviations))
    close(moments.fourth, sum((y @ y) ** 2 for y in deviations))
    close(covariance(moments.second()), torch.cov(x.T))


def test_ledoit_wolf__survives_an_offset_of_a_million():
    x = pixels(300, 5, offset=0.0)
    close(ledoit_wolf(fourth_moments(x + 1e6)).covariance, ledoit_wolf(fourth_moments(x)).covariance, 1e-8)


def test_ledoit_wolf__turns_with_the_pixels():
    x = pixels(80, 5)
    turn = torch.linalg.qr(pixels(5, 5, 3)).Q
    a, b = ledoit_wolf(fourth_moments(x @ turn)), ledoit_wolf(fourth_moments(x))
    close(a.covariance, turn.T @ b.covariance @ turn)
    close(a.shrinkage, b.shrinkage)


def test_ledoit_wolf__of_equal_pixels_is_zero_with_a_zero_precision():
    result = ledoit_wolf(fourth_moments(torch.full((9, 4), 2.5)))
    assert torch.equal(result.covariance, torch.zeros(4, 4, dtype=torch.float64))
    assert torch.equal(result.precision(), torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("count", [0, 1])
def test_ledoit_wolf__refuses_fewer_than_two_pixels(count):
    with pytest.raises(ValueError, match=f"but got {count}"):
        ledoit_wolf(fourth_moments(torch.ones(count, 4)))
