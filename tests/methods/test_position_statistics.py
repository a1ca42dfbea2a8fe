"""Scores standardised by their place."""

import pytest
import torch

from anomseg.errors import NotFittedError
from anomseg.methods.position_statistics import BorderStatistics


def rim_scores(seed=0, batch=6):
    score = torch.randn(batch, 20, 24, generator=torch.Generator().manual_seed(seed))
    score[:, :2] = 5 * score[:, :2] + 9
    return score, torch.ones(batch, 20, 24, dtype=torch.bool)


def test_statistics__make_every_place_alike():
    statistics = BorderStatistics((2, 5), prior=1.0)
    score, valid = rim_scores()
    statistics.fit([(score[:3], valid[:3]), (score[3:], valid[3:])])
    z = statistics(score, valid)
    assert float(z[:, :2].abs().max()) < 0.3 * float(score[:, :2].abs().max())


def test_statistics__are_not_touched_by_ignored_pixels():
    score, valid = rim_scores()
    valid[:, 4:6] = False
    plain, spoilt = BorderStatistics((2,)), BorderStatistics((2,))
    plain.fit([(score, valid)])
    spoilt.fit([(score.masked_fill(~valid, 1e6), valid)])
    torch.testing.assert_close(plain.mean, spoilt.mean)
    torch.testing.assert_close(plain.deviation, spoilt.deviation)


def test_statistics__draw_a_rare_place_towards_all():
    score, valid = rim_scores()
    weak, strong = BorderStatistics((2,), prior=1.0), BorderStatistics((2,), prior=1e9)
    weak.fit([(score, valid)])
    strong.fit([(score, valid)])
    assert weak.deviation.std() > 0.1
    assert strong.deviation.std() < 1e-3


def test_statistics__say_what_is_missing():
    statistics = BorderStatistics()
    score, valid = rim_scores()
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        statistics(score, valid)
    with pytest.raises(ValueError, match="normal pixels"):
        statistics.fit([(score, torch.zeros_like(valid))])
    with pytest.raises(ValueError, match="prior"):
        BorderStatistics(prior=0)
