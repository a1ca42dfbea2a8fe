import pytest
import torch

from anomseg.data.augment import Albumentations, FlipRotate
from anomseg.data.pair_augment import GainOffset, PairAugmentation


def draws(seed):
    return torch.Generator().manual_seed(seed)


def pair(size=(12, 12), bands=2):
    before = torch.arange(1.0, 1 + bands * size[0] * size[1]).view(bands, *size)
    mask = (before[0] % 5 == 0).long()
    return torch.stack([before, 1000 + before]), mask


@pytest.mark.parametrize("seed", range(8))
def test_pair_augmentation__moves_both_dates_and_the_mask_alike(seed):
    image, mask = pair()
    out, truth = PairAugmentation(FlipRotate())(image, mask, draws(seed))
    assert torch.equal(out[1], out[0] + 1000)
    assert torch.equal(truth, (out[0, 0] % 5 == 0).long())


def test_pair_augmentation__moves_alike_by_albumentations_too():
    image, mask = pair((20, 20), 1)
    turn = Albumentations([{"name": "Rotate", "limit": [30, 30], "interpolation": 0, "p": 1.0}], maximum=2000)
    out, truth = PairAugmentation(turn)(image, mask, draws(0))
    kept = torch.isfinite(out).all(dim=(0, 1))
    assert 0 < int(kept.sum()) < 400
    torch.testing.assert_close(out[1, :, kept], out[0, :, kept] + 1000, atol=0.1, rtol=0)
    assert bool((truth[~kept] == 255).all())


def test_pair_augmentation__draws_the_light_of_each_date_for_itself():
    image, mask = pair()
    out, truth = PairAugmentation(light=GainOffset(0.5, 0.0))(image, mask, draws(1))
    gains = out / image
    assert torch.equal(truth, mask)
    for date in gains:
        torch.testing.assert_close(date, date[0, 0, 0].expand_as(date))
    assert abs(float(gains[0, 0, 0, 0] - gains[1, 0, 0, 0])) > 0.01


@pytest.mark.parametrize(("swap", "expected"), [(0.0, 0), (1.0, 40)])
def test_pair_augmentation__swaps_the_dates_as_often_as_asked(swap, expected):
    image, mask = pair()
    swapped = [torch.equal(PairAugmentation(swap=swap)(image, mask, draws(seed))[0], image.flip(0)) for seed in range(40)]
    assert sum(swapped) == expected


def test_pair_augmentation__swaps_about_half_at_one_half():
    image, mask = pair()
    generator = draws(0)
    swapped = sum(torch.equal(PairAugmentation(swap=0.5)(image, mask, generator)[0], image.flip(0)) for _ in range(200))
    assert 70 < swapped < 130


def test_pair_augmentation__depends_on_the_generator_alone():
    image, mask = pair()
    augment = PairAugmentation(FlipRotate(), GainOffset(), 0.5)
    torch.manual_seed(1)
    first = augment(image, mask, draws(7))
    torch.manual_seed(2)
    second = augment(image, mask, draws(7))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gain_offset__stays_in_its_range_and_keeps_nan():
    image = torch.ones(3, 4, 4)
    image[:, 0] = torch.nan
    for seed in range(20):
        out, _ = GainOffset(0.2, 0.1, 0.05)(image, torch.zeros(4, 4), draws(seed))
        assert bool(torch.isnan(out[:, 0]).all())
        assert 0.74 - 0.05 <= float(out[:, 1:].min()) <= float(out[:, 1:].max()) <= 1.35 + 0.05


def test_pair_augmentation__says_what_is_wrong():
    image, mask = pair()
    with pytest.raises(ValueError, match="pair of shape"):
        PairAugmentation()(image[0], mask, draws(0))
    with pytest.raises(ValueError, match="moved the mask"):
        [PairAugmentation(light=FlipRotate())(image, mask, draws(seed)) for seed in range(8)]
    with pytest.raises(ValueError, match="swap=2"):
        PairAugmentation(swap=2)
    with pytest.raises(ValueError, match="at least 0"):
        GainOffset(-1.0)
