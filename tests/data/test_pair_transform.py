import pickle

import pytest
import torch

from anomseg.data.pair_transform import Binarise, GlobalShift, LocalShift
from anomseg.functional.registration import moved_by, shifted


def board(size=(50, 60)):
    return (torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 255


def test_binarise__gives_0_and_1_and_keeps_nan():
    pair = torch.tensor([0.0, 127.0, 127.5, 255.0, torch.nan]).expand(2, 1, 1, 5)
    out = Binarise(127)(pair)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("moved", ["before", "after"])
def test_global_shift__lays_one_date_onto_the_other_and_leaves_that_alone(moved):
    after = board()
    before = shifted(after, (-3, 5))
    out = GlobalShift(8, moved)(torch.stack([before, after]))
    still = 1 if moved == "before" else 0
    assert torch.equal(out[still], (before, after)[still])
    assert torch.equal(out[0, :, 8:-8, 8:-8], out[1, :, 8:-8, 8:-8])


def test_global_shift__keeps_every_pixel_or_marks_what_comes_in():
    after = board()
    pair = torch.stack([shifted(after, (-3, 5)), after])
    assert bool(torch.isfinite(GlobalShift(8)(pair)).all())
    lost = torch.isnan(GlobalShift(8, border="nodata")(pair))
    assert torch.equal(lost[0], lost[1])
    assert int(lost[0, 0].sum()) == 50 * 60 - 47 * 55


@pytest.mark.parametrize("moved", ["before", "after"])
@pytest.mark.parametrize("shift", [(-3, 5), (0, 0)])
def test_global_shift__keeps_what_was_read_before_what_it_moves(moved, shift):
    after = board()
    pair = torch.stack([shifted(after, shift), after])
    out = GlobalShift(8, moved, keep=True)(pair)
    assert torch.equal(out[:, :1], pair)
    assert torch.equal(out[:, 1:], GlobalShift(8, moved)(pair))


def test_global_shift__that_keeps_has_no_data_in_any_band_where_it_lost_some():
    after = board()
    lost = torch.isnan(GlobalShift(8, border="nodata", keep=True)(torch.stack([shifted(after, (-3, 5)), after])))
    assert bool((lost == lost[:1, :1]).all())
    assert int(lost[0, 0].sum()) == 50 * 60 - 47 * 55


def test_global_shift__moves_within_its_range_only():
    after = board()
    pair = torch.stack([shifted(after, (9, 0)), after])
    assert torch.equal(GlobalShift(9)(pair)[0, :, 10:-10], after[:, 10:-10])
    assert not torch.equal(GlobalShift(4)(pair)[0, :, 10:-10], after[:, 10:-10])


@pytest.mark.parametrize("transform", [Binarise(3.0), GlobalShift(5), GlobalShift(5, keep=True), LocalShift(5, keep=True)])
def test_pair_transforms__say_how_many_bands_come_out(transform):
    pair = torch.stack([board(), board()]).repeat(1, 3, 1, 1)
    assert transform(pair).shape[1] == transform.bands(3)


def test_pair_transforms__pickle_and_compare_by_value():
    for transform in (Binarise(3.0), GlobalShift(5, "after"), LocalShift(5, "after", reach=2)):
        assert pickle.loads(pickle.dumps(transform)) == transform
        assert hash(pickle.loads(pickle.dumps(transform))) == hash(transform)


def test_global_shift__says_what_is_wrong():
    with pytest.raises(ValueError, match="max_shift >= 1"):
        GlobalShift(0)
    with pytest.raises(ValueError, match="'both'"):
        GlobalShift(3, "both")


def bent(size=(120, 150)):
    """A board and the same bent: its right half lies two pixels lower."""
    flat = board(size)
    field = torch.zeros(2, *size, dtype=torch.int64)
    field[0, :, size[1] // 2 :] = 2
    return flat, moved_by(flat, field)


@pytest.mark.parametrize("moved", ["before", "after"])
def test_local_shift__lays_a_bent_date_onto_the_other_where_one_shift_cannot(moved):
    flat, other = bent()
    before, after = (shifted(flat, (-3, 5)), other) if moved == "before" else (other, shifted(flat, (-3, 5)))
    pair = torch.stack([before, after])
    wrong = {}
    for shift in (GlobalShift(8, moved), LocalShift(8, moved, reach=3, window=24)):
        out = shift(pair)
        still = 1 if moved == "before" else 0
        assert torch.equal(out[still], pair[still])
        wrong[type(shift)] = float((out[0] != out[1])[..., 10:-10, 10:-10].float().mean())
    assert wrong[LocalShift] < 0.1 < 0.2 < wrong[GlobalShift]


def test_local_shift__keeps_what_was_read_and_marks_what_comes_in():
    flat, other = bent()
    pair = torch.stack([flat, other])
    kept = LocalShift(8, keep=True, window=24)(pair)
    assert torch.equal(kept[:, :1], pair)
    assert torch.equal(kept[:, 1:], LocalShift(8, window=24)(pair))
    lost = torch.isnan(LocalShift(8, border="nodata", keep=True, window=24)(pair))
    assert bool(lost.any())
    assert bool((lost == lost[:1, :1]).all())
    assert torch.equal(LocalShift(8, keep=True)(torch.stack([flat, flat])), torch.stack([flat, flat]).repeat(1, 2, 1, 1))


def test_local_shift__says_what_is_wrong():
    with pytest.raises(ValueError, match="max_shift >= 1"):
        LocalShift(0)
    with pytest.raises(ValueError, match="reach >= 1"):
        LocalShift(3, reach=0)
    with pytest.raises(ValueError, match="window >= 3"):
        LocalShift(3, window=2)
