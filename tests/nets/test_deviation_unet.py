from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from anomseg.functional.side_loss import side_loss
from anomseg.nets.deviation_unet import DeviationUNet, DeviationUNetLayout, global_attention, local_attention, tdd_layout, uniadrs_layout

SLIM = 1 / 16
LAYOUTS = [tdd_layout(), uniadrs_layout()]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on maps this small the threads of a busy machine only wait for one another
    yield
    torch.set_num_threads(before)


def net(layout, bands=5, width=SLIM, seed=0, **options):
    torch.manual_seed(seed)
    return DeviationUNet(bands, layout, width=width, **options).double()


def image(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tdd", "uniadrs"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 19), (16, 24), (33, 17)])
def test_outputs__cover_any_image_finest_first(layout, height, width):
    outputs = net(layout)(image(2, 5, height, width))
    assert [tuple(x.shape) for x in outputs] == [(2, 1, -(-height // s), -(-width // s)) for s in (1, 2, 4, 8, 8, 8)]
    assert all(x.isfinite().all() for x in outputs)


def test_outputs__are_logits_on_both_sides_of_zero():
    finest = net(uniadrs_layout())(image(1, 5, 16, 16))[0]
    assert finest.min() < 0 or finest.max() > 1


def test_outputs__fit_the_side_loss_on_an_odd_mask():
    outputs = net(uniadrs_layout())(image(2, 5, 11, 21))
    assert side_loss(outputs, torch.zeros(2, 11, 21, dtype=torch.long)).isfinite()


def test_padding__continues_the_border_pixels():
    model, small = net(uniadrs_layout()), image(1, 5, 13, 18)
    large = F.pad(small, (0, 6, 0, 3), mode="replicate")
    torch.testing.assert_close(model(small)[0], model(large)[0][:, :, :13, :18])


def test_local_attention__equals_a_loop_over_pixels_and_neighbours():
    features, weights = image(2, 3, 5, 6), image(2, 49, 5, 6, seed=1).softmax(1)
    expected = torch.zeros_like(features)
    for row in range(5):
        for column in range(6):
            for index in range(49):
                i, j = row + 2 * (index // 7 - 3), column + 2 * (index % 7 - 3)
                if 0 <= i < 5 and 0 <= j < 6:
                    expected[:, :, row, column] += weights[:, index, row, column, None] * features[:, :, i, j]
    torch.testing.assert_close(local_attention(features, weights), expected)


def test_local_attention__with_one_weight_at_the_centre_changes_nothing():
    weights = torch.zeros(1, 49, 8, 9, dtype=torch.float64)
    weights[:, 24] = 1
    assert torch.equal(local_attention(image(1, 2, 8, 9), weights), image(1, 2, 8, 9))


@pytest.mark.parametrize("count", [48, 16])
def test_local_attention__refuses_weights_of_no_centred_square(count):
    with pytest.raises(ValueError, match="K odd"):
        local_attention(image(1, 2, 8, 8), torch.zeros(1, count, 8, 8))


@pytest.mark.parametrize("chunk", [1, 4, 7, 1024])
def test_global_attention__equals_the_stock_attention_on_the_flattened_map(chunk):
    query, key, features = image(2, 4, 3, 5), image(2, 4, 3, 5, seed=1), image(2, 6, 3, 5, seed=2)
    q, k, v = (x.flatten(2).mT for x in (query, key, features))
    got = global_attention(query, key, features, chunk)
    torch.testing.assert_close(got.flatten(2).mT, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(got.flatten(2).mT, (q @ k.mT / 2).softmax(-1) @ v)


def test_global_attention__in_turns_gives_the_gradients_of_one_turn():
    inputs = [image(2, 4, 3, 5, seed=seed).requires_grad_() for seed in range(3)]
    weight = image(2, 4, 3, 5, seed=9)
    whole = torch.autograd.grad((global_attention(*inputs, chunk=15) * weight).sum(), inputs)
    turns = torch.autograd.grad((global_attention(*inputs, chunk=4) * weight).sum(), inputs)
    torch.testing.assert_close(turns, whole)


def test_global_attention__in_turns_keeps_no_square_of_the_pixels_for_the_backward_pass():
    inputs = [image(1, 4, 16, 16, seed=seed).requires_grad_() for seed in range(3)]
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        global_attention(*inputs, chunk=32)
    assert max(sizes, default=0) < 256 * 32


def test_query_chunk__changes_no_output():
    x = image(1, 5, 16, 24)
    torch.testing.assert_close(net(tdd_layout(), query_chunk=1)(x), net(tdd_layout(), query_chunk=1024)(x))


# (kernel side, channels in, channels out, bias) of every convolution up to the coarsest stage, after the first one
ENCODER = [
    (3, 64, 64), (3, 64, 128), (3, 128, 128), (3, 128, 256), (3, 256, 256), (3, 256, 256), (3, 256, 512), (3, 512, 512), (3, 512, 512),
    (3, 512, 512), (3, 512, 512), (3, 512, 512),
]  # fmt: skip
COARSEST = [(3, 512, 1024), (3, 1024, 1024)]


def counted(kernel, before, after, bias=True):
    return kernel**2 * before * after + (after if bias else 0)


def table_count(bands, attention, encoder_bias, decoder_batch_norm):
    total = sum(counted(*row, encoder_bias) for row in [(3, bands, 64), *ENCODER]) + sum(counted(*row) for row in COARSEST)
    channels = [1024, 512, 512, 256, 128, 64, 64]
    for letter, here, following in zip(attention, channels[:-1], channels[1:], strict=True):
        total += counted(1, 2 * here, here) + (2 * here if decoder_batch_norm else 0)
        if letter == "L":
            total += counted(7, here, 128) + counted(1, 128, 49)
        if letter == "G":
            total += counted(1, here, 2 * here)
        if letter != "C":
            total += counted(1, 2 * here, following, bias=False) + (2 * following if decoder_batch_norm else 0)
        total += counted(1, following, 1)
    return total


@pytest.mark.parametrize(("bands", "count"), [(162, 45_323_609), (270, 45_385_817)])
def test_tdd__has_the_parameters_of_the_layer_table(bands, count):
    with torch.device("meta"):
        model = DeviationUNet(bands, tdd_layout())
    assert sum(p.numel() for p in model.parameters()) == count == table_count(bands, "LGLGLC", True, True)


@pytest.mark.parametrize(("bands", "count"), [(162, 49_484_347), (270, 49_546_555)])
def test_uniadrs__has_the_parameters_of_the_layer_table(bands, count):
    with torch.device("meta"):
        model = DeviationUNet(bands, uniadrs_layout())
    assert sum(p.numel() for p in model.parameters()) == count == table_count(bands, "LLLLLC", False, False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tdd", "uniadrs"])
def test_gradients__reach_every_parameter(layout):
    model = net(layout, width=1 / 8)
    mask = (torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    side_loss(model(image(2, 5, 24, 24)), mask).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert silent == []


def test_instance_norm__takes_each_image_of_a_batch_on_its_own():
    model, pair = net(uniadrs_layout()), image(2, 5, 17, 16)
    for together, one, other in zip(model(pair), model(pair[:1]), model(pair[1:]), strict=True):
        torch.testing.assert_close(together, torch.cat([one, other]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tdd", "uniadrs"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_image__stays_finite_with_finite_gradients(layout, value):
    model = net(layout)
    outputs = model(torch.full((1, 5, 16, 16), value, dtype=torch.float64))
    sum(x.mean() for x in outputs).backward()
    assert all(x.isfinite().all() for x in outputs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_one_band_and_a_pointwise_stem__give_a_map():
    layout = replace(uniadrs_layout(), stem_kernel=1)
    assert net(layout, bands=1)(image(1, 1, 9, 9))[0].shape == (1, 1, 9, 9)


@pytest.mark.parametrize("noise", ["dropout", "stochastic_depth"])
def test_noise__acts_in_training_alone(noise):
    model, x = net(replace(uniadrs_layout(), **{noise: 0.5})), image(4, 5, 16, 16)
    assert not torch.equal(model(x)[0], model(x)[0])
    calm = net(uniadrs_layout()).eval()
    assert torch.equal(model.eval()(x)[0], calm(x)[0])


def test_a_seed__decides_the_starting_weights():
    first, second, other = (net(uniadrs_layout(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 0}, "bands >= 1"),
        ({"width": 0.0}, "width > 0"),
        ({"query_chunk": 0}, "query_chunk >= 1"),
        ({"layout": DeviationUNetLayout(attention="LGLGL")}, "five letters"),
        ({"layout": DeviationUNetLayout(attention="LGXGLC")}, "five letters"),
        ({"layout": DeviationUNetLayout(encoder_channels=(8, 8))}, "five encoder_channels"),
        ({"layout": DeviationUNetLayout(stem_kernel=2)}, "odd stem_kernel"),
        ({"layout": DeviationUNetLayout(decoder_norm="layer")}, "norms"),
        ({"layout": DeviationUNetLayout(upsampling="cubic")}, "upsampling"),
        ({"layout": DeviationUNetLayout(dropout=1.0)}, "dropout"),
    ],
)
def test_constructor__names_the_argument_that_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DeviationUNet(**{"bands": 4, "width": SLIM} | options)


@pytest.mark.parametrize("shape", [(5, 16, 16), (1, 4, 16, 16), (1, 5, 0, 16)])
def test_forward__refuses_an_image_it_was_not_built_for(shape):
    with pytest.raises(ValueError, match="resample_bands"):
        net(uniadrs_layout())(torch.zeros(shape, dtype=torch.float64))
