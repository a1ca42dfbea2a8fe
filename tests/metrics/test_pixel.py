import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC

from anomseg.functional.score_curves import auroc, auroc_bound, average_precision, fpr_at_tpr
from anomseg.functional.score_histogram import ScoreCounts
from anomseg.metrics import score_state
from anomseg.metrics.pixel import (
    Detectability,
    F1Max,
    FPRAtTPR,
    ImageAUROC,
    ImageAveragePrecision,
    ImageF1Max,
    OracleIoU,
    PixelAUROC,
    PixelAveragePrecision,
    ThresholdAtFPR,
    image_scores,
)
from anomseg.metrics.region import PerRegionOverlap

PIXELS = 400_000
DISTRIBUTIONS = (
    "uniform",
    "n_30_5",
    "energies",
    "log_normal",
    "tiny",
    "near_1000",
    "near_minus_5000",
    "ties",
    "minus_cauchy",
    "one_anomaly",
    "cluster_and_zeros",
    "signed_zeros",
)
ALL = pytest.mark.parametrize("name", DISTRIBUTIONS)


def draw(name: str, pixels: int = PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores and truth; about one pixel in 50 is anomalous."""
    random = np.random.default_rng(0)
    truth = random.random(pixels) < 0.02
    if name == "one_anomaly":
        truth = np.arange(pixels) == pixels // 3
    noise = random.standard_normal(pixels)

    def normal(centre: float, spread: float, far: float, wide: float) -> np.ndarray:
        return np.where(truth, far + wide * noise, centre + spread * noise)

    drawn = {
        "uniform": lambda: np.where(truth, random.random(pixels) ** 0.5, random.random(pixels)),
        "n_30_5": lambda: normal(30, 5, 45, 5),
        "energies": lambda: normal(-18, 2.5, -11, 3),
        "log_normal": lambda: np.exp(normal(0, 3, 3, 3)),
        "tiny": lambda: np.exp(normal(-18, 1, -16.5, 1)).clip(0, 1e-6),
        "near_1000": lambda: normal(1000, 0.1, 1000.2, 0.1),
        "near_minus_5000": lambda: normal(-5000, 0.05, -4999.9, 0.05),
        "ties": lambda: normal(3, 1, 5, 1).round(),
        "minus_cauchy": lambda: -np.abs(random.standard_cauchy(pixels)) * np.where(truth, 0.3, 1),
        "one_anomaly": lambda: normal(0, 1, 1, 1),
        "cluster_and_zeros": lambda: np.where(random.random(pixels) < 1e-5, 0, normal(1000, 0.1, 1000.2, 0.1)),
        "signed_zeros": lambda: np.where(random.random(pixels) < 0.9, np.copysign(0, noise), normal(0, 1, 1, 1)),
    }
    return drawn[name]().astype(np.float32), truth


def collection() -> MetricCollection:
    return MetricCollection([PixelAUROC(), PixelAveragePrecision(), FPRAtTPR()])


def as_maps(score: np.ndarray, truth: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(score)[None, None], torch.from_numpy(truth)[None, None]


def feed(metric: MetricCollection, score: np.ndarray, truth: np.ndarray, updates: int) -> dict[str, float]:
    for s, t in zip(np.array_split(score, updates), np.array_split(truth, updates), strict=True):
        metric.update(*as_maps(s, t))
    return {k: float(v) for k, v in metric.compute().items()}


def reference(score: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    rates, hits, _ = roc_curve(truth, score, drop_intermediate=False)
    return roc_auc_score(truth, score), average_precision_score(truth, score), rates[np.argmax(hits >= 0.95)]


@ALL
def test_auroc_ap_and_fpr95__equal_scikit_learn(name):
    score, truth = draw(name)
    metric = collection()
    values = feed(metric, score, truth, 1)
    area, precision, rate = reference(score, truth)
    (member, *_) = metric.values(copy_state=False)
    assert abs(values["PixelAUROC"] - area) <= min(1e-6, float(member.resolution_bound()) + 1e-12)
    assert abs(values["PixelAveragePrecision"] - precision) <= 1e-4
    assert abs(values["FPRAtTPR"] - rate) <= 1e-4
    order = np.random.default_rng(1).permutation(PIXELS)
    assert feed(collection(), score[order], truth[order], 100) == values


@ALL
def test_auroc_ap_and_fpr95__equal_scikit_learn_in_folded_memory(name, monkeypatch):
    monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", 150_000)
    monkeypatch.setattr(score_state, "PIXELS_BESIDE_PAGES", 250_000)
    score, truth = draw(name)

    def counts(order: np.ndarray, updates: int) -> ScoreCounts:
        metric = PixelAUROC()
        for part in np.array_split(order, updates):
            metric.update(*as_maps(score[part], truth[part]))
        assert metric.pages
        return metric.counts()

    counted = counts(np.arange(PIXELS), 2)
    area, precision, rate = reference(score, truth)
    tolerance = 1e-6 if truth.sum() > 1 else 1e-5  # a single pixel has nothing to average over
    assert abs(float(auroc(counted)) - area) <= min(tolerance, float(auroc_bound(counted)) + 1e-12)
    assert abs(float(average_precision(counted)) - precision) <= 1e-4
    assert abs(float(fpr_at_tpr(counted)) - rate) <= 1e-4
    turned = counts(np.random.default_rng(1).permutation(PIXELS), 3)
    assert all(torch.equal(getattr(counted, f), getattr(turned, f)) for f in ("lower", "width", "normal", "anomalous"))


def test_auroc_ap_and_fpr95__of_one_anomaly_among_ten_million_pixels_equal_its_rank():
    random = np.random.default_rng(0)
    score = random.standard_normal(10_000_000, dtype=np.float32)
    truth = np.arange(len(score)) == 7
    score[7] = 3.0
    above, tied = int((score > 3).sum()), int((score == 3).sum()) - 1
    values = feed(collection(), score, truth, 20)
    assert values["PixelAUROC"] == pytest.approx(1 - (above + tied / 2) / (len(score) - 1), abs=1e-6)
    assert values["PixelAveragePrecision"] == pytest.approx(1 / (1 + above + tied), abs=1e-4)
    assert values["FPRAtTPR"] == pytest.approx((above + tied) / (len(score) - 1), abs=1e-4)


def test_auroc__of_ten_million_pixels_equals_the_closed_form_of_energies():
    noise = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(len(noise)) % 50 == 0
    score = torch.where(truth, -11 + 3 * noise, -18 + 2.5 * noise)
    metric = PixelAUROC()
    metric.update(score[None, None], truth[None, None])
    normal, anomalous = score[~truth].numpy(), score[truth].numpy()
    normal.sort()
    expected = (np.searchsorted(normal, anomalous) + np.searchsorted(normal, anomalous, "right")).mean() / (2 * len(normal))
    assert abs(float(metric.compute()) - expected) <= min(1e-6, float(metric.resolution_bound()))


def test_auroc__is_right_far_outside_of_0_to_1():
    # stock torchmetrics squash such scores by a sigmoid, which merges them all: 0.50
    score, mask = as_maps(*draw("n_30_5"))
    metric = PixelAUROC()
    metric.update(score, mask)
    assert float(metric.compute()) == pytest.approx(0.984, abs=2e-3)
    assert float(BinaryAUROC()(score.flatten(), mask.flatten().int())) == pytest.approx(0.50, abs=0.01)


def test_collection__counts_once(monkeypatch):
    calls = []
    counted = score_state.count_scores
    monkeypatch.setattr(score_state, "count_scores", lambda *a, **k: calls.append(1) or counted(*a, **k))
    members = [PixelAUROC(), PixelAveragePrecision(), FPRAtTPR(), F1Max(), OracleIoU(), ThresholdAtFPR(), Detectability()]
    metric = MetricCollection(members)
    for _ in range(3):
        metric.update(torch.rand(2, 9, 9), torch.rand(2, 9, 9) < 0.3)
    metric.compute()
    assert len(calls) == 1
    assert len(metric.compute_groups) == 1


FIRST = {
    "void": (torch.zeros(2, 4, 4), torch.full((2, 4, 4), 255)),
    "constant": (torch.ones(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)),
    "normal": (torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)),
    "single anomaly": (torch.ones(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.long)),
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_groups__keep_apart_what_counts_differently(first):
    members = {
        "auroc": PixelAUROC(),
        "fpr95": FPRAtTPR(),
        "fpr50": FPRAtTPR(0.5),
        "image": ImageAUROC(),
        "image_10": ImageAUROC(0.1),
        "image_20": ImageAUROC(0.2),
        "aupro": PerRegionOverlap(),
        "aupro_5": PerRegionOverlap(0.05),
    }
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 9, 9, generator=generator) < 0.05).long()
    mask[:3] = 0
    batches = [first, (torch.rand(6, 9, 9, generator=generator), mask)]
    together = MetricCollection(members)
    for batch in batches:
        together.update(*batch)
    values = together.compute()
    assert sorted(len(g) for g in together.compute_groups.values()) == [1, 1, 1, 2, 3]
    for name, metric in members.items():
        alone = metric.clone()
        alone.reset()
        for batch in batches:
            alone.update(*batch)
        assert float(alone.compute()) == float(values[name])


@pytest.mark.parametrize("held", [0, 1])
@pytest.mark.parametrize("kind", [PixelAUROC, FPRAtTPR, Detectability, PerRegionOverlap, ImageAUROC])
def test_metrics__are_nan_with_a_warning_where_a_class_is_missing(kind, held):
    metric = kind()
    metric.update(torch.rand(2, 5, 5), torch.full((2, 5, 5), held))
    with pytest.warns(UserWarning, match=f"undefined without {('anomalous', 'normal')[held]} pixels and is returned as NaN"):
        value = metric.compute()
    assert bool((value["td"] if isinstance(value, dict) else value).isnan())


@pytest.mark.parametrize(
    ("kind", "held"), [(PixelAveragePrecision, 0), (F1Max, 0), (ThresholdAtFPR, 1), (ImageAveragePrecision, 0), (ImageF1Max, 0)]
)
def test_metrics_of_one_class__are_nan_with_a_warning_only_without_it(kind, held):
    metric = kind()
    metric.update(torch.rand(2, 5, 5), torch.full((2, 5, 5), held))
    with pytest.warns(UserWarning, match="is returned as NaN"):
        value = metric.compute()
    assert all(v.isnan() for v in (value.values() if isinstance(value, dict) else [value]))


@pytest.mark.parametrize("top", [None, 0.1, 1.0])
def test_image_auroc__equals_scikit_learn_on_the_scores_of_samples(top):
    generator = torch.Generator().manual_seed(0)
    score, mask = torch.randn(40, 8, 8, generator=generator), torch.zeros(40, 8, 8, dtype=torch.long)
    mask[::3, 2, 2] = 1
    mask[:, -1] = 255
    mask[5] = 255
    score[::3] += 0.5
    score[:, -1] = float("nan")
    values = [s[m != 255].sort(descending=True).values for s, m in zip(score, mask, strict=True)]
    of_samples = [float(v[: 1 if top is None else max(1, round(top * len(v)))].mean()) for v in values]
    truth = [bool((m == 1).any()) for m in mask]
    keep = [i for i in range(40) if i != 5]
    metric = ImageAUROC(top)
    for s, m in zip(score.split(7), mask.split(7), strict=True):
        metric.update(s, m)
    assert float(metric.compute()) == pytest.approx(roc_auc_score([truth[i] for i in keep], [of_samples[i] for i in keep]), abs=1e-9)


def test_image_auroc__names_the_sample_that_is_wrong():
    score, mask = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long)
    score[2, 1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"in sample 2 of the batch \('c'\)"):
        ImageAUROC().update(score, mask, ["a", "b", "c"])
    mask[1, 0, 0] = 7
    with pytest.raises(ValueError, match=r"sample 1 \('b'\)"):
        ImageAUROC().update(torch.zeros(3, 4, 4), mask, ["a", "b", "c"])
    with pytest.raises(ValueError, match="Expected score and mask of the same shape"):
        ImageAUROC().update(score, mask[:2])


def labelled() -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Draw twelve images: of the six anomalous ones two lack their mask and one has an empty one; two labels are unknown."""
    generator = torch.Generator().manual_seed(1)
    score, mask = torch.randn(12, 6, 6, generator=generator), torch.zeros(12, 6, 6, dtype=torch.long)
    label = torch.tensor([0, 1] * 5 + [255, 255])
    mask[1::2, 2, 2] = 1
    mask[[3, 5]] = 255
    mask[7] = 0
    mask[:5, 0] = 255
    score[1::2] += 0.4
    first = [1 if index < 5 and index != 3 else 0 for index in range(12)]  # of image 3, whose mask is missing, every row counts
    return score, mask, label, [float(score[i, first[i] :].max()) for i in range(12)]


def test_image_figures__take_the_label_above_the_mask_and_equal_scikit_learn():
    score, mask, label, highest = labelled()
    figures = MetricCollection({"auroc": ImageAUROC(), "ap": ImageAveragePrecision(), "f1": ImageF1Max()})
    for part in (slice(0, 5), slice(5, 12)):
        figures.update(score[part], mask[part], image_label=label[part])
    values = figures.compute()
    truth, of_images = label[:10].numpy(), np.array(highest[:10])
    assert float(values["auroc"]) == pytest.approx(roc_auc_score(truth, of_images), abs=1e-9)
    assert float(values["ap"]) == pytest.approx(average_precision_score(truth, of_images), abs=1e-9)
    flagged = [(2 * (truth & (of_images >= t)).sum() / ((of_images >= t).sum() + truth.sum()), t) for t in of_images]
    assert float(values["image_f1_max"]) == pytest.approx(max(flagged)[0])
    assert float(values["image_f1_max_threshold"]) == pytest.approx(max(flagged)[1])
    assert sorted(len(g) for g in figures.compute_groups.values()) == [3]


def test_image_scores__count_the_finite_scores_of_an_image_without_a_mask_and_no_ignored_pixel_elsewhere():
    score, mask, label, _ = labelled()
    before = image_scores(score, mask, label)
    score[3, 1, 1] = torch.nan
    score[0, 0] = 100.0
    values, labels = image_scores(score, mask, label)
    kept = torch.ones(12, dtype=torch.bool)
    kept[[3, 10, 11]] = False
    assert torch.equal(values[kept], before[0][kept])
    assert float(values[3]) == float(score[3][torch.isfinite(score[3])].max())
    assert labels.tolist() == label.tolist()
    assert values[10:].isnan().all()
    assert image_scores(score, torch.full_like(mask, 255))[1].tolist() == [255] * 12  # nothing is known without a label


@pytest.mark.parametrize("label", [torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([0.0, 0.5])])
def test_image_scores__refuse_other_labels(label):
    with pytest.raises(ValueError, match=r"Expected image labels 0 \(normal\), 1 \(anomalous\) or 255"):
        image_scores(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long), label)


@pytest.mark.parametrize(
    "make", [lambda v: FPRAtTPR(v), lambda v: ThresholdAtFPR(v), lambda v: ImageAUROC(v), lambda v: PerRegionOverlap(v)]
)
@pytest.mark.parametrize("value", [0, -0.1, 95])
def test_metrics__refuse_percentages(make, value):
    with pytest.raises(ValueError, match=r"in \(0, 1\].* Give a share, not a percentage"):
        make(value)
