import dataclasses

import pytest
import torch

from anomseg.functional.rx import covariance, pixel_statistics
from anomseg.functional.simulation import AnomalySimulation, WhitenedScene
from anomseg.sample import ANOMALY, IGNORE


def scene(height=40, width=50, bands=12, components=6):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(bands, height, width, generator=generator).cumsum(0)
    valid = torch.ones(height, width, dtype=torch.bool)
    valid[:5, :5] = False
    return WhitenedScene.of(image.masked_fill(~valid, torch.nan), components)


def implant(seed=0, ignored=None, **changes):
    held = scene()
    ignored = torch.zeros(held.valid.shape, dtype=torch.bool) if ignored is None else ignored
    simulation = dataclasses.replace(AnomalySimulation(), **changes)
    return held, *simulation.implant(held, ignored, torch.Generator().manual_seed(seed))


def test_whitened_scene__has_mean_zero_and_unit_covariance_over_valid_pixels():
    held = scene()
    pixels = held.z[:, held.valid].T
    statistics = pixel_statistics(pixels)
    torch.testing.assert_close(statistics.mean, torch.zeros(6).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(covariance(statistics), torch.eye(6).double(), atol=1e-4, rtol=0)
    assert (held.z[:, ~held.valid] == 0).all()


def test_project__brings_a_pixel_to_its_own_components():
    held = scene()
    assert torch.allclose(held.project(held.image[:, 20, 20][None])[0], held.z[:, 20, 20], atol=1e-5)


def test_implant__is_seeded():
    first, second, other = implant(3), implant(3), implant(4)
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[1], other[1])


def test_implant__changes_only_what_it_labels():
    held, z, label = implant(1, large=0.0)
    assert torch.equal(z[:, label == 0][:, :50], held.z[:, label == 0][:, :50])
    assert (label == ANOMALY).any()
    assert (z[:, label == ANOMALY] != held.z[:, label == ANOMALY]).any()


def test_implant__ignores_what_it_is_told_to_and_pixels_without_data():
    ignored = torch.zeros(40, 50, dtype=torch.bool)
    ignored[30:] = True
    held, z, label = implant(2, ignored=ignored)
    assert set(label[30:].unique().tolist()) <= {ANOMALY, IGNORE}
    assert (label[~held.valid] == IGNORE).all()
    assert (z[:, ~held.valid] == 0).all()


def test_implant__labels_large_areas_normal():
    held, z, label = implant(5, density=0.001, large=20.0, kinds=(0.0, 0.0, 1.0, 0.0), strength=(5.0, 6.0))
    changed = (z != held.z).any(0)
    assert changed.sum() > 300
    assert (label[changed] == 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", range(4))
def test_implant__gives_deviations_the_asked_length(kind):
    kinds = tuple(float(index == kind) for index in range(4))
    _, z, label = implant(6, kinds=kinds, strength=(3.0, 3.0), abundance=(1.0, 1.0), area=(9.0, 9.0), large=0.0, rectangles=1.0)
    lengths = z[:, label == ANOMALY].norm(dim=0)
    if kind:
        assert abs(float(lengths.max()) - 3 * 6**0.5) < 0.01
    assert torch.isfinite(lengths).all()


@pytest.mark.parametrize("changes", [{"area": (0.0, 4.0)}, {"strength": (3.0, 1.0)}, {"kinds": (0.0, 0.0, 0.0, 0.0)}, {"density": 0.0}])
def test_simulation__says_what_is_wrong_with_its_numbers(changes):
    with pytest.raises(ValueError, match="Expected"):
        AnomalySimulation(**changes)
