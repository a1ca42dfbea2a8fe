import math

import pytest
import torch

from anomseg.data.defect_copies import Blend, CutPaste, Scar, StructuralShift, membrane
from anomseg.data.defect_regions import bounds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(size=(48, 64)):
    """Give every pixel a value of its own."""
    return (torch.arange(size[0] * size[1]).view(1, *size) / (size[0] * size[1])).float()


def test_cut_paste__copies_a_box_of_the_same_image():
    image = ramp()
    for seed in range(8):
        changed, mask = CutPaste(jitter=0.0, size=(0.05, 0.05)).apply(image, generator(seed))
        row, column, height, width = bounds(mask)
        values = (changed[0, row : row + height, column : column + width] * 48 * 64).round().long()
        assert bool(mask[row : row + height, column : column + width].all())
        torch.testing.assert_close(values[0].diff(), torch.ones(width - 1, dtype=torch.long))  # neighbours in a row of the image
        torch.testing.assert_close(values[:, 0].diff(), torch.full((height - 1,), 64))


def test_scar__is_thin_at_any_angle():
    image = torch.rand(1, 96, 96, generator=generator())
    angles = set()
    for seed in range(30):
        _, mask = Scar(size=(0.01, 0.01)).apply(image, generator(seed))
        places = mask.nonzero().double()
        values, vectors = torch.linalg.eigh(torch.cov(places.T))
        assert float(values[1]) > 4 * float(values[0])
        angles.add(round(math.degrees(math.atan2(float(vectors[0, 1]), float(vectors[1, 1]))) % 180 / 30))
    assert len(angles) >= 4


def test_blend__takes_its_piece_from_another_image():
    image, other = torch.zeros(1, 40, 40), torch.full((1, 30, 30), 0.8)
    image[0, 0, 0] = 1.0  # or nothing would be known of the range
    changed, mask = Blend(edge="feathered", size=(0.1, 0.1)).apply(image, generator(), [other])
    assert float(changed[0][mask].max()) == pytest.approx(0.8)
    assert float(changed[0][mask].min()) < 0.8  # fades out


def test_blend__seamless_meets_the_image_at_its_border():
    rows = torch.linspace(0, 1, 64)[:, None].expand(64, 64)[None]
    other = 0.5 + 0.2 * torch.sin(torch.arange(64) * 0.8).expand(1, 64, 64)
    steps = {}
    for edge in ("seamless", "feathered"):
        found = []
        for seed in range(6):
            changed, _ = Blend(edge=edge, size=(0.1, 0.1)).apply(rows, generator(seed), [other])
            found.append((changed - rows).diff(dim=2).abs().max())
        steps[edge] = float(torch.stack(found).mean())
    assert steps["seamless"] < steps["feathered"]


def test_membrane__continues_a_harmonic_field_exactly():
    rows, columns = torch.arange(30.0)[:, None], torch.arange(40.0)
    image = (0.3 * rows - 0.2 * columns + 0.01 * rows * columns)[None]  # solves Laplace's equation, also on a grid
    inside = (rows - 14).square() / 60 + (columns - 20).square() / 100 < 1
    filled = membrane(torch.zeros_like(image), torch.where(inside, 0.0, image), inside)
    torch.testing.assert_close(filled, image, atol=2e-3, rtol=0)


def test_membrane__keeps_the_gradients_of_the_piece():
    piece = torch.rand(1, 20, 20, generator=generator())
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[5:15, 6:14] = True
    pasted = membrane(piece + 0.7, piece, inside)  # the same picture in another light
    torch.testing.assert_close(pasted, membrane(piece, piece, inside), atol=2e-3, rtol=0)
    assert torch.equal(pasted[:, ~inside], piece[:, ~inside])


def test_structural_shift__moves_a_pattern_by_no_more_than_its_reach():
    image = ramp((64, 64))
    for seed in range(10):
        changed, mask = StructuralShift(reach=0.1, strength=0.5, size=(0.05, 0.1)).apply(image, generator(seed))
        moved = ((changed - image)[0][mask] * 64 * 64).round().long()
        assert len(moved.unique()) == 1  # the whole box by one shift
        steps = {down * 64 + right for down in range(-4, 5) for right in range(-4, 5) if math.hypot(down, right) <= 4.6}
        assert int(moved[0]) in steps


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: CutPaste(jitter=-1), "jitter"),
        (lambda: Scar(jitter=math.inf), "jitter"),
        (lambda: Blend(edge="hard"), "seamless"),
        (lambda: StructuralShift(reach=0.0), "reach"),
    ],
)
def test_copies__refuse_arguments_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()
