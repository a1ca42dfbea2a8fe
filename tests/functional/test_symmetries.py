import pytest
import torch

from anomseg.functional.symmetries import SYMMETRIES, check_views, mean_over_views, undo_view, view_of


def steep(*planes):
    """Find something that depends on directions: each pixel weighted by its row, less its left neighbour."""
    total = sum(planes)
    rows = torch.arange(1.0, total.shape[-2] + 1)[:, None]
    return total * rows - total.roll(1, -1)


def test_views__are_the_eight_symmetries_of_the_square():
    square = torch.rand(3, 3)
    views = [view_of(square, *symmetry) for symmetry in SYMMETRIES]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    mirrors = {tuple(view.flatten().tolist()) for view in views[:4]}
    assert mirrors == {tuple(square.flip(axes).flatten().tolist()) for axes in ((), (-1,), (-2,), (-2, -1))}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_undo_view__gives_the_planes_back(symmetry):
    planes = torch.rand(2, 4, 5)
    assert torch.equal(undo_view(view_of(planes, *symmetry), *symmetry), planes)


@pytest.mark.parametrize("views", [1, 4, 8])
def test_mean_over_views__is_the_literal_mean(views):
    first, second = torch.rand(2, 5, 7), torch.rand(2, 5, 7)
    literal = [undo_view(steep(view_of(first, *symmetry), view_of(second, *symmetry)), *symmetry) for symmetry in SYMMETRIES[:views]]
    torch.testing.assert_close(mean_over_views(steep, first, second, views=views), torch.stack(literal).mean(0))


@pytest.mark.parametrize(("views", "moves"), [(4, SYMMETRIES[:4]), (8, SYMMETRIES)])
def test_mean_over_views__moves_with_the_image(views, moves):
    image = torch.rand(1, 5, 7)
    found = mean_over_views(steep, image, views=views)
    for symmetry in moves:
        turned = mean_over_views(steep, view_of(image, *symmetry), views=views)
        torch.testing.assert_close(turned, view_of(found, *symmetry))
    assert not torch.allclose(steep(image.flip(-1)), steep(image).flip(-1))


@pytest.mark.parametrize("views", [0, 2, 16])
def test_check_views__refuses_what_is_no_group(views):
    with pytest.raises(ValueError, match="Expected 1 view, 4"):
        check_views(views)
    with pytest.raises(ValueError, match="Expected 1 view, 4"):
        mean_over_views(steep, torch.rand(1, 3, 3), views=views)
