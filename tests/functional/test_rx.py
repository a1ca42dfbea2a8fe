import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anomseg.functional.rx import (
    covariance,
    global_rx,
    local_rx,
    mahalanobis,
    merge_statistics,
    pixel_statistics,
    regularised_precision,
)

GLOBAL_AUROC = {
    "abu-airport-1": 0.8221,
    "abu-airport-4": 0.9526,
    "abu-beach-1": 0.9807,
    "abu-beach-4": 0.9887,
    "abu-urban-1": 0.9907,
    "abu-urban-3": 0.9513,
    "hydice_urban": 0.9857,
    "sandiego1_189": 0.8885,
}
BOTH = pytest.mark.parametrize("rx", [global_rx, lambda x, **k: local_rx(x, 3, 9, **k)], ids=["global", "local"])


def scene(bands: int = 6, size: int = 18, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(bands, bands, generator=generator) + 2 * torch.eye(bands)
    pixels = torch.randn(batch, size, size, bands, generator=generator) @ mixing
    return pixels.permute(0, 3, 1, 2).contiguous() + 5.0


def close(a: Tensor, b: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-4)


def test_global_rx__equals_the_pseudo_inverse_of_numpy():
    image = scene()
    pixels = image[0].flatten(1).T.double().numpy()
    deviation = pixels - pixels.mean(0)
    expected = np.einsum("nc,cd,nd->n", deviation, np.linalg.pinv(np.cov(pixels.T)), deviation)
    close(global_rx(image)[0].flatten(), torch.from_numpy(expected).float())


def test_global_rx__equals_the_pseudo_inverse_where_a_band_repeats_another():
    image = scene()
    close(global_rx(torch.cat((image, image[:, :1] * 3 + 1), 1)), global_rx(image))


def test_local_rx__equals_spectral_in_the_interior_and_at_the_border():
    spectral = pytest.importorskip("spectral")
    spectral.settings.show_progress = False
    image = scene()
    image[0, :, 9, 9] += 30
    expected = spectral.rx(image[0].permute(1, 2, 0).double().numpy(), window=(3, 9))
    close(local_rx(image, 3, 9)[0], torch.from_numpy(expected).float())


def test_local_rx__equals_spectral_where_windows_exceed_one_chunk():
    spectral = pytest.importorskip("spectral")
    spectral.settings.show_progress = False
    image = scene(size=60)[:, :, :12]
    expected = spectral.rx(image[0].permute(1, 2, 0).double().numpy(), window=(5, 9))
    close(local_rx(image, 5, 9)[0], torch.from_numpy(expected).float())


@BOTH
def test_rx__is_invariant_to_the_scale_and_offset_of_single_bands(rx):
    image = scene()
    factor = torch.tensor([1e-3, 1.0, 10.0, 1e3, -2.0, 7.0])[:, None, None]
    close(rx(image.double() * factor + 3 * factor), rx(image), rtol=1e-3)


@BOTH
def test_rx__is_invariant_to_an_invertible_mixing_of_bands(rx):
    image = scene().double()
    mixing = scene(seed=1)[0, :, :6, 0].double()
    close(rx(torch.einsum("dc,bchw->bdhw", mixing, image)), rx(image), rtol=1e-3)


@BOTH
def test_rx__survives_an_offset_of_ten_thousand(rx):
    image = scene().double()
    close(rx(image + 1e4), rx(image))


@BOTH
@pytest.mark.parametrize("poison", [0.0, 1e9, float("nan"), float("inf")])
def test_rx__gives_void_pixels_no_influence(rx, poison):
    image = scene()
    valid = torch.ones(1, 18, 18, dtype=torch.bool)
    valid[0, 3:6, 7:12] = False
    poisoned = torch.where(valid[:, None], image, poison)
    assert torch.equal(rx(poisoned, valid=valid), rx(image, valid=valid))
    assert (rx(poisoned, valid=valid)[~valid] == 0).all()


@BOTH
def test_rx__reads_nan_in_one_band_as_no_data(rx):
    image = scene()
    valid = torch.rand(1, 18, 18, generator=torch.Generator().manual_seed(2)) > 0.2
    holed = image.clone()
    holed[:, 2][~valid] = float("nan")
    assert torch.equal(rx(holed), rx(image, valid=valid))


def test_local_rx__leaves_void_pixels_out_of_every_window():
    image = scene(bands=3, size=11)
    image[0, :, :, 8:] = float("nan")
    window = image[0, :, 1:10, 1:10].clone()  # the window of pixel (5, 5)
    window[:, 3:6, 3:6] = float("nan")
    pixels = window[:, torch.isfinite(window).all(0)].T.double()
    deviation = image[0, :, 5, 5].double() - pixels.mean(0)
    expected = deviation @ torch.linalg.inv(torch.cov(pixels.T)) @ deviation
    close(local_rx(image, 3, 9)[0, 5, 5], expected.float())


def test_merge_statistics__equals_the_statistics_of_the_whole():
    pixels = scene(size=30)[0].flatten(1).T + 1e4
    merged = pixel_statistics(pixels[:0])
    for part in pixels.split([1, 2, 497, 400]):
        merged = merge_statistics(merged, pixel_statistics(part))
    whole = pixel_statistics(pixels)
    for name in ("count", "mean", "scatter"):
        got, expected = getattr(merged, name), getattr(whole, name)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-6)
        assert got.dtype == torch.float64
    torch.testing.assert_close(covariance(merged), torch.cov(pixels.T.double()), rtol=1e-9, atol=1e-9)


@BOTH
def test_rx__stays_finite_and_informative_with_fewer_pixels_than_bands(rx):
    image = scene(bands=330)
    image[0, :, 9, 9] += 20 * scene(bands=330, seed=3)[0, :, 0, 0]
    score = rx(image)
    assert torch.isfinite(score).all()
    assert score.argmax() == 9 * 18 + 9


@BOTH
def test_rx__ignores_a_constant_band(rx):
    image = scene()
    constant = torch.full_like(image[:, :1], 0.1)
    close(rx(torch.cat((image, constant), 1)), rx(image))


@BOTH
def test_rx__scores_a_constant_image_with_zeros(rx):
    assert torch.equal(rx(torch.full((1, 4, 12, 12), 0.1)), torch.zeros(1, 12, 12))


def test_local_rx__stays_finite_where_windows_are_constant_or_empty():
    image = scene(size=40)
    image[:, :, :15, :15] = 1.0
    image[:, :, 25:, :15] = float("nan")
    image[:, :, 35, 5] = 4.0  # a lone pixel without background
    image[:, :, 5, 5] = 2.0  # a pixel that leaves a constant background
    score = local_rx(image, 3, 9)
    assert torch.isfinite(score).all()
    assert score.argmax() == 5 * 40 + 5
    close(score[:, 35, 5], global_rx(image)[:, 35, 5])


def test_local_rx__adds_the_ridge_as_a_share_of_the_scene_covariance():
    image = scene(size=9)
    pixels = image[0].flatten(1).T.double()
    ring = torch.ones(9, 9, dtype=torch.bool)
    ring[3:6, 3:6] = False
    background = image[0, :, ring].T.double()
    deviation = image[0, :, 4, 4].double() - background.mean(0)
    expected = deviation @ torch.linalg.inv(torch.cov(background.T) + 0.5 * torch.cov(pixels.T)) @ deviation
    close(local_rx(image, 3, 9, ridge=0.5)[0, 4, 4], expected.float())


@BOTH
def test_rx__scores_a_batch_like_its_images_one_by_one(rx):
    images = scene(batch=3)
    expected = torch.cat([rx(image[None]) for image in images])
    assert torch.equal(rx(images), expected)
    assert expected.dtype == torch.float32


@BOTH
def test_rx__takes_a_single_band(rx):
    assert torch.isfinite(rx(scene(bands=1))).all()


def test_global_rx__equals_the_squared_z_score_of_a_single_band():
    image = scene(bands=1)
    close(global_rx(image), ((image - image.mean()) / image.std())[:, 0] ** 2)


def test_mahalanobis__takes_statistics_of_other_images():
    statistics = pixel_statistics(scene(seed=4)[0].flatten(1).T)
    image = scene()
    image[0, 0, 0, 0] = float("nan")
    score = mahalanobis(image, statistics.mean, regularised_precision(covariance(statistics), statistics.count))
    assert score.shape == (1, 18, 18)
    assert score[0, 0, 0] == 0
    assert (score >= 0).all()


def test_regularised_precision__equals_the_inverse_with_a_ridge():
    matrix = covariance(pixel_statistics(scene()[0].flatten(1).T))
    expected = torch.linalg.inv(matrix + 0.1 * torch.diag(matrix.diagonal()))
    torch.testing.assert_close(regularised_precision(matrix, 324, ridge=0.1), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: global_rx(x[0]), r"shape \(B, C, H, W\)"),
        (lambda x: local_rx(x, 4, 9), "odd windows"),
        (lambda x: local_rx(x, 3, 8), "odd windows"),
        (lambda x: local_rx(x, 9, 9), "inner < outer"),
        (lambda x: local_rx(x, 3, 19), "outer <= 18"),
        (lambda x: local_rx(x, 3, 9, ridge=-1.0), "ridge >= 0"),
        (lambda x: global_rx(x * float("nan")), "at least 2 valid pixels"),
        (lambda x: global_rx(x, valid=torch.arange(324).view(1, 18, 18) == 0), "but got 1 in image 0"),
        (lambda x: global_rx(x, valid=torch.ones(1, 18, 17, dtype=torch.bool)), "Expected valid"),
        (lambda x: mahalanobis(x, torch.zeros(5), torch.eye(6)), r"mean \(C,\)"),
        (lambda x: covariance(pixel_statistics(x[0, :, 0, :1].T)), "at least 2 pixels"),
        (lambda x: pixel_statistics(x), r"shape \(N, C\)"),
        (lambda x: regularised_precision(x[0, :, 0], 9), r"covariance \(C, C\)"),
    ],
)
def test_rx__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(scene())


@pytest.mark.real
@pytest.mark.skipif("ANOMSEG_DATA" not in os.environ, reason="ANOMSEG_DATA names no folder")
@pytest.mark.parametrize(("name", "expected"), GLOBAL_AUROC.items())
def test_global_rx__reaches_the_published_auroc(name, expected):
    from scipy.io import loadmat
    from sklearn.metrics import roc_auc_score

    content = loadmat(Path(os.environ["ANOMSEG_DATA"]) / "hyperspectral" / f"{name}.mat")
    image = torch.from_numpy(content["data"].astype(np.float32)).permute(2, 0, 1)[None]
    assert roc_auc_score(content["map"].ravel() > 0, global_rx(image)[0].flatten().numpy()) == pytest.approx(expected, abs=5.1e-5)
