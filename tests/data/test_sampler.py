import pytest
from torch.utils.data import DistributedSampler

from anomseg.data.sampler import UnpaddedSampler


def parts(count, world, epoch=0, **arguments):
    samplers = [UnpaddedSampler(range(count), world, rank, **arguments) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "world"), [(1, 1), (23, 2), (23, 4), (5, 5), (9, 7), (100, 8)])
def test_unpadded_sampler__visits_every_sample_exactly_once_over_all_ranks(count, world, shuffle):
    drawn = parts(count, world, shuffle=shuffle)
    assert sorted(index for part in drawn for index in part) == list(range(count))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_unpadded_sampler__gives_contiguous_parts_in_order():
    assert parts(7, 3) == [[0, 1], [2, 3, 4], [5, 6]]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("groups", [[0] * 9 + [1] * 2 + [2] * 5, [3, 3, 1, 1, 0, 0, 5, 7, 7], [0, 1, 0, 1, 0, 1, 2]])
def test_unpadded_sampler__keeps_groups_whole_where_there_are_enough(groups, shuffle):
    drawn = parts(len(groups), 3, groups=groups, shuffle=shuffle)
    assert sorted(index for part in drawn for index in part) == list(range(len(groups)))
    assert all(drawn)
    owners = [{groups[index] for index in part} for part in drawn]
    assert sum(map(len, owners)) == len(set(groups))


@pytest.mark.parametrize(
    ("groups", "message"), [([0] * 6, "got 1 for 3 ranks.*at most 1 device"), ([0, 1] * 3, "got 2.*at most 2 devices")]
)
def test_unpadded_sampler__refuses_fewer_groups_than_ranks(groups, message):
    with pytest.raises(ValueError, match=message):
        UnpaddedSampler(range(6), 3, 0, groups=groups)


def test_unpadded_sampler__draws_its_order_from_seed_and_epoch():
    first = parts(50, 1, shuffle=True, seed=0)
    assert first == parts(50, 1, shuffle=True, seed=0)
    assert first != parts(50, 1, epoch=1, shuffle=True, seed=0)
    assert parts(50, 1, epoch=1, shuffle=True, seed=0) != parts(50, 1, epoch=0, shuffle=True, seed=1)


def test_unpadded_sampler__is_alone_without_a_process_group():
    sampler = UnpaddedSampler(range(4))
    assert isinstance(sampler, DistributedSampler)
    assert list(sampler) == [0, 1, 2, 3]


def test_unpadded_sampler__says_what_to_do_with_more_ranks_than_samples():
    with pytest.raises(ValueError, match=r"2 samples for 3 ranks.*at most 2 devices"):
        UnpaddedSampler(range(2), 3, 0)
    with pytest.raises(ValueError, match="Expected 2 group ids"):
        UnpaddedSampler(range(2), groups=[0])
    with pytest.raises(ValueError, match="rank"):
        UnpaddedSampler(range(2), 2, 2)
