import pytest
import torch

from anomseg.data.defect_base import Surface
from anomseg.data.defect_paints import Blur, ColourShift, Hole, PerlinTexture
from anomseg.functional.smoothing import gaussian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(bands=3, size=(48, 48)):
    return torch.rand(bands, *size, generator=generator())


def test_blur__is_the_gaussian_mean_of_the_valid_pixels():
    image = textured(2)
    image[:, :10] = torch.nan
    changed, mask = Blur(sigma=(2.0, 2.0)).apply(image, generator())
    surface = Surface.of(image)
    expected = gaussian(surface.image, 2.0, surface.valid.expand(2, 48, 48))
    torch.testing.assert_close(changed[:, mask], expected[:, mask])


def test_colour_shift__is_one_number_a_band_in_the_middle_and_fades():
    image = 0.45 + 0.1 * textured(3, (96, 96))
    changed, mask = ColourShift(shift=(2.0, 2.0), size=(0.2, 0.2)).apply(image, generator(4))
    ratio = (changed - image).abs()[:, mask] / image.flatten(1).std(1, correction=0)[:, None]
    torch.testing.assert_close(ratio.amax(1), torch.full((3,), 2.0), atol=0.02, rtol=0)
    assert float(ratio.amin()) < 1.5


def test_colour_shift__changes_brightness_or_colour():
    image = 0.4 + 0.2 * textured(3)
    signs = set()
    for seed in range(20):
        changed, mask = ColourShift().apply(image, generator(seed))
        signs.add(tuple((changed - image)[:, mask].mean(1).sign().long().tolist()))
    assert {(1, 1, 1), (-1, -1, -1)} < signs


def test_hole__is_of_one_colour_within_the_range_of_the_image():
    image = 0.2 + 0.5 * textured(3)
    for seed in range(10):
        changed, mask = Hole(count=(1, 1)).apply(image, generator(seed))
        inside = changed[:, mask]
        assert float(inside.std(1).max()) == pytest.approx(0.0, abs=1e-6)
        assert bool((inside >= image.flatten(1).amin(1)[:, None] - 1e-6).all())
        assert bool((inside <= image.flatten(1).amax(1)[:, None] + 1e-6).all())


def test_hole__falls_into_as_many_boxes_as_it_should():
    image = textured(1, (96, 96))
    counts = set()
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    for seed in range(12):
        painted, cover = Hole(count=(3, 3), size=(0.01, 0.01)).paint(Surface.of(image), generator(seed), ())
        assert painted.shape == image.shape
        corners = torch.nn.functional.conv2d((cover > 0).float()[None, None], cross, padding=1)[0, 0]
        counts.add(int(((corners == 3) & (cover > 0)).sum()) / 4)  # a box of two pixels or more has four corners
    assert 3 in counts


def test_perlin_texture__lays_another_image_or_a_drawn_texture():
    image, other = 0.5 * textured(1), torch.full((1, 10, 10), 0.9)
    found = set()
    for seed in range(16):
        changed, mask = PerlinTexture().apply(image, generator(seed), [other])
        found.add(bool((changed[:, mask] == 0.9).all()))
    assert found == {True, False}


def test_perlin_texture__keeps_the_range_of_the_image_without_others():
    image = 0.3 + 0.2 * textured(2)
    for seed in range(8):
        changed, _ = PerlinTexture().apply(image, generator(seed))
        assert float(changed.min()) >= 0.3 - 1e-6
        assert float(changed.max()) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Blur(sigma=(0.0, 1.0)), "sigma"),
        (lambda: ColourShift(shift=(2.0, 1.0)), "shift"),
        (lambda: Hole(count=(0, 1)), "count"),
        (lambda: PerlinTexture(cells=(3, 2)), "cells"),
    ],
)
def test_paints__refuse_arguments_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()
