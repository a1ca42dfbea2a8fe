import math
import tracemalloc

import pytest
import torch

from anomseg.functional.components import TAUS, component_counts, component_figures, component_scores


def parts(chosen):
    """Find 8-connected components by flooding: the slow way."""
    height, width = chosen.shape
    left, found = {(r, c) for r in range(height) for c in range(width) if chosen[r, c]}, []
    while left:
        front, part = [left.pop()], set()
        while front:
            r, c = front.pop()
            part.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front.extend(near)
        found.append(part)
    return found


def slow(flagged, mask, sizes):
    truth = parts(mask == 1)
    ignored = {(int(r), int(c)) for r, c in (mask == 255).nonzero()}
    small = {pixel for k in truth if len(k) < sizes[1] for pixel in k}
    truth = [k for k in truth if len(k) >= sizes[1]]
    kept = flagged.clone()
    for r, c in ignored:
        kept[r, c] = False
    found = [p - small for p in parts(kept) if len(p) >= sizes[0] and p - small]
    siou = []
    for k in truth:
        union = set().union(*(p for p in found if p & k))
        others = set().union(*(o for o in truth if o is not k))
        hit = len(union & k)
        siou.append(hit / (len(union) + len(k) - hit - len(union & others)))
    every = set().union(*truth)
    return sorted(siou), sorted(len(p & every) / len(p) for p in found)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sizes", [(1, 1), (6, 4)])
def test_component_scores__equal_the_slow_definition(seed, sizes):
    g = torch.Generator().manual_seed(seed)
    field = torch.nn.functional.avg_pool2d(torch.randn(1, 2, 26, 31, generator=g), 5, 1, 2)[0]
    mask = (field[0] > 0.15).long()
    mask[torch.rand(26, 31, generator=g) < 0.05] = 255
    flagged = field[1] + 0.7 * field[0] > 0.2
    siou, ppv = component_scores(flagged, mask, sizes)
    expected = slow(flagged, mask, sizes)
    torch.testing.assert_close(siou.sort().values, torch.tensor(expected[0], dtype=torch.float64))
    torch.testing.assert_close(ppv.sort().values, torch.tensor(expected[1], dtype=torch.float64))


def test_component_scores__of_one_prediction_over_two_objects_blame_neither():
    mask = torch.zeros(10, 20, dtype=torch.int64)
    mask[2:8, 2:8], mask[2:8, 9:15] = 1, 1
    flagged = torch.zeros(10, 20, dtype=torch.bool)
    flagged[2:8, 2:15] = True
    siou, ppv = component_scores(flagged, mask, (1, 1))
    torch.testing.assert_close(siou, torch.full((2,), 36 / 42, dtype=torch.float64))
    torch.testing.assert_close(ppv, torch.tensor([72 / 78], dtype=torch.float64))


def test_component_scores__measure_an_alarm_before_a_small_object_is_cut_out_of_it():
    mask, flagged = torch.zeros(6, 12, dtype=torch.int64), torch.zeros(6, 12, dtype=torch.bool)
    mask[2:4, 5:7] = 1
    flagged[2:4, 3:9] = True
    siou, ppv = component_scores(flagged, mask, (10, 5))  # 12 pixels count as an alarm, though 8 remain beside the object
    assert siou.tolist() == []
    assert ppv.tolist() == [0.0]


def test_component_scores__of_thousands_of_components_take_no_table_of_all_pairs():
    mask, flagged = torch.zeros(240, 240, dtype=torch.int64), torch.zeros(240, 240, dtype=torch.bool)
    mask[::3, ::3] = 1
    flagged[::3, ::3] = True
    flagged[::6, ::6] = False
    tracemalloc.start()
    siou, ppv = component_scores(flagged, mask, (1, 1))  # 6,400 and 4,800 components: a table of all pairs takes 250 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert len(siou) == 80**2
    assert int((siou == 1).sum()) == len(ppv) == int((ppv == 1).sum()) == 80**2 - 40**2


@pytest.mark.parametrize("empty", ["truth", "prediction", "both"])
def test_component_scores__take_maps_without_objects(empty):
    mask, flagged = torch.zeros(8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.bool)
    if empty == "prediction":
        mask[1:5, 1:5] = 1
    if empty == "truth":
        flagged[1:5, 1:5] = True
    siou, ppv = component_scores(flagged, mask, (1, 1))
    assert siou.tolist() == ([0.0] if empty == "prediction" else [])
    assert ppv.tolist() == ([0.0] if empty == "truth" else [])
    full = torch.ones(4, 4, dtype=torch.int64)
    assert component_scores(full.bool(), full, (1, 1))[0].tolist() == [1.0]
    with pytest.raises(ValueError, match="one shape"):
        component_scores(flagged, mask[:4])


def test_component_figures__average_the_f1_over_the_thresholds():
    siou, ppv = torch.tensor([0.3, 0.9, 0.0], dtype=torch.float64), torch.tensor([0.5, 1.0], dtype=torch.float64)
    counts = component_counts(siou, ppv)
    f1 = []
    for tau in TAUS:
        hits = sum(s >= tau - 1e-12 for s in siou.tolist())
        false = sum(p < tau - 1e-12 for p in ppv.tolist())
        f1.append(2 * hits / (2 * hits + (3 - hits) + false))
    found = component_figures(counts, 1.2, 1.5, 2)
    assert found.f1 == pytest.approx(sum(f1) / 11)
    assert found.siou == pytest.approx(0.4)
    assert found.ppv == pytest.approx(0.75)
    nothing = component_figures(torch.zeros(11, 3, dtype=torch.int64), 0.0, 0.0, 0)
    assert all(math.isnan(value) for value in (nothing.siou, nothing.ppv, nothing.f1))
