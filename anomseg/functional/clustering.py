"""Clusters of features, and how well they agree with known classes: k-means, purity, mutual information, adjusted Rand index.

Whether features tell the classes of a model for many classes apart says whether it has learnt anything about them. With N points, n_kc of
class c in cluster k, and their sums n_k and n_c:

    purity  Σ_k max_c n_kc / N                    never below the share of the largest class, nor below 1 / classes
    NMI     2 I(K; C) / (H(K) + H(C))             0 for independent labels, 1 for equal partitions
    ARI     (Σ C(n_kc, 2) − E) / (M − E)          0 on average for chance, 1 for equal partitions, M and E as in `adjusted_rand_index`

Purity alone flatters many clusters: as many clusters as points have purity 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Clusters(NamedTuple):
    """Hold a clustering.

    Attributes:
        labels: (N,) int64, the cluster of each point.
        centres: (K, D) float64.
        inertia: () float64, the sum of squared distances to the own centre.
    """

    labels: Tensor
    centres: Tensor
    inertia: Tensor


class ClassSeparation(NamedTuple):
    """Tell how well clusters of features agree with classes.

    Attributes:
        purity: in [majority, 1].
        mutual_information: normalised, in [0, 1].
        rand_index: adjusted for chance, at most 1.
        majority: share of the largest class, the purity that even features on one point have.
    """

    purity: float
    mutual_information: float
    rand_index: float
    majority: float


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, generator: torch.Generator, restarts: int = 4, iterations: int = 100) -> Clusters:
    """Cluster points by Lloyd's algorithm from k-means++ starts, and keep the best of several.

    Args:
        points: (N, D), finite.
        clusters: K >= 1; centres that lose all their points move to the point that is farthest from its centre.
        generator: of the starts, on the CPU.
        restarts: how often to start anew, >= 1.
        iterations: at most for each start, >= 1; ends early where no point changes its cluster.

    Returns:
        The clustering of the least inertia; at most N clusters hold points.

    Raises:
        ValueError: an argument is out of its range, or a point is not finite.

    Source:
        Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    if points.ndim != 2 or not len(points) or not bool(torch.isfinite(points).all()):
        raise ValueError(f"Expected finite points of shape (N, D) with N >= 1, but got {tuple(points.shape)}. Flatten maps.")
    if clusters < 1 or restarts < 1 or iterations < 1:
        raise ValueError(f"Expected clusters, restarts and iterations >= 1, but got {clusters}, {restarts} and {iterations}.")
    values = points.double()
    found = [_lloyd(values, _spread_start(values, clusters, generator), iterations) for _ in range(restarts)]
    return min(found, key=lambda one: float(one.inertia))


def contingency(labels: Tensor, classes: Tensor) -> Tensor:
    """Count the points of each class in each cluster.

    Args:
        labels: (N,) integers, the cluster of each point.
        classes: (N,) integers.

    Returns:
        (K, C) int64 over the values that occur, in ascending order.

    Raises:
        ValueError: the shapes differ, or there is no point.
    """
    if labels.ndim != 1 or labels.shape != classes.shape or not len(labels):
        raise ValueError(
            f"Expected two vectors of one length >= 1, but got {tuple(labels.shape)} and {tuple(classes.shape)}. Flatten both."
        )
    rows, row = torch.unique(labels, return_inverse=True)
    columns, column = torch.unique(classes, return_inverse=True)
    return torch.bincount(row * len(columns) + column, minlength=len(rows) * len(columns)).view(len(rows), len(columns))


def purity(labels: Tensor, classes: Tensor) -> float:
    """Compute the share of points that belong to the largest class of their cluster.

    Args:
        labels: (N,) integers.
        classes: (N,) integers.

    Returns:
        In [share of the largest class, 1].
    """
    return int(contingency(labels, classes).amax(1).sum()) / len(labels)


def normalised_mutual_information(labels: Tensor, classes: Tensor) -> float:
    """Compute the mutual information of two partitions over the mean of their entropies.

    Args:
        labels: (N,) integers.
        classes: (N,) integers.

    Returns:
        In [0, 1]; 1 where both are one single set.
    """
    joint = contingency(labels, classes).double() / len(labels)
    rows, columns = (torch.special.entr(joint.sum(axis)).sum() for axis in (1, 0))
    if float(rows + columns) == 0:
        return 1.0
    information = rows + columns - torch.special.entr(joint).sum()
    return float((2 * information / (rows + columns)).clamp(0, 1))


def adjusted_rand_index(labels: Tensor, classes: Tensor) -> float:
    """Compute the share of pairs on which two partitions agree, adjusted so that chance gives 0.

    With a = Σ C(n_k, 2), b = Σ C(n_c, 2) and t = C(N, 2): E = a b / t and M = (a + b) / 2.

    Args:
        labels: (N,) integers.
        classes: (N,) integers.

    Returns:
        At most 1; 1 where both are one single set, or both all single points.

    Source:
        Hubert and Arabie, "Comparing partitions", Journal of Classification, 1985.
    """
    table = contingency(labels, classes).double()
    both, rows, columns = (_pairs(counts) for counts in (table, table.sum(1), table.sum(0)))
    total = _pairs(table.sum())
    expected = rows * columns / total if float(total) else total
    best = (rows + columns) / 2
    return 1.0 if float(best) == float(expected) else float((both - expected) / (best - expected))


def class_separation(features: Tensor, categories: Sequence[str], clusters: int | None = None, seed: int = 0) -> ClassSeparation:
    """Cluster features without their classes, and tell how well the clusters agree with these.

    Args:
        features: (N, D) one row an image, or (N, D, h, w), which is averaged over places.
        categories: N names.
        clusters: how many; None for as many as there are names.
        seed: of the clustering.

    Returns:
        Purity, mutual information and Rand index, and the share of the largest class.

    Raises:
        ValueError: the numbers of features and names differ.
    """
    rows = features.flatten(2).mean(2) if features.ndim == 4 else features
    if len(rows) != len(categories):
        raise ValueError(f"Expected one category for each of {len(rows)} features, but got {len(categories)}.")
    names = sorted(set(categories))
    classes = torch.tensor([names.index(one) for one in categories])
    labels = kmeans(rows, clusters or len(names), torch.Generator().manual_seed(seed)).labels.cpu()
    majority = int(classes.bincount().max()) / len(classes)
    return ClassSeparation(
        purity(labels, classes), normalised_mutual_information(labels, classes), adjusted_rand_index(labels, classes), majority
    )


def _spread_start(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw starting centres, each with a chance that grows with the squared distance to those drawn before: (K, D)."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    for _ in range(clusters - 1):
        chance = distance if bool(distance.sum() > 0) else torch.ones_like(distance)  # all points are centres already
        chosen.append(int(torch.multinomial(chance.cpu(), 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen].clone()


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    labels = _squared_distances(points, centres).argmin(1)
    for _ in range(iterations):
        centres = _means(points, labels, centres)
        distances = _squared_distances(points, centres)
        moved = distances.argmin(1)
        if torch.equal(moved, labels):
            break
        labels = moved
    return Clusters(labels, centres, (points - centres[labels]).square().sum())


def _means(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Average the points of each cluster; empty ones take the points that lie farthest from their centres."""
    counts = labels.bincount(minlength=len(centres))
    sums = torch.zeros_like(centres).index_add_(0, labels, points)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty) and len(points) >= len(centres):
        far = (points - means[labels]).square().sum(1).topk(len(empty)).indices
        means[empty] = points[far]
    return means


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Compute (N, K) squared distances, exact also where points lie far from the origin."""
    middle = points.mean(0)
    return torch.cdist(points - middle, centres - middle, compute_mode="donot_use_mm_for_euclid_dist").square()


def _pairs(counts: Tensor) -> Tensor:
    return (counts * (counts - 1) / 2).sum()
