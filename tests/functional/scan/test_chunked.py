import itertools

import pytest
import torch

from anomseg.functional.scan import blocks
from anomseg.functional.scan.chunked import chunked_backward, chunked_forward
from anomseg.functional.scan.recurrence import reference_scan


def operands(length, state, groups, batch=2, channels=8):
    generator = torch.Generator().manual_seed(length + state)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    u, delta, rates = draw(batch, channels, length), draw(batch, channels, length).abs(), -draw(channels, state).abs()
    return u, delta, rates, draw(batch, groups, state, length), draw(batch, groups, state, length), draw(batch, channels, state)


@pytest.mark.parametrize("size", [1 << 19, 3000])  # one block, and blocks of some tokens, rows or channels
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", [1, 3])
def test_chunked__equals_the_loop_and_its_gradients(monkeypatch, size, reverse, state):
    monkeypatch.setattr(blocks, "BLOCK", size)
    for length, groups in itertools.product((1, 2, 64, 257, 600), (1, 4)):
        given = [x.requires_grad_() for x in operands(length, state, groups)]
        y, last = reference_scan(*given, reverse=reverse)
        slope, end = torch.randn_like(y), torch.randn_like(last)
        expected = torch.autograd.grad([y, last], given, [slope, end])
        with torch.no_grad():
            found, there, kept = chunked_forward(*given, reverse=reverse)
            gradients = chunked_backward(slope, end, *given[:5], kept, reverse=reverse)
        torch.testing.assert_close([found, there], [y, last])
        torch.testing.assert_close(tuple(gradients), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_kept_states__are_those_that_enter_each_stretch(reverse):
    length = 2 * blocks.CHECKPOINT + 30
    given = operands(length, 2, 1)
    kept = chunked_forward(*given, reverse=reverse)[2]
    for index in range(3):
        read = slice((index + 1) * blocks.CHECKPOINT, None) if reverse else slice(0, index * blocks.CHECKPOINT)
        cut = [x[..., read] if x.shape[-1] == length else x for x in given]
        expected = reference_scan(*cut, reverse=reverse)[1] if cut[0].shape[-1] else given[5]
        torch.testing.assert_close(kept[index], expected)


def test_memory__does_not_grow_with_length_times_state():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, list | tuple) else [out]:
                largest = max(largest, x.numel()) if isinstance(x, torch.Tensor) else largest
            return out

    given = operands(4096, 16, 1, batch=1, channels=64)
    with Watch():
        chunked_forward(*given)
    assert largest <= blocks.BLOCK < 4096 * 64 * 16
