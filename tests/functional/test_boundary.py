import pytest
import torch

from anomseg.functional.boundary import boundary_matches, inner_boundary, within


def square(top, left, side, size=(30, 32)):
    plane = torch.zeros(1, *size, dtype=torch.bool)
    plane[0, top : top + side, left : left + side] = True
    return plane


def all_known(plane):
    return torch.ones_like(plane)


def test_inner_boundary__is_the_rim_of_a_square():
    plane = square(5, 6, 8)
    inside = square(6, 7, 6)
    assert torch.equal(inner_boundary(plane, all_known(plane)), plane & ~inside)


def test_inner_boundary__does_not_run_along_the_border_of_the_image():
    plane = square(0, 0, 8)
    rim = inner_boundary(plane, all_known(plane))
    assert int(rim.sum()) == 15
    assert bool(rim[0, 7, :8].all() & rim[0, :8, 7].all())


def test_inner_boundary__does_not_run_along_ignored_pixels():
    plane, known = square(5, 6, 8), torch.ones(1, 30, 32, dtype=torch.bool)
    known[:, :, 14:] = False  # the square ends at column 13
    rim = inner_boundary(plane, known)
    assert not bool(rim[0, 6:12, 13].any())
    assert bool(rim[0, 5:13, 6].all())


@pytest.mark.parametrize("distance", [0, 1, 1.5, 3, 4.2])
def test_within__is_the_euclidean_distance(distance):
    plane = torch.rand(2, 20, 24, generator=torch.Generator().manual_seed(0)) > 0.98
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(24), indexing="ij")
    for sample, near in zip(plane, within(plane, distance), strict=True):
        places = sample.nonzero()
        squares = (rows[..., None] - places[:, 0]) ** 2 + (columns[..., None] - places[:, 1]) ** 2
        assert torch.equal(near, squares.min(-1).values <= distance**2)


def test_boundary_matches__counts_all_of_equal_maps():
    mask = square(5, 6, 8).long()
    assert boundary_matches(mask == 1, mask).tolist() == [28, 28, 28, 28]


@pytest.mark.parametrize(("shift", "found"), [(3, True), (4, False)])
def test_boundary_matches__allow_for_the_tolerance_and_no_more(shift, found):
    mask, predicted = square(10, 10, 1).long(), square(10, 10 + shift, 1)
    assert boundary_matches(predicted, mask, 3.0).tolist() == [int(found), 1, int(found), 1]


def test_boundary_matches__does_not_see_ignored_pixels():
    generator = torch.Generator().manual_seed(1)
    predicted, mask = torch.rand(2, 20, 20, generator=generator) > 0.6, (torch.rand(2, 20, 20, generator=generator) > 0.7).long()
    mask[:, 6:11, 4:15] = 255
    other = predicted.clone()
    other[mask == 255] ^= True
    assert torch.equal(boundary_matches(predicted, mask), boundary_matches(other, mask))
    assert int(boundary_matches(predicted, mask)[1]) > 0


def test_boundary_matches__swap_with_the_maps():
    generator = torch.Generator().manual_seed(2)
    one, other = torch.rand(2, 1, 25, 25, generator=generator) > 0.8
    forth, back = boundary_matches(one, other.long(), 1.0).tolist(), boundary_matches(other, one.long(), 1.0).tolist()
    assert forth == [*back[2:], *back[:2]]


def test_boundary_matches__says_what_is_wrong():
    with pytest.raises(ValueError, match="one shape"):
        boundary_matches(square(1, 1, 3), square(1, 1, 3)[0].long())
    with pytest.raises(ValueError, match="tolerance"):
        boundary_matches(square(1, 1, 3), square(1, 1, 3).long(), -1.0)
