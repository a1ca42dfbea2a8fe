import math

import pytest
import torch
from torch import Tensor

from anomseg.functional.virtual_anomalies import (
    PUBLISHED,
    BrightnessShift,
    ChannelShuffle,
    ContrastChange,
    GaussianNoise,
    ImageShuffle,
    PixelShuffle,
    Solarise,
    apply_all,
)
from anomseg.sample import finite_pixels

EVERY = [GaussianNoise(), ChannelShuffle(), BrightnessShift(), ContrastChange(), Solarise(), PixelShuffle(), ImageShuffle()]
every = pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 4, bands: int = 5, size: int = 10) -> Tensor:
    return torch.randn(batch, bands, size, size + 1, generator=seeded(9))


def holed() -> Tensor:
    image = images()
    empty = torch.rand(4, 10, 11, generator=seeded(3)) < 0.2
    image[:, 2][empty] = math.nan
    image[1, 4, 0, 0] = math.inf
    return image


def spectra(image: Tensor) -> list[list[float]]:
    return sorted(image.flatten(1).T.tolist())


# ---- what all have in common


@every
@pytest.mark.parametrize("bands", [1, 2, 14, 200])
@pytest.mark.parametrize("batch", [1, 3])
def test_transform__keeps_shape_and_dtype_and_leaves_its_input_alone(transform, bands, batch):
    image = images(batch, bands)
    before = image.clone()
    changed = transform(image, seeded())
    assert changed.shape == image.shape
    assert changed.dtype == image.dtype
    assert torch.equal(image, before)
    assert torch.equal(changed, image) == (bands == 1 and isinstance(transform, ChannelShuffle))


@every
def test_transform__repeats_itself_from_the_same_seed(transform):
    assert torch.equal(transform(images(), seeded(1)), transform(images(), seeded(1)))


@every
def test_transform__returns_pixels_without_data_as_they_came(transform):
    image = holed()
    changed = transform(image, seeded())
    empty = ~finite_pixels(image)[:, None].expand_as(image)
    assert torch.equal(finite_pixels(changed), finite_pixels(image))
    assert torch.equal(changed[empty].nan_to_num(nan=7.0), image[empty].nan_to_num(nan=7.0))
    assert not torch.equal(changed[~empty], image[~empty])


@every
def test_transform__gives_what_lies_under_no_data_no_influence(transform):
    image = holed()
    data = finite_pixels(image)[:, None]
    other = torch.where(data, image, math.nan)
    keep = data.expand_as(image)
    assert torch.equal(transform(image, seeded())[keep], transform(other, seeded())[keep])


@pytest.mark.parametrize(
    "transform", [GaussianNoise(), BrightnessShift(), ContrastChange(), PixelShuffle()], ids=lambda t: type(t).__name__
)
def test_transform__draws_anew_for_each_image(transform):
    same = images(1).expand(4, -1, -1, -1)
    changed = transform(same, seeded())
    assert all(not torch.equal(changed[0], changed[i]) for i in (1, 2, 3))


@every
def test_transform__of_double_precision_stays_double(transform):
    assert transform(images().double(), seeded()).dtype == torch.float64


@every
def test_transform__refuses_what_is_no_batch_of_floats(transform):
    with pytest.raises(ValueError, match=r"\(5, 10, 11\)"):
        transform(images()[0], seeded())
    with pytest.raises(ValueError, match="uint8"):
        transform(images().to(torch.uint8), seeded())


@pytest.mark.parametrize("build", [lambda: GaussianNoise(-1.0), lambda: BrightnessShift(-0.1), lambda: ContrastChange(math.nan)])
def test_transform__refuses_a_negative_strength(build):
    with pytest.raises(ValueError, match=">= 0"):
        build()


# ---- what each does


def test_gaussian_noise__has_the_asked_standard_deviation_and_no_mean():
    image = images(2, 3, 100)
    noise = GaussianNoise(0.7)(image, seeded()) - image
    assert float(noise.std()) == pytest.approx(0.7, rel=0.02)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(torch.corrcoef(noise[0].flatten(1))[0, 1])) < 0.05


def test_channel_shuffle__permutes_whole_bands_and_never_leaves_all_in_place():
    image = images(40, 3)
    changed = ChannelShuffle()(image, seeded())
    orders = set()
    for before, after in zip(image, changed, strict=True):
        order = tuple(next(k for k in range(3) if torch.equal(band, before[k])) for band in after)
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert orders == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}


def test_channel_shuffle__swaps_two_bands():
    image = images(6, 2)
    assert torch.equal(ChannelShuffle()(image, seeded()), image.flip(1))


def test_brightness_shift__adds_one_value_within_its_limit():
    image = images(200)
    shift = BrightnessShift(0.3)(image, seeded()) - image
    each = shift.flatten(1).mean(1)
    torch.testing.assert_close(shift, each[:, None, None, None].expand_as(shift), rtol=0, atol=1e-5)
    assert 0.28 < float(each.max()) <= 0.3 + 1e-5
    assert -0.3 - 1e-5 <= float(each.min()) < -0.28


def test_contrast_change__scales_about_zero_within_its_limit():
    image = images(200)
    changed = ContrastChange(0.3)(image, seeded())
    factor = changed.flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)
    torch.testing.assert_close(changed, image * factor[:, None, None, None], rtol=1e-4, atol=1e-5)
    assert 1.28 < float(factor.max()) <= 1.3 + 1e-5
    assert 0.7 - 1e-5 <= float(factor.min()) < 0.72


def test_solarise__inverts_values_from_the_threshold_on():
    image = torch.tensor([-0.5, 0.1, 0.2, 0.6, 1.0]).view(1, 1, 1, 5)
    expected = torch.tensor([-0.5, 0.1, 0.8, 0.4, 0.0]).view(1, 1, 1, 5)
    torch.testing.assert_close(Solarise(0.2)(image, seeded()), expected)


def test_pixel_shuffle__moves_whole_spectra_within_their_image():
    image = images()
    changed = PixelShuffle()(image, seeded())
    for before, after in zip(image, changed, strict=True):
        assert spectra(before) == spectra(after)
        assert float((before == after).all(0).double().mean()) < 0.1


def test_image_shuffle__gives_every_image_another_one():
    image = images(5)
    steps = set()
    for seed in range(20):
        changed = ImageShuffle()(image, seeded(seed))
        steps.add(next(k for k in range(5) if torch.equal(changed, image.roll(k, 0))))
    assert steps == {1, 2, 3, 4}


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 6), (6, 1)])
def test_image_shuffle__moves_every_pixel_of_a_single_image(size):
    image = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    for seed in range(6):
        changed = ImageShuffle()(image, seeded(seed))
        assert not (changed == image).any()
        assert torch.equal(changed.flatten().sort().values, image.flatten())


def test_image_shuffle__of_a_single_image_swaps_its_quadrants():
    image = images(1, 2, 10)[..., :10]
    top, bottom = image.split(5, 2)
    arrangements = [torch.cat((bottom, top), 2), image.roll(5, 3), torch.cat((bottom, top), 2).roll(5, 3)]
    found = {next(i for i, a in enumerate(arrangements) if torch.equal(ImageShuffle()(image, seeded(s)), a)) for s in range(20)}
    assert found == {0, 1, 2}


def test_image_shuffle__keeps_a_pixel_where_the_other_image_has_no_data():
    image = images(2)
    image[1, :, 4, 4] = math.nan
    changed = ImageShuffle()(image, seeded())
    assert torch.equal(changed[0, :, 4, 4], image[0, :, 4, 4])
    assert torch.equal(changed[0, :, 5, 5], image[1, :, 5, 5])


# ---- one after the other


def test_apply_all__applies_in_order_with_one_generator():
    image, generator = holed(), seeded(4)
    expected = ImageShuffle()(Solarise()(GaussianNoise()(image, generator), generator), generator)
    changed = apply_all((GaussianNoise(), Solarise(), ImageShuffle()), image, seeded(4))
    torch.testing.assert_close(changed, expected, rtol=0, atol=0, equal_nan=True)


def test_apply_all__of_nothing_is_a_copy():
    image = images()
    changed = apply_all((), image, seeded())
    assert torch.equal(changed, image)
    assert changed.data_ptr() != image.data_ptr()


def test_published__is_the_paper_s_list_in_its_order():
    names = [type(t).__name__ for t in PUBLISHED]
    assert names == ["GaussianNoise", "ChannelShuffle", "BrightnessShift", "ContrastChange", "Solarise"]
    assert torch.equal(finite_pixels(apply_all(PUBLISHED, holed(), seeded())), finite_pixels(holed()))
