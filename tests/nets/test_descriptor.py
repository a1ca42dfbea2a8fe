import pytest
import torch

from anomseg.config import build, describe
from anomseg.nets.descriptor import PixelDescriptor


def test_pixel_descriptor__sees_no_neighbour():
    net = PixelDescriptor(latent=4, hidden=(8,)).build(3).eval()
    image = torch.randn(1, 3, 6, 7)
    changed = image.clone()
    changed[..., 2, 3] += 1.0
    difference = (net(image).descriptor != net(changed).descriptor).any(1)[0]
    assert difference.nonzero().tolist() == [[2, 3]]


def test_pixel_descriptor__is_finite_without_data_and_rebuilds_the_bands():
    image = torch.randn(2, 3, 6, 7)
    image[0, 1, 2, 2] = torch.nan
    out = PixelDescriptor(latent=4).build(3)(image)
    assert out.descriptor.shape == (2, 4, 6, 7)
    assert out.reconstruction.shape == image.shape
    assert torch.isfinite(out.descriptor).all()


def test_pixel_descriptor__travels_as_plain_data():
    spec = PixelDescriptor(latent=3, hidden=(8, 9))
    assert build(describe(spec)) == spec


def test_pixel_descriptor__refuses_what_cannot_be_built():
    with pytest.raises(ValueError, match="latent >= 1"):
        PixelDescriptor(latent=0)
