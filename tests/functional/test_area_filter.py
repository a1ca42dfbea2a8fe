import time

import numpy as np
import pytest
import torch

from anomseg.functional.area_filter import area_closing, area_in_pixels, area_opening


def planes(values: int = 1000, size: tuple[int, int] = (17, 23), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, values, (3, *size), generator=torch.Generator().manual_seed(seed)).float()


def by_thresholds(plane: np.ndarray, area: int) -> np.ndarray:
    """Label the upper set of every level, the definition."""
    from scipy.ndimage import label

    out = np.full(plane.shape, plane.min())
    for level in np.unique(plane):
        regions, _ = label(plane >= level)
        out[(np.bincount(regions.ravel()) >= area)[regions] & (regions > 0)] = level
    return out


@pytest.mark.parametrize("values", [2, 4, 1000])
@pytest.mark.parametrize("area", [1, 2, 5, 30, 200, 391, 1000])
def test_area_opening__equals_the_threshold_decomposition(values, area):
    x = planes(values)
    expected = np.stack([by_thresholds(p, area) for p in x.numpy()])
    assert np.array_equal(area_opening(x, area).numpy(), expected)


def test_area_closing__equals_the_threshold_decomposition_of_the_negative():
    x = planes(9)
    assert np.array_equal(area_closing(x, 12).numpy(), np.stack([-by_thresholds(-p, 12) for p in x.numpy()]))


@pytest.mark.parametrize("seed", range(5))
def test_area_opening__is_anti_extensive_idempotent_and_increasing(seed):
    x, more = planes(50, seed=seed), planes(9, seed=seed + 100)
    opened = area_opening(x, 15)
    assert (opened <= x).all()
    assert torch.equal(area_opening(opened, 15), opened)
    assert (area_opening(x + more, 15) >= opened).all()
    assert (area_opening(x, 16) <= opened).all()
    assert (area_closing(x, 15) >= x).all()


def test_area_opening__removes_a_region_just_below_the_area_and_keeps_one_of_it():
    x = torch.zeros(12, 12)
    x[2:5, 2:5] = 1.0  # 9 pixels
    x[8:10, 5:10] = 2.0  # 10 pixels
    opened = area_opening(x, 10)
    assert opened[:6].max() == 0
    assert torch.equal(opened[6:], x[6:])


def test_area_opening__does_not_connect_over_corners():
    assert (area_opening(torch.eye(4), 2) == 0).all()


def test_area_opening__does_not_connect_over_borders_or_planes():
    x = torch.zeros(2, 4, 4)
    x[0, 1, 3] = x[0, 2, 0] = x[0, 3, 3] = x[1, 0, 0] = 1.0
    assert (area_opening(x, 2) == 0).all()


def test_area_opening__treats_each_plane_alone():
    x = planes(50)
    assert torch.equal(area_opening(x, 9), torch.stack([area_opening(p, 9) for p in x]))


def test_area_opening__leaves_void_pixels_out():
    x = torch.zeros(5, 9)
    x[2, 1:4] = x[2, 5:8] = 1.0
    x[2, 4] = torch.nan  # would join two regions of 3 pixels to one of 7
    opened = area_opening(x, 4)
    assert torch.isnan(opened[2, 4])
    assert (opened.nan_to_num(0.0) == 0).all()
    y = x.clone()
    y[2, 4] = torch.inf
    assert torch.equal(area_opening(y, 4).nan_to_num(0.0, posinf=0.0), opened.nan_to_num(0.0))


def test_area_opening__takes_the_lowest_value_of_an_island_below_the_area():
    x = torch.full((5, 5), torch.nan)
    x[1, 1:4] = torch.tensor([3.0, 1.0, 2.0])
    assert (area_opening(x, 10)[1, 1:4] == 1.0).all()


def test_area_opening__takes_constant_and_void_planes():
    assert (area_opening(torch.full((4, 4), 0.3), 9) == 0.3).all()
    assert torch.isnan(area_opening(torch.full((4, 4), torch.nan), 9)).all()


def test_area_opening__equals_itself_over_chunks(monkeypatch):
    x = planes(50)
    expected = area_opening(x, 9)
    monkeypatch.setattr("anomseg.functional.area_filter._CHUNK", 400)
    assert torch.equal(area_opening(x, 9), expected)


def test_levels__round_down_to_equal_steps():
    x = planes(256)
    x[:, 0, :2] = torch.tensor([0.0, 255.0])
    assert torch.equal(area_opening(x, 9, levels=256), area_opening(x, 9))
    rough = area_opening(x, 9, levels=18)  # steps of 15
    assert torch.equal(rough, area_opening((x / 15).floor() * 15, 9))
    assert (area_opening(torch.full((4, 4), 0.3), 9, levels=8) == 0.3).all()


def test_area_opening__is_quick():
    x = torch.nn.functional.avg_pool2d(torch.randn(1, 15, 100, 100, generator=torch.Generator().manual_seed(0)), 5, 1, 2)[0]
    start = time.process_time()
    area_opening(x, 30)
    assert time.process_time() - start < 1.0  # 0.06 s; the bound only catches a loop over pixels


def test_area_in_pixels__rounds_up():
    assert area_in_pixels(100.0, 3.0) == 12
    assert area_in_pixels(30.0, 0.1) == 3000
    assert area_in_pixels(1.0, 30.0) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: area_opening(x, 0), "at least 1 whole pixel"),
        (lambda x: area_opening(x, 2.5), "at least 1 whole pixel"),
        (lambda x: area_closing(x, -3), "at least 1 whole pixel"),
        (lambda x: area_opening(x[None], 3), r"\(H, W\) or \(B, H, W\)"),
        (lambda x: area_opening(x, 3, levels=1), "at least 2 levels"),
        (lambda x: area_in_pixels(0.0, 1.0), "positive area"),
        (lambda x: area_in_pixels(9.0, float("nan")), "positive pixel size"),
    ],
)
def test_area_filter__says_what_it_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(planes())


def test_area_opening__refuses_integers():
    with pytest.raises(TypeError, match=r"\.float\(\)"):
        area_opening(planes().long(), 3)
