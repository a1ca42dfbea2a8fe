import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomseg.functional.filter_bank import filter_bank, filter_bank_channels, gaussian_filter, gaussian_jet


def scene(seed: int = 0, bands: int = 3, size: tuple[int, int] = (40, 37)) -> torch.Tensor:
    return torch.rand(1, bands, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bands", [1, 3, 7])
def test_filter_bank__counts_its_channels(bands):
    assert filter_bank(scene(bands=bands), (1.0, 2.0)).shape == (1, filter_bank_channels(bands, 2), 40, 37)


def test_filter_bank__gives_thirty_channels_for_three_bands():
    assert filter_bank_channels(3, 3) == 30


@pytest.mark.parametrize("sigma", [0.7, 1.5, 5.0])
def test_gaussian_filter__equals_a_normalised_convolution_of_scipy(sigma):
    image = scene(1)
    image[..., 10:14, 20:30] = torch.nan
    keep = torch.isfinite(image[0, 0]).numpy().astype(float)

    def smooth(x):
        return ndimage.gaussian_filter(x, sigma, mode="constant", truncate=4.0, radius=math.ceil(4 * sigma))

    expected = np.stack([smooth(np.nan_to_num(band.double().numpy()) * keep) / smooth(keep) for band in image[0]])
    expected[:, keep == 0] = np.nan
    np.testing.assert_allclose(gaussian_filter(image, sigma)[0].numpy(), expected, atol=2e-6)


def test_filter_bank__differentiates_a_quadric_exactly_away_from_the_border():
    sigma, size = 2.0, 41
    v, u = torch.meshgrid(torch.arange(size) - 20.0, torch.arange(size) - 20.0, indexing="ij")
    image = (0.5 * 3 * u**2 + 2 * u * v - 0.5 * v**2 + 4 * u + v)[None, None]
    bank = filter_bank(image, (sigma,))[0, :, 20, 20]  # raw, mean, deviation, gradient, two eigenvalues
    assert bank[3] == pytest.approx(sigma * math.hypot(4, 1), rel=1e-3)
    expected = np.linalg.eigvalsh(np.array([[3.0, 2.0], [2.0, -1.0]]))[::-1] * sigma**2
    np.testing.assert_allclose(bank[4:].numpy(), expected, rtol=5e-3)


def test_filter_bank__finds_the_standard_deviation_of_noise():
    noise = 0.3 * torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(2))
    assert float(filter_bank(noise, (6.0,))[0, 2].mean()) == pytest.approx(0.3, rel=0.01)


def test_filter_bank__has_no_texture_on_a_constant_image_with_holes():
    image = torch.full((1, 2, 30, 30), 7.0)
    image[..., :5, :9] = torch.nan
    image[..., 20, 20] = torch.nan
    bank = filter_bank(image, (1.0, 3.0))
    known = torch.isfinite(image[0, 0])
    assert bool(bank[0][:, ~known].isnan().all())
    for scale in range(2):
        start = 2 + 7 * scale
        torch.testing.assert_close(bank[0, start : start + 2][:, known], torch.full((2, int(known.sum())), 7.0))
        assert float(bank[0, start + 2 : start + 7][:, known].abs().max()) < 1e-5


def test_filter_bank__is_not_influenced_by_values_beside_a_missing_band():
    image = scene(3)
    image[0, 0, 8:12, 8:12] = torch.nan
    other = image.clone()
    other[0, 1:, 8:12, 8:12] = 1e6
    assert torch.equal(filter_bank(image, (1.0, 4.0)).nan_to_num(-1), filter_bank(other, (1.0, 4.0)).nan_to_num(-1))


@pytest.mark.parametrize("turn", [lambda x: x.rot90(1, (-2, -1)), lambda x: x.flip(-1), lambda x: x.mT])
def test_filter_bank__moves_with_the_image(turn):
    image = scene(4)
    torch.testing.assert_close(filter_bank(turn(image), (1.0, 3.0)), turn(filter_bank(image, (1.0, 3.0))), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [63, 64, 65, 150])
def test_gaussian_filter__does_not_show_where_rows_are_cut(width):
    image = scene(5, 1, (9, width))
    expected = ndimage.gaussian_filter1d(image[0, 0].numpy(), 3.0, axis=1, mode="constant", radius=12)
    ones = ndimage.gaussian_filter1d(np.ones((9, width)), 3.0, axis=1, mode="constant", radius=12)
    along = gaussian_filter(image[:, :, :1].expand(-1, -1, 9, -1), 3.0)[0, 0, 4].numpy()
    np.testing.assert_allclose(along, expected[0] / ones[0], atol=2e-6)


def test_filter_bank__of_a_tile_with_four_deviations_around_it_equals_that_of_the_scene():
    image, sigmas = scene(6, 3, (90, 90)), (1.0, 4.0)
    halo = 16
    tile = filter_bank(image[..., 40 - halo : 50 + halo, 40 - halo : 50 + halo], sigmas)[..., halo:-halo, halo:-halo]
    torch.testing.assert_close(tile, filter_bank(image, sigmas)[..., 40:50, 40:50], atol=1e-4, rtol=1e-4)


def test_filter_bank__keeps_deviations_beside_a_large_offset():
    image = scene(7)
    lifted = filter_bank(image.double() + 1000, (2.0,))
    torch.testing.assert_close(lifted[:, 6:], filter_bank(image, (2.0,))[:, 6:], atol=1e-4, rtol=1e-4)


def test_filter_bank__keeps_deviations_of_a_dark_part_beside_a_bright_one():
    noise = torch.randn(1, 1, 96, 192, generator=torch.Generator().manual_seed(0))
    lifted = noise.clone()
    lifted[..., 96:] += 1e4
    dark = (0, 2, slice(30, 60), slice(20, 60))
    torch.testing.assert_close(filter_bank(lifted, (4.0,))[dark], filter_bank(noise, (4.0,))[dark], rtol=1e-3, atol=0)


def test_filter_bank__takes_signed_logarithms_of_texture_alone():
    plain, logged = filter_bank(scene(8), (2.0,)), filter_bank(scene(8), (2.0,), log_floor=0.05)
    torch.testing.assert_close(logged[:, :6], plain[:, :6])
    torch.testing.assert_close(logged[:, 6:], plain[:, 6:].sign() * torch.log(1 + plain[:, 6:].abs() / 0.05))
    assert bool((logged[:, 11] < 0).any())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: filter_bank(x[0]), r"shape \(B, C, H, W\), but got \(3, 40, 37\)"),
        (lambda x: filter_bank(x, ()), "one or more sigmas"),
        (lambda x: filter_bank(x, (0.2,)), "sigmas >= 0.5, but got"),
        (lambda x: filter_bank(x, log_floor=-1.0), "log_floor >= 0, but got -1.0"),
        (lambda x: gaussian_filter(x, 0.0), "sigmas >= 0.5, but got"),
    ],
)
def test_filter_bank__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(scene())


def test_filter_bank__is_the_same_under_autocast():
    image = scene(3) + 100
    with torch.autocast("cpu", torch.bfloat16):
        bank, smooth, jet = filter_bank(image), gaussian_filter(image, 2.0), gaussian_jet(image, torch.ones_like(image[:, :1]), 1.0)
    assert torch.equal(bank, filter_bank(image))
    assert torch.equal(smooth, gaussian_filter(image, 2.0))
    assert torch.equal(jet, gaussian_jet(image, torch.ones_like(image[:, :1]), 1.0))
