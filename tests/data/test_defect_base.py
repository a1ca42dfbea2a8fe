from dataclasses import dataclass

import pytest
import torch

from anomseg.data.defect_base import CHANGED, Defect, Surface
from anomseg.data.defects import Blur, CutPaste, Hole, default_defects


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(bands=3, size=(40, 48), seed=0):
    return torch.rand(bands, *size, generator=generator(seed))


@dataclass(frozen=True)
class Nothing(Defect):
    """Change nothing, as a blur of a smooth surface does."""

    def paint(self, surface, generator, others):
        return surface.image, torch.ones(surface.size)


KINDS = [*default_defects(), Nothing()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("bands", [1, 3, 12])
def test_apply__changes_exactly_the_pixels_of_its_mask(kind, bands):
    image = textured(bands)
    kept = image.clone()
    for seed in range(6):
        changed, mask = kind.apply(image, generator(seed), [textured(bands, (30, 20), 9)])
        assert torch.equal(image, kept)
        assert bool(mask.any())
        assert not bool(mask.all())
        assert torch.equal(changed[:, ~mask], image[:, ~mask])
        far = (changed - image).abs() > CHANGED * 0.99 * image.flatten(1).std(1)[:, None, None]
        assert torch.equal(far.any(0), mask)
        assert bool(((changed >= 0) & (changed <= 1)).all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_apply__depends_on_the_generator_alone(kind):
    image, other = textured(), [textured(seed=5)]
    first, again, different = (kind.apply(image, generator(seed), other)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, different)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_apply__leaves_pixels_without_data_alone_and_takes_nothing_from_them(kind):
    image, other = textured(2, (48, 48)), textured(2, seed=4)
    image[:, 20:], other[:, :, ::2] = torch.nan, torch.nan
    for seed in range(8):
        changed, mask = kind.apply(image, generator(seed), [other])
        assert bool(mask.any())
        assert not bool(mask[20:].any())
        assert bool(changed[:, 20:].isnan().all())
        assert bool(changed[:, :20].isfinite().all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_apply__marks_something_on_a_constant_image(kind, value):
    for seed in range(3):
        changed, mask = kind.apply(torch.full((1, 32, 32), value), generator(seed))
        assert bool(mask.any())
        assert bool(((changed >= 0) & (changed <= 1)).all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_apply__scales_with_the_values_of_the_image(kind):
    image, other = textured(2), textured(2, seed=3)
    changed, mask = kind.apply(image - 0.5, generator(1), [other - 0.5])
    larger, same = kind.apply(1000 * (image - 0.5), generator(1), [1000 * (other - 0.5)])
    assert float((mask != same).float().mean()) < 0.002
    torch.testing.assert_close(larger[:, mask & same], 1000 * changed[:, mask & same], rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("kind", [type(kind) for kind in default_defects()], ids=lambda kind: kind.__name__)
def test_strength__moves_pixels_further(kind):
    def moved(strength):
        image = textured(1, (64, 64))
        if kind.__name__ == "StructuralShift":  # every shift of white noise is as far
            image = torch.nn.functional.avg_pool2d(textured(1, (84, 84)), 21, 1)
        pairs = [kind(strength=strength, size=(0.03, 0.1)).apply(image, generator(seed)) for seed in range(12)]
        return float(torch.stack([(changed - image).abs().sum() for changed, _ in pairs]).mean())

    weak, strong = moved(0.2), moved(1.0)
    assert strong > 1.5 * weak


@pytest.mark.parametrize("kind", [type(kind) for kind in default_defects()], ids=lambda kind: kind.__name__)
def test_size__sets_the_area(kind):
    def share(size):
        image = textured(1, (96, 96))
        return torch.stack([kind(size=(size, size)).apply(image, generator(seed))[1].float().mean() for seed in range(8)]).mean()

    small, large = float(share(0.01)), float(share(0.1))
    assert 0.003 < small <= 0.0105
    assert large > 3 * small


@pytest.mark.parametrize(
    "changes", [{"strength": 0.0}, {"strength": 1.2}, {"size": (0.0, 0.1)}, {"size": (0.2, 0.1)}, {"size": (0.1, 0.6)}]
)
def test_defect__refuses_numbers_out_of_range(changes):
    with pytest.raises(ValueError, match="Expected a strength"):
        CutPaste(**changes)


def test_apply__refuses_an_image_without_data():
    with pytest.raises(ValueError, match="data in some pixel"):
        Hole().apply(torch.full((1, 8, 8), torch.nan), generator())
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        Hole().apply(torch.rand(8, 8), generator())


def test_apply__marks_the_only_pixel_with_data():
    image = torch.full((1, 16, 16), torch.nan)
    image[0, 3, 4] = 0.3
    changed, mask = Blur().apply(image, generator())
    assert mask.nonzero().tolist() == [[3, 4]]
    assert float(changed[0, 3, 4]) != 0.3


def test_surface__measures_pixels_with_data_alone():
    image = textured(2, (10, 10))
    padded = torch.cat([image, torch.full((2, 5, 10), torch.nan)], 1)
    first, second = Surface.of(image), Surface.of(padded)
    for name in ("low", "high", "mean", "spread"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name))
    assert torch.equal(second.image[:, 10:], first.mean[:, None, None].expand(2, 5, 10))
