import pytest
import torch

from anomseg.functional.scan import blocks
from anomseg.functional.scan.blocks import CHECKPOINT, Block, Plan, Scratch


def plan_of(batch, channels, length, state, groups):
    return Plan.of(torch.empty(batch, channels, length), torch.empty(batch, groups, state, length))


@pytest.mark.parametrize(
    "shape", [(1, 384, 4096, 1, 4), (1, 96, 4096, 16, 1), (16, 768, 300, 16, 1), (8, 8, 1, 1, 2), (1, 1, 65536, 1, 1), (3, 6, 257, 2, 3)]
)
def test_plan__covers_every_channel_and_token_once_in_bounded_blocks(shape):
    batch, channels, length, state, groups = shape
    plan = plan_of(*shape)
    seen = torch.zeros(batch * groups, channels // groups, length, dtype=torch.int8)
    for part in plan.parts():
        tiles = plan.blocks(part, reverse=False)
        assert tiles == plan.blocks(part, reverse=True)[::-1]
        for block in tiles:
            place = seen[part[0], part[2], block.start : block.stop]
            place += 1
            assert (block.stop - block.start) % block.steps == 0
            assert place.shape[0] * place.shape[1] * (block.stop - block.start) * state <= 1.1 * blocks.BLOCK
    assert bool((seen == 1).all())


def test_plan__keeps_one_state_for_each_stretch():
    plan = plan_of(1, 4, CHECKPOINT * 2 + 1, 1, 1)
    kept = [c for block in plan.blocks(next(plan.parts()), False) for c in range(plan.checkpoints)[block.checkpoints]]
    assert kept == [0, 1, 2]


def test_states__survive_folding_and_unfolding():
    x = torch.randn(5, 3, 8, 2)
    plan = plan_of(3, 8, 10, 2, 4)
    assert plan.fold_state(x).shape == (5, 12, 2, 2)
    assert torch.equal(plan.unfold_state(plan.fold_state(x)), x)


def test_block__loads_time_first_with_zeros_past_the_end_and_stores_back():
    x = torch.arange(2 * 3 * 7.0).reshape(2, 3, 7) + 1
    block, scratch = Block((slice(1, 2), slice(None), slice(0, 2)), 4, 8, 2), Scratch(x)
    values = block.load(x, "x", scratch)
    assert values.shape == (2, 2, 1, 1, 2)
    assert torch.equal(values.view(4, 2)[:3], x[1, :2, 4:].T)
    assert not values.view(4, 2)[3].any()
    back = torch.zeros_like(x)
    block.store(values, back, scratch)
    assert torch.equal(back[1, :2, 4:], x[1, :2, 4:])
    assert int((back != 0).sum()) == 6


def test_block__adds_sides_where_they_were_loaded():
    x = torch.randn(2, 3, 6)
    block, scratch = Block((slice(0, 2), slice(None), slice(0, 1)), 0, 8, 4), Scratch(x)
    into = x.clone()
    block.add_sides(block.load_sides(x, "x", scratch), into, scratch)
    assert torch.equal(into, 2 * x)


def test_scratch__lends_the_same_memory_by_the_same_name():
    scratch = Scratch(torch.empty(0))
    first = scratch("a", 4, 5)
    assert scratch("a", 2, 3).data_ptr() == first.data_ptr()
    assert scratch("b", 2, 3).data_ptr() != first.data_ptr()
