import re

import pytest
import torch

from anomseg.data.group_split import GroupSplit
from anomseg.data.image_split import ShareSplit
from anomseg.data.industrial_split import SessionSplit, check_industrial_split, drawn_to_validate, kept_together, share_out

SPLIT = SessionSplit(r"num_(\d+)", gap=100)


def names(sessions=20, each=5):
    return [f"part/good/exp{n}_num_{1000 * session + 7 * n}" for session in range(sessions) for n in range(each)]


def session_of(name):
    return int(re.search(r"num_(\d+)", name)[1]) // 1000


def test_sessions__begin_where_numbers_jump():
    listed = ["b_num_100", "a_num_200", "c_num_301", "d_num_302", "e_num_5"]
    assert SPLIT.sessions(listed) == [["e_num_5", "b_num_100", "a_num_200"], ["c_num_301", "d_num_302"]]


def test_sessions__of_gap_zero_are_single_numbers():
    split = SessionSplit(r"/(\d{5})\d+$", gap=0)
    assert split.sessions(["x/00041000", "x/00041005", "y/12000001"]) == [["x/00041000", "x/00041005"], ["y/12000001"]]


def test_share__never_cuts_a_session_and_takes_every_name_once():
    parts = SPLIT.share(names(), 0)
    assert sorted(name for part in parts for name in part) == sorted(names())
    held = [{session_of(name) for name in part} for part in parts]
    assert not held[0] & held[1]
    assert not (held[0] | held[1]) & held[2]


@pytest.mark.parametrize("seed", range(5))
def test_share__meets_the_shares_within_a_session(seed):
    counts = [len(part) for part in SPLIT.share(names(), seed)]
    assert all(abs(count - 100 * share) <= 5 for count, share in zip(counts, (0.6, 0.1, 0.3), strict=True))


def test_share__is_drawn_by_the_seed_and_not_by_the_order():
    first = SPLIT.share(names(), 1)
    assert first == SPLIT.share(names()[::-1], 1)
    assert first != SPLIT.share(names(), 2)
    own = SessionSplit(r"num_(\d+)", gap=100, seed=1)
    assert own.share(names(), 7) == first


def test_share__gives_each_part_a_session_even_if_few_and_large():
    for seed in range(6):
        assert all(SPLIT.share(names(3), seed))


def test_share__says_when_sessions_are_too_few():
    with pytest.raises(ValueError, match="at least 3 sessions"):
        SPLIT.share(names(2), 0)


def test_share__says_which_name_has_no_number():
    with pytest.raises(ValueError, match="'blank'"):
        SPLIT.share(["blank"], 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"train": 0.7}, "add up to 1"), ({"gap": -1}, "gap"), ({"pattern": "("}, "regular expression"), ({"pattern": "num"}, "bracketed")],
)
def test_session_split__refuses_what_cannot_be(changes, text):
    with pytest.raises(ValueError, match=text):
        SessionSplit(**{"pattern": r"(\d+)", **changes})


def test_drawn_to_validate__draws_single_images_by_one_shuffle():
    for count, share, seed in ((10, 0.1, 0), (10, 0.25, 3), (35, 0.1, 1), (7, 0.9, 2), (2, 0.01, 5), (1, 0.5, 0)):
        listed = [f"{number:02d}" for number in range(count)]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        wanted = min(max(1, round(share * count)), count - 1)
        assert drawn_to_validate(listed, share, seed) == {listed[index] for index in order[:wanted]}


@pytest.mark.parametrize("seed", range(6))
def test_drawn_to_validate__never_takes_the_largest_unit_for_a_small_share(seed):
    units = ["large"] * 60 + [f"small {number}" for number in range(8) for _ in range(5)]
    held = drawn_to_validate(units, 0.1, seed)
    assert len(held) == 2
    assert "large" not in held


def test_drawn_to_validate__takes_the_smaller_of_two_and_never_the_only_one():
    assert drawn_to_validate(["a"] * 30 + ["b"] * 20, 0.01, 0) == {"b"}
    assert drawn_to_validate(["a"] * 30, 0.5, 0) == set()


def test_kept_together__knows_sessions_groups_and_single_images():
    listed = ["n_num_1", "n_num_2", "n_num_900"]
    assert kept_together(SPLIT, [listed]) == {"n_num_1": "n_num_1", "n_num_2": "n_num_1", "n_num_900": "n_num_900"}
    assert kept_together(GroupSplit(r"num_(\d)", test=("9",)), [listed]) == {"n_num_1": "1", "n_num_2": "2", "n_num_900": "9"}
    assert kept_together(None, [listed[:1], listed[1:]]) == {name: name for name in listed}


def test_share_out__says_what_helps_where_images_are_few():
    with pytest.raises(ValueError, match=r"at least 3 images to share out, but got 2: \['a', 'b'\].*NameSplit") as raised:
        share_out(ShareSplit(), ["b", "a"], 0)
    assert "block" not in str(raised.value)
    assert share_out(ShareSplit(0.5, 0.0, 0.5), ["b", "a"], 0) == ShareSplit(0.5, 0.0, 0.5).share(["a", "b"], 0)


def test_check_industrial_split__refuses_blocks():
    with pytest.raises(ValueError, match=r"whole images, but got ShareSplit\(block=32\)"):
        check_industrial_split(ShareSplit(block=32))
    check_industrial_split(ShareSplit())
