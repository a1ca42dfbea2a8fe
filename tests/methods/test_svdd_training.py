import pytest
import torch

from anomseg.functional.svdd import contrast_loss, diversity_loss, one_class_loss, soft_boundary_loss
from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD, SVDDTraining, reconstruction_loss, svdd_losses

CENTRE, RADIUS = torch.zeros(3), torch.tensor(0.5)


def batch():
    generator = torch.Generator().manual_seed(0)
    z, copy = torch.randn(2, 2, 3, 6, 7, generator=generator)
    valid = torch.rand(2, 6, 7, generator=generator) < 0.5
    return z, copy, valid, torch.ones_like(valid)


def test_losses__are_those_that_the_recipe_names():
    z, copy, valid, data = batch()
    published = svdd_losses(z, copy, CENTRE, RADIUS, valid, SVDDTraining(weights=(2.0, 3.0, 1.0)), data)
    assert torch.equal(published["svdd"], 2 * soft_boundary_loss(z, CENTRE, RADIUS, valid))
    assert torch.equal(published["diversity"], 3 * diversity_loss(z, copy, valid))
    deep = svdd_losses(z, None, CENTRE, RADIUS, valid, DEEP_SVDD, data)
    assert deep == {"svdd": one_class_loss(z, CENTRE, valid)}
    contrast = svdd_losses(z, None, CENTRE, RADIUS, valid, CONTRAST, data)
    assert contrast == {"svdd": contrast_loss(z, CENTRE, RADIUS, valid, data)}


def test_reconstruction_loss__reads_valid_pixels_alone():
    image, rebuilt = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)
    valid = torch.zeros(1, 4, 5, dtype=torch.bool)
    assert float(reconstruction_loss(image, rebuilt, valid)) == 0
    valid[0, 1] = True
    expected = (image[0, :, 1] - rebuilt[0, :, 1]).square().mean()
    image[0, :, 2] = torch.nan
    torch.testing.assert_close(reconstruction_loss(image, rebuilt, valid), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": "other"},
        {"weights": (0, 0, 0)},
        {"weights": (1, 1)},
        {"warmup": 1.0},
        {"radius": "x"},
        {"reduction": "foo"},
        {"diversity": "foo"},
        {"nu": 7.0},
        {"nu": 0.0},
        {"quantile": 9.0},
        {"radius_quantile": -0.1},
        {"diversity_quantile": 1.1},
    ],
)
def test_recipe__refuses_what_it_cannot_do(arguments):
    with pytest.raises(ValueError, match="Expected"):
        SVDDTraining(**arguments)
