import pytest
import torch

from anomseg.nets.change_siss import DifferenceBlock, SISSBlock, deinterleave, interleave


@pytest.mark.parametrize("width", [1, 4, 7])
def test_arrangements__are_undone_exactly(width):
    a, b = torch.randn(2, 3, 5, width), torch.randn(2, 3, 5, width)
    joined = interleave(a, b)
    assert joined.shape == (2, 3, 5, 2 * width)
    again = deinterleave(joined)
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)


def test_interleave__puts_a_pixel_next_to_itself_at_the_other_date():
    a, b = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    assert interleave(a, b).flatten().tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("arrangements", [("split",), ("interleave",), ("cat",), ("split", "interleave", "cat")])
@pytest.mark.parametrize("shared", [True, False])
def test_siss__lets_each_date_see_the_whole_of_the_other(arrangements, shared):
    torch.manual_seed(0)
    block = SISSBlock(4, arrangements, shared, norm="group")
    a, b = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6, requires_grad=True)
    block(a, b)[0][0, :, 1, 1].sum().backward()
    assert (b.grad.abs().sum(1) > 0).all()


def test_siss__shares_its_scan_unless_told_otherwise():
    assert len(SISSBlock(4, ("split", "interleave")).scans) == 1
    assert len(SISSBlock(4, ("split", "interleave"), shared=False).scans) == 2


def test_siss__without_its_scan_is_the_mlp_of_each_date():
    block = SISSBlock(4, norm="group").eval()
    for scan in block.scans:
        torch.nn.init.zeros_(scan.reduce.weight)
    block.gain_a.data.zero_()
    block.gain_b.data.zero_()
    a, b = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    for found, date in zip(block(a, b), (a, b), strict=True):
        torch.testing.assert_close(found, date + block.mlp(date))


@pytest.mark.parametrize("arrangements", [(), ("split", "split"), ("diagonal",)])
def test_siss__refuses_arrangements_it_does_not_know(arrangements):
    with pytest.raises(ValueError, match="arrangements"):
        SISSBlock(4, arrangements)


def test_difference_block__does_not_see_the_order_of_the_dates_unless_signed():
    a, b = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    plain, signed = DifferenceBlock(4).eval(), DifferenceBlock(4, signed=True).eval()
    assert torch.equal(plain(a, b), plain(b, a))
    assert not torch.allclose(signed(a, b), signed(b, a))
