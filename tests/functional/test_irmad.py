import numpy as np
import pytest
import torch
from scipy import linalg, stats

from anomseg.functional import irmad as module
from anomseg.functional.irmad import irmad


def scene(bands=4, size=(30, 24), seed=0, change=True):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(bands, *size, generator=g)
    mixing = torch.eye(bands) + 0.2 * torch.randn(bands, bands, generator=g)
    y = torch.einsum("ij,jhw->ihw", mixing, x) + 0.4 * torch.randn(bands, *size, generator=g)
    if change:
        y[:, 5:9, 5:9] += 4 * torch.randn(bands, 4, 4, generator=g)
    return x, y


def literal(x, y, rounds):
    """The generalised eigenproblem as it is written, with a loop over pixels' weights; what they shrink comes from a quadrature."""
    chance = (np.arange(100_000) + 0.5) / 100_000
    a, b = (t.flatten(1).double().numpy() for t in (x, y))
    bands, weight = len(a), np.ones(a.shape[1])
    for done in range(rounds + 1):
        covariance = np.cov(np.vstack([a, b]), aweights=weight, ddof=0)
        xx, xy, yy = covariance[:bands, :bands], covariance[:bands, bands:], covariance[bands:, bands:]
        values, left = linalg.eigh(xy @ linalg.solve(yy, xy.T), xx)
        rho = np.sqrt(values)
        right = linalg.solve(yy, xy.T @ left) / rho
        mean_a, mean_b = (np.average(t, axis=1, weights=weight)[:, None] for t in (a, b))
        mad = left.T @ (a - mean_a) - right.T @ (b - mean_b)
        z = (mad**2 / (2 * (1 - rho))[:, None]).sum(0)
        if done:
            z *= (stats.chi2.isf(chance, bands) * chance).mean() / chance.mean() / bands
        weight = stats.chi2.sf(z, bands)
    return z.reshape(x.shape[1:]), rho[::-1]


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_irmad__equals_a_literal_eigenproblem(rounds):
    x, y = scene()
    found = irmad(x, y, rounds, tolerance=0.0)
    z, rho = literal(x, y, rounds)
    assert found.rounds == rounds
    np.testing.assert_allclose(found.correlations.numpy(), rho, rtol=1e-9)
    np.testing.assert_allclose(found.distance.numpy(), z, rtol=1e-4, atol=1e-4)


def test_irmad__does_not_see_affine_maps_of_either_date():
    x, y = (t.double() for t in scene())
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = torch.einsum("ij,jhw->ihw", mixing, x) + 500.0
    torch.testing.assert_close(irmad(moved, 1e-3 * y - 9, 5).distance, irmad(x, y, 5).distance, rtol=1e-4, atol=1e-4)


def test_irmad__is_the_same_for_either_order_of_the_dates():
    x, y = scene()
    torch.testing.assert_close(irmad(x, y, 5).distance, irmad(y, x, 5).distance, rtol=1e-4, atol=1e-4)


def test_irmad__without_change_is_chi_square_before_reweighting():
    x, y = scene(size=(80, 80), change=False)
    z = irmad(x, y, 0).distance.flatten().numpy()
    assert stats.kstest(z, stats.chi2(4).cdf).statistic < 0.02


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_irmad__without_change_stays_chi_square_under_its_weights(bands):
    x, y = scene(bands, size=(80, 80), change=False)
    found = irmad(x, y)
    assert found.rounds < 50
    assert stats.kstest(found.distance.flatten().numpy(), stats.chi2(bands).cdf).statistic < 0.02


@pytest.mark.parametrize(("bands", "side"), [(1, 64), (2, 64), (6, 32)])
def test_irmad__does_not_collapse_to_a_few_pixels_of_a_small_tile(bands, side):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(bands, side, side, generator=g)
    y = x + 0.3 * torch.randn(bands, side, side, generator=g)
    y[:, 4:10, 4:10] = torch.randn(bands, 6, 6, generator=g)
    unchanged = torch.ones(side, side, dtype=torch.bool)
    unchanged[4:10, 4:10] = False
    plain, found = irmad(x, y, rounds=0).distance, irmad(x, y).distance
    assert found[unchanged].median() == pytest.approx(stats.chi2.median(bands), rel=0.25)
    rank = [stats.mannwhitneyu(z[~unchanged], z[unchanged]).statistic for z in (found, plain)]
    assert rank[0] > 0.999 * rank[1]


def test_irmad__reweighting_brings_change_out():
    x, y = scene(change=False)
    y[:, :10] = 2 * torch.randn(4, 10, 24, generator=torch.Generator().manual_seed(1))  # a third of the scene: MAD itself is misled
    gaps = []
    for rounds in (0, 50):
        z = irmad(x, y, rounds).distance
        gaps.append(z[:10].median() / z[10:].median())
    assert gaps[1] > 1.5 * gaps[0]


def test_irmad__leaves_pixels_without_data_out():
    x, y = scene()
    x[:, :3], y[:, :, :2] = torch.nan, torch.nan
    found = irmad(x, y, 5)
    assert found.distance[:3].isnan().all()
    assert found.distance[:, :2].isnan().all()
    x[:, :3], y[:, :3] = torch.nan, 1e6
    torch.testing.assert_close(irmad(x, y, 5).distance[3:, 2:], found.distance[3:, 2:])


def test_irmad__takes_dates_of_different_bands_and_repeated_ones():
    x, y = scene()
    narrow = irmad(x, y[:2], 3)
    assert len(narrow.correlations) == 2
    repeated = irmad(torch.cat([x, x[:1]]), y[:2], 3)
    torch.testing.assert_close(repeated.distance, narrow.distance, rtol=1e-3, atol=1e-3)


def test_irmad__of_equal_or_constant_dates_is_zero():
    x, _ = scene()
    assert irmad(x, x.clone()).distance.max() < 1e-3
    assert not irmad(x, torch.ones_like(x)).distance.any()


def test_irmad__does_not_depend_on_the_size_of_its_chunks(monkeypatch):
    x, y = scene()
    whole = irmad(x, y, 5).distance
    monkeypatch.setattr(module, "CHUNK", 37)
    torch.testing.assert_close(irmad(x, y, 5).distance, whole, rtol=1e-5, atol=1e-5)


def test_irmad__says_what_does_not_fit():
    x, y = scene()
    for call in (lambda: irmad(x, y[:, 1:]), lambda: irmad(x, y, rounds=-1), lambda: irmad(x * torch.nan, y)):
        with pytest.raises(ValueError, match="Expected"):
            call()
