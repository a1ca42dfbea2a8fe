import pytest
import torch
from torch.nn import functional as F

from anomseg.nets.patch_descriptor import PATCH, DensePatchNet, PatchDescriptor, TimmDescriptor


def one_by_one(net, image):
    """Evaluate the undilated network on each zero-padded patch."""
    patches = F.unfold(F.pad(image, (PATCH // 2,) * 4), PATCH)
    batch, _, count = patches.shape
    x = patches.transpose(1, 2).reshape(batch * count, image.shape[1], PATCH, PATCH)
    x = F.max_pool2d(F.relu(F.conv2d(x, net.first.weight, net.first.bias)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, net.second.weight, net.second.bias)), 2)
    x = F.relu(F.conv2d(x, net.third.weight, net.third.bias))
    x = F.conv2d(x, net.last.weight, net.last.bias)
    return x.view(batch, count, -1).transpose(1, 2).reshape(batch, -1, *image.shape[2:])


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (20, 17), (16, 16)])
@pytest.mark.parametrize("bands", [1, 3])
def test_dense_patch_net__equals_every_patch_alone(size, bands):
    torch.manual_seed(0)
    net, image = DensePatchNet(bands, 5), torch.randn(2, bands, *size)
    with torch.no_grad():
        torch.testing.assert_close(net(image), one_by_one(net, image), atol=1e-6, rtol=1e-5)


def test_dense_patch_net__has_the_published_size():
    assert sum(p.numel() for p in DensePatchNet(3, 5).parameters()) == 10_357


@pytest.mark.parametrize("spec", [PatchDescriptor(), PatchDescriptor(latent=1, scales=(1.0,), norm="none", bias=False)])
@pytest.mark.parametrize("size", [(3, 5), (33, 20)])
def test_patch_descriptor__describes_any_size(spec, size):
    net = spec.build(2)
    image = torch.randn(2, 2, *size)
    image[0, 0, 1, 1] = torch.nan
    out = net(image, torch.isfinite(image).all(1))
    assert out.descriptor.shape == (2, spec.latent, *size)
    assert out.reconstruction.shape == image.shape
    out.descriptor.sum().backward()
    assert torch.isfinite(out.descriptor).all()
    assert all(p.grad is not None for name, p in net.named_parameters() if "reconstruction" not in name)


def test_patch_descriptor__statistics_come_from_valid_pixels():
    image = torch.randn(1, 3, 30, 30)
    valid = torch.zeros(1, 30, 30, dtype=torch.bool)
    valid[:, :8] = True
    far = image.clone()
    far[:, :, 24:] = 50.0  # no patch of a valid pixel reaches it, at no scale
    torch.manual_seed(0)
    first = PatchDescriptor(scales=(1.0, 2.0)).build(3)
    torch.manual_seed(0)
    second = PatchDescriptor(scales=(1.0, 2.0)).build(3)
    assert torch.equal(first(image, valid).descriptor[:, :, :8], second(far, valid).descriptor[:, :, :8])


def test_patch_descriptor__refuses_what_cannot_be_built():
    with pytest.raises(ValueError, match="scales above 0"):
        PatchDescriptor(scales=())


def test_timm_descriptor__describes_any_size():
    pytest.importorskip("timm")
    net = TimmDescriptor("resnet10t", latent=4, levels=(0, 1)).build(5)
    image = torch.randn(1, 5, 37, 50)
    image[0, 0, :3] = torch.nan
    out = net(image)
    assert out.descriptor.shape == (1, 4, 37, 50)
    assert out.reconstruction.shape == image.shape
    assert torch.isfinite(out.descriptor).all()
