from typing import get_args

import pytest
import torch

from anomseg.data.synthetic_surfaces import SurfaceDefect, SurfaceKind, surface_scene

KINDS, DEFECTS = get_args(SurfaceKind), get_args(SurfaceDefect)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_surface__with_a_defect_is_the_same_surface_elsewhere(kind, defect):
    for seed in range(4):
        plain, spoilt = surface_scene(kind, seed=seed), surface_scene(kind, seed=seed, defect=defect)
        change = (plain.image - spoilt.image).abs().amax(0)
        mask = spoilt.mask == 1
        assert 10 <= int(mask.sum()) < 0.25 * mask.numel()
        assert float(change[~mask].max()) <= 0.0501
        assert float((change[mask] > 0.04).float().mean()) > 0.9  # a pixel may be cut off at 0 or 1
        assert bool((plain.mask == 0).all())
        assert (plain.image_label, spoilt.image_label, plain.category, spoilt.name) == (0, 1, kind, f"{kind}/{defect}/00000{seed}")


@pytest.mark.parametrize("kind", KINDS)
def test_surface__is_drawn_by_its_seed(kind):
    first, again, other = (surface_scene(kind, seed=seed).image for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.02


@pytest.mark.parametrize("bands", [1, 3, 7])
def test_surface__has_any_number_of_bands_and_sizes(bands):
    for kind in KINDS:
        scene = surface_scene(kind, (40, 72), 3, "colour", bands)
        assert scene.image.shape == (bands, 40, 72)
        assert bool(((scene.image >= 0) & (scene.image <= 1)).all())
        assert bool((scene.mask == 1).any())


def area(score, label):
    above, below = score[label == 1][:, None], score[label == 0][None]
    return float(((above > below).float() + 0.5 * (above == below).float()).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_surfaces__are_not_told_apart_by_their_mean_and_spread(kind):
    def measure(seed, defect=None):
        image = surface_scene(kind, seed=seed, defect=defect).image.flatten(1)
        return torch.cat([image.mean(1), image.std(1)]).double()

    normal = torch.stack([measure(seed) for seed in range(40)])
    spoilt = [measure(100 + seed, DEFECTS[seed % 5]) for seed in range(30)]
    tested = torch.stack([*spoilt, *(measure(200 + seed) for seed in range(30))])
    label = torch.cat([torch.ones(30), torch.zeros(30)])
    away = tested - normal.mean(0)
    score = (away @ torch.linalg.inv(torch.cov(normal.T) + 1e-9 * torch.eye(6)) * away).sum(1)
    assert area(score, label) < 0.8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("wool",), "wool"), (("woven", (64, 64), 0, "dust"), "dust"), (("woven", (16, 64)), "32 x 32"), (("woven", (64, 64), -1), "seed")],
)
def test_surface__refuses_what_it_cannot_draw(arguments, text):
    with pytest.raises(ValueError, match=text):
        surface_scene(*arguments)
