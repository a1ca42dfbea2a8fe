import pytest
import torch

from anomseg.functional.pseudo_labels import rank_labels, threshold_labels
from anomseg.sample import IGNORE


def test_rank_labels__counts_by_share():
    score = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float().view(20, 50)
    label = rank_labels(score, 0.01, 0.04)
    assert (label == 1).sum() == 10
    assert (label == IGNORE).sum() == 40
    assert score[label == 1].min() > score[label == IGNORE].max() > score[label == 0].max()


def test_rank_labels__depend_on_the_order_alone_and_not_on_void_pixels():
    score = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(20, 20, dtype=torch.bool)
    valid[:5] = False
    label = rank_labels(score, 0.02, 0.1, valid)
    poisoned = score.clone()
    poisoned[:5] = 1e9
    assert torch.equal(label, rank_labels(poisoned, 0.02, 0.1, valid))
    assert torch.equal(label, rank_labels(score.exp(), 0.02, 0.1, valid))
    assert (label[:5] == IGNORE).all()


def test_rank_labels__without_positives_labels_none():
    label = rank_labels(torch.rand(10, 10), 0.0, 0.03)
    assert not (label == 1).any()
    assert (label == IGNORE).sum() == 3


def test_threshold_labels__cut_the_normalised_map():
    label = threshold_labels(torch.tensor([[0.0, 4.0, 4.9, 5.0, 10.0]]), 0.5, 0.1)
    assert label.tolist() == [[0, IGNORE, IGNORE, 1, 1]]


@pytest.mark.parametrize(
    "call", [lambda s: rank_labels(s, 0.6, 0.5), lambda s: rank_labels(s, -0.1, 0.5), lambda s: threshold_labels(s, 1.0)]
)
def test_labels__refuse_shares_that_leave_nothing(call):
    with pytest.raises(ValueError, match="Expected"):
        call(torch.rand(4, 4))
