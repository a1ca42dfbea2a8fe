import pytest
import torch
from scipy import ndimage

from anomseg.functional.edges import difference_of_gaussians, gradient_magnitude, gradients, laplacian, pyramid_band, second_order

OPERATORS = ["laplacian", "laplacian8", "dog", "pyramid"]


def maps(height=11, width=14):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grid(size=9):
    line = torch.arange(size, dtype=torch.float64)
    return torch.meshgrid(line, line, indexing="ij")


def reference(x, kernel):
    return torch.stack([torch.stack([torch.from_numpy(ndimage.correlate(c.numpy(), kernel, mode="mirror")) for c in image]) for image in x])


@pytest.mark.parametrize(("kernel", "across"), [("sobel", [1, 2, 1]), ("scharr", [3, 10, 3])])
def test_gradients__equal_a_literal_correlation(kernel, across):
    x, weights = maps(), torch.tensor(across, dtype=torch.float64)
    table = torch.outer(weights / weights.sum(), torch.tensor([-0.5, 0, 0.5], dtype=torch.float64)).numpy()
    right, down = gradients(x, kernel)
    torch.testing.assert_close(right, reference(x, table))
    torch.testing.assert_close(down, reference(x, table.T))


@pytest.mark.parametrize("kernel", ["sobel", "scharr"])
def test_gradients__of_a_ramp_are_its_slopes(kernel):
    rows, columns = grid()
    right, down = gradients((3 * rows - 2 * columns)[None, None], kernel)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(down[inner], torch.full_like(down[inner], 3.0))
    torch.testing.assert_close(right[inner], torch.full_like(right[inner], -2.0))


def test_gradient_magnitude__is_invariant_to_quarter_turns_and_finite_where_flat():
    x = maps(12, 12)
    turned = gradient_magnitude(torch.rot90(x, 1, (2, 3)))
    torch.testing.assert_close(turned, torch.rot90(gradient_magnitude(x), 1, (2, 3)))
    flat = torch.ones(1, 1, 5, 5, requires_grad=True)
    gradient_magnitude(flat).sum().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("neighbours", [4, 8])
def test_laplacian__of_a_paraboloid_is_one(neighbours):
    rows, columns = grid()
    found = laplacian(((rows**2 + columns**2) / 4)[None, None], neighbours)[..., 1:-1, 1:-1]
    torch.testing.assert_close(found, torch.ones_like(found))


def test_difference_of_gaussians__equals_a_literal_one():
    x = maps()
    offsets = torch.arange(-2, 3, dtype=torch.float64)
    one, two = (torch.exp(-0.5 * (offsets / s) ** 2) for s in (1.0, 1.6))
    kernel = torch.outer(one, one) / one.sum() ** 2 - torch.outer(two, two) / two.sum() ** 2
    torch.testing.assert_close(difference_of_gaussians(x), reference(x, kernel.numpy()))


@pytest.mark.parametrize("operator", OPERATORS)
def test_second_order__sees_nothing_in_a_flat_map_and_keeps_any_size(operator):
    assert second_order(torch.full((1, 2, 7, 6), 5.0), operator).abs().max() < 1e-5
    for size in ((1, 1), (2, 3), (5, 8)):
        assert second_order(torch.rand(1, 2, *size), operator).shape == (1, 2, *size)


@pytest.mark.parametrize("operator", OPERATORS)
def test_second_order__does_not_mix_channels(operator):
    x = maps()
    torch.testing.assert_close(second_order(x, operator)[:, 1:2], second_order(x[:, 1:2], operator))


def test_pyramid_band__passes_fine_detail_and_stops_coarse():
    rows, columns = grid(32)
    fine = ((-1.0) ** (rows + columns))[None, None]
    coarse = torch.sin(rows / 8)[None, None]
    inner = (..., slice(6, -6), slice(6, -6))
    assert pyramid_band(fine)[inner].abs().mean() > 0.95
    assert pyramid_band(coarse)[inner].abs().mean() < 0.03


def test_operators__refuse_what_they_do_not_know():
    for call in (
        lambda: gradients(maps(), "roberts"),
        lambda: laplacian(maps(), 5),
        lambda: difference_of_gaussians(maps(), ratio=1.0),
        lambda: second_order(maps(), "canny"),
        lambda: laplacian(maps()[0]),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()
