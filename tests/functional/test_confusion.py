import dataclasses
import math

import pytest
import torch
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, jaccard_score, precision_score, recall_score

from anomseg.functional.confusion import change_figures, confusion
from anomseg.functional.score_curves import f1_max
from anomseg.functional.score_histogram import count_scores


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, 20, 20, generator=generator) > 0.9).long()
    score = torch.randn(3, 20, 20, generator=generator) + mask
    mask[:, :4] = 255
    return score, mask


@pytest.mark.parametrize("seed", range(3))
def test_change_figures__equal_those_of_scikit_learn(seed):
    score, mask = maps(seed)
    figures = change_figures(confusion(score >= 0.8, mask))
    truth, flagged = mask[mask != 255].numpy(), (score >= 0.8).long()[mask != 255].numpy()
    names = ("precision", "recall", "f1", "iou", "accuracy", "kappa")
    functions = (precision_score, recall_score, f1_score, jaccard_score, accuracy_score, cohen_kappa_score)
    for name, function in zip(names, functions, strict=True):
        assert getattr(figures, name) == pytest.approx(function(truth, flagged), abs=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_change_figures__keep_the_identity_of_f1_and_iou(seed):
    figures = change_figures(confusion(*maps(seed)))
    assert figures.iou == pytest.approx(figures.f1 / (2 - figures.f1), abs=1e-12)


def test_change_figures__are_nan_where_they_are_undefined():
    nothing = change_figures(torch.tensor([0, 0, 0, 10]))
    assert all(math.isnan(value) for value in (nothing.precision, nothing.recall, nothing.f1, nothing.iou))
    assert nothing.accuracy == 1.0
    missed = change_figures(torch.tensor([0, 0, 5, 10]))
    assert math.isnan(missed.precision)
    assert (missed.recall, missed.f1, missed.kappa) == (0.0, 0.0, 0.0)
    assert dataclasses.is_dataclass(missed)


def test_confusion__does_not_see_ignored_pixels():
    score, mask = maps()
    other = torch.where(mask == 255, -score, score)
    assert torch.equal(confusion(score >= 0, mask), confusion(other >= 0, mask))
    assert int(confusion(score >= 0, mask).sum()) == int((mask != 255).sum())


def test_change_figures__agree_with_the_curves_of_the_same_scores():
    score, mask = maps()
    f1, threshold = f1_max(count_scores([score[mask != 255]], [score[mask == 1]]))
    assert change_figures(confusion(score >= threshold, mask)).f1 == pytest.approx(float(f1), abs=1e-12)
