import math

import pytest
import torch

from anomseg.functional.bootstrap import (
    Interval,
    bootstrap_auroc,
    disjoint_pairs,
    percentile_interval,
    resampling_weights,
    weighted_auroc,
)


def two_normals(generator: torch.Generator, n: int, shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor([0] * n + [1] * n)
    return torch.randn(2 * n, generator=generator) + shift * labels, labels


def test_interval__holds_the_true_auroc_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    truth = 0.5 * (1 + math.erf(0.5))  # of N(1, 1) above N(0, 1): Phi(1 / sqrt(2))
    held = [low <= truth <= high for low, high in (bootstrap_auroc(*two_normals(generator, 30), seed=i) for i in range(100))]
    assert 90 <= sum(held) <= 99


def test_interval__of_groups_holds_the_truth_where_that_of_their_images_does_not():
    generator = torch.Generator().manual_seed(0)
    truth, held = 0.5 * (1 + math.erf(0.5)), [0, 0]
    groups = torch.arange(40).repeat_interleave(5)
    labels = (groups % 2).long()
    for seed in range(60):
        scores = (torch.randn(40, generator=generator) + torch.arange(40) % 2)[groups] + 1e-6 * torch.randn(200, generator=generator)
        for index, of in enumerate((groups, None)):
            low, high = bootstrap_auroc(scores, labels, seed=seed, groups=of)
            held[index] += low <= truth <= high
    assert held[0] >= 52
    assert held[1] <= 45  # 200 images, but 40 independent ones


def test_weighted_auroc__equals_counting_pairs_of_repeated_images():
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randint(6, (15,), generator=generator).float(), torch.arange(15) % 2
    weights = torch.randint(3, (8, 15), generator=generator)
    for found, weight in zip(weighted_auroc(scores, labels, weights), weights, strict=True):
        again, truth = scores.repeat_interleave(weight), labels.repeat_interleave(weight)
        order = again[truth == 1][:, None] - again[truth == 0][None]
        assert float(found) == pytest.approx(float(((order > 0).double() + 0.5 * (order == 0).double()).mean()), abs=1e-12)
    assert weighted_auroc(scores, labels, (labels == 0)[None].long()).isnan().all()


def test_weights__keep_the_size_of_each_class_and_follow_the_seed():
    labels = torch.tensor([0, 0, 0, 1, 1, 255])
    weights = resampling_weights(labels, 50, seed=3)
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:5].sum(1) == 2).all()
    assert (weights[:, 5] == 1).all()
    assert torch.equal(weights, resampling_weights(labels, 50, seed=3))
    assert not torch.equal(weights, resampling_weights(labels, 50, seed=4))


def test_weights__move_the_images_of_a_group_together():
    labels, groups = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([7, 7, 2, 2, 9, 9])
    weights = resampling_weights(labels, 30, seed=0, groups=groups)
    assert torch.equal(weights[:, ::2], weights[:, 1::2])
    assert (weights.sum(1) == 6).all()
    assert weights.max() > 1


def test_interval__of_classes_without_a_fault_is_as_wide_as_so_few_images_allow():
    separated = torch.tensor([0.0, 1, 2, 10, 11, 12])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert bootstrap_auroc(separated, labels) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert bootstrap_auroc(-separated, labels) == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))
    one_pair = torch.tensor([0, 1, 2, 0, 1, 2])  # of three groups
    assert bootstrap_auroc(separated, labels, groups=one_pair).low == pytest.approx(0.025)


def test_interval__of_one_score_for_all_is_one_half_and_of_one_class_undefined():
    labels = torch.tensor([0, 1, 0, 1])
    assert bootstrap_auroc(torch.zeros(4), labels) == Interval(0.5, 0.5)
    assert all(math.isnan(end) for end in bootstrap_auroc(torch.rand(4), torch.zeros(4, dtype=torch.long)))


def test_interval__of_one_group_with_both_classes_is_undefined():
    assert all(math.isnan(end) for end in bootstrap_auroc(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), groups=torch.tensor([3, 3])))


def test_weighted_auroc__leaves_pairs_of_one_group_out():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randint(0, 6, (14,), generator=generator).float(), torch.arange(14) % 2
    groups, weights = torch.arange(14) // 4, torch.randint(0, 4, (3, 14), generator=generator)
    for row, found in zip(weights, weighted_auroc(scores, labels, weights, groups), strict=True):
        ordered = total = 0.0
        for i in range(14):
            for j in range(14):
                if labels[i] == 1 and labels[j] == 0 and groups[i] != groups[j]:
                    weight = float(row[i] * row[j])
                    ordered += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
                    total += weight
        assert float(found) == pytest.approx(ordered / total)


def test_interval__of_groups_of_both_classes_holds_their_figure():
    generator = torch.Generator().manual_seed(1)
    labels, groups = torch.arange(12) % 2, torch.arange(12) // 2  # each image clean and corrupted
    for _ in range(20):
        scores = torch.randn(6, generator=generator)[groups] + 0.5 * labels
        figure = float(weighted_auroc(scores, labels, torch.ones_like(labels)[None], groups))
        low, high = bootstrap_auroc(scores, labels, groups=groups)
        assert low <= figure <= high


def test_percentiles__leave_undefined_replicates_out():
    values = torch.cat([torch.arange(1, 100.0), torch.tensor([torch.nan])])
    assert percentile_interval(values, 0.9) == pytest.approx((5.0, 95.0))  # the 5th and the 95th of 99
    assert percentile_interval(values[:3]) == pytest.approx((1.0, 3.0))


@pytest.mark.parametrize(
    ("labels", "groups", "pairs"),
    [([0, 0, 0, 1], None, 1), ([0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], 1), ([0, 1, 1, 1], [0, 0, 1, 2], 1), ([0, 0], None, 0)],
)
def test_disjoint_pairs__share_no_group(labels, groups, pairs):
    assert disjoint_pairs(torch.tensor(labels), None if groups is None else torch.tensor(groups)) == pairs


def test_bad_input__is_named():
    with pytest.raises(ValueError, match=r"one shape \(n,\)"):
        bootstrap_auroc(torch.rand(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="Expected finite scores"):
        bootstrap_auroc(torch.tensor([0.0, torch.inf]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"Expected labels 0 \(normal\) and 1 \(anomalous\), but got \[0, 255\]"):
        bootstrap_auroc(torch.rand(2), torch.tensor([0, 255]))
    with pytest.raises(ValueError, match=r"`level` in \(0, 1\)"):
        bootstrap_auroc(torch.rand(2), torch.tensor([0, 1]), level=95)
