import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from anomseg.functional.score_histogram import ScoreCounts
from anomseg.metrics import score_state
from anomseg.metrics.pixel import PixelAUROC
from anomseg.metrics.region import PerRegionOverlap
from anomseg.metrics.score_state import ScoreState, select_pixels

REGIMES = pytest.mark.parametrize("folded", [False, True], ids=["in memory", "folded"])
METRICS = pytest.mark.parametrize("kind", [PixelAUROC, PerRegionOverlap])


def draw(samples: int = 8, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw scores of both signs, and masks with regions and ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(samples, size, size, generator=generator) < 0.05).long()
    mask[:, 4:9, 4:12] = 1
    score = 10 * torch.randn(samples, size, size, generator=generator) + 8 * mask
    mask[:, -3:] = 255
    return score, mask


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch, folded: bool) -> None:
    if folded:
        monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", 3000)
        monkeypatch.setattr(score_state, "PIXELS_BESIDE_PAGES", 1200)


def states(metric: ScoreState) -> Iterator[Tensor]:
    for name in metric._defaults:
        held = getattr(metric, name)
        yield from [held] if isinstance(held, Tensor) else held


def held_bytes(metric: ScoreState) -> int:
    return sum(t.untyped_storage().nbytes() for t in states(metric))


def same(a: ScoreCounts, b: ScoreCounts) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("lower", "width", "normal", "anomalous"))


def fed(kind: type[ScoreState], score: Tensor, mask: Tensor, batch: int = 3) -> ScoreState:
    metric = kind()
    for s, m in zip(score.split(batch), mask.split(batch), strict=True):
        metric.update(s, m)
    return metric


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_counts__stay_as_they_are_where_a_method_is_cast(kind, folded, dtype):
    score, mask = draw()
    cast = fed(kind, score[:4], mask[:4]).to(dtype)
    cast.update(score[4:], mask[4:])
    assert same(cast.counts(), fed(kind, score, mask).counts())
    assert cast.dtype == torch.float32  # of what a rank without pixels sends


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
def test_counts__depend_on_neither_order_nor_batches(kind, folded):
    score, mask = draw()
    order = torch.randperm(8)
    expected = fed(kind, score, mask, 8).counts()
    assert same(fed(kind, score, mask, 1).counts(), expected)
    assert same(fed(kind, score[order], mask[order]).counts(), expected)
    assert bool(fed(kind, score, mask, 8).pages) == folded


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
def test_merge_state__gives_the_counts_of_all_pixels(kind, folded):
    score, mask = draw()
    for split in (1, 4, 7):
        metric = fed(kind, score[:split], mask[:split])
        metric.merge_state(fed(kind, score[split:], mask[split:]))
        assert same(metric.counts(), fed(kind, score, mask).counts())
        assert not folded or metric.pages


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
def test_fed_metrics__survive_pickle_clone_and_checkpoint(kind, folded):
    score, mask = draw()
    half, whole = fed(kind, score[:5], mask[:5]), fed(kind, score, mask)
    half.persistent(True)
    resumed = kind()
    resumed.persistent(True)
    resumed.load_state_dict(half.state_dict())
    for metric in (half.clone(), pickle.loads(pickle.dumps(half)), resumed):
        assert same(metric.counts(), half.counts())
        metric.update(score[5:], mask[5:])
        assert same(metric.counts(), whole.counts())
        assert float(metric.compute()) == float(whole.compute())


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
def test_forward__gives_the_batch_and_keeps_the_whole_in_bounded_memory(kind, folded):
    score, mask = draw()
    metric = kind()
    for s, m in zip(score, mask, strict=True):
        assert float(metric(s[None], m[None])) == float(fed(kind, s[None], m[None]).compute())
    assert same(metric.counts(), fed(kind, score, mask).counts())
    assert bool(metric.pages) == folded


@REGIMES
@METRICS
@pytest.mark.usefixtures("small_memory")
def test_reset__forgets_everything(kind, folded):
    score, mask = draw()
    metric = fed(kind, score, mask)
    metric.counts()
    metric.reset()
    assert not list(states(metric))
    assert len(metric.counts().lower) == 0
    metric.update(score[:1], mask[:1])
    assert same(metric.counts(), fed(kind, score[:1], mask[:1]).counts())


@METRICS
def test_memory__stays_below_64_mb_at_any_number_of_pixels(kind):
    generator = torch.Generator().manual_seed(0)
    score, mask = torch.randn(1, 1024, 2048, generator=generator), torch.zeros(1, 1024, 2048, dtype=torch.uint8)
    mask[:, :200, :200] = 1
    metric, most = kind(), 0
    for step in range(7):
        metric.update(score + step, mask)
        most = max(most, held_bytes(metric))
    assert most <= 64_000_000
    assert metric.pages
    assert int(metric.counts().normal.sum()) == 7 * int((mask == 0).sum())


@METRICS
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_memory__is_bounded_whatever_the_share_of_anomalous_pixels(kind, share, monkeypatch):
    monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", 10_000)
    monkeypatch.setattr(score_state, "VALUES_IN_MEMORY", 15_000)
    metric = kind()
    for step in range(20):
        mask = torch.zeros(1, 30, 30, dtype=torch.long)
        mask[:, : int(30 * share)] = 1
        metric.update(torch.rand(1, 30, 30) + step, mask)
        assert sum(t.numel() for s in ("scores", "anomalous", "region_weight") for t in getattr(metric, s, [])) <= 15_000
    assert len(metric.pages) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_select_pixels__takes_scores_of_any_precision(dtype):
    score, mask = draw(2)
    kept, found = select_pixels(score.to(dtype), mask)
    expected = score.to(dtype).float()
    assert torch.equal(kept, expected[mask != 255])
    assert torch.equal(found, expected[mask == 1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_select_pixels__takes_masks_of_any_integer(dtype):
    score, mask = draw(2)
    kept, found = select_pixels(score, mask.to(dtype))
    assert torch.equal(kept, score[mask != 255])
    assert torch.equal(found, score[mask == 1])


def test_select_pixels__takes_bool_masks():
    score, mask = draw(2)
    kept, found = select_pixels(score, mask == 1)
    assert torch.equal(kept, score.flatten())
    assert torch.equal(found, score[mask == 1])


def test_select_pixels__copies_so_that_the_score_may_be_overwritten():
    score, mask = draw(2)
    kept, _ = select_pixels(score, (mask == 1).long())
    before = kept.clone()
    score.zero_()
    assert torch.equal(kept, before)


@pytest.mark.parametrize("value", [2, 254, 256, 257, 511, -1, -255, -256])
@pytest.mark.parametrize("void", [False, True])
def test_update__refuses_other_mask_values(value, void):
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    mask[1, 2, 2] = value
    mask[0, 0, 0] = 255 if void else 1
    with pytest.raises(ValueError, match=r"Expected mask values .* got .* in sample 1 \('b'\)"):
        ScoreStateUnderTest().update(torch.zeros(2, 4, 4), mask, ["a", "b"])


def test_update__refuses_fractions_in_the_mask():
    with pytest.raises(ValueError, match="Expected mask values"):
        ScoreStateUnderTest().update(torch.zeros(1, 1, 2), torch.tensor([[[0.5, 1.0]]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_update__refuses_scores_that_are_not_finite_and_names_the_sample(value):
    score, mask = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    score[1, 0, 0] = value
    with pytest.raises(ValueError, match=r"got 1 NaN or infinite values in sample 1 of the batch \('b'\)"):
        ScoreStateUnderTest().update(score, mask, ["a", "b"])
    mask[1, 0, 0] = 255
    metric = ScoreStateUnderTest()
    metric.update(score, mask)
    assert int(metric.counts().normal.sum()) == 31


def test_update__refuses_scores_that_overflow_float32():
    with pytest.raises(ValueError, match="Expected finite scores"):
        ScoreStateUnderTest().update(torch.full((1, 1, 1), 1e300, dtype=torch.float64), torch.zeros(1, 1, 1))


@pytest.mark.parametrize(
    ("score", "mask"), [((2, 4, 4), (2, 4, 5)), ((2, 1, 4, 4), (2, 1, 4, 4)), ((4, 4), (4, 4)), ((2, 4, 4), (1, 4, 4))]
)
def test_update__refuses_other_shapes(score, mask):
    with pytest.raises(ValueError, match="Expected score and mask of the same shape"):
        ScoreStateUnderTest().update(torch.zeros(score), torch.zeros(mask, dtype=torch.long))


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 4, 4)], ids=["no sample", "void"])
def test_update__takes_batches_without_counted_pixels(shape):
    metric = ScoreStateUnderTest()
    metric.update(torch.full(shape, float("nan")), torch.full(shape, 255))
    assert len(metric.counts().lower) == 0
    metric.update(*draw(2))
    assert same(metric.counts(), fed(ScoreStateUnderTest, *draw(2)).counts())


def test_one_thread__gives_the_threads_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="Expected finite"):
        select_pixels(torch.full((1, 1, 1), float("nan")), torch.zeros(1, 1, 1, dtype=torch.long))
    assert torch.get_num_threads() == before


class ScoreStateUnderTest(ScoreState):
    def compute(self) -> None:
        """Leave the counts to the tests."""
