import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from anomseg.functional.reliability import cell_scores, reliability
from anomseg.functional.score_histogram import count_scores


def drawn(pixels=4000):
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(pixels, generator=generator)
    truth = torch.rand(pixels, generator=generator) < heat.square()
    return heat, truth


def literal_ece(heat, truth, bins):
    total = 0.0
    for b in range(bins):
        inside = (heat >= b / bins) & ((heat < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            total += inside.mean() * abs(heat[inside].mean() - truth[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability__equals_scikit_learn_and_a_literal_calibration_error(bins):
    heat, truth = drawn()
    found = reliability(count_scores([heat], [heat[truth]]), bins=bins)
    p, y = heat.double().numpy(), truth.numpy()
    assert float(found["bce"]) == pytest.approx(log_loss(y, p), rel=1e-9)
    assert float(found["brier"]) == pytest.approx(brier_score_loss(y, p), rel=1e-9)
    assert float(found["ece"]) == pytest.approx(literal_ece(p, y, bins), abs=1e-9)


def test_reliability__of_true_probabilities_is_near_zero_and_worse_for_others():
    heat, truth = drawn(200_000)
    counts = count_scores([heat], [heat[truth]])
    true = reliability(counts, lambda score: score.square())
    assert float(true["ece"]) < 0.005
    assert all(float(true[name]) < float(reliability(counts)[name]) for name in ("bce", "brier", "ece"))


def test_reliability__maps_scores_through_the_calibration():
    heat, truth = drawn()
    score = torch.special.logit(heat.double().clamp(1e-6, 1 - 1e-6)).float()
    through = reliability(count_scores([score], [score[truth]]), torch.sigmoid)
    straight = reliability(count_scores([heat], [heat[truth]]))
    for name, value in straight.items():
        assert float(through[name]) == pytest.approx(float(value), rel=1e-4)


def test_reliability__of_a_coarse_grid_stays_close_to_the_exact_one():
    heat, truth = drawn(20_000)
    exact = reliability(count_scores([heat], [heat[truth]]))
    coarse = reliability(count_scores([heat], [heat[truth]], exact_pixels=10, grid_cells=512))
    assert all(float(coarse[name]) == pytest.approx(float(exact[name]), abs=5e-3) for name in exact)


def test_reliability__charges_a_certain_error_sixteen_nats_and_not_infinity():
    counts = count_scores([torch.tensor([0.0, 1.0])], [torch.tensor([0.0])])
    assert float(reliability(counts)["bce"]) == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_reliability__is_nan_without_pixels():
    assert all(np.isnan(float(value)) for value in reliability(count_scores([], [])).values())


def test_reliability__refuses_raw_scores():
    with pytest.raises(ValueError, match="Pass the calibration as `heat`"):
        reliability(count_scores([torch.tensor([-3.0, 7.0])], []))


def test_cell_scores__are_the_scores_where_cells_hold_one():
    score = torch.tensor([-2.0, 0.5, 3.0])
    assert torch.equal(cell_scores(count_scores([score], [])), score)
