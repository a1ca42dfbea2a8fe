import pytest
import torch

from anomseg.nets.change_stem import ConvolutionStem, PairStem, SpaceToDepthStem


@pytest.mark.parametrize("bands", [1, 3, 13])
@pytest.mark.parametrize(("kind", "stride"), [("convolution", 2), ("convolution", 4), ("space_to_depth", 2), ("space_to_depth", 8)])
@pytest.mark.parametrize("difference", [False, True])
def test_pair_stem__gives_both_dates_at_its_stride(bands, kind, stride, difference):
    stem = PairStem(bands, 6, kind, stride, difference=difference, norm="group")
    for date in stem(torch.randn(2, bands, 16, 24), torch.randn(2, bands, 16, 24)):
        assert date.shape == (2, 6, 16 // stride, 24 // stride)


@pytest.mark.parametrize("difference", [False, True])
def test_pair_stem__that_is_shared_treats_the_dates_alike(difference):
    stem = PairStem(3, 6, shared=True, difference=difference, norm="group")
    before, after = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    (a, b), (d, c) = stem(before, after), stem(after, before)
    torch.testing.assert_close(a, c)
    torch.testing.assert_close(b, d)


def test_pair_stem__has_two_sets_of_weights_unless_shared():
    assert len(PairStem(3, 6).stems) == 2
    assert len(PairStem(3, 6, shared=True).stems) == 1


def test_space_to_depth_stem__sees_every_pixel_of_a_block():
    stem = SpaceToDepthStem(1, 5, 4, "none")
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    stem.body[0](torch.nn.functional.pixel_unshuffle(x, 4))[0, :, 0, 0].sum().backward()
    assert (x.grad[0, 0] != 0).all()  # a 3 x 3 convolution of 2 x 2 blocks reaches them all


def test_stem__refuses_strides_it_cannot_have():
    for call in (lambda: ConvolutionStem(3, 6, 8), lambda: PairStem(3, 6, "space_to_depth", 3), lambda: PairStem(3, 6, "patch")):
        with pytest.raises(ValueError, match="Expected"):
            call()
