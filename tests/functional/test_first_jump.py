import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomseg.functional.first_jump import first_jump_threshold


def batch(normal=30, jump=5.0):
    """Scores 0, 0.1, 0.2, … of normal images and three far above them."""
    usual = torch.arange(normal) * 0.1
    return torch.cat([usual, usual[-1] + jump + torch.arange(3)])


def test_first_jump__lies_below_the_first_wide_gap():
    scores = batch()[torch.randperm(33, generator=torch.Generator().manual_seed(0))]
    found = first_jump_threshold(scores)
    assert float(found.threshold) == pytest.approx(2.9)
    assert int((scores > found.threshold).sum()) == 3
    assert float(found.gap) == pytest.approx(50.0, rel=1e-4)
    assert found.reason == ""


def test_first_jump__takes_a_gap_of_just_the_factor():
    scores = torch.cat([torch.arange(20.0), torch.tensor([29.0])])  # mean gap 1, jump 10
    assert float(first_jump_threshold(scores, factor=10.0).threshold) == 19.0
    assert first_jump_threshold(scores, factor=10.5).reason == "no gap is wide enough"


def test_first_jump__ignores_jumps_among_the_lowest():
    scores = torch.cat([torch.zeros(1), 10 + torch.arange(19) * 0.01, torch.tensor([10.5, 30.0])])
    found = first_jump_threshold(scores, factor=20.0)
    assert found.threshold.isfinite() == (19.5 / ((scores[19] - scores[0]) / 19) >= 20)
    assert float(found.threshold) == pytest.approx(10.5)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (torch.arange(20.0), "too few scores"),
        (torch.cat([torch.ones(25), torch.tensor([9.0])]), "the lowest scores are equal"),
        (torch.arange(40.0), "no gap is wide enough"),
        (torch.full((50,), torch.nan), "too few scores"),
    ],
)
def test_first_jump__says_why_there_is_none(scores, reason):
    found = first_jump_threshold(scores)
    assert found.threshold.isnan()
    assert found.gap.isnan()
    assert found.reason == reason


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_first_jump__moves_with_scale_and_shift(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.cat([torch.rand(30, generator=generator), 8 + torch.rand(4, generator=generator)]).double()
    one, other = first_jump_threshold(scores), first_jump_threshold(scores * scale + shift)
    assert one.reason == other.reason
    torch.testing.assert_close(one.threshold * scale + shift, other.threshold, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_first_jump__does_not_depend_on_the_order_or_on_nan():
    scores = batch()
    shuffled = torch.cat([scores.flip(0), torch.tensor([torch.nan])])
    assert torch.equal(first_jump_threshold(scores).threshold, first_jump_threshold(shuffled).threshold)


def test_first_jump__is_transductive():
    """The same images are judged otherwise once others lie between: the module says so, and this holds it to that."""
    scores = batch()
    filled = torch.cat([scores, torch.linspace(2.9, 9.9, 100)])
    assert first_jump_threshold(scores).threshold.isfinite()
    assert first_jump_threshold(filled).reason == "no gap is wide enough"


@pytest.mark.parametrize("options", [{"lowest": 1}, {"factor": 1.0}, {"scores": torch.ones(3, 3)}])
def test_first_jump__refuses_arguments_outside_their_range(options):
    with pytest.raises(ValueError, match="Expected scores"):
        first_jump_threshold(**{"scores": batch(), **options})


def test_first_jump__finds_jumps_where_there_are_none():
    """The failure that the module states, in its figures: 78, 40 and 7 of 100 batches without an anomaly."""
    generator = torch.Generator().manual_seed(0)
    batches = -(-torch.rand(300, 100, generator=generator).log()).log()
    share = [sum(not first_jump_threshold(b, factor=factor).reason for b in batches) / 300 for factor in (10.0, 20.0, 50.0)]
    assert share == pytest.approx([0.78, 0.40, 0.07], abs=0.06)
