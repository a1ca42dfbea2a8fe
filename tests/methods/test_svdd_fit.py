import pytest
import torch

from anomseg.functional.svdd import squared_distance
from anomseg.methods.svdd_fit import DescribedBatch, DescriptorFit, LogRatio
from anomseg.methods.svdd_training import SVDDTraining

CPU = torch.device("cpu")


def described(seed=0, count=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        z = scale * torch.randn(2, 3, 10, 12, generator=generator)
        inputs = torch.randn(2, 4, 10, 12, generator=generator)
        data = torch.rand(2, 10, 12, generator=generator) < 0.9
        normal = data & (torch.rand(2, 10, 12, generator=generator) < 0.6)
        batches.append(DescribedBatch(inputs, z, normal, data))
    return batches


def fitted(batches, **recipe):
    fit = DescriptorFit()
    fit.begin(batches, SVDDTraining(**recipe), CPU)
    fit.refresh(batches, SVDDTraining(**recipe), 0, warming_up=False)
    return fit


def test_fit__centre_is_the_mean_of_the_images_means():
    batches = described()
    means = [z[:, keep].mean(1) for b in batches for z, keep in zip(b.descriptor, b.normal, strict=True)]
    torch.testing.assert_close(fitted(batches).centre, torch.stack(means).mean(0))


@pytest.mark.parametrize("rule", ["mean_max", "quantile", "one_minus_nu"])
def test_fit__radius_follows_its_rule(rule):
    batches = described()
    fit = fitted(batches, radius=rule, centre_every=0)
    distances = [squared_distance(b.descriptor, fit.centre).sqrt() for b in batches]
    largest = torch.stack([d[keep].max() for b, e in zip(batches, distances, strict=True) for d, keep in zip(e, b.normal, strict=True)])
    pixels = torch.cat([d[b.normal] for b, d in zip(batches, distances, strict=True)])
    expected = {"mean_max": largest.mean(), "quantile": largest.quantile(0.9), "one_minus_nu": pixels.quantile(0.9)}[rule]
    torch.testing.assert_close(fit.radius, expected, atol=2e-3, rtol=0)


def test_fit__radius_that_falls_only_never_rises():
    fit = fitted(described(), radius_start=0.1, radius_falls=True)
    torch.testing.assert_close(fit.radius, torch.tensor(0.1))


def test_fit__pixels_that_are_not_normal_move_nothing_of_the_sphere():
    batches = described()
    poisoned = [b._replace(descriptor=torch.where(b.normal[:, None], b.descriptor, 1e3)) for b in batches]
    first, second = fitted(batches), fitted(poisoned)
    for name in ("centre", "radius", "covariance", "distances"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert torch.equal(first.descriptor_ratio.precision, second.descriptor_ratio.precision)


def test_log_ratio__equals_the_difference_of_two_log_densities():
    fit = fitted(described(count=40))
    ratio = fit.descriptor_ratio
    values = torch.randn(1, 3, 5, 6)

    def log_density(mean, precision):
        covariance = torch.linalg.inv(precision)
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(values.double()[0].movedim(0, -1))

    expected = log_density(ratio.all_mean, ratio.all_precision) - log_density(ratio.mean, ratio.precision)
    torch.testing.assert_close(ratio.score(values)[0].double(), expected, atol=1e-4, rtol=1e-4)


def test_fit__margin_and_ratio_of_inputs_add_up():
    batches = described()
    fit = fitted(batches)
    one = batches[0]
    margin = fit.score(one.inputs, one.descriptor, "dist_r2")
    torch.testing.assert_close(fit.score(one.inputs, one.descriptor, "margin_ratio"), margin + fit.input_ratio.score(one.inputs))


@pytest.mark.parametrize(
    "rule", ["dist", "dist_r2", "abs", "abs_inner_half", "recenter", "mahalanobis", "two_sided", "ratio", "margin_ratio"]
)
def test_fit__every_rule_scores_finitely(rule):
    batches = described()
    score = fitted(batches).score(batches[0].inputs, batches[0].descriptor, rule)
    assert score.shape == (2, 10, 12)
    assert torch.isfinite(score).all()
    assert score.std() > 0


def test_fit__names_a_collapse_and_its_cure():
    fit = fitted(described())
    with pytest.raises(RuntimeError, match=r"collapsed onto the centre.*diversity"):
        fit.refresh(described(scale=1e-6), SVDDTraining(), 1, warming_up=False)


def test_log_ratio__is_empty_before_fitting():
    assert not LogRatio().mean.numel()
