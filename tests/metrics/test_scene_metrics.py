import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from anomseg.metrics import score_state
from anomseg.metrics.heat import PixelBCE
from anomseg.metrics.pixel import ImageAUROC, PixelAUROC
from anomseg.metrics.scene_metrics import NAMED_SCENES, SceneMetrics, all_metrics, pixel_metrics

FIELDS = ("lower", "width", "normal", "anomalous")
RANKS = """
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from anomseg.metrics import score_state
from anomseg.metrics.scene_metrics import SceneMetrics, all_metrics

torch.set_num_threads(1)
folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
score, mask, shares = torch.load(folder / "samples.pt")
results = {}
for regime, memory in (("in memory", score_state.PIXELS_IN_MEMORY), ("folded", 1000)):
    score_state.PIXELS_IN_MEMORY, score_state.PIXELS_BESIDE_PAGES = memory, 600
    for split, share in shares.items():
        metrics = SceneMetrics(all_metrics(), "test_")
        for index in share[rank]:
            metrics.update(score[index : index + 1], mask[index : index + 1], [f"scene {index}"])
        counts = metrics.counts()
        values = metrics.compute()
        again = metrics.compute()
        results[regime, split] = (values, again, [counts.lower, counts.width, counts.normal, counts.anomalous])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    metrics = SceneMetrics(all_metrics(), "test_")
    for index, name in ((0, "scene 0"), (2, "split")) if rank == 0 else ((4, "split"), (1, "scene 1")):
        metrics.update(score[index : index + 1], mask[index : index + 1], [name])
    results["split"] = (metrics.compute(), [str(one.message) for one in caught if "on one rank" in str(one.message)])
torch.save(results, folder / f"rank_{rank}.pt")
dist.destroy_process_group()
"""
SHARES = {
    "one rank without anomalies": ([0, 2, 4], [1, 3]),
    "both with anomalies": ([3, 2, 0], [4, 1]),
    "one rank without samples": ([0, 1, 2, 3, 4], []),
}


def draw() -> tuple[Tensor, Tensor]:
    """Draw five scenes, of which 1 and 3 hold no anomaly."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(5, 24, 24, dtype=torch.long)
    mask[::2, 3:9, 4:8] = mask[::2, 15, 15] = mask[4, 18:20, 2] = 1
    score = 5 * torch.randn(5, 24, 24, generator=generator) - 20 + 7 * mask
    mask[:, -2:] = 255
    return score, mask


def fed(metrics: SceneMetrics, score: Tensor, mask: Tensor) -> SceneMetrics:
    for index in range(len(score)):
        metrics.update(score[index : index + 1], mask[index : index + 1], [f"scene {index}"])
    return metrics


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(float(a[k]) == float(b[k]) for k in a)


def test_two_processes__give_exactly_the_values_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    score, mask = draw()
    torch.save((score, mask, SHARES), tmp_path / "samples.pt")
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), str(rank), port], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=90)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    for regime, memory in (("in memory", score_state.PIXELS_IN_MEMORY), ("folded", 1000)):
        monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", memory)
        monkeypatch.setattr(score_state, "PIXELS_BESIDE_PAGES", 600)
        single = fed(SceneMetrics(all_metrics(), "test_"), score, mask)
        counts, expected = single.counts(), single.compute()
        assert {f"test_auroc/scene {i}" for i in (0, 2, 4)} <= expected.keys()
        assert "test_image_auroc_mean" not in expected  # each scene is one sample
        assert not any(math.isnan(v) for v in expected.values())
        for rank in range(2):
            for split in SHARES:
                values, again, found = torch.load(tmp_path / f"rank_{rank}.pt")[regime, split]
                assert equal(values, expected), (regime, split, rank)
                assert equal(again, expected), (regime, split, rank)
                assert all(torch.equal(f, getattr(counts, name)) for f, name in zip(found, FIELDS, strict=True)), (regime, split, rank)
    pooled = PixelAUROC()
    pooled.update(score[[0, 1, 2, 4]], mask[[0, 1, 2, 4]])
    for rank in range(2):
        values, messages = torch.load(tmp_path / f"rank_{rank}.pt")["split"]
        assert {name for name in values if "auroc/" in name} == {"test_auroc/scene 0"}  # no part of the split scene passes for the whole
        assert float(values["test_auroc_mean"]) == float(values["test_auroc/scene 0"])
        assert float(values["test_auroc"]) == float(pooled.compute())
        assert len(messages) == 1
        assert "['split'] came on several" in messages[0]


def test_scene_metrics__average_the_figures_of_scenes_with_both_classes():
    score, mask = draw()
    values = fed(SceneMetrics(pixel_metrics(), "val_"), score, mask).compute()
    alone = []
    for index in (0, 2, 4):
        metric = PixelAUROC()
        metric.update(score[index : index + 1], mask[index : index + 1])
        alone.append(float(metric.compute()))
        assert float(values[f"val_auroc/scene {index}"]) == alone[-1]
    assert float(values["val_auroc_mean"]) == pytest.approx(sum(alone) / 3, abs=1e-12)
    pooled = PixelAUROC()
    pooled.update(score, mask)
    assert float(values["val_auroc"]) == float(pooled.compute())
    assert not any(name.endswith(("scene 1", "scene 3")) for name in values)


def test_scene_metrics__join_the_tiles_of_a_scene_across_batches():
    score, mask = draw()
    whole, tiled = SceneMetrics(pixel_metrics(), ""), SceneMetrics(pixel_metrics(), "")
    whole.update(score[:1], mask[:1], ["a"])
    whole.update(score[2:3], mask[2:3], ["b"])
    left, right = (score[[0, 2], :, :12], mask[[0, 2], :, :12]), (score[[0, 2], :, 12:], mask[[0, 2], :, 12:])
    tiled.update(left[0][:1], left[1][:1], ["a"])
    tiled.update(torch.stack([right[0][0], left[0][1]]), torch.stack([right[1][0], left[1][1]]), ["a", "b"])
    tiled.update(right[0][1:], right[1][1:], ["b"])
    assert equal(whole.compute(), tiled.compute())


@pytest.mark.parametrize("second", [0, 1], ids=["with both classes", "of one class"])
def test_scene_metrics__refuse_a_scene_that_comes_again_and_then_begin_anew(second):
    score, mask = draw()
    metrics = SceneMetrics(pixel_metrics(), "")
    metrics.update(score[[second, 2]], mask[[second, 2]], ["a", "b"])
    with pytest.raises(ValueError, match="scene 'a' one after the other"):
        metrics.update(score[4:], mask[4:], ["a"])
    assert equal(fed(metrics, score, mask).compute(), fed(SceneMetrics(pixel_metrics(), ""), score, mask).compute())


def test_scene_metrics__name_no_scenes_where_they_are_many():
    score, mask = draw()
    metrics = SceneMetrics(pixel_metrics(), "")
    for index in range(NAMED_SCENES + 1):
        metrics.update(score[:1], mask[:1], [f"{index}"])
    values = metrics.compute()
    assert set(values) == {f + m for f in ("auroc", "ap", "fpr95") for m in ("", "_mean")}


def test_scene_metrics__keep_pooled_figures_without_names_and_forget_on_reset():
    score, mask = draw()
    metrics = fed(SceneMetrics(pixel_metrics(), ""), score, mask)
    metrics.reset()
    metrics.update(score[:1], mask[:1])
    assert set(metrics.compute()) == {"auroc", "ap", "fpr95"}


def test_scene_metrics__read_counts_without_copying_the_state():
    score, mask = draw()
    metrics = fed(SceneMetrics(MetricCollection({"image": ImageAUROC(), "auroc": PixelAUROC(), "area": PixelAUROC()}), ""), score, mask)
    assert int(metrics.counts().normal.sum()) == int((mask == 0).sum())
    members = dict(metrics.pooled.items(copy_state=False))
    assert members["auroc"].scores[0] is members["area"].scores[0]


@pytest.mark.filterwarnings("error")
def test_scene_metrics__are_silent_about_scenes_of_one_class():
    score, mask = draw()
    fed(SceneMetrics(all_metrics(), ""), score, mask).compute()


def test_scene_metrics__say_what_is_missing_without_a_pixel_metric():
    with pytest.raises(ValueError, match="Expected a pixel metric such as PixelAUROC"):
        SceneMetrics(MetricCollection([ImageAUROC()]), "").counts()


def test_scene_metrics__judges_heat_maps_by_the_calibration_that_it_is_given():
    score, mask = draw()
    metrics = SceneMetrics(pixel_metrics(), "test_")
    metrics.update(score, mask)
    heat = torch.sigmoid(score + 16)
    expected = PixelBCE()
    expected.update(heat, mask)
    found = metrics.compute(lambda s: torch.sigmoid(s + 16))
    assert float(found["test_heat_bce"]) == pytest.approx(float(expected.compute()), rel=1e-4)
    assert {"test_heat_brier", "test_heat_ece"} < set(found)
    assert not any("heat" in name for name in metrics.compute())
