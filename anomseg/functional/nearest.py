"""Exact nearest neighbours of many vectors in a library, in blocks of bounded memory.

With queries x and library vectors y, both moved by the mean of the library, ‖x − y‖² − ‖x‖² = ‖y‖² − 2 xᵀy is a product of matrices, fast
but rounded: far from 0 its terms cancel. So it only chooses. Columns are dealt to groups, and the smallest product of each group is kept;
the members of the best groups are then compared by direct differences. Rounding errs by less than e = c √D ε (‖x‖ + ‖y‖)², so where the
best group left out lies more than 2 e above the k-th chosen one, no neighbour was missed. The few queries for which that is not certain,
mostly those with equal neighbours, are compared with the whole library.

Glossary: x query, y library vector, D dimensions, ε rounding of the number format, e largest rounding error.

Source: the error of sums grows with √D, Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput.
41(5), 2019, with c = 4. The grouping is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GROUP = 4  # columns that share one kept value: a quarter of the memory, and selection over a quarter of the values
_COLUMNS = 1024  # library vectors in one product, so that it is still in the cache when its groups are compared
_SPARE = 1  # groups compared directly beyond the k best
_SURE = 4.0  # c


@dataclass(frozen=True)
class Neighbours:
    """Hold the nearest library vectors of every query.

    Attributes:
        distance: (N, k) Euclidean, ascending.
        index: (N, k) int64 rows of the library; of equal distances the lower row comes first.
    """

    distance: Tensor
    index: Tensor


@torch.no_grad()
def nearest(queries: Tensor, library: Tensor, k: int = 1, memory: int = 1 << 25) -> Neighbours:
    """Find the k nearest library vectors of every query, exactly.

    Distances equal the smallest ones of `torch.cdist` without its matrix product, up to the rounding of one sum. Lower precision (autocast,
    TF32) makes the choice less certain and the search slower, and changes no result.

    Args:
        queries: (N, D) finite; half precision is read as float32, float64 stays.
        library: (M, D) finite, on the same device.
        k: neighbours, 1 to M.
        memory: bytes of scratch, at least 65,536; never more than an eighth of the N x M matrix of `torch.cdist` where that exceeds 64 MiB.

    Returns:
        See `Neighbours`.

    Raises:
        ValueError: wrong shapes, or k or `memory` out of their range.
    """
    if queries.ndim != 2 or library.ndim != 2 or queries.shape[1] != library.shape[1]:
        raise ValueError(
            f"Expected queries (N, D) and a library (M, D), but got {tuple(queries.shape)} and {tuple(library.shape)}. "
            "Flatten maps with x.movedim(1, -1).flatten(0, -2), and describe both by the same features."
        )
    if not 1 <= k <= len(library) or memory < 1 << 16:
        raise ValueError(f"Expected 1 <= k <= {len(library)} library vectors and memory >= 65536, but got k={k} and memory={memory}.")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, library.dtype), torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        x, y = queries.to(dtype), library.to(dtype)
        room = min(memory, max(1 << 23, len(x) * len(y) * x.element_size() // 8)) // x.element_size() // 2  # products, and differences
        search = _Search(y, k)
        rows = max(1, room // search.numbers_per_query)
        found = [search(part, room) for part in torch.split(x, rows)]
        if not len(x):
            return Neighbours(x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=x.device))
        return Neighbours(torch.cat([one.distance for one in found]), torch.cat([one.index for one in found]))


class _Search:
    """Keep what all blocks of queries need of the library."""

    def __init__(self, library: Tensor, k: int) -> None:
        self.library, self.k = library, k
        self.mean = library.mean(0)
        self.columns = min(_COLUMNS, -(-len(library) // _GROUP) * _GROUP)
        blocks = -(-len(library) // self.columns)
        self.groups = blocks * self.columns // _GROUP
        self.compared = min(k + _SPARE, self.groups)
        self.square = torch.cat([(part - self.mean).square().sum(1) for part in torch.split(library, self.columns)])
        self.numbers_per_query = self.groups + self.columns + 2 * library.shape[1]

    def __call__(self, x: Tensor, room: int) -> Neighbours:
        x0 = x - self.mean
        smallest, largest = self._group_minima(x0), self.square.max()
        take = min(self.compared + 1, self.groups)
        best, group = smallest.topk(take, dim=1, largest=False)
        rows = max(1, room // (2 * _GROUP * x.shape[1]))  # members and their differences
        parts = zip(torch.split(x, rows), torch.split(group[:, : self.compared], rows), strict=True)
        compared = [self._compared(some, chosen) for some, chosen in parts]
        found = Neighbours(torch.cat([one.distance for one in compared]), torch.cat([one.index for one in compared]))
        if take == self.compared:
            return found  # every group was compared
        norm = x0.square().sum(1)
        slack = 2 * _SURE * x.shape[1] ** 0.5 * _rounding(x) * (norm.sqrt() + largest.sqrt()).square()
        # Compared with exact distances: a left-out vector is no nearer than the left-out group, less the error.
        doubtful = (best[:, -1] + norm - slack < found.distance[:, -1].square()).nonzero()[:, 0]
        rows = max(1, room // (3 * len(self.library)))
        for some in torch.split(doubtful, rows):  # rare, see the module
            exact = _by_differences(x[some], self.library, self.k)
            found.distance[some], found.index[some] = exact.distance, exact.index
        return found

    def _group_minima(self, x0: Tensor) -> Tensor:
        """Find the smallest ‖y‖² − 2 xᵀy of every group: (N, groups)."""
        smallest = x0.new_empty(len(x0), self.groups)
        width = self.columns // _GROUP
        twice = -2.0 * x0
        for block, part in enumerate(torch.split(self.library, self.columns)):
            square = self.square[block * self.columns : (block + 1) * self.columns]
            product = torch.addmm(square, twice, (part - self.mean).T)
            if len(part) < self.columns:
                product = torch.nn.functional.pad(product, (0, self.columns - len(part)), value=torch.inf)
            torch.amin(product.view(len(x0), _GROUP, width), 1, out=smallest[:, block * width : (block + 1) * width])
        return smallest

    def _compared(self, x: Tensor, group: Tensor) -> Neighbours:
        """Compare x with all members of the chosen groups by differences."""
        width = self.columns // _GROUP
        member = torch.arange(_GROUP, device=x.device) * width
        distances, indices = [], []
        for chosen in group.T:  # k + 1 turns, which bound the memory of the differences
            index = (chosen // width * self.columns + chosen % width)[:, None] + member
            inside = index < len(self.library)
            difference = self.library[index.clamp_max(len(self.library) - 1)] - x[:, None]
            distances.append(torch.where(inside, torch.linalg.vector_norm(difference, dim=2), torch.inf))
            indices.append(index)
        index, order = torch.cat(indices, 1).sort(dim=1)
        distance, by_distance = torch.cat(distances, 1).gather(1, order).sort(dim=1, stable=True)
        return Neighbours(distance[:, : self.k].contiguous(), index.gather(1, by_distance)[:, : self.k].contiguous())


def _by_differences(x: Tensor, library: Tensor, k: int) -> Neighbours:
    """Compare x with every library vector."""
    distance = torch.cdist(x, library, compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for _ in range(k):  # `min` gives the first of equals, which `topk` does not
        found.append(distance.min(1))
        distance.scatter_(1, found[-1].indices[:, None], torch.inf)
    return Neighbours(torch.stack([one.values for one in found], 1), torch.stack([one.indices for one in found], 1))


def _rounding(x: Tensor) -> float:
    """Give the rounding of products of matrices, which a lower precision than the format's may have been allowed for."""
    exact, tf32, bf16 = torch.finfo(x.dtype).eps, 2.0**-10, 2.0**-7
    if x.dtype == torch.float64:
        return exact
    try:
        return {"highest": exact, "high": tf32, "medium": bf16}[torch.get_float32_matmul_precision()]
    except RuntimeError:  # the precision was set by `fp32_precision` of one backend, which this question does not know
        products = getattr(torch.backends.cuda if x.is_cuda else torch.backends.mkldnn, "matmul", None)
        return {"none": exact, "ieee": exact, "tf32": tf32}.get(getattr(products, "fp32_precision", ""), bf16)
