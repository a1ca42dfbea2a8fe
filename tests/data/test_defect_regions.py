import pytest
import torch

from anomseg.data.defect_regions import bar_region, blob_region, bounds, box_region, uniform, whole


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(40, 60), (60, 7)])
@pytest.mark.parametrize("area", [1.0, 37.0, 300.0])
def test_blob_region__has_exactly_the_area(size, area):
    for seed in range(5):
        assert int(blob_region(size, area, generator(seed)).sum()) == int(area)


def test_box_region__has_the_area_and_is_a_box():
    for seed in range(20):
        region = box_region((50, 80), 200.0, generator(seed))
        _, _, height, width = bounds(region)
        assert int(region.sum()) == height * width
        assert abs(height * width - 200) <= 20
        assert 1 / 3.5 <= height / width <= 3.5


def test_box_region__fits_a_narrow_image():
    for seed in range(5):
        assert int(box_region((100, 4), 120.0, generator(seed)).sum()) == 120


def test_bar_region__is_long_and_thin():
    ratios = []
    for seed in range(40):
        places = bar_region((200, 200), 100.0, generator(seed)).nonzero().double()
        if len(places) > 80:  # not cut by the border
            along, across = torch.linalg.eigvalsh(torch.cov(places.T)).flip(0).sqrt().tolist()
            ratios.append(along / across)
    assert len(ratios) > 20
    assert min(ratios) > 3


@pytest.mark.parametrize("draw", [box_region, bar_region, blob_region])
def test_regions__depend_on_the_generator_alone(draw):
    first, again, other = (draw((40, 40), 60.0, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bounds__is_the_tightest_box():
    region = torch.zeros(9, 9, dtype=torch.bool)
    region[2, 3] = region[5, 7] = True
    assert bounds(region) == (2, 3, 4, 5)


def test_draws__stay_between_their_ends():
    draws = generator()
    assert {whole(2, 4, draws) for _ in range(60)} == {2, 3, 4}
    assert all(-1 <= uniform(-1, 3, draws) < 3 for _ in range(60))
