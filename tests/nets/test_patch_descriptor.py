import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomseg.config import build, describe
from anomseg.errors import MissingDependencyError
from anomseg.nets.patch_descriptor import PATCH, DensePatchNet, DescriptorHeads, PatchDescriptor, PixelGroupNorm, TimmDescriptor

ENCODER = TimmDescriptor("resnet10t", latent=4, levels=(0, 1))
PLAIN = {"scales": (1.0,), "norm": "none", "bias": False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on maps this small the threads of a busy machine only wait for one another
    yield
    torch.set_num_threads(before)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def patch_net(bands, latent=5, seed=0):
    """Build a net whose biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    net = DensePatchNet(bands, latent, generator=generator)
    for layer in net.children():
        nn.init.normal_(layer.bias, std=0.1, generator=generator)
    return net


def one_by_one(net, image):
    """Evaluate the undilated network on each zero-padded patch."""
    patches = F.unfold(F.pad(image, (PATCH // 2,) * 4), PATCH)
    batch, _, count = patches.shape
    x = patches.transpose(1, 2).reshape(batch * count, image.shape[1], PATCH, PATCH)
    x = F.max_pool2d(F.relu(F.conv2d(x, net.first.weight, net.first.bias)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, net.second.weight, net.second.bias)), 2)
    x = F.relu(F.conv2d(x, net.third.weight, net.third.bias))
    x = F.conv2d(x, net.last.weight, net.last.bias)
    assert x.shape[2:] == (1, 1)
    return x.view(batch, count, -1).transpose(1, 2).reshape(batch, -1, *image.shape[2:])


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 12), (20, 17), (16, 16), (15, 15), (14, 13)])
@pytest.mark.parametrize("bands", [1, 3, 14])
def test_dense_patch_net__equals_every_patch_alone(size, bands):
    net, image = patch_net(bands), randn(2, bands, *size)
    with torch.no_grad():
        exact = one_by_one(net.double(), image.double())
        torch.testing.assert_close(net(image.double()), exact, atol=1e-13, rtol=1e-13)
        close = net.float()(image).double() - exact
    assert close.abs().max() <= 1e-6 * exact.abs().max().clamp_min(1.0)


def test_dense_patch_net__has_the_gradients_of_every_patch_alone():
    net, image = patch_net(2).double(), randn(1, 2, 9, 10, dtype=torch.float64)
    weight = randn(1, 5, 9, 10, seed=1, dtype=torch.float64)
    dense = torch.autograd.grad((net(image) * weight).sum(), list(net.parameters()))
    alone = torch.autograd.grad((one_by_one(net, image) * weight).sum(), list(net.parameters()))
    torch.testing.assert_close(dense, alone)


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 24), (21, 18)])
def test_dense_patch_net__in_steps_leaves_pixels_out(step, size):
    net, image = patch_net(3).double(), randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(net(image, step), net(image)[..., ::step, ::step])


def test_dense_patch_net__sees_seven_rows_before_and_six_after():
    net, seen = patch_net(1), torch.zeros(31, 31, dtype=torch.bool)
    for seed in range(20):
        image = randn(1, 1, 31, 31, seed=seed).requires_grad_()
        (gradient,) = torch.autograd.grad(net(image)[0, :, 15, 15].sum(), image)
        seen |= gradient[0, 0] != 0
    assert seen.any(1).nonzero().flatten().tolist() == list(range(8, 22))
    assert seen.any(0).nonzero().flatten().tolist() == list(range(8, 22))


def test_dense_patch_net__has_the_published_size_and_start():
    net = DensePatchNet(3, 5)
    assert sum(p.numel() for p in net.parameters()) == 10_357
    assert not any(layer.bias.any() for layer in net.children())
    torch.testing.assert_close(net.third.weight.std(), torch.tensor((2 / 64) ** 0.5), rtol=0.05, atol=0.0)


@pytest.mark.parametrize(("scales", "size"), [((0.5, 1.0, 2.0), (16, 20)), ((0.5, 1.0, 2.0), (13, 11)), ((1.5, 3.0, 0.3), (12, 9))])
def test_patch_descriptor__equals_the_definition(scales, size):
    net, image = PatchDescriptor(scales=scales, seed=None).build(3).double().train(), randn(2, 3, *size, dtype=torch.float64)
    maps = []
    for scale, patch in zip(scales, net.nets, strict=True):
        scaled = F.interpolate(image, [max(1, int(scale * side)) for side in size])
        maps.append(F.interpolate(one_by_one(patch, scaled), size))
    features = nn.BatchNorm2d(15).double()(torch.cat(maps, 1))
    out = net(image)
    torch.testing.assert_close(out.descriptor, net.heads.descriptor(features))
    torch.testing.assert_close(out.reconstruction, net.heads.reconstruction(features))


@pytest.mark.parametrize("spec", [PatchDescriptor(), PatchDescriptor(norm="group"), PatchDescriptor(latent=1, **PLAIN)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 20)])
@pytest.mark.parametrize("batch", [1, 2])
def test_patch_descriptor__describes_any_size_and_learns_everywhere(spec, size, batch):
    net, image = spec.build(2), randn(batch, 2, *size)
    image[0, 0, -1, -1] = torch.nan
    out = net(image, torch.isfinite(image).all(1))
    assert out.descriptor.shape == (batch, spec.latent, *size)
    assert out.reconstruction.shape == image.shape
    (out.descriptor.sum() + out.reconstruction.sum()).backward()
    assert torch.isfinite(out.descriptor).all()
    assert torch.isfinite(out.reconstruction).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_patch_descriptor__does_not_let_far_pixels_touch_valid_ones(norm):
    image = randn(1, 3, 40, 30)
    valid = torch.zeros(1, 40, 30, dtype=torch.bool)
    valid[:, :8] = True
    far = image.clone()
    far[:, :, 24:] = 50.0  # beyond the patches of valid pixels at every scale
    outs, norms = [], []
    for x in (image, far):
        torch.manual_seed(0)
        net = PatchDescriptor(norm=norm).build(3)
        outs.append(net(x, valid))
        norms.append(list(net.heads.norm.buffers()))
    assert torch.equal(outs[0].descriptor[:, :, :8], outs[1].descriptor[:, :, :8])
    assert torch.equal(outs[0].reconstruction[:, :, :8], outs[1].reconstruction[:, :, :8])
    assert all(torch.equal(a, b) for a, b in zip(*norms, strict=True))
    assert not torch.equal(outs[0].descriptor[:, :, 20:], outs[1].descriptor[:, :, 20:])


def test_patch_descriptor__counts_pixels_without_data_as_zero_and_not_in_its_statistics():
    image = randn(2, 3, 12, 13)
    hole = torch.rand(2, 12, 13, generator=torch.Generator().manual_seed(1)) < 0.2
    one_band = image.clone()
    one_band[:, 1][hole] = torch.inf
    nets = []
    for x, valid in ((one_band, None), (image.masked_fill(hole[:, None], 0.0), ~hole), (one_band, torch.ones_like(hole))):
        torch.manual_seed(0)
        net = PatchDescriptor().build(3)
        nets.append((net(x, valid).descriptor, net.heads.norm.running_var))
    for descriptor, variance in nets[1:]:
        assert torch.equal(descriptor, nets[0][0])
        assert torch.equal(variance, nets[0][1])


def test_patch_descriptor__in_evaluation_treats_a_batch_as_single_images():
    net, image = PatchDescriptor().build(3).double().eval(), randn(3, 3, 14, 15, dtype=torch.float64)
    alone = torch.cat([net(one[None]).descriptor for one in image])
    torch.testing.assert_close(net(image).descriptor, alone)


def test_patch_descriptor__begins_with_the_same_weights_at_all_scales():
    first, second = PatchDescriptor().build(3), PatchDescriptor().build(3)
    weights = [net.third.weight for net in (*first.nets, *second.nets)]
    assert all(torch.equal(weights[0], weight) for weight in weights[1:])
    assert len({id(weight) for weight in weights}) == 6
    assert not torch.equal(weights[0], PatchDescriptor(seed=11).build(3).nets[0].third.weight)


def test_patch_descriptor__without_seed_draws_from_the_global_generator():
    torch.manual_seed(3)
    first = PatchDescriptor(seed=None).build(3)
    torch.manual_seed(3)
    second = PatchDescriptor(seed=None).build(3)
    assert not torch.equal(first.nets[0].third.weight, first.nets[1].third.weight)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_patch_descriptor__without_bias_and_norm_scales_with_its_input():
    net, image = PatchDescriptor(**PLAIN).build(2), randn(1, 2, 10, 11)
    nn.init.ones_(net.heads.reconstruction.bias)
    torch.testing.assert_close(net(4 * image).descriptor, 4 * net(image).descriptor)


def test_patch_descriptor__without_bias_learns_no_offset():
    net = PatchDescriptor(bias=False).build(2)
    out = net(randn(1, 2, 10, 11))
    (out.descriptor.sum() + out.reconstruction.sum()).backward()
    learnt = {name for name, p in net.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert learnt == {"heads.reconstruction.bias"}


def test_patch_descriptor__keeps_statistics_in_float32_under_autocast():
    net, plain, image = PatchDescriptor().build(3), PatchDescriptor().build(3), randn(1, 3, 20, 21)
    plain(image)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(image, torch.ones(1, 20, 21, dtype=torch.bool))
    out.descriptor.float().sum().backward()
    assert net.heads.norm.running_var.dtype == torch.float32
    torch.testing.assert_close(net.heads.norm.running_var, plain.heads.norm.running_var, rtol=0.05, atol=0.01)


def test_pixel_group_norm__brings_the_values_of_each_scale_to_mean_zero_and_deviation_one():
    norm, x = PixelGroupNorm(3, 15, eps=0.0), randn(2, 15, 4, 6) * 5 + 2
    groups = norm(x).view(2, 3, 5, 4, 6)
    torch.testing.assert_close(groups.mean(2), torch.zeros(2, 3, 4, 6), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(groups.std(2, correction=0), torch.ones(2, 3, 4, 6))
    torch.testing.assert_close(norm(x)[:, :, 1:2, 3:4], norm(x[:, :, 1:2, 3:4]))


def test_descriptor_heads__are_two_linear_maps():
    heads, x, valid = DescriptorHeads(6, 4, 3, norm="none"), randn(1, 6, 5, 5), torch.ones(1, 5, 5, dtype=torch.bool)
    out = heads(x, valid)
    torch.testing.assert_close(out.descriptor, torch.einsum("df,bfhw->bdhw", heads.descriptor.weight[:, :, 0, 0], x))
    torch.testing.assert_close(out.reconstruction, torch.einsum("df,bfhw->bdhw", heads.reconstruction.weight[:, :, 0, 0], x))


@pytest.mark.parametrize("spec", [PatchDescriptor(), PatchDescriptor(3, (1.0,), "group", False, None)])
def test_patch_descriptor__travels_as_plain_data(spec):
    assert build(describe(spec)) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scales": ()}, "scales above 0"), ({"latent": 0}, "latent >= 1"), ({"norm": "layer"}, "a norm of"), ({"scales": (0.0,)}, "above 0")],
)
def test_patch_descriptor__refuses_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        PatchDescriptor(**options)


def test_patch_descriptor__refuses_a_group_norm_of_two_values():
    with pytest.raises(ValueError, match="latent >= 3"):
        PatchDescriptor(latent=2, norm="group")


def encoder_net(spec=ENCODER, bands=5):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return spec.build(bands)


@pytest.mark.parametrize("size", [(1, 1), (8, 12), (37, 50)])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_timm_descriptor__describes_any_size_and_learns(size, norm):
    net, x = encoder_net(TimmDescriptor("resnet10t", latent=4, levels=(1, 0), norm=norm)), randn(1, 5, *size)
    x[0, 0, -1, -1] = torch.nan
    out = net(x)
    assert out.descriptor.shape == (1, 4, *size)
    assert out.reconstruction.shape == x.shape
    (out.descriptor.sum() + out.reconstruction.sum()).backward()
    assert torch.isfinite(out.descriptor).all()
    assert all(torch.isfinite(p.grad).all() for p in net.heads.parameters())
    assert net.encoder.conv1[0].weight.grad is not None


def test_timm_descriptor__of_an_image_that_needs_no_padding_is_its_corner_of_the_pyramid():
    net, x = encoder_net().eval(), randn(1, 5, 16, 24)
    levels = net.encoder(x)
    assert [level.shape[-2:] for level in levels] == [(8, 12), (4, 6)]
    features = torch.cat([F.interpolate(level, (16, 24), mode="bilinear") for level in levels], 1)
    torch.testing.assert_close(net(x).descriptor, net.heads.descriptor(net.heads.norm(features)))


def test_timm_descriptor__keeps_the_statistics_inside_the_encoder():
    net = encoder_net()
    before = [buffer.clone() for buffer in net.encoder.buffers()]
    assert before
    net(randn(2, 5, 16, 16))
    net.train()(randn(2, 5, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(before, net.encoder.buffers(), strict=True))


def test_timm_descriptor__does_not_let_far_pixels_touch_valid_ones():
    x = randn(1, 5, 96, 16)
    valid = torch.zeros(1, 96, 16, dtype=torch.bool)
    valid[:, :8] = True
    far = x.clone()
    far[:, :, 80:] = 50.0
    first, second = encoder_net(), encoder_net()
    assert torch.equal(first(x, valid).descriptor[:, :, :8], second(far, valid).descriptor[:, :, :8])
    assert torch.equal(first.heads.norm.running_var, second.heads.norm.running_var)


def test_timm_descriptor__counts_pixels_without_data_as_zero():
    x = randn(1, 5, 16, 16)
    missing = x.clone()
    missing[0, 2, 3:6] = torch.nan
    x[:, :, 3:6] = 0.0
    net = encoder_net().eval()
    assert torch.equal(net(x).descriptor, net(missing).descriptor)


def test_timm_descriptor__travels_as_plain_data():
    assert build(describe(ENCODER)) == ENCODER


def test_timm_descriptor__names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        ENCODER.build(3)


def test_timm_descriptor__refuses_levels_that_are_not_there():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"Expected levels of the pyramid of 'resnet10t', but got \(0, 9\)"):
        TimmDescriptor("resnet10t", levels=(0, 9)).build(3)


@pytest.mark.parametrize("options", [{"latent": 0}, {"levels": ()}, {"levels": (-1,)}, {"norm": "layer"}])
def test_timm_descriptor__refuses_what_cannot_be_built(options):
    with pytest.raises(ValueError, match="Expected latent >= 1, levels of at least 0 and a norm"):
        TimmDescriptor(**options)
