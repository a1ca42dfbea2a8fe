import pickle

import pytest
import torch

from anomseg.data.pair_transform import Binarise, GlobalShift
from anomseg.functional.registration import shifted


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


def test_pair_transforms__pickle_and_compare_by_value():
    for transform in (Binarise(3.0), GlobalShift(5, "after")):
        assert pickle.loads(pickle.dumps(transform)) == transform
        assert hash(pickle.loads(pickle.dumps(transform))) == hash(transform)


def test_global_shift__says_what_is_wrong():
    with pytest.raises(ValueError, match="max_shift >= 1"):
        GlobalShift(0)
    with pytest.raises(ValueError, match="'both'"):
        GlobalShift(3, "both")
