import pytest
import torch
from torchmetrics import MetricCollection

from anomseg.functional.boundary import boundary_matches
from anomseg.functional.confusion import change_figures, confusion
from anomseg.metrics.change import BoundaryF1, ChangeConfusion
from anomseg.metrics.pixel import F1Max, PixelAUROC
from anomseg.metrics.scene_metrics import SceneMetrics


def maps(seed=0, batch=4):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, 24, 24, dtype=torch.long)
    mask[:, 5:14, 6:15] = 1
    score = torch.randn(batch, 24, 24, generator=generator) + 2 * mask - 1
    mask[:, 20:] = 255
    score[:, 21:] = torch.nan
    return score, mask


@pytest.mark.parametrize("metric", [ChangeConfusion, BoundaryF1])
def test_change_metrics__do_not_depend_on_batches_or_ranks(metric):
    score, mask = maps()
    whole, parts, other = metric(0.2), metric(0.2), metric(0.2)
    whole.update(score, mask)
    parts.update(score[:1], mask[:1])
    other.update(score[1:], mask[1:])
    parts.merge_state(other)
    assert str(whole.compute()) == str(parts.compute())


def test_change_confusion__gives_the_figures_of_one_global_confusion():
    score, mask = maps()
    metric = ChangeConfusion(0.3)
    for part in range(4):
        metric.update(score[part : part + 1], mask[part : part + 1], name=["a"])
    expected = change_figures(confusion(score >= 0.3, mask))
    assert metric.figures() == expected
    assert metric.compute()["change_f1"].item() == expected.f1
    assert set(metric.compute()) == {f"change_{name}" for name in ("precision", "recall", "f1", "iou", "accuracy", "kappa")}


def test_change_confusion__reaches_the_best_f1_at_its_threshold():
    score, mask = maps()
    best = F1Max()
    best.update(score, mask)
    at_best = ChangeConfusion(float(best.compute()["f1_max_threshold"]))
    at_best.update(score, mask)
    assert at_best.compute()["change_f1"].item() == pytest.approx(best.compute()["f1_max"].item(), abs=1e-12)


def test_boundary_f1__is_the_harmonic_mean_of_pooled_shares():
    score, mask = maps()
    metric = BoundaryF1(0.5, tolerance=1.0)
    metric.update(score, mask)
    hits, predicted, found, true = boundary_matches(score >= 0.5, mask, 1.0).tolist()
    assert metric.compute().item() == pytest.approx(2 / (predicted / hits + true / found), abs=1e-12)


def test_boundary_f1__is_one_for_the_truth_zero_for_nothing_and_nan_without_both():
    _, mask = maps()
    perfect, empty, nothing = BoundaryF1(), BoundaryF1(), BoundaryF1()
    perfect.update(torch.where(mask == 1, 1.0, -1.0), mask)
    empty.update(torch.full(mask.shape, -1.0), mask)
    nothing.update(torch.full(mask.shape, -1.0), torch.zeros_like(mask))
    assert (perfect.compute().item(), empty.compute().item()) == (1.0, 0.0)
    assert bool(nothing.compute().isnan())


def test_change_metrics__of_two_thresholds_stay_apart_in_a_collection():
    score, mask = maps()
    high = torch.where(score > 0, 5.0, -5.0)  # the first batch gives both thresholds the same counts
    collection = MetricCollection({"low": ChangeConfusion(-1.0), "high": ChangeConfusion(1.0)}, prefix="x_")
    single = ChangeConfusion(1.0)
    for values in (high, score):
        collection.update(values, mask)
        single.update(values, mask)
    assert torch.equal(collection["high"].outcomes, single.outcomes)
    assert not torch.equal(collection["low"].outcomes, single.outcomes)


def test_change_metrics__work_beside_the_pixel_metrics_of_scenes():
    score, mask = maps()
    metrics = SceneMetrics(MetricCollection({"auroc": PixelAUROC(), "change": ChangeConfusion(0.0), "boundary_f1": BoundaryF1()}), "test_")
    metrics.update(score, mask, ["a", "a", "b", "c"])
    values = metrics.compute()
    assert values["test_change_f1"] == change_figures(confusion(score >= 0, mask)).f1
    assert values["test_change_f1/b"] == change_figures(confusion(score[2] >= 0, mask[2])).f1
    assert "test_boundary_f1_mean" in values


def test_change_metrics__refuse_what_they_cannot_count():
    score, mask = maps()
    with pytest.raises(ValueError, match="sample 0 of the batch"):
        ChangeConfusion().update(torch.full_like(score, torch.nan), mask)
    with pytest.raises(ValueError, match="finite argument `threshold`"):
        ChangeConfusion(float("nan"))
    with pytest.raises(ValueError, match="tolerance"):
        BoundaryF1(tolerance=-1.0)
