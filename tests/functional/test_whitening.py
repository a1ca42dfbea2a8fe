import pytest
import torch

from anomseg.functional.rx import global_rx, usable_pixels
from anomseg.functional.whitening import whitened_components


def scene(bands: int = 6, size: int = 20, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(bands, bands, generator=generator) + 2 * torch.eye(bands)
    return (torch.randn(batch, size, size, bands, generator=generator) @ mixing).permute(0, 3, 1, 2).contiguous() + 5.0


def test_whitened_components__have_mean_0_and_covariance_1():
    z = whitened_components(scene(batch=2), 4)
    assert z.shape == (2, 4, 20, 20)
    for image in z.double():
        torch.testing.assert_close(torch.cov(image.flatten(1)), torch.eye(4).double(), rtol=0, atol=1e-5)
        assert image.flatten(1).mean(1).abs().max() < 1e-6


def test_whitened_components__sum_to_global_rx():
    image = scene()
    torch.testing.assert_close(whitened_components(image, 6).square().sum(1), global_rx(image), rtol=1e-4, atol=1e-4)


def test_whitened_components__equal_the_principal_components_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    image = scene()
    expected = decomposition.PCA(3, whiten=True, svd_solver="full").fit_transform(image[0].flatten(1).T.numpy())
    z = whitened_components(image, 3)[0].flatten(1).T
    torch.testing.assert_close(z.abs(), torch.from_numpy(expected).abs(), rtol=1e-3, atol=1e-3)


def test_whitened_components__keep_their_sign_when_the_scene_is_turned():
    image = scene()
    torch.testing.assert_close(whitened_components(image.flip(3), 4), whitened_components(image, 4).flip(3), rtol=1e-3, atol=1e-4)


def test_whitened_components__are_0_beyond_the_rank():
    image = scene(bands=3)
    image = torch.cat((image, image[:, :1], torch.full_like(image[:, :1], 7.0)), 1)
    z = whitened_components(image, 5)
    assert (z[:, 3:] == 0).all()
    torch.testing.assert_close(z.square().sum(1), global_rx(image), rtol=1e-4, atol=1e-4)


def test_whitened_components__are_0_on_a_constant_image():
    assert (whitened_components(torch.full((1, 3, 4, 4), 0.1), 2) == 0).all()


def test_whitened_components__are_reduced_to_the_bands():
    assert whitened_components(scene(bands=3), 15).shape == (1, 3, 20, 20)


def test_whitened_components__stay_finite_with_fewer_pixels_than_components():
    z = whitened_components(scene(bands=12, size=3), 12)
    assert torch.isfinite(z).all()
    assert (z[:, 8:] == 0).all()


def test_whitened_components__ignore_void_pixels_bit_by_bit():
    image = scene()
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    valid[0, :2] = False
    image[0, 0, 5, 5] = torch.nan
    poisoned = image.clone()
    poisoned[0, :, :2] = 1e9
    poisoned[0, 1, 5, 5] = torch.inf
    a, b = whitened_components(image, 4, valid), whitened_components(poisoned, 4, valid)
    assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
    assert torch.isnan(a[0, :, :2]).all()
    assert torch.isnan(a[0, :, 5, 5]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: whitened_components(x, 0), "at least 1 component"),
        (lambda x: whitened_components(x[0], 2), r"shape \(B, C, H, W\)"),
        (lambda x: whitened_components(x * torch.nan, 2), "at least 2 valid pixels"),
        (lambda x: usable_pixels(x, torch.ones(1, 3, 3, dtype=torch.bool)), "Expected valid of shape"),
    ],
)
def test_whitening__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(scene())
