import pytest
import torch

from anomseg.functional.scan import cross_merge, cross_scan, cross_selective_scan, cross_sequences, merge_sequences, selective_scan


def test_cross_scan__reads_rows_columns_and_both_from_the_end():
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    expected = [[1, 2, 3, 4, 5, 6], [1, 4, 2, 5, 3, 6], [6, 5, 4, 3, 2, 1], [6, 3, 5, 2, 4, 1]]
    assert cross_scan(x)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("read", "merge", "directions"), [(cross_scan, cross_merge, 4), (cross_sequences, merge_sequences, 2)])
def test_merging__is_the_exact_adjoint_of_reading(read, merge, directions):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, directions, 3, 20, dtype=torch.float64)
    torch.testing.assert_close((read(x) * y).sum(), (x * merge(y, 4, 5)).sum())
    assert torch.autograd.grad(read(x), x, y)[0].allclose(merge(y, 4, 5))


def test_merging_what_was_read__is_four_times_the_image():
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(cross_merge(cross_scan(x), 3, 4), 4 * x)


def test_cross_selective_scan__equals_flipped_copies_and_their_gradients():
    torch.manual_seed(0)
    height, width, channels, state = 5, 4, 3, 2

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    x, delta = draw(2, channels, height, width), draw(2, 4, channels, height * width)
    sides = draw(2, 4, state, height * width), draw(2, 4, state, height * width)
    given = [v.requires_grad_() for v in (x, delta, -draw(4 * channels, state).abs(), *sides, draw(4 * channels), draw(4 * channels))]

    def flipped(x, delta, A, B, C, D, bias):
        def turn(v):
            return torch.cat([v[:, :2], v[:, 2:].flip(-1)], 1)

        y = selective_scan(
            cross_scan(x).flatten(1, 2), turn(delta).flatten(1, 2), A, turn(B), turn(C), D, None, bias, True, backend="reference"
        )
        return cross_merge(y.unflatten(1, (4, channels)), height, width)

    found, expected = cross_selective_scan(*given, True), flipped(*given)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, given, slope), torch.autograd.grad(expected, given, slope))


def test_cross_selective_scan__lets_every_pixel_see_every_other():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 3, 3, requires_grad=True)
    sides = torch.ones(1, 4, 1, 9)
    for pixel in range(9):
        y = cross_selective_scan(x, torch.full((1, 4, 1, 9), 0.1), -torch.ones(4, 1), sides, sides).flatten()[pixel]
        assert bool((torch.autograd.grad(y, x)[0] != 0).all())


@pytest.mark.parametrize("call", [lambda: cross_scan(torch.zeros(3, 4, 4)), lambda: cross_merge(torch.zeros(1, 2, 3, 16), 4, 4)])
def test_shapes_that_do_not_fit__are_errors(call):
    with pytest.raises(ValueError, match="Expected"):
        call()
