import pytest
import torch

from anomseg.functional.edges import gradient_magnitude, laplacian
from anomseg.nets.change_edss import EdgeOperators, EDSSBranch


def dates(batch=2, channels=6):
    return tuple(torch.randn(batch, channels, 7, 8) for _ in range(3))


@pytest.mark.parametrize(("first", "second"), [("sobel", "dog"), ("scharr", None), (None, "pyramid"), (None, None)])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_branch__keeps_the_shape_and_trains(first, second, ratio):
    branch = EDSSBranch(6, 3, first, second, "group", ratio)
    y = branch(*dates())
    y.square().mean().backward()
    assert y.shape == (2, 6, 7, 8)
    assert all(p.grad is not None for p in branch.parameters())


def test_branch__does_not_see_the_order_of_the_dates():
    branch = EDSSBranch(6, 3, norm="group").eval()
    a, b, difference = dates()
    torch.testing.assert_close(branch(a, b, difference), branch(b, a, difference))


def test_branch__sees_edges_of_the_dates_and_not_their_level():
    branch = EDSSBranch(6, 3, norm="group", ratio=0.0).eval()
    a, b, difference = dates(1)
    torch.testing.assert_close(branch(a + 3, b - 2, difference), branch(a, b, difference), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(branch(a, 2 * b, difference), branch(a, b, difference))


def test_branch__without_operators_sees_the_difference_alone():
    branch = EDSSBranch(6, 3, None, None, "group").eval()
    a, b, difference = dates(1)
    assert torch.equal(branch(a, b, difference), branch(b + 1, a, difference))


def test_edge_operators__are_the_fixed_ones_before_one_mixing():
    operators, x = EdgeOperators(6, 3, "sobel", "laplacian"), dates()[0]
    expected = operators.squeeze(torch.cat([gradient_magnitude(x), laplacian(x)], 1))
    torch.testing.assert_close(operators(x), expected)
    assert [name for name, _ in operators.named_parameters()] == ["squeeze.weight", "squeeze.bias"]
