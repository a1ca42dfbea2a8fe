import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from anomseg.metrics.heat import CalibrationError, PixelBCE


def drawn():
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(3, 20, 20, generator=generator)
    mask = (torch.rand(3, 20, 20, generator=generator) < heat).long()
    mask[:, :, :4] = 255
    return heat, mask


def fed(metric, heat, mask):
    for index in range(len(heat)):
        metric.update(heat[index : index + 1], mask[index : index + 1])
    return metric.compute()


def test_pixel_bce__equals_the_loss_of_torch_over_all_counted_pixels():
    heat, mask = drawn()
    kept = mask != 255
    expected = torch.nn.functional.binary_cross_entropy(heat[kept].double(), mask[kept].double())
    torch.testing.assert_close(fed(PixelBCE(), heat, mask), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error__equals_that_of_torchmetrics(bins):
    heat, mask = drawn()
    kept = mask != 255
    expected = BinaryCalibrationError(bins)(heat[kept], mask[kept]).double()
    torch.testing.assert_close(fed(CalibrationError(bins), heat, mask), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [PixelBCE, CalibrationError])
def test_heat_figures__ignore_void_pixels_and_refuse_raw_scores(metric):
    heat, mask = drawn()
    expected = fed(metric(), heat, mask)
    heat[mask == 255] = torch.nan
    assert torch.equal(fed(metric(), heat, mask), expected)
    with pytest.raises(ValueError, match="heat in"):
        fed(metric(), 30 * heat.nan_to_num() - 5, mask)


def test_calibration_error__refuses_no_bins():
    with pytest.raises(ValueError, match="bins >= 1"):
        CalibrationError(0)


def test_pixel_bce__warns_where_nothing_was_counted():
    with pytest.warns(UserWarning, match="undefined without normal"):
        assert torch.isnan(PixelBCE().compute())
