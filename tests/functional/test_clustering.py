import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from anomseg.functional.clustering import (
    adjusted_rand_index,
    class_separation,
    contingency,
    kmeans,
    normalised_mutual_information,
    purity,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(per=30, spread=0.2):
    centres = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
    return centres.repeat_interleave(per, 0) + spread * torch.randn(3 * per, 2, generator=seeded()), torch.arange(3).repeat_interleave(per)


def labellings(seed, n=60):
    g = seeded(seed)
    return torch.randint(4, (n,), generator=g), torch.randint(3, (n,), generator=g)


def test_contingency__counts_by_hand():
    table = contingency(torch.tensor([7, 7, 7, 2, 2]), torch.tensor([0, 0, 1, 1, 1]))
    assert table.tolist() == [[0, 2], [2, 1]]


def test_figures__of_a_tiny_example_are_those_by_hand():
    labels, classes = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    assert purity(labels, classes) == pytest.approx(4 / 5)
    # pairs: 1 + 0 + 1 agree; 3 + 1 in clusters, 1 + 3 in classes, 10 in all
    assert adjusted_rand_index(labels, classes) == pytest.approx((2 - 1.6) / (4 - 1.6))
    assert normalised_mutual_information(labels, classes) == pytest.approx(0.4325380677663126)


@pytest.mark.parametrize("seed", range(6))
def test_figures__equal_those_of_scikit_learn(seed):
    labels, classes = labellings(seed)
    assert adjusted_rand_index(labels, classes) == pytest.approx(adjusted_rand_score(classes, labels), abs=1e-12)
    assert normalised_mutual_information(labels, classes) == pytest.approx(normalized_mutual_info_score(classes, labels), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("clusters", [1, 2, 15])
def test_purity__never_falls_below_the_majority_share(seed, clusters):
    g = seeded(seed)
    classes = torch.randint(15, (40,), generator=g)
    labels = torch.randint(clusters, (40,), generator=g)
    majority = float(classes.bincount().max()) / 40
    assert majority - 1e-9 <= purity(labels, classes) <= 1
    assert purity(labels, classes) >= 1 / 15
    assert purity(torch.zeros(40).long(), classes) == pytest.approx(majority)


def test_figures__do_not_depend_on_names_of_clusters_and_are_one_for_equal_partitions():
    labels, _ = labellings(0)
    renamed = torch.tensor([9, 2, 30, 4])[labels]
    for figure in (purity, normalised_mutual_information, adjusted_rand_index):
        assert figure(renamed, labels) == pytest.approx(1)
        assert figure(torch.zeros(5).long(), torch.ones(5).long()) == 1


def test_adjusted_rand_index__is_about_zero_for_chance_and_mutual_information_for_one_cluster():
    scores = [adjusted_rand_index(*labellings(seed, 300)) for seed in range(30)]
    assert abs(sum(scores) / 30) < 0.01
    labels, classes = labellings(0)
    assert normalised_mutual_information(torch.zeros_like(labels), classes) == 0


def test_kmeans__finds_separate_blobs_and_their_means():
    points, truth = blobs()
    found = kmeans(points, 3, seeded())
    assert adjusted_rand_index(found.labels, truth) == 1
    for k in range(3):
        torch.testing.assert_close(found.centres[k], points[found.labels == k].double().mean(0))
    torch.testing.assert_close(found.inertia, (points.double() - found.centres[found.labels]).square().sum())


def test_kmeans__reaches_the_inertia_of_scikit_learn():
    points = torch.randn(200, 5, generator=seeded(3))
    reference = KMeans(6, n_init=10, random_state=0).fit(points.numpy()).inertia_
    assert kmeans(points, 6, seeded(), restarts=10).inertia <= 1.02 * reference


def test_kmeans__is_repeatable_and_survives_equal_points_and_distance_from_the_origin():
    points, truth = blobs()
    assert torch.equal(kmeans(points, 4, seeded(5)).labels, kmeans(points, 4, seeded(5)).labels)
    same = kmeans(torch.ones(6, 2), 3, seeded())
    assert same.inertia == 0
    far = kmeans(points.double() + 1e7, 3, seeded())
    assert adjusted_rand_index(far.labels, truth) == 1
    assert kmeans(points[:2], 5, seeded()).inertia == 0


def test_class_separation__tells_learnt_features_from_a_point():
    points, truth = blobs()
    names = [("carpet", "grid", "tile")[i] for i in truth]
    learnt = class_separation(points, names)
    assert learnt.purity == learnt.rand_index == 1
    assert learnt.mutual_information == pytest.approx(1)
    collapsed = class_separation(torch.full((90, 4), 1e-11), names)
    assert collapsed.purity == pytest.approx(collapsed.majority) == pytest.approx(1 / 3)
    assert collapsed.mutual_information == 0
    maps = points[:, :, None, None].expand(-1, -1, 3, 4)
    assert class_separation(maps, names) == learnt


def test_clustering__says_what_does_not_fit():
    with pytest.raises(ValueError, match="finite points"):
        kmeans(torch.tensor([[float("nan")]]), 1, seeded())
    with pytest.raises(ValueError, match=">= 1"):
        kmeans(torch.ones(3, 2), 0, seeded())
    with pytest.raises(ValueError, match="one length"):
        purity(torch.zeros(3).long(), torch.zeros(4).long())
    with pytest.raises(ValueError, match="one category"):
        class_separation(torch.ones(3, 2), ["a", "b"])
