import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.base import AnomalySegmenter
from anomseg.metrics.category_metrics import NAMED_CATEGORIES, CategoryMetrics
from anomseg.metrics.pixel import ImageAUROC, PixelAUROC
from anomseg.metrics.region import PerRegionOverlap
from anomseg.metrics.scene_metrics import SceneMetrics, all_metrics, pixel_metrics
from anomseg.sample import collate, fill_nodata

RANKS = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from anomseg.metrics.scene_metrics import SceneMetrics, all_metrics

torch.set_num_threads(1)
folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
score, mask, categories, labels, shares = torch.load(folder / "samples.pt")
results = {}
for split, share in shares.items():
    metrics = SceneMetrics(all_metrics(), "test_")
    for index in share[rank]:
        own = slice(index, index + 1)
        metrics.update(score[own], mask[own], [str(index)], categories[own], labels[own])
    results[split] = metrics.compute()
torch.save(results, folder / f"rank_{rank}.pt")
dist.destroy_process_group()
"""
CATEGORIES = ["tile", "grid", "tile", "grid", "tile", "nut", "grid", "tile", "nut"]
LABELS = torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0])
SHARES = {
    "categories on both": ([0, 2, 3, 5, 8], [1, 4, 6, 7]),
    "a category on one": ([0, 2, 4, 7, 5, 8], [1, 3, 6]),
    "one rank without samples": (list(range(9)), []),
}


def draw() -> tuple[Tensor, Tensor]:
    """Draw nine images of three categories; the scores of one category lie far above, and the sixth image lacks its mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(9, 10, 10, dtype=torch.long)
    mask[[2, 3, 4], 3:5, 4:8] = 1
    score = torch.randn(9, 10, 10, generator=generator) + 2 * mask
    score[[1, 3, 6]] += 20
    mask[6] = 255
    mask[:6, -1] = 255
    return score, mask


def fed(metrics: SceneMetrics, score: Tensor, mask: Tensor) -> SceneMetrics:
    for part in (slice(0, 4), slice(4, 9)):
        metrics.update(score[part], mask[part], [str(i) for i in range(9)][part], CATEGORIES[part], LABELS[part])
    return metrics


def of_pixels(score: Tensor, mask: Tensor, chosen: list[int]) -> float:
    score, mask = score[chosen], mask[chosen]
    return float(auroc(count_scores([score[mask != 255]], [score[mask == 1]])))


@pytest.mark.filterwarnings("ignore:1 anomalous images have no mask")
def test_categories__are_measured_apart_and_averaged_and_pooled():
    score, mask = draw()
    values = fed(SceneMetrics(pixel_metrics(), "val_"), score, mask).compute()
    tile, grid = of_pixels(score, mask, [0, 2, 4, 7]), of_pixels(score, mask, [1, 3])
    assert float(values["val_auroc/tile"]) == pytest.approx(tile, abs=1e-12)
    assert float(values["val_auroc/grid"]) == pytest.approx(grid, abs=1e-12)
    assert float(values["val_auroc_mean_over_class"]) == pytest.approx((tile + grid) / 2, abs=1e-12)
    assert float(values["val_auroc"]) == pytest.approx(of_pixels(score, mask, list(range(9))), abs=1e-12)
    highest = torch.where(mask == 255, -torch.inf, score).flatten(1).amax(1)
    highest[6] = score[6].max()
    pairs = [(highest[3] > highest[1]).double(), (highest[6] > highest[1]).double()]
    assert float(values["val_image_auroc/grid"]) == float(sum(pairs) / 2)
    assert float(values["val_image_auroc"]) == float(auroc(count_scores([highest], [highest[LABELS == 1]])))
    assert {"val_image_ap", "val_image_f1_max", "val_image_ap_mean_over_class"} < set(values)


@pytest.mark.filterwarnings("ignore:1 anomalous images have no mask")
def test_categories__of_normal_images_alone_have_no_figure_and_no_part_in_the_mean():
    values = fed(SceneMetrics(all_metrics(), ""), *draw()).compute()
    assert {name for name in values if name.endswith("/nut")} == {"auc_ft/nut", "threshold_at_fpr01/nut"}  # what normal pixels define
    assert not any(values[name].isnan() for name in values if "_mean_over_class" in name or "/" in name)
    assert not any(name.endswith(tuple(f"/{i}" for i in range(9))) for name in values)  # images are no scenes
    assert "auroc_mean" not in values


def test_missing_masks__leave_pixel_figures_alone_and_are_said_once():
    score, mask = draw()
    metrics = fed(SceneMetrics(pixel_metrics(), ""), score, mask)
    with pytest.warns(UserWarning, match="1 anomalous images have no mask"):
        before = metrics.compute()
    metrics.reset()
    score[6] += 5 * torch.randn(10, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = fed(metrics, score, mask).compute()
    assert {k for k in before if "image" not in k} == {k for k in after if "image" not in k}
    assert all(float(before[k]) == float(after[k]) for k in before if "image" not in k)


def test_categories__follow_no_order():
    score, mask = draw()
    mask[6] = 0
    forward, backward = SceneMetrics(all_metrics(), ""), SceneMetrics(all_metrics(), "")
    fed(forward, score, mask)
    for index in reversed(range(9)):
        own = slice(index, index + 1)
        backward.update(score[own], mask[own], [str(index)], CATEGORIES[own], LABELS[own])
    a, b = forward.compute(), backward.compute()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k].double(), b[k].double()) for k in a)


def test_normal_images_to_validate_on__are_no_mistake():
    score = torch.randn(4, 5, 5)
    metrics = SceneMetrics(pixel_metrics(), "val_")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.update(score, torch.zeros(4, 5, 5, dtype=torch.long), None, ["tile"] * 4, torch.zeros(4, dtype=torch.long))
        assert metrics.compute()["val_auroc"].isnan()


def test_categories__are_not_named_where_they_are_many_and_are_forgotten_on_reset():
    metrics = CategoryMetrics(MetricCollection({"auroc": PixelAUROC()}))
    score, mask = torch.rand(1, 4, 4), torch.eye(4, dtype=torch.long)[None]
    for index in range(NAMED_CATEGORIES + 1):
        metrics.update(score, mask, [f"class {index}"])
    assert set(metrics.compute()) == {"auroc_mean_over_class"} | {
        f"image_{figure}{mean}" for figure in ("ap", "f1_max", "f1_max_threshold") for mean in ("", "_mean_over_class")
    } | {"image_auroc", "image_auroc_top"}
    metrics.reset()
    assert metrics.compute() == {}


def test_a_figure_of_the_collection__stands_above_the_one_that_would_join_it():
    metrics = CategoryMetrics(MetricCollection({"image_auroc": ImageAUROC(0.5), "aupro": PerRegionOverlap()}))
    assert metrics.blank["image_auroc"].top == 0.5
    assert "image_auroc" not in metrics.pooled_images


def test_categories__must_be_as_many_as_images():
    with pytest.raises(ValueError, match="Expected one category for each of the 2 images"):
        CategoryMetrics(pixel_metrics()).update(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long), ["a"])


@pytest.mark.filterwarnings("ignore:1 anomalous images have no mask")
def test_two_processes__give_exactly_the_values_of_one(tmp_path: Path):
    score, mask = draw()
    torch.save((score, mask, CATEGORIES, LABELS, SHARES), tmp_path / "samples.pt")
    (tmp_path / "ranks.py").write_text(RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(r), port], env=environment, stderr=subprocess.PIPE, text=True) for r in range(2)]
    try:
        errors = [rank.communicate(timeout=90)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    expected = fed(SceneMetrics(all_metrics(), "test_"), score, mask).compute()
    for rank in range(2):
        for split, values in torch.load(tmp_path / f"rank_{rank}.pt").items():
            assert values.keys() == expected.keys(), (split, rank)
            assert all(float(values[k]) == float(expected[k]) for k in expected), (split, rank)


class Level(AnomalySegmenter):
    """Score by the only band; learns nothing."""

    learns = False

    def score(self, image: Tensor) -> Tensor:
        return fill_nodata(image)[0][:, 0]


@pytest.mark.filterwarnings("ignore:1 anomalous images have no mask", "ignore:.*does not have many workers.*")
def test_a_method__logs_the_figures_of_categories(tmp_path: Path):
    score, mask = draw()
    samples = [
        {"image": s[None], "mask": m, "name": f"{c}/{i}", "category": c, "image_label": label}
        for i, (s, m, c, label) in enumerate(zip(score, mask, CATEGORIES, LABELS, strict=True))
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet)
    method, data = Level(), torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate)
    loop.fit(method, data, data)
    expected = fed(SceneMetrics(pixel_metrics(), "val_"), score, mask).compute()
    logged = {k: float(v) for k, v in loop.callback_metrics.items() if k.startswith("val_")}
    assert logged == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-6)
    loop.test(method, data, verbose=False)
    assert {"test_aupro_mean_over_class", "test_image_ap/tile", "test_image_f1_max", "test_heat_bce"} <= set(loop.callback_metrics)


def test_image_figures__of_the_highest_hundredth_are_not_decided_by_a_speck():
    metrics = CategoryMetrics(MetricCollection({"auroc": PixelAUROC()}))
    score = 0.1 * torch.rand(8, 20, 20, generator=torch.Generator().manual_seed(0))
    score[:4, 3, 3] = 5.0  # specks on normal images
    score[4:, 10, 4:16] = 2.0  # faint lines
    mask = torch.zeros(8, 20, 20, dtype=torch.long)
    mask[4:, 10, 4:16] = 1
    metrics.update(score, mask, ["plate"] * 8)
    values = metrics.compute()
    assert float(values["image_auroc/plate"]) == 0.0
    assert float(values["image_auroc_top/plate"]) == float(values["image_auroc_top"]) == 1.0
