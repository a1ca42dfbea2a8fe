import math

import pytest
import torch
from scipy.ndimage import label

from anomseg.data.defect_base import Surface
from anomseg.data.defect_lines import Crack, drawn_line


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(bands=1, size=(96, 96)):
    return 0.4 + 0.2 * torch.rand(bands, *size, generator=generator())


def test_drawn_line__covers_length_times_width():
    points = torch.stack([torch.full((61,), 20.0), torch.arange(10.0, 71.0)], 1)
    cover = drawn_line((40, 90), points, torch.full((61,), 4.0), torch.ones(61))
    assert float(cover.sum()) == pytest.approx(60 * 4 + math.pi * 4, rel=0.05)
    assert float(cover.max()) == 1.0
    assert not cover[:17].any()


def test_drawn_line__draws_what_reaches_in_and_nothing_else():
    cover = drawn_line((10, 10), torch.tensor([[-1.0, 5.0], [50.0, 5.0]]), torch.tensor([4.0, 4.0]), torch.tensor([0.5, 1.0]))
    assert float(cover.max()) == 0.5
    assert not cover[3:].any()


def test_crack__is_long_and_thin():
    image = textured()
    for seed in range(20):
        _, mask = Crack(forks=0, wander=0.3, width=(2.0, 2.0), size=(0.015, 0.015)).apply(image, generator(seed))
        rows, columns = mask.nonzero().T
        if int(rows.min()) > 0 and int(rows.max()) < 95 and int(columns.min()) > 0 and int(columns.max()) < 95:
            extent = math.hypot(int(rows.max() - rows.min()), int(columns.max() - columns.min()))
            assert extent > 8 * int(mask.sum()) / extent  # longer than eight times its mean width


def test_crack__is_straight_without_wander():
    line = Crack(forks=0, wander=0.0, width=(1.0, 1.0), size=(0.006, 0.006))
    _, mask = line.apply(textured(), generator(3))
    places = mask.nonzero().float()
    assert float(torch.linalg.svdvals(places - places.mean(0))[1]) / math.sqrt(len(places)) < 1.2


def test_crack__is_darker_or_brighter_as_asked():
    image = textured(2)
    for dark, sign in ((1.0, -1), (0.0, 1)):
        for seed in range(5):
            changed, mask = Crack(dark=dark, contrast=(3.0, 3.0)).apply(image, generator(seed))
            assert bool(((changed - image)[:, mask].mean(1).sign() == sign).all())


def test_crack__hangs_together_with_its_forks():
    image, found = textured(), []
    for seed in range(12):
        painted, cover = Crack(forks=3).paint(Surface.of(image), generator(seed), ())
        assert painted.shape == image.shape
        found.append(int(label((cover > 0).numpy(), torch.ones(3, 3).numpy())[1]))
    assert found.count(1) >= 9  # a line may leave the image and come back


def test_crack__covers_about_the_area_it_draws():
    image = textured(1, (256, 256))
    areas = []
    for seed in range(30):
        _, cover = Crack(size=(0.01, 0.01)).paint(Surface.of(image), generator(seed), ())
        areas.append(float((cover > 0.2).sum()) / 256**2)
    assert 0.004 < sorted(areas)[15] < 0.016


@pytest.mark.parametrize(
    "arguments",
    [{"width": (0.2, 1.0)}, {"width": (3.0, 1.0)}, {"contrast": (0.0, 1.0)}, {"wander": -1.0}, {"dark": 1.5}, {"forks": -1}],
)
def test_crack__rejects_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Crack(**arguments)
