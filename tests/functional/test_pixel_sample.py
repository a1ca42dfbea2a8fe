import pytest
import torch

from anomseg.functional.pixel_sample import add_pixels, draw_pixels, join_samples, merge_samples


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draw_pixels__takes_each_pixel_equally_often():
    pixels = torch.arange(20.0)[:, None]
    counts = torch.zeros(20)
    drawing = generator()
    for _ in range(2000):
        counts[draw_pixels(pixels, 5, drawing).pixels[:, 0].long()] += 1
    assert counts.sum() == 2000 * 5
    assert (counts - 500).abs().max() < 6 * (2000 * 0.25 * 0.75) ** 0.5


def test_merge_samples__takes_from_parts_by_their_size():
    shares = []
    for seed in range(300):
        drawing = generator(seed)
        small, large = draw_pixels(torch.zeros(50, 1), 20, drawing), draw_pixels(torch.ones(150, 1), 20, drawing)
        shares.append(merge_samples(small, large, 20).pixels.mean())
    assert float(torch.stack(shares).mean()) == pytest.approx(0.75, abs=0.03)


def test_merge_samples__does_not_depend_on_the_order_of_parts():
    drawing = generator()
    parts = [draw_pixels(torch.rand(30, 2, generator=drawing), 10, drawing) for _ in range(3)]
    one = merge_samples(merge_samples(parts[0], parts[1], 10), parts[2], 10)
    other = merge_samples(parts[2], merge_samples(parts[1], parts[0], 10), 10)
    assert torch.equal(one.pixels, other.pixels)


def test_draw_pixels__gives_all_where_they_are_few():
    pixels = torch.rand(7, 3)
    drawn = draw_pixels(pixels, 100, generator())
    assert torch.equal(drawn.pixels.sort(0).values, pixels.sort(0).values)


def test_draw_pixels__refuses_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(N, C\)"):
        draw_pixels(torch.rand(2, 3, 4), 5, generator())


def test_add_pixels__draws_and_joins_as_one_after_the_other():
    first, second = torch.rand(30, 2), torch.rand(50, 2)
    drawing = generator()
    apart = [draw_pixels(part, 8, drawing) for part in (first, second)]
    drawing = generator()
    running = add_pixels(add_pixels(None, first, 8, drawing), second, 8, drawing)
    for joined in (merge_samples(*apart, 8), join_samples(apart, 8)):
        assert torch.equal(running.pixels, joined.pixels)
        assert torch.equal(running.key, joined.key)
