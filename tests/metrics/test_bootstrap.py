import math

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from anomseg.functional.bootstrap import bootstrap_auroc
from anomseg.metrics import bootstrap
from anomseg.metrics.bootstrap import ImageBootstrap
from anomseg.metrics.pixel import F1Max, ImageAUROC, PixelAUROC, PixelAveragePrecision
from anomseg.metrics.region import PerRegionOverlap
from anomseg.metrics.scene_metrics import SceneMetrics, pixel_metrics

FIGURES = ("image_auroc", "auroc", "ap", "f1_max", "aupro")


def draw(images: int = 24, seed: int = 0, level: float = 0.5) -> tuple[Tensor, Tensor]:
    """Draw images of which every second one has a defect, and whose overall level varies."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(images, 12, 12, dtype=torch.long)
    mask[::2, 3:6, 4:8] = mask[::2, 9, 9] = 1
    noise = torch.randn(images, 12, 12, generator=generator) + level * torch.randn(images, 1, 1, generator=generator)
    return noise + 1.5 * mask, mask


def fed(metric: ImageBootstrap, score: Tensor, mask: Tensor, batch: int = 5) -> ImageBootstrap:
    for s, m in zip(score.split(batch), mask.split(batch), strict=True):
        metric.update(s, m)
    return metric


def test_intervals__hold_the_figures_of_the_images():
    score, mask = draw()
    figures = MetricCollection(
        {"auroc": PixelAUROC(), "ap": PixelAveragePrecision(), "f1": F1Max(), "aupro": PerRegionOverlap(), "image_auroc": ImageAUROC()}
    )
    figures.update(score, mask)
    values, ends = figures.compute(), fed(ImageBootstrap(), score, mask).compute()
    assert set(ends) == {f"{figure}_{end}" for figure in FIGURES for end in ("low", "high")}
    for figure in FIGURES:
        assert float(ends[f"{figure}_low"]) < float(values[figure]) < float(ends[f"{figure}_high"]), figure


def test_pixel_interval__holds_the_true_auroc_as_often_as_it_says():
    spread = math.sqrt(2 * (1 + 0.25))
    truth = 0.5 * (1 + math.erf(1.5 / spread / math.sqrt(2)))  # of two pixels of different images
    held = 0
    for seed in range(60):
        ends = fed(ImageBootstrap(replicates=1, seed=seed), *draw(60, seed), batch=60).compute()
        held += bool(ends["auroc_low"] <= truth <= ends["auroc_high"])
    assert 51 <= held <= 60


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_intervals__are_the_same_of_any_type_of_mask(dtype):
    score, mask = draw()
    assert fed(ImageBootstrap(20, 20), score, mask.to(dtype)).compute() == fed(ImageBootstrap(20, 20), score, mask).compute()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_intervals__stay_as_they_are_where_a_method_is_cast(dtype):
    plain, cast = (fed(ImageBootstrap(20, 20), *draw()) for _ in range(2))
    assert cast.to(dtype).compute() == plain.compute()


def test_identical_images__leave_nothing_to_doubt():
    score, mask = draw(2)
    ends = fed(ImageBootstrap(), score.repeat(6, 1, 1), mask.repeat(6, 1, 1)).compute()
    auroc = PixelAUROC()
    auroc.update(score, mask)
    assert float(ends["auroc_low"]) == pytest.approx(float(ends["auroc_high"]), abs=1e-12)
    assert float(ends["auroc_low"]) == pytest.approx(float(auroc.compute()), abs=1e-12)


def test_image_auroc__is_the_interval_of_the_highest_scores():
    score, mask = draw()
    ends = fed(ImageBootstrap(), score, mask).compute()
    highest, labels = score.flatten(1).amax(1), mask.flatten(1).amax(1)
    order = torch.stack([highest, labels.float()]).T.tolist()
    chosen = sorted(range(24), key=lambda i: (order[i][1], order[i][0]))
    found = bootstrap_auroc(highest[chosen], labels[chosen])
    assert (float(ends["image_auroc_low"]), float(ends["image_auroc_high"])) == pytest.approx(found, abs=1e-12)


def test_result__depends_on_neither_order_nor_batches_nor_ranks(monkeypatch):
    for entries in (1 << 20, 600):  # held exactly, and coarsely
        monkeypatch.setattr(bootstrap, "ENTRIES", entries)
        score, mask = draw()
        shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        expected = fed(ImageBootstrap(), score, mask).compute()
        other = fed(ImageBootstrap(), score[shuffled], mask[shuffled], batch=1)
        assert other.compute() == expected
        halves = [fed(ImageBootstrap(), score[part], mask[part]) for part in (slice(0, 9), slice(9, 24))]
        gathered = ImageBootstrap()
        gathered.image_counts = torch.cat([packed for half in halves for packed in half.image_counts])  # as a synchronisation leaves it
        gathered._update_count = 1
        assert gathered.compute() == expected


def test_memory__is_bounded(monkeypatch):
    monkeypatch.setattr(bootstrap, "ENTRIES", 600)
    metric = fed(ImageBootstrap(), *draw(60))
    assert len(metric.counts().key) <= 600
    assert sum(t.numel() for t in metric.image_counts) * 4 <= 1.25 * 600 * 24 + 60 * 16 + 24


def test_images__without_a_mask_count_in_image_auroc_alone():
    score, mask = draw()
    labels = mask.flatten(1).amax(1)
    masked = mask.clone()
    masked[2] = 255
    metric, without = ImageBootstrap(), ImageBootstrap()
    metric.update(score, masked, image_label=labels)
    counts = metric.counts()
    assert counts.label.tolist() == labels.tolist()
    assert not (counts.image == 2).any()
    without.update(score, masked)
    assert len(without.counts().label) == 23


def test_unknown_labels__count_in_pixel_figures_alone():
    score, mask = draw()
    metric = ImageBootstrap()
    metric.update(score, mask, image_label=torch.full((24,), 255))
    ends = metric.compute()
    assert ends["image_auroc_low"].isnan()
    assert not ends["auroc_low"].isnan()


def test_nothing__is_undefined():
    metric = ImageBootstrap()
    metric.update(torch.zeros(2, 3, 3), torch.full((2, 3, 3), 255))
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(torch.rand(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long))
    assert all(value.isnan() for value in metric.compute().values())


def test_intervals__join_the_figures_of_a_method():
    metrics = SceneMetrics(pixel_metrics(), "test_")
    metrics.pooled.add_metrics(ImageBootstrap(pixel_replicates=5))
    score, mask = draw()
    metrics.update(score, mask, None, ["tile"] * 24, mask.flatten(1).amax(1))
    values = metrics.compute()
    assert values["test_auroc_low"] <= values["test_auroc"] <= values["test_auroc_high"]


@pytest.mark.parametrize("arguments", [{"replicates": 0}, {"pixel_replicates": 0}, {"level": 95}, {"limit": 0}])
def test_bad_arguments__are_named(arguments):
    with pytest.raises(ValueError, match="Expected at least one replicate of either kind"):
        ImageBootstrap(**arguments)
