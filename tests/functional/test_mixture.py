import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference

from anomseg.functional import mixture as module
from anomseg.functional.mixture import GaussianMixture, fit_mixture, log_likelihood, mixture_energy
from anomseg.functional.rx import covariance, mahalanobis, pixel_statistics


def clouds(seed: int = 0, count: int = 900, bands: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(3, bands, generator=generator, dtype=torch.float64)
    mixing = torch.randn(3, bands, bands, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, count // 3, bands, generator=generator, dtype=torch.float64)
    pixels = (noise @ mixing + centres[:, None]).flatten(0, 1)
    return (pixels - pixels.mean(0)) / pixels.std(0, unbiased=False)  # unit variance: the ridge is then an absolute one


def reference(pixels, start, steps):
    precisions = np.linalg.inv(start.covariance.numpy())
    model = Reference(
        len(start.weight), max_iter=steps, tol=0.0, weights_init=start.weight, means_init=start.mean, precisions_init=precisions
    )
    return model.fit(pixels.numpy())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("steps", [1, 7])
def test_fit_mixture__equals_scikit_learn_from_the_same_start(steps):
    pixels = clouds()
    start = fit_mixture(pixels, 4, seed=3, iterations=1)
    fitted, expected = fit_mixture(pixels, 4, iterations=steps, tolerance=-1.0, start=start), reference(pixels, start, steps)
    np.testing.assert_allclose(log_likelihood(pixels, fitted).numpy(), expected.score_samples(pixels.numpy()), atol=1e-6)
    np.testing.assert_allclose(fitted.covariance.numpy(), expected.covariances_, atol=1e-7)


def test_fit_mixture__never_lowers_the_likelihood():
    pixels, mixture, previous = clouds(1), None, -math.inf
    for _ in range(12):
        mixture = fit_mixture(pixels, 5, iterations=1, ridge=1e-12, start=mixture)
        current = float(log_likelihood(pixels, mixture).mean())
        assert current >= previous - 1e-9
        previous = current


def test_fit_mixture__finds_clouds_that_lie_apart():
    generator = torch.Generator().manual_seed(2)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 90.0]])
    pixels = torch.cat([c + torch.randn(n, 2, generator=generator) for c, n in zip(centres, (600, 300, 100), strict=True)])
    fitted = fit_mixture(pixels, 3)
    order = fitted.weight.argsort(descending=True)
    np.testing.assert_allclose(fitted.weight[order].numpy(), [0.6, 0.3, 0.1], atol=1e-9)
    np.testing.assert_allclose(fitted.mean[order].numpy(), centres, atol=0.3)


def test_fit_mixture__of_one_component_ranks_as_rx_does():
    pixels = clouds(3)
    statistics = pixel_statistics(pixels)
    fitted = fit_mixture(pixels, 1, ridge=1e-12)
    torch.testing.assert_close(fitted.mean[0], statistics.mean, atol=1e-9, rtol=1e-9)
    distance = mahalanobis(pixels.T[None, :, None], statistics.mean, covariance(statistics).inverse()).flatten()
    constant = 4 / 2 * math.log(2 * math.pi) + float(fitted.covariance[0].logdet()) / 2
    torch.testing.assert_close(-log_likelihood(pixels, fitted), constant + distance.double() * 900 / 899 / 2, atol=1e-4, rtol=1e-5)


def test_fit_mixture__is_bit_equal_without_the_ignored_pixels():
    pixels = clouds(4)
    weight = torch.ones(len(pixels))
    weight[::3] = 0
    spoilt = pixels.clone()
    spoilt[::6], spoilt[3::6] = torch.nan, 1e9
    with_ignored, without = fit_mixture(spoilt, 3, weight=weight), fit_mixture(pixels[weight > 0], 3)
    for name in ("weight", "mean", "covariance"):
        assert torch.equal(getattr(with_ignored, name), getattr(without, name))


def test_fit_mixture__counts_a_pixel_of_weight_two_twice():
    pixels, weight = clouds(5), torch.ones(900)
    weight[:200] = 2
    start = fit_mixture(pixels, 3, iterations=1)
    weighted = fit_mixture(pixels, 3, weight=weight, iterations=5, tolerance=-1.0, start=start)
    doubled = fit_mixture(torch.cat([pixels, pixels[:200]]), 3, iterations=5, tolerance=-1.0, start=start)
    torch.testing.assert_close(weighted.mean, doubled.mean)
    torch.testing.assert_close(weighted.covariance, doubled.covariance)


def test_fit_mixture__does_not_depend_on_the_chunk(monkeypatch):
    pixels = clouds(6)
    whole = fit_mixture(pixels, 3, iterations=5)
    monkeypatch.setattr(module, "_CHUNK", 64)
    torch.testing.assert_close(fit_mixture(pixels, 3, iterations=5).mean, whole.mean, atol=1e-10, rtol=1e-10)


def test_fit_mixture__does_not_depend_on_the_units_of_a_band():
    pixels, scale = clouds(7), torch.tensor([1.0, 1e-4, 10.0, 1e5], dtype=torch.float64)
    plain, scaled = fit_mixture(pixels, 3, iterations=5), fit_mixture(pixels * scale, 3, iterations=5)
    shift = log_likelihood(pixels, plain) - log_likelihood(pixels * scale, scaled)
    torch.testing.assert_close(shift, scale.log().sum().expand(900), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pixels", [torch.ones(20, 3), torch.eye(3).repeat(5, 1)], ids=["equal pixels", "three distinct pixels"])
def test_fit_mixture__stays_finite_without_spread(pixels):
    fitted = fit_mixture(pixels, 4)
    assert float(fitted.weight.sum()) == pytest.approx(1.0)
    assert bool(torch.isfinite(log_likelihood(pixels, fitted)).all())


def test_fit_mixture__draws_its_start_from_the_seed():
    pixels = clouds(8)
    assert torch.equal(fit_mixture(pixels, 3, seed=1).mean, fit_mixture(pixels, 3, seed=1).mean)
    assert not torch.equal(fit_mixture(pixels, 3, seed=1, iterations=1).mean, fit_mixture(pixels, 3, seed=2, iterations=1).mean)


def test_log_likelihood__integrates_to_one():
    fitted = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([[[0.5]], [[2.0]]]).double()
    )
    grid = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    assert float(torch.trapezoid(log_likelihood(grid[:, None], fitted).exp(), grid)) == pytest.approx(1.0, abs=1e-9)


def test_mixture_energy__gives_pixels_without_data_the_lowest_score():
    pixels = clouds(9)
    fitted, image = fit_mixture(pixels, 3), pixels.T.reshape(1, 4, 30, 30).clone()
    image[0, 2, :4] = torch.nan
    score = mixture_energy(image, fitted)
    torch.testing.assert_close(score[0, 4:].flatten(), -log_likelihood(pixels[120:], fitted).float())
    assert bool((score[0, :4] == score[0, 4:].min()).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fit_mixture(x[None], 2), r"shape \(N, C\), but got \(1, 900, 4\)"),
        (lambda x: fit_mixture(x, 0), "got 0 components for 900 pixels"),
        (lambda x: fit_mixture(x[:3], 4), "got 4 components for 3 pixels"),
        (lambda x: fit_mixture(x, 2, weight=torch.ones(5)), r"weights >= 0 of shape \(900,\)"),
        (lambda x: fit_mixture(x, 2, weight=-torch.ones(900)), "weights >= 0"),
        (lambda x: fit_mixture(x * torch.nan, 2), "NaN or infinity at a positive weight"),
        (lambda x: fit_mixture(x, 2, ridge=0.0), "ridge > 0"),
        (lambda x: log_likelihood(x[:, :3], fit_mixture(x, 1)), "for a mixture in 4 dimensions"),
        (lambda x: GaussianMixture(torch.ones(2), torch.ones(2, 3), torch.ones(2, 3)), r"covariance \(K, C, C\)"),
        (lambda x: mixture_energy(torch.full((1, 4, 2, 2), torch.nan), fit_mixture(x, 1)), "data in every image"),
    ],
)
def test_mixture__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(clouds())
