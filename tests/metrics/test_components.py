import subprocess
import sys

import pytest
import torch
from sklearn.metrics import precision_recall_curve
from torchmetrics import MetricCollection

from anomseg.functional.components import component_counts, component_figures, component_scores
from anomseg.metrics.components import ComponentF1


def maps(seed=0, count=3):
    g = torch.Generator().manual_seed(seed)
    field = torch.nn.functional.avg_pool2d(torch.randn(count, 2, 24, 30, generator=g), 5, 1, 2)
    return field[:, 1] + 0.7 * field[:, 0], (field[:, 0] > 0.15).long()


def test_component_f1__adds_up_frames_and_ranks():
    score, mask = maps()
    whole, ranks = ComponentF1(0.2, (4, 3)), [ComponentF1(0.2, (4, 3)) for _ in range(2)]
    whole.update(score, mask)
    for index in range(3):
        ranks[index % 2].update(score[index : index + 1], mask[index : index + 1])
    assert torch.equal(whole.counts, ranks[0].counts + ranks[1].counts)
    found = [component_scores(s >= 0.2, m, (4, 3)) for s, m in zip(score, mask, strict=True)]
    siou, ppv = (torch.cat([one[i] for one in found]) for i in (0, 1))
    expected = component_figures(component_counts(siou, ppv), float(siou.sum()), float(ppv.sum()), len(ppv))
    assert whole.figures().f1 == pytest.approx(expected.f1)
    assert whole.figures().siou == pytest.approx(expected.siou)
    assert float(whole.compute()) == pytest.approx(expected.f1)


def test_component_f1__is_one_for_the_truth_itself_and_ignores_void_pixels():
    score, mask = maps(1)
    metric = ComponentF1(0.5, (1, 1))
    metric.update(mask.float(), mask)
    assert metric.compute() == 1
    void = mask.clone()
    void[:, :6] = 255
    first, second = ComponentF1(0.2, (4, 3)), ComponentF1(0.2, (4, 3))
    first.update(score, void)
    second.update(torch.where(void == 255, 9.0, score), void)
    assert torch.equal(first.counts, second.counts)
    with pytest.raises(ValueError, match="mask values"):
        metric.update(score, mask + 2)


def test_component_f1__finds_the_threshold_of_best_pixel_f1_over_frames_of_many_sizes():
    score, mask = maps(2)
    wide = maps(3)
    best = ComponentF1(None, (4, 3))
    best.update(score, mask)
    best.update(wide[0][:1, :12], wide[1][:1, :12])
    pixels = torch.cat([score.flatten(), wide[0][:1, :12].flatten()])
    truth = torch.cat([mask.flatten(), wide[1][:1, :12].flatten()])
    precision, recall, thresholds = precision_recall_curve(truth.numpy(), pixels.numpy())
    threshold = float(thresholds[(2 * precision * recall / (precision + recall))[:-1].argmax()])
    assert best.best_threshold() == pytest.approx(threshold)
    fixed = ComponentF1(best.best_threshold(), (4, 3))
    fixed.update(score, mask)
    fixed.update(wide[0][:1, :12], wide[1][:1, :12])
    assert best.figures() == fixed.figures()
    first, second = ComponentF1(None, (4, 3)), ComponentF1(None, (4, 3))
    first.update(wide[0][:1, :12], wide[1][:1, :12])
    second.update(score, mask)
    first.merge_state(second)
    assert first.figures().f1 == pytest.approx(fixed.figures().f1)
    assert torch.isnan(ComponentF1(None).figures().f1 * torch.ones(()))


def test_component_f1__keeps_no_hold_on_what_a_caller_writes_over():
    score, mask = maps()
    mask = mask.to(torch.uint8)
    given_copies, given_its_own = ComponentF1(None, (4, 3)), ComponentF1(None, (4, 3))
    given_copies.update(score.clone(), mask.clone())
    given_its_own.update(score, mask)
    score.zero_(), mask.zero_()
    assert given_its_own.compute() == given_copies.compute() > 0


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_component_f1__stays_as_it_is_where_a_method_is_cast(threshold, dtype):
    score, mask = maps()
    plain, cast = ComponentF1(threshold, (4, 3)), ComponentF1(threshold, (4, 3))
    for metric in (plain, cast):
        metric.update(score, mask)
    assert cast.to(dtype).figures() == plain.figures()


def test_component_f1__stays_apart_from_others_in_a_collection():
    score, mask = maps()
    collection = MetricCollection({"low": ComponentF1(0.0, (4, 3)), "high": ComponentF1(0.3, (4, 3))})
    collection.update(score, torch.full_like(mask, 255))  # the states are equal after this batch
    collection.update(score, mask)
    alone = ComponentF1(0.3, (4, 3))
    alone.update(score, mask)
    assert collection.compute()["high"] == alone.compute()
    assert collection.compute()["low"] != alone.compute()


def test_component_f1__refuses_what_is_no_score_or_threshold():
    score, mask = maps()
    with pytest.raises(ValueError, match="finite threshold"):
        ComponentF1(float("nan"))
    score[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite scores"):
        ComponentF1(0.0).update(score, mask)


RANKS = """
import sys
import torch
import torch.distributed as dist
from anomseg.metrics.components import ComponentF1

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/meeting", rank=rank, world_size=2)
torch.set_num_threads(1)
data = torch.load(folder + "/data.pt", weights_only=True)
for threshold in (None, 0.7):
    metric = ComponentF1(threshold, (4, 2))
    for score, mask in data[rank::2]:
        metric.update(score, mask)
    value = float(metric.compute())
    if rank == 0:
        print(repr(value))
dist.destroy_process_group()
"""


def test_component_f1__of_two_processes_is_that_of_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = []
    for size in (12, 16, 12):  # rank 0 gets two frames, rank 1 one of another size
        mask = torch.zeros(1, size, size, dtype=torch.int64)
        mask[:, 2:6, 3:8] = 1
        data.append((mask * 0.5 + 0.6 * torch.rand(1, size, size, generator=generator), mask))
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "job.py").write_text(RANKS)
    jobs = [
        subprocess.Popen(
            [sys.executable, tmp_path / "job.py", str(rank), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    answers = [job.communicate(timeout=240) for job in jobs]
    assert all(job.returncode == 0 for job in jobs), answers
    for threshold, line in zip((None, 0.7), answers[0][0].splitlines(), strict=True):
        alone = ComponentF1(threshold, (4, 2))
        for score, mask in data:
            alone.update(score, mask)
        assert float(line) == pytest.approx(float(alone.compute()))
        assert 0 < float(line) < 1
