"""Scores standardised by their place."""

import pytest
import torch

from anomseg.errors import NotFittedError
from anomseg.functional.border import border_bins
from anomseg.methods.position_statistics import BorderStatistics, fit_together, on_whole_images, peaks_of_places


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


def test_peaks__are_the_highest_counted_pixels_of_each_place_in_each_image():
    score, valid = rim_scores(batch=3)
    valid[0, 8:12, 8:12] = False
    peaks = peaks_of_places(score.masked_fill(~valid, torch.nan), valid, (2, 5))
    bins = border_bins((20, 24), (2, 5))
    for image, counted, found in zip(score, valid, peaks, strict=True):
        places = [place for place in range(9) if bool((counted & (bins == place)).any())]
        assert int(found.sum()) == len(places)
        for place in places:
            held = counted & (bins == place)
            assert float(image[found & (bins == place)]) == float(image[held].max())


def test_peaks__of_a_flat_image_are_one_pixel_a_place():
    valid = torch.ones(2, 20, 24, dtype=torch.bool)
    valid[1] = False
    peaks = peaks_of_places(torch.zeros(2, 20, 24), valid, (2, 5))
    assert peaks.flatten(1).sum(1).tolist() == [9, 0]


def test_peaks__bring_the_highest_normal_pixels_of_all_places_to_one_level():
    score, valid = rim_scores(batch=40)
    plain, high = BorderStatistics((2,), prior=1.0), BorderStatistics((2,), prior=1.0)
    plain.fit([(score, valid)])
    high.fit([(score, peaks_of_places(score, valid, (2,)))])
    bins = border_bins((20, 24), (2,))

    def spread(statistics):
        means = [statistics(score, valid)[:, bins == place].amax(1).mean() for place in bins.unique()]
        return float(max(means) - min(means))

    assert spread(high) < 0.3
    assert spread(plain) > 0.8


def test_fit_together__equals_fitting_one_by_one():
    (score, valid), (other, _) = rim_scores(), rim_scores(seed=1)
    alone, together = [[BorderStatistics((2, 5)) for _ in range(2)] for _ in range(2)]
    alone[0].fit([(score, valid)])
    alone[1].fit([(other, valid)])
    fit_together(together, [[(score[half], valid[half]), (other[half], valid[half])] for half in (slice(2), slice(2, None))])
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one.mean, two.mean)
        torch.testing.assert_close(one.deviation, two.deviation)


def test_fit_together__refuses_data_without_images():
    with pytest.raises(ValueError, match="serve none"):
        fit_together([BorderStatistics()], [])


def test_crops__are_laid_where_their_windows_say():
    score, valid = rim_scores(batch=3)
    windows = [(0, 0, 10, 12), (8, 5, 10, 12), (10, 12, 10, 12)]
    cuts = [(index, slice(r, r + h), slice(c, c + w)) for index, (r, c, h, w) in enumerate(windows)]
    batch = {"window": windows, "scene_size": [(20, 24)] * 3}
    laid = list(on_whole_images(torch.stack([score[cut] for cut in cuts]), torch.stack([valid[cut] for cut in cuts]), batch))
    for cut, (whole, counts) in zip(cuts, laid, strict=True):
        assert whole.shape == counts.shape == (1, 20, 24)
        assert torch.equal(whole[0, cut[1], cut[2]], score[cut])
        assert int(counts.sum()) == int(counts[0, cut[1], cut[2]].sum()) == 120
    places, expected = BorderStatistics((2, 5), prior=1.0), BorderStatistics((2, 5), prior=1.0)
    places.fit(laid)
    expected.fit([(score, torch.cat([counts for _, counts in laid]))])
    torch.testing.assert_close(places.mean, expected.mean)


def test_crops__larger_than_their_image_lose_their_padding():
    score, valid = rim_scores(batch=1)
    padded = torch.nn.functional.pad(score, (0, 6, 0, 10))
    counts = torch.nn.functional.pad(valid, (0, 6, 0, 10))
    ((laid, kept),) = on_whole_images(padded, counts, {"window": [(0, 0, 20, 24)], "scene_size": [(20, 24)]})
    assert torch.equal(laid, score)
    assert torch.equal(kept, valid)


def test_whole_images__pass_as_they_are():
    score, valid = rim_scores(batch=2)
    for batch in (
        {},
        {"window": [(0, 0, 20, 24)] * 2, "scene_size": [(20, 24)] * 2},
        {"window": [(0, 0, 40, 48)] * 2, "scene_size": [(40, 48)] * 2},
        {"window": [(0, 0, 10, 12)] * 2, "scene_size": [(10, 12)] * 2},
    ):
        ((same, counts),) = on_whole_images(score, valid, batch)
        assert same is score
        assert counts is valid
