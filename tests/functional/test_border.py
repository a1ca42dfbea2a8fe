"""Bins of the distance to the border."""

import pytest
import torch

from anomseg.functional.border import bin_count, border_bins, border_distance


def test_border_distance__counts_from_the_nearer_end():
    assert border_distance(5).tolist() == [0, 1, 2, 1, 0]
    assert border_distance(4).tolist() == [0, 1, 1, 0]


def test_border_bins__keep_when_the_part_is_turned_by_half():
    bins = border_bins((11, 16), (1, 3))
    torch.testing.assert_close(bins, bins.flip(0, 1))


def test_border_bins__tell_rows_from_columns():
    bins = border_bins((9, 9), (2,))
    assert bins[0, 4] != bins[4, 0]
    assert bins[0, 0] == bins[8, 8] == bins[0, 8]
    assert bins[4, 4] == 3


def test_border_bins__without_cuts_are_one():
    assert border_bins((4, 6), ()).unique().tolist() == [0]


@pytest.mark.parametrize("cuts", [(), (3,), (2, 5, 9)])
def test_bin_count__is_that_of_the_bins_of_a_large_image(cuts):
    assert border_bins((40, 50), cuts).unique().tolist() == list(range(bin_count(cuts)))


@pytest.mark.parametrize("cuts", [(3, 2), (2, 2), (0, 4)])
def test_border_bins__reject_cuts_that_do_not_increase(cuts):
    with pytest.raises(ValueError, match="increasing cuts"):
        border_bins((8, 8), cuts)
