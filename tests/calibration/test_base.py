import pytest
import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.errors import NotFittedError
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.metrics import score_state
from anomseg.metrics.pixel import PixelAUROC

KINDS = pytest.mark.parametrize(
    "make", [QuantileCalibration, lambda: QuantileCalibration(tails="clip"), RankCalibration], ids=["soft", "clip", "rank"]
)


def draw(size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, size, size, generator=generator) < 0.05).long()
    mask[:, :3] = 255
    return 40 * torch.randn(4, size, size, generator=generator) - 15, mask


def counted(score: Tensor, mask: Tensor) -> ScoreCounts:
    metric = PixelAUROC()
    metric.update(score, mask)
    return metric.counts()


def buffers_equal(a: Calibration, b: Calibration) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))


@KINDS
def test_calibration__is_not_moved_by_anomalous_and_ignored_pixels(make):
    score, mask = draw()
    first, second = make(), make()
    first.fit(counted(score, mask))
    changed = torch.where(mask == 1, score * -30 + 7, score)
    changed = torch.where(mask == 255, float("nan"), changed)
    second.fit(counted(changed, mask))
    assert buffers_equal(first, second)
    assert int(first.normal_pixels) == int((mask == 0).sum())


@KINDS
@pytest.mark.parametrize("memory", [1 << 20, 2000], ids=["in memory", "folded"])
def test_calibration__of_merged_halves_equals_that_of_all(make, memory, monkeypatch):
    monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", memory)
    score, mask = draw()
    half, other = PixelAUROC(), PixelAUROC()
    half.update(score[:2], mask[:2])
    other.update(score[2:], mask[2:])
    half.merge_state(other)
    merged, whole = make(), make()
    merged.fit(half.counts())
    whole.fit(counted(score, mask))
    assert buffers_equal(merged, whole)


@KINDS
def test_calibration__names_the_call_that_fits_it(make):
    assert not make().is_fitted
    with pytest.raises(NotFittedError, match=r"Expected a fitted \w+Calibration.*calibration\.fit\(counts\)"):
        make()(torch.zeros(3))


@KINDS
@pytest.mark.parametrize("value", [1, 255])
def test_calibration__refuses_scores_without_normal_pixels(make, value):
    with pytest.raises(ValueError, match="Expected normal pixels"):
        make().fit(counted(torch.rand(1, 4, 4), torch.full((1, 4, 4), value)))


@KINDS
def test_calibration__is_loaded_from_its_state(make):
    score, mask = draw()
    fitted, loaded = make(), make()
    fitted.fit(counted(score, mask))
    loaded.load_state_dict(fitted.state_dict())
    assert loaded.is_fitted
    assert torch.equal(loaded(score), fitted(score))


@KINDS
@pytest.mark.parametrize("value", [0.0, 1e-30, 5.0, -1e20])
def test_calibration__orders_scores_around_a_constant(make, value):
    calibration = make()
    calibration.fit(counted(torch.full((1, 4, 4), value), torch.zeros(1, 4, 4, dtype=torch.long)))
    step = abs(value) + 1
    heat = calibration(torch.tensor([value - step, value, value + step]))
    assert bool(torch.isfinite(heat).all())
    assert bool((heat.diff() >= 0).all())
    assert heat[2] > heat[1]


@KINDS
def test_calibration__is_fitted_again_from_new_counts(make):
    score, mask = draw()
    again, once = make(), make()
    again.fit(counted(score * 100, mask))
    again.fit(counted(score, mask))
    once.fit(counted(score, mask))
    assert buffers_equal(again, once)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_calibration__gives_float32_of_the_same_shape(make, dtype):
    score, mask = draw()
    calibration = make()
    calibration.fit(counted(score, mask))
    heat = calibration(score[:, :5, ::2].to(dtype))
    assert heat.dtype == torch.float32
    assert heat.shape == (4, 5, 32)
