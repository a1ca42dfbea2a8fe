import pytest

from anomseg.data.group_split import GroupSplit

NAMES = ["b_2", "a_1", "a_2", "c_1", "b_1"]


def test_group_split__keeps_each_group_in_one_part():
    assert GroupSplit(r"^.", ("b",), ("c",)).share(NAMES, 0) == (["a_1", "a_2"], ["c_1"], ["b_1", "b_2"])


def test_group_split__takes_the_rest_to_train_unless_groups_are_named():
    assert GroupSplit(r"^.", ("b",)).share(NAMES, 0)[0] == ["a_1", "a_2", "c_1"]
    assert GroupSplit(r"^.", ("b",), train=("c",)).share(NAMES, 0)[0] == ["c_1"]


def test_group_split__reads_the_group_from_brackets_where_there_are_some():
    assert GroupSplit(r"_(\d)", ("2",)).share(NAMES, 0) == (["a_1", "b_1", "c_1"], [], ["a_2", "b_2"])


@pytest.mark.parametrize("seed", [0, 5])
def test_group_split__does_not_depend_on_seed_or_order(seed):
    assert GroupSplit(r"^.", ("b",)).share(sorted(NAMES), seed) == GroupSplit(r"^.", ("b",)).share(NAMES, 0)


def test_group_split__says_what_is_wrong():
    with pytest.raises(ValueError, match=r"\['z'\].*finds \['a', 'b', 'c'\]"):
        GroupSplit(r"^.", ("z",)).share(NAMES, 0)
    with pytest.raises(ValueError, match="of training"):
        GroupSplit(r"^.", ("a", "b", "c")).share(NAMES, 0)
    with pytest.raises(ValueError, match="'a_1' has none"):
        GroupSplit(r"^b", ("b",)).share(NAMES, 0)
    with pytest.raises(ValueError, match=r"\['a'\] are named more than once"):
        GroupSplit(r"^.", ("a",), ("a",))
    with pytest.raises(ValueError, match="regular expression"):
        GroupSplit("(", ("a",))
