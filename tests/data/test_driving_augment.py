import pytest
import torch

from anomseg.data.driving_augment import MirrorZoom


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(size=(24, 32)):
    return (torch.arange(size[1]) / size[1]).expand(3, *size).clone(), torch.arange(size[1]).expand(size).clone()


def test_mirror_zoom__mirrors_half_of_the_frames_and_turns_none_upside_down():
    image = torch.zeros(3, 24, 32)
    image[:, 12:], image[1, :, 16:] = 0.5, 0.25
    mirrored = 0
    for seed in range(60):
        changed, _ = MirrorZoom(1.0, 0.0)(image, torch.zeros(24, 32, dtype=torch.int64), seeded(seed))
        assert float(changed[0, :12].max()) == 0.0
        mirrored += not torch.equal(changed, image)
    assert 18 < mirrored < 42


def test_mirror_zoom__moves_image_and_mask_alike():
    image, mask = ramp()
    for seed in range(20):
        changed, moved = MirrorZoom(1.8, 0.0)(image, mask, seeded(seed))
        assert changed.shape == image.shape
        assert moved.shape == mask.shape
        assert float((changed[0] * 32 - moved)[:, 1:-1].abs().max()) < 1.5  # bilinear against nearest
        assert moved.dtype == torch.int64


def test_mirror_zoom__never_shows_more_than_the_frame():
    image, mask = ramp()
    spans = [int(moved.max() - moved.min()) for _, moved in (MirrorZoom(2.0, 0.0)(image, mask, seeded(s)) for s in range(60))]
    assert max(spans) <= 31
    assert 14 <= min(spans) < 20


def test_mirror_zoom__keeps_light_in_range_and_missing_data_missing():
    image, mask = ramp()
    image[:, 5, 5] = torch.nan
    changed, _ = MirrorZoom(1.0, 0.5)(image, mask, seeded(2))
    assert int(changed.isnan().any(0).sum()) == 1
    kept = changed[~changed.isnan()]
    assert 0 <= float(kept.min()) <= float(kept.max()) <= 1
    assert not torch.equal(changed.nan_to_num(), image.nan_to_num())


@pytest.mark.parametrize("wrong", [{"zoom": 0.5}, {"light": -0.1}])
def test_mirror_zoom__refuses_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="zoom >= 1"):
        MirrorZoom(**wrong)


def test_mirror_zoom__ignores_every_pixel_without_data():
    image, mask = torch.full((3, 40, 40), 0.3), torch.zeros(40, 40, dtype=torch.int64)
    image[:, :, :20], mask[:, :20] = torch.nan, 255
    for seed in range(20):
        changed, moved = MirrorZoom(1.5, 0.0)(image, mask, seeded(seed))
        assert bool((moved[torch.isnan(changed).any(0)] == 255).all())
        assert bool(torch.isnan(changed).all(0)[torch.isnan(changed).any(0)].all())
