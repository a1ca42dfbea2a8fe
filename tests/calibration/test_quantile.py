import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.functional.score_curves import auroc, average_precision
from anomseg.functional.score_histogram import ScoreCounts, count_scores

MODERATE = st.floats(-(2.0**60), 2.0**60, width=32)
SCORES = st.lists(MODERATE | st.sampled_from([0.0, 1.0, -1.0, 1e-40]), min_size=1, max_size=60)
SHAPES = {
    "normal": lambda noise: 5 * noise + 30,
    "log-normal": lambda noise: (3 * noise).exp(),
    "energies": lambda noise: 2.5 * noise - 18,
    "near 1000": lambda noise: 0.1 * noise + 1000,
}


def counted(normal: Tensor) -> ScoreCounts:
    return count_scores([normal], [])


def calibrations() -> list[QuantileCalibration | RankCalibration]:
    return [QuantileCalibration(), QuantileCalibration(0.0, 1.0), QuantileCalibration(tails="clip"), RankCalibration(64)]


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES)
def test_heat__is_monotone_and_in_0_to_1(normal, scores):
    for calibration in calibrations():
        calibration.fit(counted(torch.tensor(normal)))
        known = [torch.tensor(scores + normal), *(b for b in calibration.buffers() if b.dtype == torch.float32 and b.ndim)]
        score = torch.cat(known)
        score = torch.cat([score, score.nextafter(torch.tensor(3e38)), score.nextafter(torch.tensor(-3e38))]).sort().values
        heat = calibration(score)
        assert bool((heat.diff() >= 0).all())
        assert float(heat[0]) >= 0
        assert float(heat[-1]) <= 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_soft_heat__keeps_auroc(shape):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(100_000, generator=generator) < 0.05
    score = shape(torch.randn(100_000, generator=generator) + truth)
    calibration = QuantileCalibration()
    calibration.fit(count_scores([score], [score[truth]]))
    heat = calibration(score)
    before, after = (float(auroc(count_scores([s], [s[truth]]))) for s in (score, heat))
    assert after == pytest.approx(before, abs=1e-6)


def tied(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw scores most of which are 0, with steps and gaps above, and say which are anomalous."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.rand(60, generator=generator)
    anomalous = torch.rand(500, generator=generator) * 30 - 5
    score = torch.cat([torch.zeros(20_000), few, torch.full((20,), 10.0), anomalous])
    return score, torch.arange(len(score)) >= len(score) - len(anomalous)


@pytest.mark.parametrize("make", [QuantileCalibration, RankCalibration])
@pytest.mark.parametrize("sign", [1, -1])
def test_heat__keeps_auroc_and_average_precision_beside_ties_and_gaps(make, sign):
    score, truth = tied()
    score = sign * score
    calibration = make()
    counts = count_scores([score], [score[truth]])
    calibration.fit(counts)
    heat = calibration(score)
    after = count_scores([heat], [heat[truth]])
    assert float(auroc(after)) == pytest.approx(float(auroc(counts)), abs=1e-5)
    assert float(average_precision(after)) == pytest.approx(float(average_precision(counts)), abs=5e-4)


@pytest.mark.parametrize("make", [QuantileCalibration, lambda: QuantileCalibration(0.0, 1.0), RankCalibration])
@pytest.mark.parametrize("value", [0.0, 3.0, -200.0])
def test_heat__rises_strictly_on_both_sides_of_a_constant(make, value):
    calibration = make()
    calibration.fit(counted(torch.full((500,), value)))
    size = abs(value) or 1.0
    heat = calibration(value + size * torch.tensor([-100.0, -1.0, -0.01, 0.0, 0.01, 1.0, 100.0]))
    assert bool((heat.diff() > 0).all())


@pytest.mark.parametrize("tails", ["soft", "clip"])
def test_quantile_heat__of_coinciding_anchors_takes_the_mean_distance_of_higher_scores(tails):
    calibration = QuantileCalibration(tails=tails)
    calibration.fit(counted(torch.tensor([7.0] * 997 + [8.0, 9.0, 13.0])))
    assert calibration.anchors.tolist() == [7.0, 10.0]


def test_quantile_heat__of_coinciding_anchors_at_the_top_takes_the_mean_distance_of_lower_scores():
    calibration = QuantileCalibration()
    calibration.fit(counted(torch.tensor([7.0] * 997 + [1.0, 5.0, 6.0])))
    assert calibration.anchors.tolist() == [7.0, 10.0]


@pytest.mark.parametrize(("tails", "heats"), [("soft", (0.1, 0.5)), ("clip", (0.0, 1.0))])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_quantile_heat__meets_its_anchors(shape, tails, heats):
    normal = shape(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
    calibration = QuantileCalibration(0.9, 0.995, tails)
    calibration.fit(counted(normal))
    anchors = np.quantile(normal.numpy(), [0.9, 0.995], method="inverted_cdf")
    np.testing.assert_array_equal(calibration.anchors.numpy(), anchors)
    np.testing.assert_allclose(calibration(torch.from_numpy(anchors)).numpy(), heats, atol=1e-6)
    np.testing.assert_allclose(float(calibration(torch.tensor(anchors.mean()))), np.mean(heats), atol=1e-3)


def test_soft_heat__bends_without_a_kink_at_its_anchors():
    calibration = QuantileCalibration()
    calibration.fit(counted(torch.randn(10_000, generator=torch.Generator().manual_seed(0))))
    anchors = calibration.anchors.double()
    step = float(anchors[1] - anchors[0]) / 100
    for anchor in anchors.tolist():
        left, middle, right = calibration(torch.tensor([anchor - step, anchor, anchor + step])).double().tolist()
        assert (middle - left) / (right - middle) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("knots", [256, 4096])
def test_rank_heat__is_the_share_of_normal_pixels_below(shape, knots):
    normal = shape(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    calibration = RankCalibration(knots)
    calibration.fit(counted(normal))
    ordered = normal.sort().values
    score = ordered[:: len(ordered) // 999].contiguous()
    below = torch.searchsorted(ordered, score) / len(ordered)
    np.testing.assert_allclose(calibration(score).numpy(), below.numpy(), atol=3 / knots)
    tail = ordered[-1000:-100]  # the knots grow denser, so that rare shares are as fine
    rarity = 1 - torch.searchsorted(ordered, tail).double() / len(ordered)
    np.testing.assert_allclose((1 - calibration(tail).double()) / rarity, 1, atol=0.1)
    last = ordered[-100:]
    rarity = 1 - torch.searchsorted(ordered, last).double() / len(ordered)
    np.testing.assert_allclose(1 - calibration(last).double(), 0.0005 + rarity / 2, atol=2e-5)


def test_rank_heat__goes_on_rising_above_the_highest_normal_score():
    calibration = RankCalibration()
    calibration.fit(counted(torch.linspace(0, 1, 1000)))
    heat = calibration(torch.tensor([1.0, 1.1, 2.0, 50.0, 1e6]))
    assert float(heat[0]) == pytest.approx(0.999)
    assert bool((heat.diff() > 0).all())
    assert float(heat[-1]) <= 1


@pytest.mark.parametrize("normals", [2_000, 50_000, 1_000_000])
def test_rank_heat__keeps_anomalies_above_all_normals_apart_however_many_these_are(normals):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(normals, generator=generator)
    calibration = RankCalibration()
    calibration.fit(counted(normal))
    anomalies = normal.max() + 5 * torch.rand(1000, generator=generator)
    alarms = normal.max() + 2 * torch.rand(200, generator=generator)  # new normal pixels that score above all that were known
    score = torch.cat([anomalies, alarms, torch.randn(100_000, generator=generator)])
    heat = calibration(score)
    assert torch.unique(heat[:1000]).numel() > 700
    before, after = (float(auroc(count_scores([s], [s[:1000]]))) for s in (score, heat))
    assert after == pytest.approx(before, abs=1e-6)


def test_rank_heat__of_ties_is_the_share_strictly_below():
    calibration = RankCalibration()
    calibration.fit(counted(torch.tensor([1.0] * 50 + [2.0] * 40 + [3.0] * 10)))
    np.testing.assert_allclose(calibration(torch.tensor([0.0, 1.0, 2.0, 3.0])).numpy(), [0, 0, 0.5, 0.9], atol=1e-6)


def test_rank_heat__in_a_gap_is_the_share_at_or_below_its_lower_end():
    calibration = RankCalibration()
    calibration.fit(counted(torch.tensor([0.0] * 995 + [10.0] * 5)))
    heat = calibration(torch.tensor([0.0, 1.0, 5.0, 9.9, 10.0]))
    np.testing.assert_allclose(heat.numpy(), [0, 0.995, 0.995, 0.995, 0.995], atol=1e-6)
    assert bool((heat[1:] >= 0.995).all())
    assert heat[2] < heat[4]


def test_rank_heat__above_every_normal_score_says_so():
    calibration = RankCalibration()
    calibration.fit(counted(torch.tensor([0.0] * 600 + [1.0] * 400)))
    heat = calibration(torch.tensor([1.0, 1.001, 1.1, 2.0, 50.0]))
    assert float(heat[0]) == pytest.approx(0.6, abs=1e-6)
    assert bool((heat[1:] >= 0.999).all())
    assert bool((heat.diff() > 0).all())


def test_rank_heat__spreads_a_cell_of_many_scores_over_its_width():
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + 30
    calibration = RankCalibration()
    calibration.fit(count_scores([normal], [], exact_pixels=1000, grid_cells=64))
    score = torch.linspace(26, 34, 2001)
    below = torch.searchsorted(normal.sort().values, score) / len(normal)
    heat = calibration(score)
    assert bool((heat.diff() >= 0).all())
    np.testing.assert_allclose(heat.numpy(), below.numpy(), atol=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (0.99, 0.5), (-0.1, 0.5), (90, 99.5)])
def test_quantile_calibration__refuses_levels_out_of_order(low, high):
    with pytest.raises(ValueError, match="Expected 0 <= low < high <= 1"):
        QuantileCalibration(low, high)


def test_calibrations__refuse_other_choices():
    with pytest.raises(ValueError, match="Expected tails to be 'soft' or 'clip'"):
        QuantileCalibration(tails="hard")
    with pytest.raises(ValueError, match="Expected knots >= 16"):
        RankCalibration(8)
