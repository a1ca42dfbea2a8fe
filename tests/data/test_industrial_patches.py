import pytest
import torch

from anomseg.data.industrial_patches import PatchRule


def cracked(size=(64, 96), column=40):
    mask = torch.zeros(size, dtype=torch.long)
    mask[:, column] = 1
    return mask


def inside(mask, window, margin=0):
    row, column, height, width = window
    part = mask[max(0, row - margin) : row + height + margin, max(0, column - margin) : column + width + margin]
    return int((part == 1).sum())


def test_patches__sorts_as_counting_pixel_by_pixel_does():
    mask = (torch.rand(70, 90, generator=torch.Generator().manual_seed(0)) > 0.995).long()
    rule = PatchRule(16, 7, max_anomalous=1, margin=3, min_pixels=3)
    normal, anomalous = rule.patches(mask)
    every = PatchRule(16, 7, max_anomalous=10**6, margin=0, min_pixels=10**7).patches(mask)[0]
    assert normal == [w for w in every if inside(mask, w) < 3 and inside(mask, w, 3) <= 1]
    assert anomalous == [w for w in every if inside(mask, w) >= 3]
    assert normal
    assert anomalous
    assert len(normal) + len(anomalous) < len(every)


def test_patches__keeps_normal_ones_a_margin_away_from_the_crack():
    normal, anomalous = PatchRule(16, 4, margin=8, min_pixels=16).patches(cracked())
    assert max(column + width for _, column, _, width in normal if column < 40) == 32  # 33 to 40 are the margin
    assert min(column for _, column, _, _ in normal if column > 40) == 52  # the first of a stride of 4 beyond 48
    assert all(column <= 40 < column + width for _, column, _, width in anomalous)


def test_patches__counts_no_void_as_anomalous():
    mask = cracked()
    mask[mask == 1] = 255
    normal, anomalous = PatchRule(16, 16).patches(mask)
    assert len(normal) == 24
    assert not anomalous


def test_patches__leaves_out_those_that_are_mostly_void():
    mask = torch.zeros(32, 64, dtype=torch.long)
    mask[:, 25:] = 255
    assert PatchRule(16, 16).patches(mask)[0] == [(0, 0, 16, 16), (0, 16, 16, 16), (16, 0, 16, 16), (16, 16, 16, 16)]


def test_patches__takes_a_small_image_whole():
    normal, _ = PatchRule(96, 48).patches(torch.zeros(20, 30, dtype=torch.long))
    assert normal == [(0, 0, 20, 30)]


@pytest.mark.parametrize("changes", [{"stride": 0}, {"stride": 200}, {"margin": -1}, {"max_anomalous": 40}])
def test_patch_rule__refuses_numbers_that_do_not_fit(changes):
    with pytest.raises(ValueError, match="stride <= size"):
        PatchRule(**changes)
