import math

import pytest
import torch

from anomseg.functional.smoothing import centre, gaussian


def test_gaussian__equals_scipy_in_the_interior():
    from scipy.ndimage import gaussian_filter

    score = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(gaussian_filter(score[0].double().numpy(), 1.2, radius=5)).float()
    torch.testing.assert_close(gaussian(score, 1.2)[0, 6:-6, 6:-6], expected[6:-6, 6:-6], rtol=1e-4, atol=1e-5)


def test_gaussian__keeps_a_constant_beside_borders_and_void():
    valid = torch.ones(1, 9, 9, dtype=torch.bool)
    valid[0, 4, 4:] = False
    torch.testing.assert_close(gaussian(torch.full((1, 9, 9), 3.0), 1.0, valid), 3.0 * valid)


def test_gaussian__gives_the_same_under_autocast():
    image = torch.rand(1, 24, 25, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = gaussian(image, 1.5)
    assert torch.equal(found, gaussian(image, 1.5))


def test_centre__takes_the_mean_of_the_valid_pixels_of_each_map():
    score = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 5.0, -3.0])[:, None, None]
    valid = torch.ones(3, 6, 7, dtype=torch.bool)
    valid[1, :2], valid[2] = False, False
    score[1, :2] = torch.nan
    found = centre(score, valid)
    torch.testing.assert_close(found[0], score[0] - score[0].mean())
    torch.testing.assert_close(found[1, 2:], score[1, 2:] - score[1, 2:].mean())
    assert not found[1, :2].any()
    assert not found[2].any()


def test_centre__is_float32_for_halves():
    assert centre(torch.rand(1, 4, 4).bfloat16(), torch.ones(1, 4, 4, dtype=torch.bool)).dtype == torch.float32


@pytest.mark.parametrize("sigma", [-1.0, math.inf, math.nan])
def test_gaussian__refuses_no_length(sigma):
    with pytest.raises(ValueError, match="smoothing of at least 0"):
        gaussian(torch.rand(1, 5, 5), sigma)
