from functools import cache, partial

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from scipy.stats import rankdata

from anomseg.data.synthetic_scenes import MASK_THRESHOLD, UTM_33N, sensor_bands, synthetic_scene, target_abundance
from anomseg.sample import ANOMALY, IGNORE

KINDS = ("rgb", "multispectral", "hyperspectral")
draw = cache(partial(synthetic_scene, size=(96, 96)))
draw_large = cache(partial(synthetic_scene, size=(128, 128)))


def auroc(score, truth):
    positives = truth.sum()
    return (rankdata(score)[truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum())


def counted(scene):
    keep = torch.isfinite(scene.image).all(dim=0) & (scene.mask != IGNORE)
    return scene.image[:, keep].T.double().numpy(), (scene.mask[keep] == ANOMALY).numpy()


def rx(pixels):
    centred = pixels - pixels.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    return np.einsum("ij,ij->i", centred @ np.linalg.inv(covariance), centred)


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_scene__is_bit_equal_for_a_seed_and_leaves_the_global_generator_alone(kind):
    state = torch.get_rng_state()
    first, second = (synthetic_scene(kind, (40, 48), seed=3) for _ in range(2))
    assert torch.equal(first.image.nan_to_num(-1), second.image.nan_to_num(-1))
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(state, torch.get_rng_state())


def test_synthetic_scene__differs_between_seeds():
    first, second = draw("rgb", seed=0), draw("rgb", seed=1)
    assert first.name != second.name
    assert not torch.equal(first.mask, second.mask)
    assert float((first.image - second.image).nan_to_num().abs().mean()) > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_scene__holds_reflectance_and_three_mask_values(kind):
    scene = draw(kind, seed=0)
    values = scene.image[torch.isfinite(scene.image)]
    assert scene.image.dtype == torch.float32
    assert scene.mask.dtype == torch.int64
    assert float(values.min()) >= 0
    assert 0.2 < float(values.max()) <= 1.3
    assert scene.mask.unique().tolist() == [0, ANOMALY, IGNORE]


@pytest.mark.parametrize(("kind", "bands", "count"), [("rgb", None, 3), ("multispectral", None, 10), ("hyperspectral", None, 100)])
def test_sensor_bands__counts_the_usual_bands(kind, bands, count):
    assert len(sensor_bands(kind, bands)) == count
    assert len(draw(kind, seed=0).wavelength) == draw(kind, seed=0).image.shape[0] == count


def test_sensor_bands__gives_the_centres_of_each_sensor():
    assert sensor_bands("rgb") == (650.0, 550.0, 450.0)
    assert sensor_bands("multispectral", 4) == (490.0, 560.0, 665.0, 842.0)
    assert sensor_bands("hyperspectral", 22) == pytest.approx([400 + 100 * k for k in range(22)])


@pytest.mark.parametrize(
    "arguments",
    [{"kind": "thermal"}, {"kind": "rgb", "bands": 4}, {"kind": "multispectral", "bands": 14}, {"size": (31, 64)}, {"nodata_share": 0.5}],
)
def test_synthetic_scene__refuses_what_it_cannot_draw(arguments):
    with pytest.raises(ValueError, match=r"Expected .*but got"):
        synthetic_scene(**arguments)


@pytest.mark.parametrize("seed", range(5))
def test_synthetic_scene__implants_few_small_objects(seed):
    components, count = label(draw("rgb", seed=seed).mask.numpy() == ANOMALY, structure=np.ones((3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    assert 3 <= count <= 14
    assert sizes.max() <= 30


def test_synthetic_scene__marks_pixels_without_data_by_nan_in_every_band_and_255():
    scene = draw("multispectral", seed=2)
    missing = torch.isnan(scene.image)
    assert torch.equal(missing.any(dim=0), missing.all(dim=0))
    assert bool((scene.mask[missing[0]] == IGNORE).all())
    assert float(missing[0].float().mean()) == pytest.approx(0.03, abs=0.001)


def test_synthetic_scene__has_data_everywhere_on_request():
    assert bool(torch.isfinite(synthetic_scene("rgb", (40, 40), nodata_share=0).image).all())


def test_target_abundance__has_whole_mixed_and_faint_pixels():
    abundance, index = target_abundance((128, 128), torch.ones(128, 128, dtype=torch.bool), torch.Generator().manual_seed(1))
    assert float(abundance.min()) == 0
    assert float(abundance.max()) == pytest.approx(1.0)
    assert bool(((abundance > MASK_THRESHOLD) & (abundance < 0.9)).any())
    assert bool(((abundance > 0) & (abundance <= MASK_THRESHOLD)).any())
    assert bool((index[abundance == 0] == 0).all())


def test_target_abundance__sums_to_the_areas_of_objects_below_a_pixel():
    abundance, _ = target_abundance((128, 128), torch.ones(128, 128, dtype=torch.bool), torch.Generator().manual_seed(4))
    components, count = label(abundance.numpy() > 0, structure=np.ones((3, 3)))
    areas = [abundance.numpy()[components == number].sum() for number in range(1, count + 1)]
    small = [area for area in areas if area < 0.95]
    assert count // 3 <= len(small)
    assert max(areas) < 1.1 * 3.6**2


def test_target_abundance__keeps_centres_where_they_are_allowed():
    allowed = torch.zeros(64, 64, dtype=torch.bool)
    allowed[:, 40:] = True
    abundance, _ = target_abundance((64, 64), allowed, torch.Generator().manual_seed(0))
    assert float(abundance[:, 40:].sum()) > 0
    assert float(abundance[:, :36].sum()) == 0


def test_synthetic_scene__georeferences_on_request():
    rasterio_crs = pytest.importorskip("rasterio.crs")
    scene = draw("multispectral", seed=0)
    assert rasterio_crs.CRS.from_wkt(scene.crs).to_epsg() == 32633
    assert scene.crs == UTM_33N
    assert scene.transform == (10.0, 0.0, 400_000.0, 0.0, -10.0, 5_300_000.0)
    plain = synthetic_scene("rgb", (32, 32), georeferenced=False)
    assert plain.transform is None
    assert plain.crs is None


@pytest.mark.parametrize(("kind", "low", "high"), [("rgb", 0.6, 0.95), ("multispectral", 0.78, 0.98), ("hyperspectral", 0.85, 0.98)])
def test_synthetic_scene__is_found_well_but_not_perfectly_by_rx(kind, low, high):
    for seed in range(3):
        pixels, truth = counted(draw_large(kind, seed=seed))
        assert low < auroc(rx(pixels), truth) < high


def test_synthetic_scene__is_not_solved_by_thresholds_on_single_bands():
    for seed in range(3):
        pixels, truth = counted(draw_large("hyperspectral", seed=seed))
        deviation = np.abs((pixels - pixels.mean(axis=0)) / pixels.std(axis=0))
        best = max(auroc(deviation[:, band], truth) for band in range(0, pixels.shape[1], 5))
        assert best + 0.05 < auroc(rx(pixels), truth)


def test_synthetic_scene__is_noisier_where_water_vapour_absorbs():
    scene = draw("hyperspectral", seed=0)
    roughness = (scene.image[:, 1:] - scene.image[:, :-1]).abs().nanmedian(dim=-1).values.nanmedian(dim=-1).values
    wavelength = np.array(scene.wavelength)
    absorbed, clear = np.abs(wavelength - 1880).argmin(), np.abs(wavelength - 1650).argmin()
    assert float(roughness[absorbed]) > 2 * float(roughness[clear])
