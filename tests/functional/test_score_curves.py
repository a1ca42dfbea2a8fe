import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score, roc_curve

from anomseg.functional.score_curves import (
    auroc,
    average_precision,
    detectability,
    f1_max,
    fpr_at_tpr,
    normal_quantile,
    oracle_iou,
    per_region_overlap,
    roc,
    threshold_at_fpr,
)
from anomseg.functional.score_histogram import ScoreCounts, count_scores

SEEDS = pytest.mark.parametrize("seed", range(4))


def draw(seed: int, pixels: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores; the odd seeds hold many ties."""
    random = np.random.default_rng(seed)
    truth = random.random(pixels) < 0.1
    scores = random.normal(0, 2, pixels) + 3 * truth
    return (scores.round() if seed % 2 else scores).astype(np.float32), truth


def counted(scores: np.ndarray, truth: np.ndarray) -> ScoreCounts:
    return count_scores([torch.from_numpy(scores)], [torch.from_numpy(scores[truth])])


def cells(normal: list[int], anomalous: list[float]) -> ScoreCounts:
    counts = count_scores([torch.arange(len(normal)).float()], [])
    return ScoreCounts(counts.lower, counts.width, torch.tensor(normal), torch.tensor(anomalous, dtype=torch.float64))


@SEEDS
def test_auroc_and_average_precision__equal_scikit_learn(seed):
    scores, truth = draw(seed)
    counts = counted(scores, truth)
    assert float(auroc(counts)) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert float(average_precision(counts)) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@SEEDS
def test_roc__equals_scikit_learn(seed):
    scores, truth = draw(seed)
    for ours, theirs in zip(roc(counted(scores, truth)), roc_curve(truth, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs[1:], atol=1e-12)


@SEEDS
@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.95, 1.0])
def test_fpr_at_tpr__equals_the_first_point_of_scikit_learn_that_reaches_it(seed, tpr):
    scores, truth = draw(seed)
    rates, hits, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert float(fpr_at_tpr(counted(scores, truth), tpr)) == pytest.approx(rates[np.argmax(hits >= tpr)], abs=1e-12)


@SEEDS
def test_f1_max__equals_brute_force(seed):
    scores, truth = draw(seed, 300)
    best = max((2 * (truth & (scores >= t)).sum() / ((scores >= t).sum() + truth.sum()), t) for t in scores)
    f1, threshold = f1_max(counted(scores, truth))
    assert (float(f1), float(threshold)) == pytest.approx(best)


@SEEDS
def test_oracle_iou__equals_brute_force(seed):
    scores, truth = draw(seed, 300)
    youden = {t: (scores[truth] >= t).mean() - (scores[~truth] >= t).mean() for t in scores}
    best = max(youden, key=lambda t: (round(youden[t], 12), t))
    expected = jaccard_score(truth, scores >= best, average="macro")
    iou, threshold = oracle_iou(counted(scores, truth))
    assert (float(iou), float(threshold)) == pytest.approx((expected, best))


def test_oracle_iou__is_nan_where_a_class_is_missing():
    assert all(torch.isnan(value) for value in oracle_iou(counted(np.arange(5.0), np.zeros(5, bool))))


@SEEDS
@pytest.mark.parametrize("fpr", [0.0, 1e-3, 0.01, 0.3, 1.0])
def test_threshold_at_fpr__is_the_lowest_that_keeps_the_share(seed, fpr):
    scores, truth = draw(seed)
    threshold = float(threshold_at_fpr(counted(scores, truth), fpr))
    assert (scores[~truth] >= threshold).mean() <= fpr
    lower = scores[scores < threshold]
    assert not len(lower) or (scores[~truth] >= lower.max()).mean() > fpr


@pytest.mark.parametrize("fpr", [0.29, 0.57, 0.58])
def test_threshold_at_fpr__is_not_put_off_by_the_rounding_of_a_share(fpr):
    threshold = float(threshold_at_fpr(count_scores([torch.arange(100.0)], []), fpr))
    assert threshold == round(100 * (1 - fpr))


def test_threshold_at_fpr__flags_nothing_where_the_highest_score_is_too_common():
    counts = cells([0, 0, 5], [1, 0, 0])
    assert float(threshold_at_fpr(counts, 0.5)) == np.nextafter(np.float32(2), np.float32(3))


def test_threshold_at_fpr_and_auroc__count_more_pixels_than_float32_can():
    normal = [20_000_000, 2**24 + 3, 1]
    counts = cells(normal, [0, 1, 0])
    assert float(auroc(counts)) == (normal[0] + normal[1] / 2) / sum(normal)
    assert float(threshold_at_fpr(counts, (2**24 + 3) / sum(normal))) == 2.0


@SEEDS
def test_normal_quantile__equals_the_inverted_distribution_of_numpy(seed):
    scores, truth = draw(seed)
    q = torch.cat([torch.linspace(0, 1, 201, dtype=torch.float64), torch.tensor([1 / 3, 0.995], dtype=torch.float64)])
    expected = np.quantile(scores[~truth], q.numpy(), method="inverted_cdf")
    np.testing.assert_array_equal(normal_quantile(counted(scores, truth), q).numpy(), expected)


def slow_overlap(scores: np.ndarray, regions: np.ndarray, limit: float) -> float:
    """Loop over all thresholds and regions: O(thresholds · pixels)."""
    points = [(0.0, 0.0)]
    for t in np.unique(scores)[::-1]:
        found = [(scores[regions == r] >= t).mean() for r in range(1, regions.max() + 1)]
        points.append(((scores[regions == 0] >= t).mean(), float(np.mean(found))))
    fpr, overlap = np.array(points).T
    step = int((fpr <= limit).sum())  # the first point beyond the limit
    end = np.interp(limit, fpr[step - 1 : step + 1], overlap[step - 1 : step + 1])
    return float(np.trapezoid([*overlap[:step], end], [*fpr[:step], limit]) / limit)


@SEEDS
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_per_region_overlap__equals_a_loop_over_regions_and_thresholds(seed, limit):
    scores, truth = draw(seed, 600)
    random = np.random.default_rng(seed)
    regions = np.where(truth, 1 + random.choice(3, 600, p=[0.8, 0.15, 0.05]), 0)
    weights = torch.from_numpy(1 / np.bincount(regions)[regions[truth]])
    counts = count_scores([torch.from_numpy(scores)], [torch.from_numpy(scores[truth])], [weights])
    assert float(per_region_overlap(counts, limit)) == pytest.approx(slow_overlap(scores, regions, limit), abs=1e-9)


def test_detectability__equals_the_means_of_the_normalised_map():
    scores, truth = draw(0)
    unit = (scores.astype(np.float64) - scores.min()) / (float(scores.max()) - scores.min())
    values = {k: float(v) for k, v in detectability(counted(scores, truth)).items()}
    area, detected, false = roc_auc_score(truth, scores), unit[truth].mean(), unit[~truth].mean()
    expected = (area, detected, false, area + detected, area - false, detected - false, detected + 1 - false, detected / false)
    assert tuple(values.values()) == pytest.approx(expected, abs=1e-12)
    assert list(values) == ["auc_df", "auc_dt", "auc_ft", "td", "bs", "tdbs", "odp", "snpr"]


def test_detectability__equals_the_integral_over_thresholds():
    scores, truth = draw(0)
    unit = (scores - scores.min()) / (scores.max() - scores.min())
    tau = np.linspace(0, 1, 20_001)
    values = detectability(counted(scores, truth))
    for key, chosen in (("auc_dt", truth), ("auc_ft", ~truth)):
        reached = 1 - np.searchsorted(np.sort(unit[chosen]), tau) / chosen.sum()
        assert float(values[key]) == pytest.approx(np.trapezoid(reached, tau), abs=1e-4)


def test_detectability__equals_an_example_by_hand():
    values = detectability(cells([2, 1, 1, 0, 0], [0, 0, 0, 1, 1]))  # normalised 0, 0, 1/4, 1/2 and 3/4, 1
    assert {k: float(v) for k, v in values.items()} == pytest.approx(
        {"auc_df": 1, "auc_dt": 0.875, "auc_ft": 0.1875, "td": 1.875, "bs": 0.8125, "tdbs": 0.6875, "odp": 1.6875, "snpr": 14 / 3}
    )


@pytest.mark.parametrize(
    "counts", [cells([2, 1], [0, 0]), cells([0, 0], [2, 1]), count_scores([], [])], ids=["normal", "anomalous", "none"]
)
def test_every_curve__is_nan_where_its_class_is_missing(counts):
    assert bool(auroc(counts).isnan())
    assert bool(fpr_at_tpr(counts).isnan())
    assert bool(per_region_overlap(counts).isnan())
    assert bool(detectability(counts)["td"].isnan())
    if not counts.anomalous.sum() > 0:
        assert bool(average_precision(counts).isnan())
        assert bool(f1_max(counts)[0].isnan())
        assert bool(f1_max(counts)[1].isnan())
    if not counts.normal.sum() > 0:
        assert bool(threshold_at_fpr(counts, 0.1).isnan())
        assert bool(normal_quantile(counts, torch.tensor([0.5]))[0].isnan())


def test_detectability__is_nan_where_all_scores_are_equal():
    assert detectability(cells([3], [2]))["auc_dt"].isnan()
