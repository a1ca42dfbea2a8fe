import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed

from anomseg.functional.svdd import squared_distance
from anomseg.methods import svdd_fit
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


def on_ranks(monkeypatch, parts, act):
    """Act on each part in a thread of its own, as if that were a process, and give what each found."""
    barrier, said, rank = threading.Barrier(len(parts), timeout=60), [None] * len(parts), threading.local()

    def gathered_objects(one):
        said[rank.index] = one
        barrier.wait()
        found = list(said)
        barrier.wait()
        return found

    def run(index):
        rank.index = index
        return act(parts[index])

    monkeypatch.setattr(svdd_fit, "gathered_objects", gathered_objects)
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, range(len(parts))))


@pytest.mark.parametrize("split", [2, 4])
def test_fit__of_several_ranks_equals_that_of_one(monkeypatch, split):
    batches, centre = described(), torch.zeros(3)
    whole = svdd_fit._Gathered.of(batches, centre, 0.2)
    for found in on_ranks(monkeypatch, (batches[:split], batches[split:]), lambda part: svdd_fit._Gathered.of(part, centre, 0.2)):
        for name in ("boundary", "means", "largest"):
            assert torch.equal(getattr(found, name), getattr(whole, name))
        torch.testing.assert_close(found.moments[0].fourth, whole.moments[0].fourth)
        assert found.sample.shape == whole.sample.shape


def test_fit__begins_where_a_rank_has_no_samples(monkeypatch):
    fits, batches = (DescriptorFit(), DescriptorFit()), described()
    expected = fitted(batches, centre_every=0).centre
    parts = ((fits[0], []), (fits[1], batches))
    on_ranks(monkeypatch, parts, lambda part: part[0].begin(part[1], SVDDTraining(radius_start=3), CPU))
    assert all(torch.equal(fit.centre, expected) for fit in fits)
    assert all(fit.radius.dtype == torch.float32 for fit in fits)


def test_fit__of_ranks_gathers_no_tensors_of_the_processor(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("No backend type associated with device type cpu")

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.distributed, "all_gather", refuse)  # as NCCL does
        assert fitted(described(), radius="one_minus_nu").radius > 0
    finally:
        torch.distributed.destroy_process_group()


def test_fit__says_that_there_is_nothing_to_learn_from():
    with pytest.raises(ValueError, match="batches of training data, but there are none"):
        svdd_fit._Gathered.of([], torch.zeros(3), 0.1)


def test_fit__within_an_epoch_leaves_the_sphere_as_it_is():
    fit, later = fitted(described()), described(seed=1, scale=2.0)
    centre, radius, spread = fit.centre.clone(), fit.radius.clone(), fit.covariance.clone()
    fit.refresh(later, SVDDTraining(), 1, warming_up=False, ended=False)
    assert torch.equal(fit.centre, centre)
    assert torch.equal(fit.radius, radius)
    assert fit.covariance.trace() > 2 * spread.trace()


def test_fit__names_a_collapse_and_its_cure():
    fit = fitted(described())
    with pytest.raises(RuntimeError, match=r"collapsed onto the centre.*diversity"):
        fit.refresh(described(scale=1e-6), SVDDTraining(), 1, warming_up=False)


def test_log_ratio__is_empty_before_fitting():
    assert not LogRatio().mean.numel()


def test_fit__samples_all_normal_pixels_alike_at_any_number_of_batches(monkeypatch):
    monkeypatch.setattr(svdd_fit, "KEPT_PIXELS", 2000)
    batches = [
        DescribedBatch(torch.zeros(1, 1, 4, 25), torch.full((1, 1, 4, 25), float(i)), *([torch.ones(1, 4, 25) > 0] * 2)) for i in range(200)
    ]
    sample = svdd_fit._Gathered.of(batches, torch.zeros(1), 0.1).sample
    assert sample.shape == (2000, 1)
    shares = torch.histc(sample, 10, 0, 200) / 2000
    assert (shares - 0.1).abs().max() < 0.03  # four standard deviations
