import math

import numpy as np
import pytest
import torch

from anomseg.functional.separability import separability, share_at_or_above
from anomseg.sample import IGNORE


def scene(seed=0, size=(40, 50)):
    """Draw a float32 map, a mask with all three values, and which pixels are void."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(size, generator=generator)
    mask = torch.where(draw < 0.05, 1, torch.where(draw > 0.8, IGNORE, 0))
    return torch.randn(size, generator=generator) + 2.0 * (mask == 1), mask


def boxes(result):
    return result.background, result.anomaly


def test_separability__equals_numpys_percentiles_of_the_min_max_normalised_map():
    score, mask = scene()
    counted = score[mask != IGNORE].double()
    unit = (score.double() - counted.min()) / (counted.max() - counted.min())
    for box, value in zip(boxes(separability(score, mask)), (0, 1), strict=True):
        expected = np.quantile(unit[mask == value].numpy(), [0, 0.1, 0.5, 0.9, 1])
        np.testing.assert_allclose([box.lowest, box.lower, box.median, box.upper, box.highest], expected, rtol=1e-12, atol=1e-15)
        assert box.pixels == int((mask == value).sum())


def test_separability__gap_is_the_distance_between_the_boxes():
    score = torch.arange(22.0)  # background 0 to 10 has its 90 % quantile at 9, anomalies 11 to 21 their 10 % quantile at 12
    mask = (score > 10).long()
    assert separability(score, mask).gap == pytest.approx(3 / 21, abs=1e-12)
    assert separability(-score, mask).gap == pytest.approx(-19 / 21, abs=1e-12)  # turned over: 1 to 20


@pytest.mark.parametrize("normalisation", ["min-max", "rank"])
@pytest.mark.parametrize("poison", [1e9, -1e9, math.nan, math.inf])
def test_separability__ignores_void_pixels_bit_for_bit(normalisation, poison):
    score, mask = scene()
    assert separability(score.masked_fill(mask == IGNORE, poison), mask, normalisation) == separability(score, mask, normalisation)


def test_separability__by_min_max_survives_affine_changes_and_no_others():
    score, mask = scene()
    score = score.double()
    plain, scaled, bent = (separability(s, mask) for s in (score, 7 * score - 3, score.exp()))
    assert scaled.gap == pytest.approx(plain.gap, abs=1e-12)
    assert abs(bent.gap - plain.gap) > 0.01


def test_separability__by_rank_survives_every_increasing_change():
    score, mask = scene()
    score = score.double()
    assert separability(score.exp(), mask, "rank") == separability(score, mask, "rank")


def test_separability__by_rank_counts_powers_of_ten_from_the_top():
    mask = torch.zeros(1000, dtype=torch.int64)
    mask[[-1, -10, -100]] = 1
    result = separability(torch.arange(1000.0).square(), mask, "rank")
    expected = [1 / 3, 1 / 3 + 0.2 / 3, 2 / 3, 1 - 0.2 / 3, 1.0]  # among the highest 100, 10 and 1 of 1000
    box = result.anomaly
    torch.testing.assert_close([box.lowest, box.lower, box.median, box.upper, box.highest], expected, rtol=0, atol=1e-12)
    assert result.background.median == pytest.approx(math.log10(2) / 3, abs=1e-3)


def test_separability__is_nan_where_a_class_or_the_contrast_is_missing():
    score, mask = scene()
    alone = separability(score, torch.zeros_like(mask))
    assert math.isnan(alone.gap)
    assert math.isnan(alone.anomaly.median)
    assert alone.anomaly.pixels == 0
    assert alone.background.highest == 1.0
    for normalisation in ("min-max", "rank"):
        assert math.isnan(separability(torch.ones(6), torch.tensor([0, 0, 0, 1, 1, 1]), normalisation).gap)
        assert math.isnan(separability(score, torch.full_like(mask, IGNORE), normalisation).gap)


def test_share_at_or_above__counts_the_pixels_that_a_threshold_would_flag():
    score = torch.tensor([[5.0, 1.0, 5.0], [2.0, 9.0, 100.0]])
    mask = torch.tensor([[0, 0, 0, 1, 0, IGNORE]]).view(2, 3)
    share = share_at_or_above(score, mask)
    torch.testing.assert_close(share[mask != IGNORE], torch.tensor([0.6, 1.0, 0.6, 0.8, 0.2], dtype=torch.float64))
    assert share[1, 2].isnan()


def test_share_at_or_above__depends_on_the_order_of_counted_pixels_alone():
    score, mask = scene()
    share = share_at_or_above(score, mask)
    changed = share_at_or_above(score.double().exp().masked_fill(mask == IGNORE, math.nan), mask)
    assert torch.equal(share.nan_to_num(), changed.nan_to_num())


@pytest.mark.parametrize("call", [separability, share_at_or_above])
def test_separability__refuses_maps_that_do_not_fit(call):
    score, mask = scene()
    with pytest.raises(ValueError, match=r"Expected score and mask of one shape, but got \(40, 49\)"):
        call(score[:, 1:], mask)
    with pytest.raises(ValueError, match="but got 1 that are not"):
        call(torch.tensor([0.0, math.nan, math.nan]), torch.tensor([0, 1, IGNORE]))
    with pytest.raises(ValueError, match="Expected mask values"):
        call(score, mask.masked_fill(mask == 1, 2))


def test_separability__refuses_an_unknown_normalisation():
    with pytest.raises(ValueError, match=r"'min-max', 'rank'.*but got 'ranks'"):
        separability(*scene(), "ranks")
