from pathlib import Path

import numpy as np
import pytest
import torch

from anomseg.functional.area_filter import area_closing, area_opening
from anomseg.functional.area_rx import area_filtered_rx, fuse_scores, pca_local_rx, pca_rx
from anomseg.functional.rx import global_rx, local_rx
from anomseg.functional.whitening import whitened_components

NAMES = ("abu-airport-1", "abu-airport-4", "abu-beach-1", "abu-beach-4", "abu-urban-1", "abu-urban-3", "hydice_urban", "sandiego1_189")
DETECTORS = {
    "area": area_filtered_rx,
    "pca": pca_rx,
    "local": lambda x, **k: pca_local_rx(x, inner=5, outer=11, **k),
}
EACH = pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS.keys())


def scene(bands: int = 6, size: int = 24, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(bands, bands, generator=generator) + 2 * torch.eye(bands)
    return (torch.randn(batch, size, size, bands, generator=generator) @ mixing).permute(0, 3, 1, 2).contiguous() + 5.0


@EACH
def test_detector__ranks_a_small_target_first(detector):
    image = scene()
    image[0, :, 10:12, 12:14] += 12 * torch.tensor([1.0, -1, 1, -1, 1, -1]).view(6, 1, 1)
    score = detector(image)
    assert score.shape == (1, 24, 24)
    assert score.dtype == torch.float32
    assert score[0, 10:12, 12:14].min() > score[0, :8].max()


@EACH
def test_detector__ignores_void_pixels_bit_by_bit(detector):
    image = scene(batch=2)
    valid = torch.ones(2, 24, 24, dtype=torch.bool)
    valid[0, :3] = False
    image[1, 2, 5, 5] = torch.nan
    poisoned = image.clone()
    poisoned[0, :, :3] = 1e9
    poisoned[1, 0, 5, 5] = torch.inf
    score = detector(image, valid=valid)
    assert torch.equal(score, detector(poisoned, valid=valid))
    assert (score[0, :3] == 0).all()
    assert score[1, 5, 5] == 0
    assert torch.isfinite(score).all()


@EACH
@pytest.mark.parametrize("bands", [1, 3])
def test_detector__takes_few_bands(detector, bands):
    score = detector(scene(bands=bands))
    assert torch.isfinite(score).all()
    assert score.max() > 0


@EACH
def test_detector__scores_a_constant_image_0(detector):
    assert (detector(torch.full((1, 3, 12, 12), 0.1)) == 0).all()


@EACH
def test_detector__does_not_see_repeated_and_constant_bands(detector):
    image = scene()
    more = torch.cat((image, image, torch.full_like(image, 3.0)), 1)
    torch.testing.assert_close(detector(more), detector(image), rtol=1e-3, atol=1e-3)


@EACH
def test_detector__scores_each_image_of_a_batch_alone(detector):
    image = scene(batch=2)
    torch.testing.assert_close(detector(image), torch.cat([detector(x[None]) for x in image]), rtol=1e-5, atol=1e-5)


def test_area_filtered_rx__follows_its_formula():
    image = scene()
    z = whitened_components(image, 4)[0]
    detail = (z - area_opening(z, 9)) - (area_closing(z, 9) - z)
    expected = (detail / detail.flatten(1).std(1)[:, None, None]).square().sum(0).sqrt()
    torch.testing.assert_close(area_filtered_rx(image, 4, area=9, smoothing=0.0)[0], expected, rtol=1e-4, atol=1e-4)


def test_area_filtered_rx__does_not_see_what_is_larger_than_the_area():
    image = scene() * 0.01
    image[0, :, 5:11, 5:11] += 1.0  # 36 pixels
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[5:11, 5:11] = True
    contrasts = []
    for area in (37, 36):
        score = area_filtered_rx(image, 1, area=area, smoothing=0.0)[0]
        contrasts.append(float(score[inside].mean() / score[~inside].mean()))
    assert contrasts[0] > 20
    assert contrasts[1] < 4


def test_area_filtered_rx__takes_a_scene_smaller_than_the_area():
    assert torch.isfinite(area_filtered_rx(scene(size=4), area=30)).all()


def test_pca_rx__equals_global_rx_with_all_components():
    image = scene()
    torch.testing.assert_close(pca_rx(image, 6), global_rx(image), rtol=1e-4, atol=1e-4)


def test_pca_local_rx__equals_local_rx_with_all_components():
    image = scene()
    torch.testing.assert_close(pca_local_rx(image, 6, 5, 11, 0.1, smoothing=0.0), local_rx(image, 5, 11, 0.1), rtol=1e-3, atol=1e-3)


def test_fuse_scores__sums_standard_scores_of_logarithms():
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    logs = maps.log()
    expected = ((logs - logs.mean((2, 3), keepdim=True)) / logs.std((2, 3), correction=0, keepdim=True)).sum(0)
    torch.testing.assert_close(fuse_scores(tuple(maps)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuse_scores(tuple(maps), exponential=True), expected.exp(), rtol=1e-4, atol=1e-5)


def test_fuse_scores__does_not_depend_on_units_and_powers():
    a, b = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(fuse_scores((a, b)), fuse_scores((7 * a, b**2)), rtol=1e-4, atol=1e-5)


def test_fuse_scores__ignores_void_pixels_and_constant_maps():
    a = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    valid = torch.ones(1, 9, 9, dtype=torch.bool)
    valid[0, 0] = False
    poisoned = torch.where(valid, a, torch.nan)
    fused = fuse_scores((poisoned, torch.full_like(a, 0.3)), valid)
    assert torch.equal(fused, fuse_scores((a,), valid))
    assert (fused[0, 0] == 0).all()


def test_fuse_scores__stays_finite_where_a_score_is_0():
    a = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0))
    a[0, 0, 0] = 0.0
    fused = fuse_scores((a, a), exponential=True)
    assert torch.isfinite(fused).all()
    assert fused.argmin() == 0
    assert (fuse_scores((torch.zeros(1, 3, 3),)) == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: area_filtered_rx(x, area=1), "at least 2 pixels"),
        (lambda x: area_filtered_rx(x, area=-5), "at least 2 pixels"),
        (lambda x: area_filtered_rx(x, area=9.5), "whole pixel"),
        (lambda x: area_filtered_rx(x, components=0), "at least 1 component"),
        (lambda x: area_filtered_rx(x, smoothing=-1.0), "smoothing of at least 0"),
        (lambda x: area_filtered_rx(x[0]), r"shape \(B, C, H, W\)"),
        (lambda x: pca_local_rx(x, outer=25), "outer <= 24"),
        (lambda x: pca_local_rx(x, inner=9, outer=9), "inner < outer"),
        (lambda x: pca_rx(x * torch.nan), "at least 2 valid pixels"),
        (lambda x: fuse_scores([]), "one or more maps"),
        (lambda x: fuse_scores([x[:, 0], x[:, 0, 1:]]), "one shape"),
        (lambda x: fuse_scores([-x[:, 0].abs()]), "finite scores >= 0"),
        (lambda x: fuse_scores([x[:, 0]], x[:, 0]), "Expected valid of shape"),
    ],
)
def test_area_rx__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(scene())


@pytest.mark.real
def test_detectors__reach_the_measured_auroc_on_real_scenes(real_data: Path):
    from scipy.io import loadmat
    from sklearn.metrics import roc_auc_score

    reached = []
    for name in NAMES:
        content = loadmat(real_data / "hyperspectral" / f"{name}.mat")
        image = torch.from_numpy(content["data"].astype(np.float32)).permute(2, 0, 1)[None].contiguous()
        local = pca_local_rx(image)
        maps = (area_filtered_rx(image), local, fuse_scores((area_filtered_rx(image, 5), local)))
        reached.append([roc_auc_score(content["map"].ravel() > 0, m[0].flatten().numpy()) for m in maps])
    area, local, fused = np.array(reached).T
    assert area.mean() >= 0.989
    assert local.mean() >= 0.980
    assert fused.mean() >= 0.990
    assert fused.min() >= 0.970


@pytest.mark.parametrize("detect", [area_filtered_rx, pca_rx])
def test_detector__gives_the_same_under_autocast(detect):
    image = torch.rand(1, 8, 24, 25, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = detect(image)
    assert torch.equal(found, detect(image))
