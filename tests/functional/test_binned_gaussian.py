"""Gaussians of bins against those of numpy."""

import pytest
import torch

from anomseg.functional.binned_gaussian import binned_gaussians, binned_mahalanobis, binned_moments, merge_binned


def sample(seed=0, batch=3, dimension=3, size=(8, 9)):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, dimension, *size, generator=generator)
    features[:, 1] += 2 * features[:, 0]
    bins = torch.randint(0, 3, size, generator=generator)
    return features, bins, torch.rand(batch, *size, generator=generator) > 0.2


def test_moments__equal_those_of_each_bin_alone():
    features, bins, valid = sample()
    moments = binned_moments(features, bins, valid, 4)
    for k in range(4):
        rows = features.movedim(1, -1)[valid & (bins == k)].double()
        assert moments.count[k] == len(rows)
        torch.testing.assert_close(moments.total[k], rows.sum(0))
        torch.testing.assert_close(moments.square[k], rows.mT @ rows)


def test_moments__merge_to_those_of_all():
    features, bins, valid = sample()
    whole = binned_moments(features, bins, valid, 3)
    joined = merge_binned(binned_moments(features[:1], bins, valid[:1], 3), binned_moments(features[1:], bins, valid[1:], 3))
    for field in ("count", "total", "square"):
        torch.testing.assert_close(getattr(joined, field), getattr(whole, field))


def test_moments__ignore_pixels_that_are_not_valid():
    features, bins, valid = sample()
    spoilt = torch.where(valid[:, None], features, torch.nan)
    torch.testing.assert_close(binned_moments(spoilt, bins, valid, 3).square, binned_moments(features, bins, valid, 3).square)


def test_mahalanobis__equals_the_formula_bin_by_bin():
    features, bins, valid = sample(size=(20, 21))
    mean, precision = binned_gaussians(binned_moments(features, bins, valid, 3), pooled=0.05, ridge=0.0)
    found = binned_mahalanobis(features, bins, mean, precision)
    rows = [features.movedim(1, -1)[valid & (bins == k)].double() for k in range(3)]
    within = sum(len(r) * torch.cov(r.mT, correction=0) for r in rows) / sum(len(r) for r in rows)
    correlation = within / (within.diagonal()[:, None] * within.diagonal()).sqrt()
    for k in range(3):
        own = torch.cov(rows[k].mT, correction=0)
        deviation = own.diagonal().sqrt()
        inverse = torch.linalg.inv(0.95 * own + 0.05 * deviation[:, None] * correlation * deviation)
        d = features.movedim(1, -1)[:, bins == k].double() - rows[k].mean(0)
        torch.testing.assert_close(found[:, bins == k], ((d @ inverse) * d).sum(-1).float(), rtol=1e-4, atol=1e-4)


def test_gaussians__give_a_bin_of_few_pixels_those_of_all():
    features, bins, valid = sample()
    mean, precision = binned_gaussians(binned_moments(features, bins, valid, 5))
    assert torch.isfinite(precision).all()
    rows = features.movedim(1, -1)[valid].double()
    torch.testing.assert_close(mean[4], rows.mean(0))


def test_gaussians__keep_a_calm_bin_calm_beside_a_rough_one():
    features, bins, valid = sample(size=(20, 21))
    rough = torch.where(bins == 2, 100 * features, features)
    mean, precision = binned_gaussians(binned_moments(rough, bins, valid, 3), pooled=0.1)
    inside = binned_mahalanobis(rough, bins, mean, precision)[valid & (bins == 0)]
    assert 2.7 < float(inside.mean()) < 3.3  # the mean of a squared distance is the number of features


def test_gaussians__survive_a_feature_that_never_changes():
    features, bins, valid = sample()
    features[:, 2] = 0.0
    mean, precision = binned_gaussians(binned_moments(features, bins, valid, 3))
    assert torch.isfinite(binned_mahalanobis(features, bins, mean, precision)).all()


def test_gaussians__without_a_pixel_are_refused():
    features, bins, valid = sample()
    with pytest.raises(ValueError, match="Expected pixels"):
        binned_gaussians(binned_moments(features, bins, torch.zeros_like(valid), 3))
    with pytest.raises(ValueError, match="pooled <= 1"):
        binned_gaussians(binned_moments(features, bins, valid, 3), pooled=0.0)
