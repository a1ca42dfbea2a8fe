import numpy as np
import pytest
import torch

from anomseg.nets.band_adapter import resample_bands


def spectra(*values):
    return torch.tensor(values).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(("count", "bands"), [(5, 9), (46, 162), (9, 4), (205, 46), (1, 7), (7, 7), (2, 3)])
def test_linear__equals_numpy_interp_over_evenly_spaced_places(count, bands):
    image = torch.randn(2, count, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = resample_bands(image, bands)
    places = np.linspace(0, count - 1, bands)
    expected = np.apply_along_axis(lambda spectrum: np.interp(places, np.arange(count), spectrum), 1, image.numpy())
    torch.testing.assert_close(got, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_linear__keeps_a_straight_spectrum_straight_and_its_ends_exact():
    got = resample_bands(torch.arange(46.0).reshape(1, 46, 1, 1), 162).flatten()
    assert got[0] == 0
    assert got[-1] == 45
    torch.testing.assert_close(got.diff(), torch.full((161,), 45 / 161), atol=1e-5, rtol=0)


def test_linear__a_single_band_is_the_middle_of_the_spectrum():
    assert resample_bands(spectra(1.0, 5.0, 9.0), 1).item() == 5.0
    assert resample_bands(spectra(1.0, 5.0), 1).item() == 3.0


def test_linear__a_missing_value_stays_out_of_places_that_hit_another_band():
    got = resample_bands(spectra(1.0, 2.0, float("nan")), 5).flatten()
    torch.testing.assert_close(got[:3], torch.tensor([1.0, 1.5, 2.0]))
    assert got[3:].isnan().all()


def test_tile__repeats_in_order_and_cuts_the_last_round():
    assert resample_bands(spectra(1.0, 2.0, 3.0), 8, mode="tile").flatten().tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


def test_tile__strides_down():
    image = torch.arange(10.0).reshape(1, 10, 1, 1)
    assert resample_bands(image, 5, mode="tile").flatten().tolist() == [0, 2, 4, 6, 8]
    assert resample_bands(image, 4, mode="tile").flatten().tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize("mode", ["linear", "tile"])
@pytest.mark.parametrize("bands", [1, 6, 11])
def test_resample__keeps_dtype_and_shape_and_passes_gradients(mode, bands):
    image = torch.rand(2, 6, 3, 5, requires_grad=True)
    got = resample_bands(image, bands, mode=mode)
    assert got.shape == (2, bands, 3, 5)
    got.sum().backward()
    assert image.grad.sum().item() == pytest.approx(bands * 30, rel=1e-5)
    assert resample_bands(image.detach().half(), bands, mode=mode).dtype == torch.half


@pytest.mark.parametrize(("shape", "bands", "mode"), [((3, 4, 4), 5, "linear"), ((1, 3, 4, 4), 0, "tile"), ((1, 3, 4, 4), 5, "cubic")])
def test_resample__refuses_what_it_cannot_read(shape, bands, mode):
    with pytest.raises(ValueError, match="Expected"):
        resample_bands(torch.zeros(shape), bands, mode=mode)
