import pytest
import torch
from sklearn.metrics import jaccard_score

from anomseg.metrics.segmentation import MeanIoU


def maps(seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(5, (2, 9, 11), generator=g)
    predicted = torch.where(torch.rand(2, 9, 11, generator=g) < 0.6, label, torch.randint(5, (2, 9, 11), generator=g))
    return predicted, label


def test_mean_iou__equals_the_jaccard_score():
    metric = MeanIoU(5)
    for seed in range(3):
        metric.update(*maps(seed))
    predicted, label = (torch.cat([maps(seed)[i] for seed in range(3)]).flatten() for i in (0, 1))
    assert float(metric.compute()) == pytest.approx(jaccard_score(label, predicted, average="macro"), abs=1e-12)


def test_mean_iou__leaves_out_void_pixels_and_classes_that_do_not_occur():
    predicted, label = maps()
    metric = MeanIoU(7)
    void = torch.zeros_like(label, dtype=torch.bool)
    void[0, :4] = True
    metric.update(predicted, label.masked_fill(void, 255))
    changed = MeanIoU(7)
    changed.update(predicted.masked_fill(void, 6), label.masked_fill(void, 255))
    assert metric.compute() == changed.compute()
    assert metric.ious()[5:].isnan().all()


def test_mean_iou__adds_up_over_ranks():
    whole, parts = MeanIoU(5), [MeanIoU(5), MeanIoU(5)]
    for seed in range(4):
        whole.update(*maps(seed))
        parts[seed % 2].update(*maps(seed))
    assert torch.equal(whole.confusion, parts[0].confusion + parts[1].confusion)


def test_mean_iou__says_what_does_not_fit():
    predicted, label = maps()
    with pytest.raises(ValueError, match=r"Expected labels 0 to 2, .* but got \[3, 4\]"):
        MeanIoU(3).update(predicted, label)
    with pytest.raises(ValueError, match=r"Expected predictions 0 to 4, but got \[-1, 5\]"):
        MeanIoU(5).update(torch.tensor([[[5, 0, -1, 9]]]), torch.tensor([[[0, 1, 2, 255]]]))
    with pytest.raises(ValueError, match="one shape"):
        MeanIoU(5).update(predicted, label[0])
    with pytest.raises(ValueError, match="two or more"):
        MeanIoU(1)
    assert MeanIoU(5).compute().isnan()
