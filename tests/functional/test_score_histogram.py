import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomseg.functional.score_curves import auroc, auroc_bound
from anomseg.functional.score_histogram import ScoreCounts, count_scores, grid_shift, key_to_score, score_to_key

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def mann_whitney(scores: np.ndarray, truth: np.ndarray) -> float:
    normal = np.sort(scores[~truth])
    below = np.searchsorted(normal, scores[truth]) + np.searchsorted(normal, scores[truth], "right")
    return float(below.sum() / (2 * truth.sum() * (~truth).sum()))


def same(a: ScoreCounts, b: ScoreCounts) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("lower", "width", "normal", "anomalous"))


def draw(pixels: int = 20_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(pixels, generator=generator) < 0.1
    return torch.randn(pixels, generator=generator) * 30 + truth * 20, truth


@given(st.lists(FINITE, min_size=2, max_size=40))
def test_score_to_key__keeps_order_and_inverts(values):
    scores = torch.tensor(values)
    keys = score_to_key(scores)
    assert torch.equal(keys[:, None] < keys, scores[:, None] < scores)
    assert torch.equal(keys[:, None] == keys, scores[:, None] == scores)
    assert torch.equal(key_to_score(keys), scores)
    assert torch.equal(key_to_score(keys.long()), scores)


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(2, 2**20))
def test_grid_shift__is_the_smallest_that_fits(a, b, cells):
    low, high = min(a, b), max(a, b)
    shift = grid_shift(low, high, cells)
    assert (high >> shift) - (low >> shift) < cells
    assert shift == 0 or (high >> (shift - 1)) - (low >> (shift - 1)) >= cells // 2


def test_count_scores__counts_every_distinct_score_of_few_pixels():
    scores = torch.tensor([3.0, -0.0, 3.0, 0.0, -7.0])
    counts = count_scores([scores], [scores[[0, 1]]])
    assert counts.thresholds().tolist() == [-7.0, 0.0, 3.0]
    assert counts.normal.tolist() == [1, 1, 1]
    assert counts.anomalous.tolist() == [0.0, 1.0, 1.0]
    assert counts.width.tolist() == [1, 1, 1]


@pytest.mark.parametrize("cells", [4, 64, 1 << 10, 1 << 19])
def test_count_scores__puts_every_pixel_into_its_cell(cells):
    scores, truth = draw()
    counts = count_scores([scores], [scores[truth]], exact_pixels=0, grid_cells=cells)
    keys, ends = score_to_key(scores).long(), counts.lower + counts.width
    assert bool((ends[:-1] <= counts.lower[1:]).all())
    cell = torch.searchsorted(counts.lower, keys, right=True) - 1
    assert bool((keys < ends[cell]).all())
    assert torch.equal(torch.bincount(cell[~truth], minlength=len(ends)), counts.normal)
    assert torch.equal(torch.bincount(cell[truth], minlength=len(ends)).double(), counts.anomalous)


@pytest.mark.parametrize("exact_pixels", [0, 1 << 18])
@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["both signs", "positive"])
def test_count_scores__depends_on_neither_order_nor_batches(exact_pixels, offset):
    scores, truth = draw()
    scores = scores + offset
    weights = torch.rand(int(truth.sum())).mul_(2**20).round_() / 2**20
    known = {"exact_pixels": exact_pixels, "grid_cells": 256}
    whole = count_scores([scores], [scores[truth]], [weights], **known)
    pieces = count_scores(scores.split(77), scores[truth].split(5), weights.split(11), **known)
    order, mixed = torch.randperm(len(scores)), torch.randperm(len(weights))
    turned = count_scores([scores[order]], [scores[truth][mixed]], [weights[mixed]], **known)
    assert same(whole, pieces)
    assert same(whole, turned)


def test_count_scores__sums_weights_in_the_cells_of_the_plain_counts():
    scores, truth = draw()
    ones = torch.ones(int(truth.sum()))
    plain = count_scores([scores], [scores[truth]], exact_pixels=0, grid_cells=128)
    assert same(plain, count_scores([scores], [scores[truth]], [ones], exact_pixels=0, grid_cells=128))


def test_count_scores__of_nothing_is_empty():
    assert len(count_scores([], []).lower) == 0
    assert len(count_scores([], [], []).lower) == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FINITE | st.sampled_from([0.0, -0.0, 1.0, 1e-38, -1e-45, 1000.0, 3e38]), st.booleans()), min_size=2, max_size=120),
    st.sampled_from([2, 3, 8, 100]),
    st.sampled_from([0, 30]),
)
def test_auroc_bound__is_never_exceeded(pixels, cells, exact_pixels):
    scores, truth = torch.tensor([s for s, _ in pixels]), torch.tensor([t for _, t in pixels])
    if truth.all() or not truth.any():
        return
    counts = count_scores([scores], [scores[truth]], exact_pixels=exact_pixels, grid_cells=cells)
    error = abs(float(auroc(counts)) - mann_whitney(scores.numpy(), truth.numpy()))
    assert error <= float(auroc_bound(counts)) + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 32, 256]), st.floats(-20, 20), st.floats(0, 12))
def test_auroc_bound__is_never_exceeded_by_clusters_of_many_pixels(seed, cells, centre, decades):
    random = np.random.default_rng(seed)
    truth = random.random(3000) < random.choice([0.001, 0.1, 0.9])
    truth[:2] = True, False
    scores = (centre + random.choice([-1, 1]) * 10.0 ** random.uniform(-decades, 1, 3000) * (1 + truth)).astype(np.float32)
    counted = torch.from_numpy(scores)
    counts = count_scores([counted], [counted[torch.from_numpy(truth)]], exact_pixels=0, grid_cells=cells)
    assert abs(float(auroc(counts)) - mann_whitney(scores, truth)) <= float(auroc_bound(counts)) + 1e-12
