"""Choose a few vectors that cover many: greedy k-centre, exact and fast, on all vectors or on a bounded sample of any number of them.

The next centre is always the vector farthest from those already chosen. Its distance m(x) to them only ever falls, so an old value of m is
an upper bound. Only vectors whose bound is among the largest can be next: they are held apart, in the cache, and choose centres among
themselves while their farthest is farther than the largest bound outside. Then the bounds of the next few are refreshed against all centres
that they missed, in one product of matrices. Vectors in dense regions are compared once or never. The centres are those of the plain loop.

Glossary: m(x) distance of a vector to its nearest centre, radius the largest m(x).

Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38, 1985; its use for libraries of patches
is of Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022. The lazy bounds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 22  # numbers in one product of vectors and centres: 16 MiB
_CENTRES = 4096  # compared by differences at a time


@dataclass(frozen=True)
class Coreset:
    """Hold the chosen vectors.

    Attributes:
        index: (k,) int64 rows of the vectors, in the order in which they were chosen.
        radius: () largest Euclidean distance of a vector to its nearest chosen one, >= 0.
    """

    index: Tensor
    radius: Tensor


@torch.no_grad()
def greedy_coreset(vectors: Tensor, count: int, start: int | None = None, active: int = 1024) -> Coreset:
    """Choose vectors one by one, each the farthest from those chosen before; their radius is at most twice the smallest possible one.

    Args:
        vectors: (N, D) finite; half precision is read as float32, float64 stays.
        count: k, 1 to N. Where fewer vectors differ, those are given and no more: copies of a centre are dropped, all at once.
        start: the first row; None for the one nearest to the mean, which does not depend on the order of the vectors.
        active: vectors held apart at a time, at least 1; it changes the time alone.

    Returns:
        See `Coreset`. Of vectors at equal distance any may be chosen.

    Raises:
        ValueError: a wrong shape, or an argument out of its range.
    """
    if vectors.ndim != 2 or not 1 <= count <= len(vectors) or active < 1:
        raise ValueError(
            f"Expected vectors (N, D), 1 <= count <= N and active >= 1, but got {tuple(vectors.shape)}, {count} and {active}. "
            "Take all vectors where there are fewer than that."
        )
    if start is not None and not 0 <= start < len(vectors):
        raise ValueError(f"Expected start to be one of the {len(vectors)} rows, but got {start}. None takes the one nearest to the mean.")
    with torch.autocast(vectors.device.type, enabled=False):
        x = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        x = x - x.mean(0)  # products of vectors far from 0 cancel
        greedy = _Greedy(x, count, int(x.square().sum(1).argmin()) if start is None else start)
        going = count > 1
        while going:
            going = greedy.advance(active)
        return Coreset(torch.tensor(greedy.chosen, device=x.device), greedy.radius(active))


class _Greedy:
    """Hold an upper bound of each vector's squared distance to the centres, and how many centres it has been compared with."""

    def __init__(self, x: Tensor, count: int, start: int) -> None:
        self.x, self.count = x, count
        self.square = x.square().sum(1)
        self.chosen = [start]
        self.bound = torch.full_like(self.square, torch.inf)
        self.bound[start] = -torch.inf  # never again
        self.compared = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.group = torch.empty(0, dtype=torch.int64, device=x.device)  # which vectors are equal, once that matters
        self.resolved = 16 * x.shape[1] ** 0.5 * torch.finfo(x.dtype).eps  # of a squared length: a product tells no smaller distance from 0
        self._refresh(torch.arange(len(x), device=x.device))

    def advance(self, active: int) -> bool:
        """Choose centres among the vectors with the largest bounds; False when there are enough, or no other vectors."""
        rows, outside = self._largest(active)
        x, square, bound = self.x[rows], self.square[rows], self.bound[rows]
        farthest, at = bound.max(0)
        while len(self.chosen) < self.count and float(farthest) >= outside and float(farthest) > -torch.inf:
            row = int(rows[at])
            if not len(self.group) and float(farthest) <= self.resolved * float(square[at]):
                bound[self._copies(self.chosen)[rows]] = -torch.inf
            else:
                self.chosen.append(row)
                torch.minimum(bound, torch.addmv(square + square[at], x, x[at], alpha=-2.0), out=bound)
                bound[at] = -torch.inf
                if len(self.group):
                    bound[self._copies([row])[rows]] = -torch.inf
            farthest, at = bound.max(0)
        self.bound[rows] = bound
        self.compared[rows] = len(self.chosen)
        return len(self.chosen) < self.count and not (outside == float(farthest) == -torch.inf)

    def radius(self, active: int) -> Tensor:
        """Find the distance of the vector that would be next; of copies of the chosen ones it is 0."""
        while True:
            rows, outside = self._largest(active)
            farthest, at = self.bound[rows].max(0)
            if float(farthest) >= outside:
                break
        centres = torch.split(torch.tensor(self.chosen, device=rows.device), _CENTRES)
        return torch.stack([(self.x[some] - self.x[rows[at]]).norm(dim=1).min() for some in centres]).min()

    def _largest(self, active: int) -> tuple[Tensor, float]:
        """Give the rows with the largest bounds, refreshed, and the largest bound of the others."""
        bounds, order = self.bound.topk(min(active + 1, len(self.x)))
        rows, outside = (order[:-1], float(bounds[-1])) if len(order) > active else (order, -torch.inf)
        self._refresh(rows)
        return rows, outside

    def _copies(self, centres: list[int]) -> Tensor:
        """Find the vectors that equal one of some centres, (N,) bool, and drop them.

        Compared one by one with all centres, each would cost more than a new centre does.
        """
        if not len(self.group):
            self.group = torch.unique(self.x, dim=0, return_inverse=True)[1]
        same = torch.isin(self.group, self.group[centres])
        self.bound[same] = -torch.inf
        return same

    def _refresh(self, rows: Tensor) -> None:
        """Compare vectors with the centres that they were not yet compared with."""
        compared, order = self.compared[rows].sort()
        rows, first = rows[order], 0
        while first < len(rows) and (missed := len(self.chosen) - int(compared[first])) > 0:
            some = rows[first : first + max(1, _BLOCK // missed)]
            first += len(some)
            centres = self.chosen[-missed:]  # those that missed fewer see some again, which changes nothing
            product = torch.addmm(self.square[centres], self.x[some], self.x[centres].T, alpha=-2.0)
            self.bound[some] = torch.minimum(self.bound[some], product.amin(1) + self.square[some])
            self.compared[some] = len(self.chosen)


def random_projection(vectors: Tensor, dimensions: int, generator: torch.Generator) -> Tensor:
    """Project vectors onto random directions, which keeps their distances to about ± 1 / √(2 · dimensions).

    Args:
        vectors: (N, D) finite.
        dimensions: d, at least 1. From D on the vectors come back as they are.
        generator: draws the directions, on the processor, so that a seed gives the same ones everywhere.

    Returns:
        (N, d), or (N, D).

    Raises:
        ValueError: ``dimensions`` below 1.

    Source:
        Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", Random Struct. Algorithms 22(1), 2003.
    """
    if dimensions < 1:
        raise ValueError(f"Expected at least 1 dimension, but got {dimensions}. 64 to 128 serve to choose a coreset.")
    if dimensions >= vectors.shape[1]:
        return vectors
    directions = torch.randn(vectors.shape[1], dimensions, generator=generator) / dimensions**0.5
    projected: Tensor = vectors @ directions.to(vectors)
    return projected


class Reservoir:
    """Keep a uniform sample of bounded size of rows that arrive in parts, with integer tags beside them.

    Every row draws a random key, and those with the smallest keys stay. A row that leaves makes place for one that comes, so that the
    memory is that of the sample, however many rows pass.

    Args:
        capacity: rows to keep, at least 1.
        generator: draws the keys; ranks need different ones.

    Raises:
        ValueError: ``capacity`` below 1.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        if capacity < 1:
            raise ValueError(f"Expected a capacity of at least 1 row, but got {capacity}. 65,536 patches are usual.")
        self.capacity, self.generator = capacity, generator
        self.seen = self._held = 0
        self._key = torch.empty(capacity, dtype=torch.float64)
        self._rows = self._tags = torch.empty(0)

    @property
    def key(self) -> Tensor:
        """Give the keys of the rows kept: (n,) float64 in [0, 1)."""
        return self._key[: self._held]

    @property
    def rows(self) -> Tensor:
        """Give the rows kept: (n, D) on the processor, in no order."""
        return self._rows[: self._held]

    @property
    def tags(self) -> Tensor:
        """Give the tags of the rows kept: (n, T)."""
        return self._tags[: self._held]

    def add(self, rows: Tensor, tags: Tensor, key: Tensor | None = None) -> None:
        """Offer rows.

        Args:
            rows: (N, D).
            tags: (N, T) integers.
            key: (N,) keys that the rows drew in another reservoir; None draws them.

        Raises:
            ValueError: shapes that do not fit each other or the rows before.
        """
        if rows.ndim != 2 or tags.ndim != 2 or len(rows) != len(tags) or (self.seen and rows.shape[1] != self._rows.shape[1]):
            raise ValueError(
                f"Expected rows (N, D) and tags (N, T) with the D of before, but got {tuple(rows.shape)} and {tuple(tags.shape)}. "
                "Describe all rows by the same features."
            )
        key = torch.rand(len(rows), dtype=torch.float64, generator=self.generator) if key is None else key
        if not self.seen:  # the system commits memory where it is written first
            self._rows = torch.empty(self.capacity, rows.shape[1], dtype=rows.dtype)
            self._tags = torch.empty(self.capacity, tags.shape[1], dtype=tags.dtype)
        self.seen += len(rows)
        kept = torch.cat([self.key, key]).argsort(stable=True)[: self.capacity]
        new = kept[kept >= self._held] - self._held
        old = torch.zeros(self._held, dtype=torch.bool)
        old[kept[kept < self._held]] = True
        left = (~old).nonzero()[:, 0]
        place = torch.cat([left, torch.arange(self._held, self._held + len(new) - len(left))])
        self._held += len(new) - len(left)
        self._key[place] = key[new]
        self._rows[place] = rows[new.to(rows.device)].cpu()
        self._tags[place] = tags[new.to(tags.device)].cpu()
