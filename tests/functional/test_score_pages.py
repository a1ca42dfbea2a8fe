import pytest
import torch
from torch import Tensor

from anomseg.functional.score_histogram import score_to_key
from anomseg.functional.score_pages import ScorePages, fold_scores, merge_pages, page_depth, unpack_pages

CELLS = 1 << 12


def draw(pixels: int = 5000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scores over many powers of two, of both signs, a tenth of them anomalous, with weights whose sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(pixels, generator=generator) * torch.rand(pixels, generator=generator).mul(12).exp()
    truth = torch.rand(pixels, generator=generator) < 0.1
    weights = (torch.rand(int(truth.sum()), generator=generator) * 2**20).round() / 2**20
    return scores, truth, weights


def same(a: ScorePages, b: ScorePages) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("pages", "normal", "anomalous"))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_merge_pages__gives_what_folding_all_at_once_gives_in_any_order(weighted):
    scores, truth, weights = draw()
    weight = torch.zeros(len(scores)).masked_scatter(truth, weights)

    def folded(part: Tensor) -> ScorePages:
        chosen = part[truth[part]]
        return fold_scores([scores[part]], [scores[chosen]], [weight[chosen]] if weighted else None, cells=CELLS)

    whole = folded(torch.arange(len(scores)))
    parts = [folded(p) for p in torch.randperm(len(scores)).split(700)]
    assert same(merge_pages(parts, cells=CELLS), whole)
    assert same(merge_pages([merge_pages(parts[4:], cells=CELLS), *parts[:4]], cells=CELLS), whole)
    assert all(p.depth >= whole.depth for p in parts)


def test_pages__hold_every_pixel_in_its_cell():
    scores, truth, _ = draw()
    pages = fold_scores(scores.split(900), scores[truth].split(70), cells=CELLS)
    counts = pages.counts()
    assert pages.normal.numel() <= CELLS
    assert pages.depth == page_depth(len(pages.pages), CELLS)
    cell = torch.searchsorted(counts.lower, score_to_key(scores).long(), right=True) - 1
    assert bool((score_to_key(scores).long() < (counts.lower + counts.width)[cell]).all())
    assert torch.equal(torch.bincount(cell[~truth], minlength=len(cell.unique())), counts.normal)
    assert torch.equal(torch.bincount(cell[truth], minlength=len(cell.unique())).double(), counts.anomalous)


def test_pages__count_single_scores_where_few_powers_of_two_occur():
    scores = 1000 + 0.1 * torch.randn(3000)
    counts = fold_scores([scores], [scores[:5]]).counts()
    assert torch.equal(counts.thresholds(), scores.unique())
    assert int(counts.width.max()) == 1


def test_pack__is_inverted_after_concatenation():
    scores, truth, weights = draw()
    first = fold_scores([scores], [scores[truth]], [weights], cells=CELLS)
    second = fold_scores([scores[:9]], [], cells=CELLS)
    found = unpack_pages(torch.cat([first.pack(), second.pack(), first.pack()]))
    assert [same(a, b) for a, b in zip(found, (first, second, first), strict=True)] == [True] * 3
    assert unpack_pages(torch.empty(0)) == []


def test_fold_scores__takes_no_anomalous_pixel():
    assert fold_scores([torch.ones(3)], [], []).counts().normal.tolist() == [3]


@pytest.mark.parametrize("pages", [1, 31, 32, 33, 4000, 65_536])
def test_page_depth__fits(pages):
    depth = page_depth(pages)
    assert pages << depth <= 1 << 21
    assert depth == 16 or pages << (depth + 1) > 1 << 21
