import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.functional.score_curves import auroc
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
    tail = ordered[-100:-1]  # the knots grow denser, so the rarest shares are the finest
    rarity = 1 - torch.searchsorted(ordered, tail).double() / len(ordered)
    np.testing.assert_allclose((1 - calibration(tail).double()) / rarity, 1, atol=0.1)


def test_rank_heat__goes_on_rising_above_the_highest_normal_score():
    calibration = RankCalibration()
    calibration.fit(counted(torch.linspace(0, 1, 1000)))
    heat = calibration(torch.tensor([1.0, 1.1, 2.0, 50.0, 1e6]))
    assert float(heat[0]) == pytest.approx(0.999)
    assert bool((heat.diff() > 0).all())
    assert float(heat[-1]) <= 1


def test_rank_heat__of_ties_is_the_share_strictly_below():
    calibration = RankCalibration()
    calibration.fit(counted(torch.tensor([1.0] * 50 + [2.0] * 40 + [3.0] * 10)))
    np.testing.assert_allclose(calibration(torch.tensor([0.0, 1.0, 2.0, 3.0])).numpy(), [0, 0, 0.5, 0.9], atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (0.99, 0.5), (-0.1, 0.5), (90, 99.5)])
def test_quantile_calibration__refuses_levels_out_of_order(low, high):
    with pytest.raises(ValueError, match="Expected 0 <= low < high <= 1"):
        QuantileCalibration(low, high)


def test_calibrations__refuse_other_choices():
    with pytest.raises(ValueError, match="Expected tails to be 'soft' or 'clip'"):
        QuantileCalibration(tails="hard")
    with pytest.raises(ValueError, match="Expected knots >= 16"):
        RankCalibration(8)
