import numpy as np
import pytest
import torch

from anomseg.data.scaling import largest_value, scaled_image, scaled_mask


@pytest.mark.parametrize(("stored", "expected"), [("uint8", 255), ("uint16", 65535), ("float32", 1), ("bool", 1)])
def test_largest_value__becomes_one(stored, expected):
    assert largest_value(np.dtype(stored)) == expected


def test_scaled_mask__never_loses_a_defect():
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[13, 27] = 1
    assert (scaled_mask(mask, (8, 8)) == 1).nonzero().tolist() == [[1, 3]]
    assert torch.equal(scaled_mask(torch.zeros(9, 9).long(), (3, 3)), torch.zeros(3, 3).long())


def test_scaled_image__is_not_touched_by_pixels_without_data():
    first = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = scaled_image(torch.full((2, 32, 32), 0.25), (8, 8))
    torch.testing.assert_close(plain, torch.full((2, 8, 8), 0.25))
    holed = torch.full((2, 32, 32), 0.25)
    holed[:, :, :8] = torch.nan
    scaled = scaled_image(holed, (8, 8))
    assert bool(scaled[:, :, :2].isnan().all())
    torch.testing.assert_close(scaled[:, :, 2:], plain[:, :, 2:])
    torch.testing.assert_close(scaled_image(first, (16, 16)).mean((1, 2)), first.mean((1, 2)), atol=0.02, rtol=0)


def test_scaled_mask__keeps_each_region_that_no_pixel_hits():
    mask = torch.zeros(256, 256, dtype=torch.int64)
    mask[20:80, 20:80], mask[201:203, 201:203] = 1, 1
    scaled = scaled_mask(mask, (64, 64))
    assert int((scaled[45:, 45:] == 1).sum()) == 1
    assert torch.equal(scaled[:45, :45], scaled_mask(mask * (torch.arange(256) < 100), (64, 64))[:45, :45])
