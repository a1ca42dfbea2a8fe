import numpy as np
import pytest
import torch
from torch import Tensor

from anomseg.metrics import score_state
from anomseg.metrics.region import PerRegionOverlap


def slow_overlap(score: Tensor, mask: Tensor, regions: list[Tensor], limit: float) -> float:
    """Loop over all thresholds and regions."""
    points = [(0.0, 0.0)]
    for t in score[mask != 255].unique().flip(0):
        found = score >= t
        points.append((float(found[mask == 0].double().mean()), float(np.mean([float(found[r].double().mean()) for r in regions]))))
    fpr, overlap = np.array(points).T
    step = int((fpr <= limit).sum())
    end = np.interp(limit, fpr[step - 1 : step + 1], overlap[step - 1 : step + 1])
    return float(np.trapezoid([*overlap[:step], end], [*fpr[:step], limit]) / limit)


def draw() -> tuple[Tensor, Tensor, list[Tensor]]:
    score = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(20).round() / 10
    mask = torch.zeros(3, 16, 16, dtype=torch.long)
    corners = [(0, 0, 0, 1), (0, 8, 8, 7), (2, 3, 3, 2), (2, 10, 2, 4)]
    regions = [torch.zeros_like(mask, dtype=torch.bool) for _ in corners]
    for region, (b, row, column, size) in zip(regions, corners, strict=True):
        region[b, row : row + size, column : column + size] = True
        mask[region] = 1
        score[region] += 2 / size
    mask[:, :, -1] = 255
    return score, mask, regions


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_per_region_overlap__equals_a_loop_over_regions_and_thresholds(limit, batch):
    score, mask, regions = draw()
    metric = PerRegionOverlap(limit)
    for s, m in zip(score.split(batch), mask.split(batch), strict=True):
        metric.update(s, m)
    assert float(metric.compute()) == pytest.approx(slow_overlap(score, mask, regions, limit), abs=1e-6)


def test_per_region_overlap__weighs_a_small_region_like_a_large_one():
    score, mask = torch.zeros(1, 20, 20), torch.zeros(1, 20, 20, dtype=torch.long)
    mask[0, 0, 0] = mask[0, 5, 5] = mask[0, 9:18, 9:18] = 1
    score[0, 0, 0] = score[0, 5, 5] = 1  # two of three regions are found before the first false alarm; the third only with all pixels
    metric = PerRegionOverlap(0.3)
    metric.update(score, mask)
    assert float(metric.compute()) == pytest.approx(2 / 3 + (1 / 3) * 0.3 / 2, abs=1e-6)


def test_per_region_overlap__takes_many_normal_pixels_before_the_first_region(monkeypatch):
    monkeypatch.setattr(score_state, "PIXELS_IN_MEMORY", 100)
    score, mask, regions = draw()
    metric = PerRegionOverlap()
    order = [1, 0, 2]  # the sample without regions first
    for index in order:
        metric.update(score[index : index + 1], mask[index : index + 1])
    assert metric.pages
    assert float(metric.compute()) == pytest.approx(slow_overlap(score, mask, regions, 0.3), abs=1e-6)


def test_per_region_overlap__ignores_void_pixels():
    score, mask, _ = draw()
    expected = PerRegionOverlap()
    expected.update(score, mask)
    score[mask == 255] = float("nan")
    metric = PerRegionOverlap()
    metric.update(score, mask)
    assert float(metric.compute()) == float(expected.compute())
