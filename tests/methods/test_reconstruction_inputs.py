import pytest
import torch

from anomseg.methods.reconstruction_inputs import ReconstructionInputs, channel_moments


def batches(offset=100.0):
    g = torch.Generator().manual_seed(0)
    images = [offset + torch.randn(2, 3, 5, 7, generator=g) * torch.tensor([1.0, 5.0, 20.0])[:, None, None] for _ in range(3)]
    return [(one, torch.rand(2, 5, 7, generator=g) > 0.3) for one in images]


def test_moments__equal_those_of_all_chosen_pixels_at_once():
    pixels = torch.cat([image.movedim(1, -1)[chosen] for image, chosen in batches()]).double()
    found = channel_moments(batches())
    for name, expected in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0, correction=0)),
        ("low", pixels.amin(0)),
        ("high", pixels.amax(0)),
    ):
        torch.testing.assert_close(getattr(found, name).double(), expected, rtol=1e-6, atol=0)


def test_moments__read_no_other_pixel_and_name_their_absence():
    poisoned = [(torch.where(chosen[:, None], image, torch.nan), chosen) for image, chosen in batches()]
    assert all(torch.equal(a, b) for a, b in zip(channel_moments(poisoned), channel_moments(batches()), strict=True))
    with pytest.raises(ValueError, match="normal pixels"):
        channel_moments([(image, torch.zeros_like(chosen)) for image, chosen in batches()])


def test_moments__of_a_constant_channel_have_deviation_one():
    assert channel_moments([(torch.full((1, 1, 4, 4), 9.0), torch.ones(1, 4, 4, dtype=torch.bool))]).std == 1


def test_inputs__are_standardised_hidden_and_restored():
    inputs = ReconstructionInputs(3)
    assert not inputs.fitted
    inputs.fit(batches())
    assert inputs.fitted
    image, shown = batches()[0]
    found = inputs(torch.where(shown[:, None], image, torch.nan), shown)
    assert (found[(~shown)[:, None].expand_as(found)] == 0).all()
    torch.testing.assert_close(inputs.restored(found)[shown[:, None].expand_as(found)], image[shown[:, None].expand_as(found)])


def test_range__holds_all_normal_pixels_with_room_and_ignores_a_hot_one():
    inputs = ReconstructionInputs(3)
    inputs.fit(batches())
    values = [inputs.in_unit_range(inputs(image, chosen)).movedim(1, -1)[chosen] for image, chosen in batches()]
    least, most = torch.cat(values).aminmax()
    assert 0.1 < least < 0.3
    assert 0.7 < most < 0.9
    hot = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    hot[0, 0, 0, 0] = 1e4
    inputs = ReconstructionInputs(1)
    inputs.fit([(hot, torch.ones(1, 200, 200, dtype=torch.bool))])
    assert inputs.high < 10
