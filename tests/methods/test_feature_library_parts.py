import pytest
import torch

from anomseg.methods.feature_library_parts import (
    PatchPosition,
    PatchScaler,
    judged_patches,
    left_out_scores,
    patch_places,
    reweighted,
    score_maps,
)


def rows(count=300, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator) + 3.0
    return torch.cat([features, torch.rand(count, 4, generator=generator)], 1)


def fitted(normalise, position=None, data=None):
    scaler = PatchScaler(normalise, position or PatchPosition())
    scaler.fit(rows() if data is None else data)
    return scaler


def test_patch_places__run_over_the_image_and_count_cells_from_the_border():
    x, y, across, down = patch_places((4, 6), (32, 48), (32, 48))
    torch.testing.assert_close(x[0], torch.tensor([-5, -3, -1, 1, 3, 5]) / 6)
    torch.testing.assert_close(y[:, 2], torch.tensor([-3, -1, 1, 3]) / 4)
    torch.testing.assert_close(across[1].expm1(), torch.tensor([0.5, 1.5, 2.5, 2.5, 1.5, 0.5]))
    torch.testing.assert_close(down[:, 0].expm1(), torch.tensor([0.5, 1.5, 1.5, 0.5]))


def test_patch_places__know_where_the_padding_begins():
    x, y, across, down = patch_places((4, 4), (32, 32), (32, 20))
    torch.testing.assert_close(x[0], torch.tensor([4.0, 12.0, 20.0, 28.0]) / 10 - 1)
    torch.testing.assert_close(across[0].expm1(), torch.tensor([0.5, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(y[:, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert down.shape == (4, 4)


def test_patch_scaler__standardises():
    found = fitted("standardise")(rows())
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(5), atol=1e-5, rtol=0)


def test_patch_scaler__whitens():
    found = fitted("whiten")(rows())
    torch.testing.assert_close(found.T.cov(), torch.eye(5), atol=1e-4, rtol=0)


def test_patch_scaler__brings_patches_to_length_one_or_leaves_them():
    torch.testing.assert_close(fitted("l2")(rows()).norm(dim=1), torch.ones(300))
    assert torch.equal(fitted("none")(rows()), rows()[:, :-4])


@pytest.mark.parametrize("normalise", ["l2", "whiten", "standardise", "none"])
def test_patch_scaler__survives_constant_features(normalise):
    data = rows()
    data[:, 2] = 7.0
    data[:, 3] = 0.0
    found = fitted(normalise, PatchPosition(1.0, 1.0), data)(data)
    assert bool(found.isfinite().all())
    assert bool(fitted(normalise, None, data[:1])(data[:1]).isfinite().all())


@pytest.mark.parametrize("normalise", ["l2", "whiten", "standardise", "none"])
def test_patch_scaler__makes_a_unit_of_place_as_long_as_features_are_from_their_mean(normalise):
    found = fitted(normalise, PatchPosition(place=2.0, border=0.5))(rows())
    features, place, border = found[:, :-4], found[:, -4:-2], found[:, -2:]
    length = (features - features.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close(place / rows()[:, -4:-2], torch.full_like(place, 2 * float(length)), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(border / rows()[:, -2:], torch.full_like(border, 0.5 * float(length)), rtol=1e-2, atol=1e-3)


def test_patch_scaler__does_not_depend_on_the_order_of_patches():
    one, other = fitted("whiten"), fitted("whiten", None, rows()[torch.randperm(300, generator=torch.Generator().manual_seed(1))])
    torch.testing.assert_close(one.basis, other.basis, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [lambda: PatchPosition(place=-1.0), lambda: PatchPosition(border=-0.1), lambda: PatchScaler("l1", None)])
def test_patch_scaler__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        wrong()


def test_reweighted__is_the_published_formula():
    generator = torch.Generator().manual_seed(0)
    library, queries = torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator)
    matrix = torch.cdist(queries, library)
    distance, index = matrix.min(1)
    around = torch.cdist(library, library).argsort(1)[:, :4]
    expected = [
        (1 - d.exp() / sum(matrix[i, j].exp() for j in around[m])) * d for i, (d, m) in enumerate(zip(distance, index, strict=True))
    ]
    torch.testing.assert_close(reweighted(distance, queries, index, library, around), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_reweighted__stays_finite_for_large_distances():
    library = torch.tensor([[0.0], [1.0]])
    found = reweighted(torch.tensor([999.0]), torch.tensor([[1000.0]]), torch.tensor([1]), library, torch.tensor([[0, 1], [1, 0]]))
    assert 0 < float(found) < 999


def test_score_maps__leave_cells_without_data_out():
    distance = torch.ones(1, 4, 4)
    distance[:, :, 2:] = 500.0
    some = torch.ones(1, 4, 4, dtype=torch.bool)
    some[:, :, 2:] = False
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, :, 8:] = False
    for smoothing in (0.0, 2.0):
        found = score_maps(distance, some, valid, (16, 16), smoothing)
        torch.testing.assert_close(found[valid], torch.ones(int(valid.sum())))
        assert bool((found[~valid] == 0).all())


def test_score_maps__put_a_cell_where_it_lies():
    distance = torch.zeros(1, 4, 6)
    distance[0, 1, 4] = 1.0
    everything = torch.ones(1, 30, 45, dtype=torch.bool)
    found = score_maps(distance, torch.ones(1, 4, 6, dtype=torch.bool), everything, (32, 48), 0.0)
    assert found.shape == (1, 30, 45)
    top = (found[0] == found.max()).nonzero().float().mean(0)
    assert top.tolist() == pytest.approx([11.5, 35.5], abs=1.0)


def test_judged_patches__are_those_with_the_smallest_keys_of_each_class():
    key, label = torch.rand(6000, dtype=torch.float64), torch.arange(6000) % 2
    found = judged_patches(key, label, 2)
    assert len(found) == 4096
    assert bool((label[found[:2048]] == 0).all())
    assert float(key[found[:2048]].max()) < float(key[label == 0].sort().values[2048])


def test_left_out_scores__never_compare_a_patch_with_its_own_image_or_class():
    patches = torch.tensor([[0.0], [1.0], [10.0], [10.5], [99.0]])
    tags = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3], [2, 4]])
    found = left_out_scores(patches, tags, patches, tags, 3)
    assert [one.tolist() for one in found] == [[1.0, 1.0], [0.5, 0.5], []]


@pytest.mark.parametrize("normalise", ["l2", "whiten", "standardise", "none"])
def test_patch_scaler__is_the_same_under_autocast(normalise):
    scaler, data = fitted(normalise), rows()
    expected = scaler(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaler(data), expected)
    assert scaler(data.bfloat16()).dtype == torch.float32


def test_score_maps__are_the_same_under_autocast():
    distance = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0))
    arguments = (distance, torch.ones(2, 6, 8, dtype=torch.bool), torch.ones(2, 24, 32, dtype=torch.bool), (24, 32), 2.0)
    expected = score_maps(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score_maps(*arguments), expected)
