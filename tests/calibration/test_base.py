import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.errors import NotFittedError
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.methods.base import AnomalySegmenter
from anomseg.metrics import score_state
from anomseg.metrics.pixel import PixelAUROC
from anomseg.sample import collate

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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_calibration__stays_as_it_is_where_a_method_is_cast(make, dtype):
    score, mask = draw()
    score = 1000 + score / 100
    plain, cast = make(), torch.nn.Sequential(make())
    cast.to(dtype)  # before fitting, as Lightning does it
    for calibration in (plain, cast[0]):
        calibration.fit(counted(score, mask))
    cast.to(dtype)
    assert buffers_equal(plain, cast[0])
    assert torch.equal(plain(score), cast(score))


class Level(AnomalySegmenter):
    """Score far from 0, where bfloat16 has one value for all scores."""

    def __init__(self, calibration=None):
        super().__init__(calibration)
        self.level = torch.nn.Parameter(torch.tensor(1000.0))

    def training_step(self, batch, batch_idx):
        return (batch["image"] - self.level).float().square().mean() * 0

    def score(self, image):
        return 1000 + image.float().mean(1)


def test_calibration__of_a_method_trained_in_half_precision_tells_scores_apart(tmp_path):
    score, mask = draw(16)
    samples = [{"image": s[None].sigmoid(), "mask": m, "name": str(i)} for i, (s, m) in enumerate(zip(score / 40, mask, strict=True))]
    loader = torch.utils.data.DataLoader(samples, collate_fn=collate)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, precision="bf16-true", **quiet)
    method = Level()
    loop.fit(method, loader, loader)
    assert method.level.dtype == torch.bfloat16
    torch.testing.assert_close(method.calibration(method.calibration.anchors), torch.tensor([0.1, 0.5]))
    loop.test(method, loader, verbose=False)
    assert 0 < float(loop.callback_metrics["test_aupro"]) < 1


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_calibration__gives_float32_of_the_same_shape(make, dtype):
    score, mask = draw()
    calibration = make()
    calibration.fit(counted(score, mask))
    heat = calibration(score[:, :5, ::2].to(dtype))
    assert heat.dtype == torch.float32
    assert heat.shape == (4, 5, 32)
