import math

import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomseg.functional.descriptor_statistics import descriptor_moments
from anomseg.functional.score_histogram import ScoreCounts, count_scores
from anomseg.functional.score_pages import fold_scores
from anomseg.functional.svdd_scores import NormalDescriptors, descriptor_score, two_sided_score

RULES = ["dist", "dist_r2", "abs", "abs_inner_half", "recenter", "mahalanobis"]
CENTRE, RADIUS = torch.tensor([0.2, -0.1, 0.3]), 1.2


def descriptors(seed: int = 0, size: int = 12) -> Tensor:
    z = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return z * torch.tensor([1.0, 0.3, 2.0])[:, None, None] + 0.5


def normal(z: Tensor) -> NormalDescriptors:
    return NormalDescriptors.of(CENTRE, RADIUS, descriptor_moments(z, torch.ones(2, *z.shape[2:], dtype=torch.bool)))


def slow_score(rule: str, z: list[float]) -> float:
    d = sum((x - float(c)) ** 2 for x, c in zip(z, CENTRE, strict=True))
    outside = d - RADIUS**2
    factor = 0.5 if rule == "abs_inner_half" and outside < 0 else 1.0
    return {"dist": d, "dist_r2": outside, "abs": abs(outside), "abs_inner_half": factor * abs(outside)}[rule]


@pytest.mark.parametrize("rule", RULES[:4])
def test_descriptor_score__equals_a_loop_over_pixels(rule):
    z = descriptors(size=5)
    score = descriptor_score(z, normal(z), rule)
    expected = torch.tensor([[[slow_score(rule, z[b, :, i, j].tolist()) for j in range(5)] for i in range(5)] for b in range(2)])
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-5)


def test_recenter__is_the_distance_from_the_mean_normal_descriptor():
    z = descriptors()
    mean = z.movedim(1, -1).reshape(-1, 3).double().mean(0)
    expected = (z.double() - mean[:, None, None]).square().sum(1).float()
    torch.testing.assert_close(descriptor_score(z, normal(z), "recenter"), expected)


def test_mahalanobis__equals_scikit_learn_with_ledoit_wolf():
    train, test = descriptors(1), descriptors(2)
    fitted = LedoitWolf().fit(train.movedim(1, -1).reshape(-1, 3).double().numpy())
    expected = torch.from_numpy(fitted.mahalanobis(test.movedim(1, -1).reshape(-1, 3).double().numpy())).sqrt().view(2, 12, 12)
    torch.testing.assert_close(descriptor_score(test, normal(train)), expected.float(), rtol=1e-5, atol=1e-6)


def test_dist_r2__orders_pixels_as_dist_does_and_abs_does_not():
    z = descriptors()
    order = {rule: descriptor_score(z, normal(z), rule).flatten().argsort(stable=True) for rule in ("dist", "dist_r2", "abs")}
    assert torch.equal(order["dist"], order["dist_r2"])
    assert not torch.equal(order["dist"], order["abs"])


def test_mahalanobis__is_invariant_to_a_rotation_of_descriptors_about_the_centre_of_the_data():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).double()).Q
    z = descriptors().double()
    turned = torch.einsum("ij,bjhw->bihw", turn, z)
    torch.testing.assert_close(descriptor_score(turned, normal(turned)), descriptor_score(z, normal(z)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_descriptor_score__is_finite_and_leaves_other_pixels_alone_where_one_holds_no_data(rule):
    z = descriptors()
    holed = z.clone()
    holed[0, 1, 3, 4], holed[1, 0, 2, 2] = math.nan, math.inf
    score, whole = descriptor_score(holed, normal(z), rule), descriptor_score(z, normal(z), rule)
    hole = torch.zeros(2, 12, 12, dtype=torch.bool)
    hole[0, 3, 4] = hole[1, 2, 2] = True
    assert score.dtype == torch.float32
    assert torch.equal(score[~hole], whole[~hole])
    assert bool((score[hole] == 0).all())


@pytest.mark.parametrize("rule", RULES)
def test_descriptor_score__of_collapsed_descriptors_is_finite(rule):
    z = torch.full((2, 3, 4, 4), 0.7)
    assert bool(descriptor_score(z, normal(z), rule).isfinite().all())


def test_descriptor_score__refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="'squared'"):
        descriptor_score(descriptors(), normal(descriptors()), "squared")


# ---- two-sided


def held_out(seed: int = 0, count: int = 400) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).square().sum(1)


def counted(distances: Tensor) -> ScoreCounts:
    return count_scores([distances], [])


def slow_two_sided(d: float, held: list[float]) -> float:
    n, low, high = len(held), min(held), max(held)
    near = (sum(x <= d for x in held) + 1) / (n + 2)
    far = (sum(x >= d for x in held) + 1) / (n + 2)
    beyond = max(low - d, d - high, 0.0) / (high - low)
    return -math.log(min(1.0, 2 * min(near, far))) + math.log1p(beyond)


def test_two_sided_score__equals_a_loop_over_held_out_distances():
    held = held_out(count=150)
    d = torch.cat([held_out(1, 150), held[:20], torch.tensor([0.0, 1e-6, 50.0, 1e6, float(held.min()), float(held.max())])])
    expected = torch.tensor([slow_two_sided(float(x), held.tolist()) for x in d])
    torch.testing.assert_close(two_sided_score(d, counted(held)), expected, rtol=1e-5, atol=1e-6)


def test_two_sided_score__of_ties_counts_them_on_both_sides():
    held = torch.tensor([1.0, 1.0, 1.0, 2.0])
    expected = torch.tensor([slow_two_sided(x, held.tolist()) for x in (0.5, 1.0, 1.5, 2.0, 3.0)])
    torch.testing.assert_close(two_sided_score(torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0]), counted(held)), expected)


def test_two_sided_score__is_zero_at_the_median_and_rises_to_both_sides_without_end():
    held = held_out(count=401)
    score = two_sided_score(torch.linspace(0, 60, 2001), counted(held))
    middle = float(held.median())
    grid = torch.linspace(0, 60, 2001)
    assert float(two_sided_score(held.median()[None], counted(held))) == 0.0
    assert bool((score[grid < middle].diff() <= 0).all())
    assert bool((score[grid > middle].diff() >= 0).all())
    beyond = score[grid > held.max()]
    assert bool((beyond.diff() > 0).all())
    assert bool((beyond >= math.log(403 / 2)).all())


def test_two_sided_score__of_normal_pixels_exceeds_a_level_as_often_as_its_p_value_says():
    score = two_sided_score(held_out(7, 40000), counted(held_out(8, 40000)))
    for p in (0.5, 0.1, 0.02):
        assert float((score >= -math.log(p)).double().mean()) == pytest.approx(p, rel=0.1)


def test_two_sided_score__finds_anomalies_on_either_side_where_the_distance_finds_one():
    train, fresh = held_out(0, 2000), held_out(1, 2000)
    truth = [0] * 2000 + [1] * 500
    for anomalies in (torch.full((500,), 0.05), torch.full((500,), 40.0)):
        mixed = torch.cat([fresh, anomalies])
        assert roc_auc_score(truth, two_sided_score(mixed, counted(train))) > 0.97
    assert roc_auc_score(truth, torch.cat([fresh, torch.full((500,), 0.05)])) < 0.03


def test_two_sided_score__barely_moves_where_counts_are_folded_into_pages():
    held, d = held_out(0, 5000), held_out(1, 3000)
    exact, folded = two_sided_score(d, counted(held)), two_sided_score(d, fold_scores([held], [], cells=1 << 15).counts())
    assert float((exact - folded).abs().max()) < 0.7
    assert float((exact - folded).abs().mean()) < 0.02


def test_two_sided_score__is_finite_everywhere():
    d = torch.tensor([[0.0, 3e38, -3e38, 1e-45], [math.nan, math.inf, -math.inf, 1.0]])
    for held in (held_out(), torch.ones(7), torch.zeros(1)):
        score = two_sided_score(d, counted(held))
        assert score.shape == (2, 4)
        assert bool(score.isfinite().all())
        assert score[1, :3].tolist() == [0.0, 0.0, 0.0]


def test_two_sided_score__ignores_the_anomalous_pixels_of_the_counts():
    held = held_out()
    wild = torch.tensor([0.001, 90.0, 91.0])
    d = held_out(1)
    assert torch.equal(two_sided_score(d, count_scores([torch.cat([held, wild])], [wild])), two_sided_score(d, counted(held)))


def test_two_sided_score__refuses_counts_without_normal_pixels():
    with pytest.raises(ValueError, match="but got none"):
        two_sided_score(torch.ones(3), count_scores([torch.ones(3)], [torch.ones(3)]))
