import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anomseg.functional.registration import global_shift, local_shift, moved_by, shifted


def image(bands=2, size=(90, 100), seed=0):
    return torch.rand(bands, *size, generator=torch.Generator().manual_seed(seed))


def views(shift, size=(60, 70), bands=2):
    """Two windows of one image: the second shows what the first shows, moved by the shift."""
    whole = image(bands)
    return [whole[:, 15 - down : 15 - down + size[0], 15 - right : 15 - right + size[1]] for down, right in ((0, 0), shift)]


def correlation_of(before, after, shift):
    moved = shifted(before, shift, "nodata")
    both = torch.isfinite(moved).all(0) & torch.isfinite(after).all(0)
    a, b = moved[:, both].double(), after[:, both].double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-8, 8), (1, 0), (0, -12)])
def test_global_shift__finds_the_shift_whatever_gain_and_offset(shift):
    before, after = views(shift)
    found, correlation = global_shift(before, 40 - 0.3 * -after, 12)
    assert found == shift
    assert correlation == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(
        torch.nan_to_num(shifted(before, found, "nodata"), nan=0.5), after.where(torch.isfinite(shifted(before, found, "nodata")), 0.5)
    )


def test_global_shift__maximises_the_correlation_of_the_pixels_that_overlap():
    before, after = image(1, (24, 30), 1), image(1, (24, 30), 2)
    before[:, 3:7, 3:9] = torch.nan
    after[:, 20:, :4] = torch.nan
    scaled_before, scaled_after = ((date - date.nanmean()) / date[torch.isfinite(date)].std() for date in (before, after))
    every = {(r, c): correlation_of(scaled_before, scaled_after, (r, c)) for r in range(-5, 6) for c in range(-5, 6)}
    shift, correlation = global_shift(before, after, 5)
    assert shift == max(every, key=every.get)
    assert correlation == pytest.approx(max(every.values()), abs=1e-4)


def test_global_shift__does_not_see_pixels_without_data():
    before, after = views((4, 6))
    spoilt = after.clone()
    spoilt[:, 10:30, 10:50] = torch.nan
    hidden = spoilt.clone()
    hidden[0, 10:30, 10:50] = 1e4  # the other band is still NaN there
    assert global_shift(before, spoilt, 9) == global_shift(before, hidden, 9)
    assert global_shift(before, spoilt, 9)[0] == (4, 6)


@pytest.mark.parametrize("flat", [torch.ones(1, 20, 20), torch.full((1, 20, 20), torch.nan)])
def test_global_shift__leaves_images_where_nothing_can_be_told(flat):
    assert global_shift(flat, image(1, (20, 20)), 6)[0] == (0, 0)


def test_global_shift__holds_no_array_larger_than_an_image():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel()) if isinstance(out, torch.Tensor) else largest
            return out

    before, after = views((2, -3), bands=8)
    with Watch():
        assert global_shift(before, after, 4)[0] == (2, -3)
    assert 0 < largest <= before.numel()


def test_global_shift__says_what_is_wrong():
    with pytest.raises(ValueError, match="one shape"):
        global_shift(image(1), image(2), 3)
    with pytest.raises(ValueError, match="max_shift of 0 to 89"):
        global_shift(image(), image(), 90)


@pytest.mark.parametrize("shift", [(0, 0), (2, 3), (-4, 1), (5, -6)])
def test_shifted__moves_every_pixel_and_fills_the_border(shift):
    original = image(2, (12, 15))
    down, right = shift
    rows = (torch.arange(12) - down).clamp(0, 11)
    columns = (torch.arange(15) - right).clamp(0, 14)
    assert torch.equal(shifted(original, shift), original[:, rows][:, :, columns])
    empty = shifted(original, shift, "nodata")
    inside = torch.isfinite(empty)
    assert int((~inside[0]).sum()) == 12 * 15 - (12 - abs(down)) * (15 - abs(right))
    assert torch.equal(empty[inside], shifted(original, shift)[inside])


def test_shifted__undoes_itself_where_data_is_left():
    original = image(1, (12, 15))
    back = shifted(shifted(original, (3, -4), "nodata"), (-3, 4), "nodata")
    assert torch.equal(back[torch.isfinite(back)], original[torch.isfinite(back)])
    assert int(torch.isfinite(back).sum()) == 9 * 11


def test_shifted__refuses_a_shift_out_of_the_image():
    with pytest.raises(ValueError, match="smaller than the image"):
        shifted(image(1, (5, 5)), (5, 0))


def test_local_shift__finds_the_shift_of_each_place_whatever_gain_and_offset():
    before = image(2, (90, 120))
    field = torch.zeros(2, 90, 120, dtype=torch.int64)
    field[0, :, 60:], field[1, :, :60] = 3, -2
    found = local_shift(before, 40 + 3 * moved_by(before, field), 4, 24)
    assert found.dtype == torch.int64
    for part in (slice(12, 48), slice(72, 108)):
        assert torch.equal(found[:, 12:-12, part], field[:, 12:-12, part])


def test_local_shift__is_the_best_shift_of_a_window():
    before, after = (torch.nn.functional.avg_pool2d(image(1, (24, 24), seed), 3, 1, 1) for seed in (1, 2))
    found = local_shift(before, after, 2, 72)  # one window holds all
    assert bool((found == found[:, :1, :1]).all())
    scaled = [(date - date.mean()) / date.std(correction=0) for date in (before, after)]
    stay = (scaled[0] - scaled[1]).abs()
    gain = {}
    for shift in [(r, c) for r in range(-2, 3) for c in range(-2, 3)]:
        gap = (shifted(scaled[0], shift, "nodata") - scaled[1]).abs()
        gain[shift] = float((stay - gap * (1 + 0.02 * (shift[0] ** 2 + shift[1] ** 2) ** 0.5)).nanmean())
    best = max(gain, key=gain.get)
    assert best != (0, 0)
    assert tuple(found[:, 0, 0].tolist()) == best


def test_local_shift__moves_nothing_along_an_edge_or_where_nothing_can_be_told():
    stripes = (torch.arange(60) // 5 % 2).float().expand(1, 60, 60)
    found = local_shift(stripes, shifted(stripes, (0, 2)), 4, 24)
    assert int(found[0].abs().max()) == 0  # rows are alike
    assert bool((found[1, :, 12:48] == 2).all())
    for flat in (torch.ones(1, 20, 20), torch.full((1, 20, 20), torch.nan)):
        assert not local_shift(flat, image(1, (20, 20)), 3, 9).any()


def test_local_shift__does_not_see_pixels_without_data():
    before, after = views((2, -1))
    after = after.clone()
    after[:, 10:30, 10:30] = torch.nan
    hidden = after.clone()
    hidden[0, 10:30, 10:30] = 1e4  # the other band is still NaN there
    found = local_shift(before, after, 3, 30)
    assert torch.equal(found, local_shift(before, hidden, 3, 30))
    assert found[:, 45, 50].tolist() == [2, -1]


def test_moved_by__takes_each_pixel_from_its_own_place():
    before = image(2, (9, 11))
    field = torch.randint(-3, 4, (2, 9, 11), generator=torch.Generator().manual_seed(0))
    edge, lost = moved_by(before, field), moved_by(before, field, "nodata")
    for y in range(9):
        for x in range(11):
            row, column = y - int(field[0, y, x]), x - int(field[1, y, x])
            assert torch.equal(edge[:, y, x], before[:, min(max(row, 0), 8), min(max(column, 0), 10)])
            assert bool(torch.isnan(lost[:, y, x]).all()) == (not (0 <= row < 9 and 0 <= column < 11))
    whole = torch.tensor([2, -3])[:, None, None].expand(2, 9, 11)
    assert torch.equal(moved_by(before, whole), shifted(before, (2, -3)))


def test_local_shift__says_what_is_wrong():
    with pytest.raises(ValueError, match="one shape"):
        local_shift(image(1), image(2))
    with pytest.raises(ValueError, match="reach of 0 to 89"):
        local_shift(image(), image(), 90)
    with pytest.raises(ValueError, match="window of at least 3"):
        local_shift(image(), image(), 2, 2)
    with pytest.raises(ValueError, match=r"shape \(2, 90, 100\)"):
        moved_by(image(), torch.zeros(2, 9, 9, dtype=torch.int64))
