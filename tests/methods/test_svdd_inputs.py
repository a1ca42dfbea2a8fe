import pytest
import torch

from anomseg.functional.filter_bank import filter_bank
from anomseg.methods.svdd_inputs import Inputs, Texture, channel_statistics


def image_and_normal():
    image = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 5 + 2
    image[0, 1, 4:6] = torch.nan
    normal = torch.isfinite(image).all(1)
    normal[:, :, :8] = False
    return image, normal


def test_channel_statistics__are_those_of_all_normal_pixels():
    image, normal = image_and_normal()
    mean, std = channel_statistics([(image[:1], normal[:1]), (image[1:], normal[1:])], 3)
    chosen = image.movedim(1, -1)[normal]
    torch.testing.assert_close(mean, chosen.mean(0))
    torch.testing.assert_close(std, chosen.std(0, correction=0))


def test_channel_statistics__say_what_is_wrong():
    image, normal = image_and_normal()
    with pytest.raises(ValueError, match=r"4 bands, but got 3"):
        channel_statistics([(image, normal)], 4)
    with pytest.raises(ValueError, match="Check which classes are normal"):
        channel_statistics([(image, torch.zeros_like(normal))], 3)


@pytest.mark.parametrize("texture", [None, Texture((1.0, 2.0))])
def test_inputs__have_unit_deviation_over_normal_pixels(texture):
    image, normal = image_and_normal()
    inputs = Inputs(3, texture, "training")
    assert not inputs.fitted
    inputs.fit(lambda: [(image, normal)], torch.device("cpu"))
    chosen = inputs(image).movedim(1, -1)[normal]
    assert inputs.fitted
    torch.testing.assert_close(chosen.mean(0), torch.zeros(inputs.channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(chosen.std(0, correction=0), torch.ones(inputs.channels), atol=1e-3, rtol=0)
    assert inputs(image)[0, :, 4:6].isnan().all()


def test_inputs__by_image_do_not_see_its_light():
    image, normal = image_and_normal()
    inputs = Inputs(3, Texture((1.0,)), "image")
    inputs.fit(lambda: [(image, normal)], torch.device("cpu"))
    torch.testing.assert_close(inputs(3 * image + 7), inputs(image), atol=1e-3, rtol=1e-3, equal_nan=True)


def test_inputs__texture_is_the_filter_bank_of_scaled_bands():
    image, normal = image_and_normal()
    inputs = Inputs(3, Texture((1.0,), 0.1), "training")
    inputs.fit(lambda: [(image, normal)], torch.device("cpu"))
    mean, std = channel_statistics([(image, normal)], 3)
    scaled = (image - mean[:, None, None]) / std[:, None, None]
    expected = filter_bank(torch.where(torch.isfinite(scaled).all(1, keepdim=True), scaled, torch.nan), (1.0,), 0.1)
    torch.testing.assert_close(inputs.features(image), expected, equal_nan=True)
