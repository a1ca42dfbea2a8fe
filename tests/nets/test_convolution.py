import pytest
import torch

from anomseg.nets.convolution import (
    Bottleneck,
    ChannelNorm,
    ConvPair,
    ConvUnit,
    ResidualUnit,
    SqueezeExcitation,
    halves,
    map_norm,
    set_bias,
)


def test_channel_norm__gives_every_pixel_mean_0_and_deviation_1():
    y = ChannelNorm(16)(3 + 5 * torch.randn(2, 16, 4, 5))
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std(1, correction=0), torch.ones(2, 4, 5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["group", "layer", "none"])
def test_map_norm__of_one_image_does_not_depend_on_its_batch(kind):
    x = torch.randn(3, 12, 6, 5)
    norm = map_norm(kind, 12).train()
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))


@pytest.mark.parametrize("channels", [1, 6, 7, 24])
def test_map_norm__has_groups_for_any_number_of_channels(channels):
    assert map_norm("group", channels)(torch.randn(1, channels, 3, 3)).shape == (1, channels, 3, 3)


def test_map_norm__refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="batch, group, layer and none"):
        map_norm("instance", 4)


def test_set_bias__sets_all_and_refuses_a_convolution_without():
    layer = torch.nn.Conv2d(2, 3, 1)
    set_bias(layer, -2.5)
    assert layer.bias is not None
    assert layer.bias.tolist() == [-2.5] * 3
    with pytest.raises(ValueError, match="bias=True"):
        set_bias(torch.nn.Conv2d(2, 3, 1, bias=False), 0.0)


@pytest.mark.parametrize(("norm", "biased"), [("batch", False), ("none", True)])
def test_conv_unit__has_a_bias_only_without_a_norm(norm, biased):
    assert (ConvUnit(3, 4, norm=norm)[0].bias is not None) is biased


@pytest.mark.parametrize("block", [Bottleneck(5, 5, "group"), ResidualUnit(5, "group"), SqueezeExcitation(5), ConvUnit(5, 5, norm="group")])
def test_block__keeps_the_size_of_a_map(block):
    assert block(torch.randn(2, 5, 7, 3)).shape == (2, 5, 7, 3)


def test_squeeze_excitation__scales_channels_as_a_whole():
    x = torch.rand(2, 8, 4, 4) + 0.5
    ratio = SqueezeExcitation(8)(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert 0 < ratio.min() < ratio.max() < 1


def test_conv_pair__is_two_units_in_turn():
    pair = ConvPair(3, 6, "group")
    x = torch.randn(2, 3, 8, 10)
    assert torch.equal(pair(x), pair[1](pair[0](x)))
    assert pair(x).shape == (2, 6, 8, 10)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_halves__undo_a_concatenation(dim, size):
    shape = (size, 2, 4) if dim == 0 else (4, 2, size)
    a, b = torch.randn(shape), torch.randn(shape)
    again = halves(torch.cat([a, b], dim), dim)
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)
