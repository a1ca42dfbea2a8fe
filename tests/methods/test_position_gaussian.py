"""Gaussians of each place on a part."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.errors import NotFittedError
from anomseg.functional.border import border_bins
from anomseg.methods.position_gaussian import PositionGaussian
from anomseg.sample import collate


def part(seed, defect=False, size=(48, 40), void=False):
    """Draw a noisy part with a rough, dark rim, and a scratch along a row well inside of it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, generator=generator)
    rim = torch.ones(size, dtype=torch.bool)
    rim[4:-4, 4:-4] = False
    image = torch.where(rim, 0.2 + 0.03 * noise, 0.6 + 0.02 * noise).clamp(0.01, 1.0)
    mask = torch.zeros(size, dtype=torch.int64)
    if defect:
        row = int(torch.randint(14, size[0] - 14, (1,), generator=generator))
        image[row, 12:30] -= 0.09
        mask[row, 12:30] = 1
    if void:
        mask[20:24, 20:24] = 255
    return {"image": image[None], "mask": mask, "name": f"{seed}"}


def loader(samples, batch_size=4):
    return DataLoader(samples, batch_size=batch_size, collate_fn=collate)


def trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, num_sanity_val_steps=0, enable_checkpointing=False, **quiet)


def fitted(folder, samples=None, **options):
    method = PositionGaussian(**options)
    loop = trainer(folder)
    loop.fit(method, loader(samples or [part(s) for s in range(12)]), loader([part(s) for s in range(50, 54)]))
    return method.eval(), loop


def test_position_gaussian__finds_scratches_that_a_rim_hides_from_one_gaussian(tmp_path):
    test = loader([part(100 + s, defect=s % 2 == 0) for s in range(16)])
    figures = {}
    for cuts in ((), (2, 4, 8)):
        method, loop = fitted(tmp_path, families=["derivatives"], cuts=cuts, scales=(1, 2, 4), smoothing=0.5, level="mean")
        figures[cuts] = loop.test(method, test, verbose=False)[0]["test_auroc"]
    assert figures[2, 4, 8] > 0.95
    assert figures[()] < 0.7


def test_position_gaussian__finds_faint_scratches_by_lines(tmp_path):
    samples = [part(seed, size=(64, 64)) for seed in range(8)]
    tests = [part(seed, size=(64, 64)) for seed in range(20, 28)]
    for index, sample in enumerate(tests[:4]):
        sample["image"][0, 30 + index, 12:52] -= 0.03  # no deeper than the noise, twice over
    images = torch.stack([sample["image"] for sample in tests])
    peaks = {}
    for families in (["derivatives"], ["lines"], ["derivatives", "lines"]):
        method, _ = fitted(tmp_path, samples, families=families)
        score = method.score(images)
        peaks[len(families), families[0]] = score.flatten(1).amax(1)
        assert not score[4:].isnan().any()
    assert float(peaks[1, "lines"][:4].min()) > float(peaks[1, "lines"][4:].max())
    assert not float(peaks[1, "derivatives"][:4].min()) > float(peaks[1, "derivatives"][4:].max())
    assert set(method.state_dict()) >= {"mean_derivatives", "levels.lines.mean"}
    assert "mean_lines" not in method.state_dict()


def test_position_gaussian__brings_normal_peaks_of_all_places_to_zero_on_demand(tmp_path):
    samples = [part(seed) for seed in range(24)]
    held = torch.stack([part(seed)["image"] for seed in range(60, 76)])
    middle = border_bins((48, 40), (4, 8)) == 8
    means = {}
    for level in ("peak", "mean"):
        score = fitted(tmp_path, samples, families=["energies"], cuts=(4, 8), level=level)[0].score(held)
        means[level] = float(score[:, middle].amax(1).mean())
    assert abs(means["peak"]) < 0.9  # images that were not learnt, and a place drawn towards all by 10 images
    assert means["mean"] > 1.5


def test_position_gaussian__averages_families_that_are_each_brought_to_their_own_peaks(tmp_path):
    image = part(7, defect=True)["image"][None]
    families = ["derivatives", "contrasts", "lines"]
    joint = fitted(tmp_path, families=families, cuts=(4,))[0].score(image)
    alone = [fitted(tmp_path, families=[family], cuts=(4,))[0].score(image) for family in families]
    torch.testing.assert_close(joint, torch.stack(alone).mean(0))


def test_position_gaussian__takes_the_scales_and_windows_that_are_asked_for(tmp_path):
    method, _ = fitted(tmp_path, families=["derivatives", "contrasts"], cuts=(), scales=(1, 2), windows=[[3, 5], [5, 9]])
    assert method.mean_derivatives.shape == (1, 10)
    assert method.mean_contrasts.shape == (1, 8)


def test_position_gaussian__finds_a_wide_patch_whose_streaks_are_others(tmp_path):
    def streaked(seed, defect=False):
        generator = torch.Generator().manual_seed(seed)
        profile, other = 0.05 * torch.randn(2, 64, generator=generator)
        light, mask = profile.repeat(64, 1), torch.zeros(64, 64, dtype=torch.int64)
        if defect:
            light[24:40], mask[24:40] = other, 1
        return {"image": (0.5 + light + 0.02 * torch.randn(64, 64, generator=generator))[None], "mask": mask, "name": f"{seed}"}

    test, found = loader([streaked(100 + seed, defect=seed % 2 == 0) for seed in range(12)]), {}
    for family in ("streaks", "derivatives"):
        options = {"cuts": (), "smoothing": 6.0, "windows": ((9, 31),)}
        method, loop = fitted(tmp_path, [streaked(seed) for seed in range(12)], families=[family], **options)
        found[family] = loop.test(method, test, verbose=False)[0]["test_auroc"]
    assert found["streaks"] > 0.97 > 0.93 > found["derivatives"]


def test_position_gaussian__reloads_to_the_same_map(tmp_path):
    method, loop = fitted(tmp_path, cuts=(3,), shrink=2, scales=(1.0,), windows=((5, 9),))
    loop.save_checkpoint(tmp_path / "gaussian.ckpt")
    image = part(7, defect=True, size=(45, 39))["image"][None]
    assert method(image).shape == (1, 45, 39)
    torch.testing.assert_close(load(tmp_path / "gaussian.ckpt")(image), method(image))


def test_position_gaussian__enlarges_by_whole_steps_where_the_size_is_no_multiple(tmp_path):
    method, _ = fitted(tmp_path, cuts=(), shrink=4, smoothing=0)
    image = part(7, defect=True, size=(41, 37))["image"][None]
    padded = torch.nn.functional.pad(image, (0, 3, 0, 3), mode="replicate")  # the last squares keep their means
    torch.testing.assert_close(method.score(padded)[:, :41, :37], method.score(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["peak", "mean"])
def test_position_gaussian__is_the_enlarged_score_of_shrunk_images_without_holes(tmp_path, level):
    method, _ = fitted(tmp_path, cuts=(3, 7), shrink=3, level=level)
    image = part(7, defect=True, size=(44, 37))["image"][None]
    small = torch.nn.functional.avg_pool2d(image, 3, ceil_mode=True, count_include_pad=False)
    method.shrink = 1
    score = method.score(small)
    method.shrink = 3
    fine = torch.nn.functional.interpolate(score[:, None], scale_factor=3.0, mode="bilinear", align_corners=False)[:, 0, :44, :37]
    torch.testing.assert_close(method.score(image), fine, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shrink", [2, 4])
def test_position_gaussian__finds_a_defect_beside_missing_pixels(tmp_path, shrink):
    method, _ = fitted(tmp_path, families=["derivatives"], cuts=(3,), scales=(1, 2, 4), shrink=shrink, smoothing=0.5)
    image = part(7)["image"][None]
    image[..., 20:28, 17:20] -= 0.3
    holed = image.clone()
    holed[..., 12:36, 16] = torch.nan  # one dead column of the sensor
    whole, score = method.score(image), method.score(holed)
    defect = (0, slice(20, 28), slice(17, 20))
    assert float(score[defect].mean()) > 0.8 * float(whole[defect].mean()) > 2.0
    data = torch.isfinite(holed[:, 0])
    assert bool((score[~data] == 0).all())
    assert not bool((score[data] == 0).any())


def test_position_gaussian__does_not_see_the_exposure(tmp_path):
    method, _ = fitted(tmp_path, cuts=(3,))
    image = part(7, defect=True)["image"][None]
    torch.testing.assert_close(method.score(0.8 * image + 0.0), method.score(image), rtol=0.2, atol=0.2)


def test_position_gaussian__learns_nothing_from_void_or_missing_pixels(tmp_path):
    samples, spoilt = [part(s, void=True) for s in range(6)], [part(s, void=True) for s in range(6)]
    plain, _ = fitted(tmp_path, samples, families=["derivatives"])
    for sample in spoilt:
        sample["mask"][30:33, 8:12] = 255
        sample["image"][:, 30:33, 8:12] = torch.nan
    for sample in samples:
        sample["mask"][30:33, 8:12] = 255
    holed, _ = fitted(tmp_path, spoilt, families=["derivatives"])
    assert torch.isfinite(holed.precision_derivatives).all()
    image = part(9)["image"][None].clone()
    image[..., 5:8, 5:8] = torch.nan
    for method in (plain, holed):
        assert torch.isfinite(method.score_map(image)).all()


def test_position_gaussian__takes_several_bands(tmp_path):
    samples = [{**s, "image": s["image"].repeat(3, 1, 1)} for s in map(part, range(4))]
    method = PositionGaussian(3, families=["derivatives"])
    trainer(tmp_path).fit(method, loader(samples), loader(samples))
    assert method.score_map(samples[0]["image"][None]).shape == (1, 48, 40)
    with pytest.raises(ValueError, match="3 bands"):
        method.score(torch.rand(1, 1, 8, 8))


def test_position_gaussian__is_not_used_before_it_is_fitted():
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        PositionGaussian().score(torch.rand(1, 1, 16, 16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"families": []},
        {"families": ["colour"]},
        {"cuts": (4, 2)},
        {"shrink": 0},
        {"in_channels": 0},
        {"smoothing": 0.2},
        {"lines": "grey"},
        {"level": "median"},
        {"scales": ()},
        {"scales": (0.2,)},
        {"windows": ()},
        {"windows": ((7, 14),)},
    ],
)
def test_position_gaussian__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        PositionGaussian(**wrong)
