import pickle
import sys

import pytest
import torch

from anomseg.data.augment import Albumentations, FlipRotate
from anomseg.errors import MissingDependencyError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(bands=3, size=(8, 8)):
    image = torch.rand(bands, *size, generator=seeded(0)) * 255
    image[:, 1, 2] = torch.nan
    mask = (image[0] > 100).long()
    mask[1, 2] = 255
    return image, mask


def test_flip_rotate__moves_image_and_mask_together_and_changes_no_value():
    image, mask = sample(bands=200)
    for seed in range(10):
        new_image, new_mask = FlipRotate()(image, mask, seeded(seed))
        marked = (new_mask == 255).nonzero()
        assert torch.equal(torch.isnan(new_image).all(dim=0).nonzero(), marked)
        assert torch.equal((new_image[0] > 100).long()[new_mask != 255], new_mask[new_mask != 255])
        assert torch.equal(new_image.nan_to_num(-1).flatten().sort().values, image.nan_to_num(-1).flatten().sort().values)


def test_flip_rotate__draws_all_eight_symmetries_of_a_square():
    image = torch.arange(9.0).view(1, 3, 3)
    seen = {tuple(FlipRotate()(image, torch.zeros(3, 3).long(), seeded(seed))[0].flatten().tolist()) for seed in range(100)}
    assert len(seen) == 8


def test_flip_rotate__keeps_the_size_of_a_rectangle():
    image = torch.arange(6.0).view(1, 2, 3)
    results = [FlipRotate()(image, torch.zeros(2, 3).long(), seeded(seed))[0] for seed in range(60)]
    assert {tuple(result.shape) for result in results} == {(1, 2, 3)}
    assert len({tuple(result.flatten().tolist()) for result in results}) == 4


def test_albumentations__flips_as_torch_does():
    pytest.importorskip("albumentations")
    image, mask = sample()
    new_image, new_mask = Albumentations([{"name": "HorizontalFlip", "p": 1.0}])(image, mask, seeded(0))
    torch.testing.assert_close(new_image, image.flip(-1), equal_nan=True)
    assert torch.equal(new_mask, mask.flip(-1))
    assert new_image.dtype == torch.float32
    assert new_mask.dtype == torch.int64


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_albumentations__voids_what_leaves_the_frame(bands):
    pytest.importorskip("albumentations")
    image, mask = torch.full((bands, 16, 16), 50.0), torch.zeros(16, 16).long()
    new_image, new_mask = Albumentations([{"name": "Rotate", "limit": [45, 45], "p": 1.0, "border_mode": 0}])(image, mask, seeded(0))
    assert new_mask[0, 0] == 255
    assert new_mask[8, 8] == 0
    assert torch.equal(torch.isnan(new_image).any(dim=0), new_mask == 255)


@pytest.mark.parametrize(
    "step",
    [
        {"name": "Rotate", "limit": [20, 20]},
        {"name": "Affine", "scale": 1.3},
        {"name": "GaussianBlur", "blur_limit": (7, 7)},
        {"name": "ElasticTransform", "alpha": 30},
    ],
)
@pytest.mark.parametrize("value", [10.0, 240.0])
def test_albumentations__lets_nothing_bleed_from_where_there_is_no_data(step, value):
    pytest.importorskip("albumentations")
    image, mask = torch.full((3, 40, 40), value), torch.zeros(40, 40, dtype=torch.int64)
    image[:, :, :20], mask[:, :20] = torch.nan, 255
    changed, new_mask = Albumentations([{**step, "p": 1.0}])(image, mask, seeded(0))
    counted = changed[:, new_mask == 0]
    torch.testing.assert_close(counted, torch.full_like(counted, value), atol=0.5, rtol=0)
    assert int((new_mask == 0).sum()) > 500
    assert torch.equal(torch.isnan(changed).any(0), new_mask == 255)


def test_albumentations__takes_images_without_any_data():
    pytest.importorskip("albumentations")
    image, mask = torch.full((3, 8, 8), torch.nan), torch.full((8, 8), 255)
    changed, new_mask = Albumentations([{"name": "Rotate", "p": 1.0}])(image, mask, seeded(0))
    assert bool(torch.isnan(changed).all())
    assert bool((new_mask == 255).all())


def test_albumentations__follows_the_generator_alone():
    pytest.importorskip("albumentations")
    image, mask = sample()
    augment = Albumentations([{"name": "RandomBrightnessContrast", "p": 1.0}, {"name": "VerticalFlip"}])
    first = augment(image, mask, seeded(3))
    other = augment(image, mask, seeded(4))
    again = pickle.loads(pickle.dumps(augment))(image, mask, seeded(3))
    torch.testing.assert_close(first, again, equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(first[0].nan_to_num(), other[0].nan_to_num())


def test_albumentations__refuses_what_it_cannot_do():
    pytest.importorskip("albumentations")
    with pytest.raises(ValueError, match=r"up to 4 bands, but got 5.*FlipRotate"):
        Albumentations([])(*sample(bands=5), seeded(0))
    with pytest.raises(ValueError, match=r"keeps the size \(3, 8, 8\), but got \(3, 4, 4\)"):
        Albumentations([{"name": "CenterCrop", "height": 4, "width": 4}])(*sample(), seeded(0))
    with pytest.raises(ValueError, match="'Flipp'"):
        Albumentations([{"name": "Flipp"}])(*sample(), seeded(0))
    with pytest.raises(ValueError, match="'name' in each step"):
        Albumentations([{"p": 1.0}])


def test_albumentations__says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*opencv-python-headless<5"):
        Albumentations([{"name": "HorizontalFlip"}])(*sample(), seeded(0))
