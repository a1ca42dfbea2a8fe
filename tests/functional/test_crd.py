import numpy as np
import pytest
import torch

from anomseg.functional.crd import collaborative_representation, pca_collaborative_representation
from anomseg.functional.whitening import whitened_components


def scene(bands: int = 4, size: int = 10, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, bands, size, size, generator=generator).cumsum(1) + 5.0


def by_pixel(image: np.ndarray, inner: int, outer: int, ridge: float) -> np.ndarray:
    """Solve the paper's n x n system for each pixel; NaN pixels are no neighbours."""
    valid = np.isfinite(image).all(0)
    image = image - image[:, valid].mean(1)[:, None, None]
    score = np.zeros(valid.shape)
    for row, column in zip(*valid.nonzero(), strict=True):
        neighbours = [
            image[:, i, j]
            for i, j in zip(*valid.nonzero(), strict=True)
            if max(abs(i - row), abs(j - column)) <= outer // 2 and max(abs(i - row), abs(j - column)) > inner // 2
        ]
        if not neighbours:
            continue
        pixel, matrix = image[:, row, column], np.stack(neighbours, 1)
        weights = np.linalg.norm(matrix - pixel[:, None], axis=0)
        x, y = np.vstack((matrix, np.ones(matrix.shape[1]))), np.append(pixel, 1.0)
        alpha = np.linalg.solve(x.T @ x + ridge * np.diag(weights**2), x.T @ y)
        score[row, column] = np.linalg.norm(pixel - matrix @ alpha)
    return score


@pytest.mark.parametrize(("inner", "outer", "ridge"), [(1, 3, 1e-2), (3, 7, 1.0), (5, 9, 10.0), (3, 17, 0.1)])
def test_collaborative_representation__equals_the_systems_of_the_paper(inner, outer, ridge):
    image = scene()
    image[0, 1, 6, 6] = torch.nan
    image[0, :, :4, :4] = torch.nan
    expected = torch.from_numpy(by_pixel(image[0].double().numpy(), inner, outer, ridge)).float()
    torch.testing.assert_close(collaborative_representation(image, inner, outer, ridge)[0], expected, rtol=1e-4, atol=1e-5)


def test_collaborative_representation__equals_itself_over_chunks(monkeypatch):
    image = scene()
    expected = collaborative_representation(image, 3, 7)
    monkeypatch.setattr("anomseg.functional.crd._CHUNK", 49 * 5 * 5)
    torch.testing.assert_close(collaborative_representation(image, 3, 7), expected)


def test_collaborative_representation__is_about_0_where_neighbours_repeat_the_pixel():
    image = scene(size=4).repeat(1, 1, 2, 2)
    assert collaborative_representation(image, 1, 9, 1e-3).max() < 1e-3


def test_pca_collaborative_representation__works_on_whitened_components():
    image = scene(bands=6)
    expected = collaborative_representation(whitened_components(image, 3), 3, 7, 0.5)
    assert torch.equal(pca_collaborative_representation(image, 3, 3, 7, 0.5), expected)


def test_pca_collaborative_representation__ranks_a_small_target_first():
    image = scene(size=20)
    image[0, :, 9:11, 9:11] += 15 * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1)
    score = pca_collaborative_representation(image, 4, 5, 11)[0]
    assert score[9:11, 9:11].min() > score[:6].max()


@pytest.mark.parametrize("bands", [1, 3])
def test_pca_collaborative_representation__takes_few_bands_and_small_scenes(bands):
    score = pca_collaborative_representation(scene(bands=bands, size=7))
    assert score.shape == (1, 7, 7)
    assert torch.isfinite(score).all()


def test_pca_collaborative_representation__scores_a_constant_image_0():
    assert (pca_collaborative_representation(torch.full((1, 3, 9, 9), 0.1)) == 0).all()


def test_pca_collaborative_representation__ignores_void_pixels_bit_by_bit():
    image = scene(batch=2)
    valid = torch.ones(2, 10, 10, dtype=torch.bool)
    valid[0, :3] = False
    image[1, 2, 5, 5] = torch.nan
    poisoned = image.clone()
    poisoned[0, :, :3] = 1e9
    poisoned[1, 0, 5, 5] = torch.inf
    score = pca_collaborative_representation(image, 4, 3, 7, valid=valid)
    assert torch.equal(score, pca_collaborative_representation(poisoned, 4, 3, 7, valid=valid))
    assert (score[0, :3] == 0).all()
    assert score[1, 5, 5] == 0


def test_collaborative_representation__scores_a_pixel_without_neighbours_0():
    image = torch.full((1, 2, 9, 9), torch.nan)
    image[0, :, 0, 0], image[0, :, 8, 8] = 1.0, 3.0
    assert (collaborative_representation(image, 1, 3) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": 4}, "odd windows"),
        ({"outer": 8}, "odd windows"),
        ({"inner": 9, "outer": 9}, "inner < outer"),
        ({"ridge": 0.0}, "ridge > 0"),
        ({"components": 0}, "at least 1 component"),
    ],
)
def test_crd__says_what_it_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        pca_collaborative_representation(scene(), **arguments)


def test_collaborative_representation__is_the_same_under_autocast():
    image = torch.rand(1, 4, 12, 13, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = pca_collaborative_representation(image)
    assert torch.equal(found, pca_collaborative_representation(image))
