import random

import numpy as np
import pytest
import torch
from torch import nn

from anomseg.callbacks import collapse_monitor_probe
from anomseg.callbacks.collapse_monitor_probe import (
    Describes,
    Probe,
    Rebuilds,
    feature_figures,
    feature_rows,
    method_figures,
    score_figures,
    untouched,
)
from anomseg.errors import NotFittedError
from anomseg.methods.base import AnomalySegmenter
from anomseg.nets.descriptor import Described


def images(seed=0, batch=4, size=24):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def probe(image=None, count=8, **options):
    held = Probe(count, options.pop("size", None), options.pop("seed", 0))
    held.take({"image": images() if image is None else image, **options})
    return held


class Fake(AnomalySegmenter):
    """Rebuild by a function, and describe by a multiple of the image."""

    def __init__(self, rebuild, scale=1.0):
        super().__init__()
        self.rebuild, self.scale, self.net = rebuild, scale, nn.Conv2d(3, 4, 1)

    def reconstruct(self, image):
        return self.rebuild(image)

    def features(self, image):
        return self.scale * image[:, :, ::2, ::2]

    def score(self, image):
        return image.square().sum(1)


class Plain(AnomalySegmenter):
    def __init__(self, scored=lambda image: image.sum(1)):
        super().__init__()
        self.scored, self.net = scored, Descriptor()

    def score(self, image):
        self.further_maps = {"map": image[:, 0]}
        self.net(image)
        return self.scored(image)


class Descriptor(nn.Module):
    def forward(self, image):
        return Described(image - 3, image)


class Unfitted(Plain):
    def score(self, image):
        raise NotFittedError("not yet")


def figures(method, held=None, scale=None):
    held = held or probe()
    with untouched(method):
        return method_figures(method, held, scale)


def test_protocols__tell_methods_apart():
    assert isinstance(Fake(lambda x: x), Rebuilds)
    assert isinstance(Fake(lambda x: x), Describes)
    assert not isinstance(Plain(), Rebuilds)
    assert not isinstance(Plain(), Describes)


def test_untouched__leaves_random_states_modes_and_maps():
    method = Fake(lambda x: x)
    method.train()
    method.net.eval()
    method.further_maps = {"own": torch.ones(1)}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with untouched(method):
        assert not method.training
        assert not torch.is_grad_enabled()
        torch.rand(3), np.random.rand(3), random.random()
        method.further_maps = {}
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()
    assert states[2] == random.getstate()
    assert method.training
    assert not method.net.training
    assert set(method.further_maps) == {"own"}


def test_untouched__restores_after_an_error():
    method = Fake(lambda x: x).train()
    with pytest.raises(RuntimeError), untouched(method):
        raise RuntimeError
    assert method.training


def test_probe__keeps_the_first_images_of_one_size_and_their_valid_pixels():
    held, first = Probe(6, None, 0), images()
    first[0, 1, 2, 3] = torch.nan
    mask = torch.zeros(4, 24, 24, dtype=torch.int64)
    mask[1, 5, 5] = 255
    held.take({"image": first, "mask": mask})
    assert not held.full
    held.take({"image": images(1, size=20)})
    held.take({"image": images(2)})
    assert held.full
    assert torch.equal(held.image[4:], images(2)[:2])
    assert (~held.valid).nonzero().tolist() == [[0, 2, 3], [1, 5, 5]]
    first.zero_()
    assert held.image[2].any()  # a copy


def test_probe__keeps_fewer_images_of_many_bands(monkeypatch):
    monkeypatch.setattr(collapse_monitor_probe, "_NUMBERS", 3 * 3 * 24 * 24)
    assert len(probe().image) == 3
    monkeypatch.setattr(collapse_monitor_probe, "_NUMBERS", 1)
    assert len(probe().image) == 2
    assert len(probe(count=1).image) == 1


def test_probe__crops_large_images_to_their_middle():
    assert torch.equal(probe(size=10).image, images()[..., 7:17, 7:17])
    assert probe(size=10).valid.shape == (4, 10, 10)
    assert probe(size=100).image.shape == images().shape


def test_corrupted__changes_the_squares_alone_is_seeded_and_spares_void_pixels():
    image = images()
    image[:, :, :, 12:] = torch.nan
    held = probe(image)
    given, flat, pasted = held.corrupted()
    changed = (given.nan_to_num(7) != image.nan_to_num(7)).any(1)
    assert torch.equal(changed, flat | pasted)
    assert not (flat & pasted).any()
    assert flat.flatten(1).any(1).float().mean() > 0.4  # some squares lie on void pixels
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(held.corrupted(), (given, flat, pasted), strict=True))
    assert not torch.equal(probe(seed=1).corrupted()[1], probe(seed=0).corrupted()[1])
    given, flat, pasted = probe().corrupted()
    assert flat.sum() == pasted.sum() == 4 * 36
    assert given.min() >= images().min()
    assert given.max() <= images().max()


def test_corrupted__takes_a_single_tiny_image():
    given, flat, pasted = probe(images(batch=1, size=8)).corrupted()
    assert flat.sum() == pasted.sum() == 4
    assert torch.isfinite(given).all()


def test_method_figures__of_a_copy_a_colour_and_the_mean():
    found, _, finite = figures(Fake(lambda x: x))
    assert finite
    assert (found["variance_ratio"], found["skill"]) == (1, 1)
    assert found["copied"] == pytest.approx(1)
    assert found["level"] == pytest.approx(0, abs=1e-6)
    grey, _, _ = figures(Fake(lambda x: torch.full_like(x, 2.0)))
    assert (grey["variance_ratio"], grey["distance_ratio"]) == (0, 0)
    assert grey["level"] == pytest.approx(2, abs=0.2)
    mean, _, _ = figures(Fake(lambda x: images().mean(0, keepdim=True).expand_as(x)))
    assert mean["distance_ratio"] == 0
    assert mean["variance_ratio"] > 0.1
    assert mean["copied"] < 0.5


def test_method_figures__call_no_shortcut_what_repairs_one_kind_of_defect():
    held = probe()
    given, flat, _ = held.corrupted()

    def repairs_flat(x):
        return torch.where(flat[:, None], images(), x) if torch.equal(x, given) else x

    assert figures(Fake(repairs_flat), held)[0]["copied"] == 0
    assert figures(Fake(lambda x: x), held)[0]["copied"] == pytest.approx(1)


def test_method_figures__do_not_see_void_pixels():
    image = images()
    image[:, :, 3:9, 3:9] = torch.nan

    def rebuild(junk):
        return lambda x: torch.where(x.isnan(), junk, 0.5 * x)

    found = [figures(Fake(rebuild(junk)), probe(image))[0] for junk in (0.0, 1e20)]
    for name in ("variance_ratio", "distance_ratio", "skill", "copied", "level"):
        assert found[0][name] == found[1][name]


def test_method_figures__see_features_relative_to_the_size_they_had():
    assert figures(Fake(lambda x: x, 1e-11))[0]["feature_spread"] > 0.5
    assert figures(Fake(lambda x: x, 1e-11), scale=1.0)[0]["feature_spread"] < 1e-10


def test_method_figures__of_other_methods_are_those_of_score_and_descriptor():
    found, _, finite = figures(Plain())
    assert finite
    assert "variance_ratio" not in found
    assert found["score_spread"] > 0.9
    assert found["feature_scale"] == pytest.approx(float((images() - 3).square().mean().sqrt()), rel=1e-5)
    assert 2.9 < found["feature_rank"] <= 3


def test_method_figures__of_a_method_that_is_not_fitted_are_none():
    assert figures(Unfitted()) == ({}, {}, True)


def test_method_figures__tell_what_is_not_finite():
    assert not figures(Fake(lambda x: x * torch.inf))[2]
    assert not figures(Plain(lambda image: image.sum(1) * torch.nan))[2]


def test_score_figures__of_constant_equal_and_independent_maps():
    everywhere = torch.ones(6, 24, 24, dtype=torch.bool)
    assert score_figures(torch.full((6, 24, 24), 0.3), everywhere)[0] == {"score_spread": 0.0}
    same = images(batch=1)[:, 0].expand(6, -1, -1)
    assert score_figures(same, everywhere)[0]["score_distance"] == 0
    apart = images(batch=6)[:, 0]
    assert score_figures(apart, everywhere)[0]["score_distance"] == pytest.approx(1, abs=0.05)
    void = everywhere.clone()
    void[:, :4] = False
    junk = apart.masked_fill(~void, torch.nan)
    assert score_figures(junk, void) == score_figures(apart.masked_fill(~void, 1e9), void)
    assert score_figures(junk, void)[1]


def test_feature_rows__take_the_places_of_which_half_is_valid():
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[0, :4], valid[1, 0, 0] = False, False
    features = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 2, 2)
    rows = feature_rows(features, valid)
    assert rows.tolist() == features.movedim(1, -1).flatten(0, 2)[2:].tolist()


def test_feature_figures__give_no_rank_of_two_directions():
    assert "feature_rank" not in feature_figures(images()[:, 0, :2].flatten(0, 1)[:, :2], None)
