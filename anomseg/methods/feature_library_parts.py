"""What a feature library is made of: scaled patch features, with their place where that is wanted, and what normal patches score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.functional.nearest import nearest
from anomseg.functional.rx import covariance, merge_statistics, pixel_statistics
from anomseg.functional.smoothing import gaussian
from anomseg.functional.whitening import whitening_basis

Normalisation = Literal["l2", "whiten", "standardise", "none"]
PLACES = 4  # columns beside the features of a patch: x, y, and the nearness of the border along both axes
CHUNK = 1024  # patches that are scaled at a time
_JUDGED = 2048  # patches of each class that tell what normal patches score


@dataclass(frozen=True)
class PatchPosition:
    """Say how much it counts where in the image a patch lies; 1 makes one unit as long as features usually are from their mean.

    Attributes:
        place: weight >= 0 of x and y, from -1 to 1 over the image: for objects that always lie alike.
        border: weight >= 0 of ln(1 + d) for the distances d, in cells, to the nearer border along both axes: for pieces whose rim looks
            otherwise than their middle.
    """

    place: float = 0.0
    border: float = 0.0

    def __post_init__(self) -> None:
        if not (self.place >= 0 and self.border >= 0):
            raise ValueError(f"Expected weights of place and border >= 0, but got {self}. 0 leaves them out.")


def patch_places(grid: tuple[int, int], padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tell where the cells of a grid lie in an image.

    Args:
        grid: (h, w) cells over the padded image.
        padded: (H', W') pixels of the padded image.
        size: (H, W) pixels of the image, at its upper left.

    Returns:
        (4, h, w): x and y of the centres, -1 to 1 over the image, and ln(1 + d) along both axes, d in cells from 0.
    """
    axes = []
    for cells, whole, pixels in zip(grid, padded, size, strict=True):
        side = whole / cells
        centre = (torch.arange(cells) + 0.5) * side
        border = torch.minimum(centre, pixels - centre).clamp_min(0.0) / side
        axes.append((2 * centre / pixels - 1, border.log1p()))
    (y, down), (x, across) = axes
    height, width = grid
    x, across = (v[None].expand(height, width) for v in (x, across))
    y, down = (v[:, None].expand(height, width) for v in (y, down))
    return torch.stack([x, y, across, down])


class PatchScaler(nn.Module):
    """Bring patch features to one scale for all classes, and append their place.

    Args:
        normalise: `l2`: each patch to length 1. `standardise`: each feature to mean 0 and deviation 1. `whiten`: uncorrelated features of
            deviation 1. `none`: as they are.
        position: weights of the place.

    Raises:
        ValueError: an unknown normalisation.
    """

    mean: Tensor
    basis: Tensor
    length: Tensor

    def __init__(self, normalise: Normalisation, position: PatchPosition) -> None:
        super().__init__()
        if normalise not in get_args(Normalisation):
            raise ValueError(f"Expected normalise of {get_args(Normalisation)}, but got {normalise!r}. 'l2' is a safe start.")
        self.normalise, self.position = normalise, position
        for name in ("mean", "basis", "length"):
            self.register_buffer(name, torch.empty(0))

    def fit(self, rows: Tensor, device: torch.device | str = "cpu") -> None:
        """Take statistics of (N, D + 4) rows of normal patches, features and places as they come."""
        parts = torch.split(rows[:, :-PLACES], CHUNK)
        moments = reduce(merge_statistics, (pixel_statistics(_unit(part) if self.normalise == "l2" else part) for part in parts))
        matrix = covariance(moments) if len(rows) > 1 else torch.zeros_like(moments.scatter)
        deviation = matrix.diagonal().clamp_min(0.0).sqrt()
        self.mean = moments.mean.float().to(device)
        if self.normalise == "whiten":
            self.basis = whitening_basis(matrix, len(matrix)).float().to(device)
            rank = self.basis.any(0).sum()
            self.length = rank.float().sqrt()[None].to(device)
        elif self.normalise == "standardise":
            self.basis = torch.where(deviation > 0, deviation, 1.0).reciprocal().float().to(device)
            self.length = (deviation > 0).sum().float().sqrt()[None].to(device)
        else:
            self.length = matrix.trace().clamp_min(0.0).sqrt().float()[None].to(device)

    def forward(self, rows: Tensor) -> Tensor:
        """Scale (N, D + 4) rows: (N, D) float32 features, and the columns of the place that have a weight."""
        with torch.autocast(rows.device.type, enabled=False):  # the library was scaled in full precision
            return self._scaled(rows.float())

    def _scaled(self, rows: Tensor) -> Tensor:
        features, place = rows[:, :-PLACES], rows[:, -PLACES:]
        if self.normalise == "l2":
            features = _unit(features)
        elif self.normalise == "standardise":
            features = (features - self.mean) * self.basis
        elif self.normalise == "whiten":
            features = (features - self.mean) @ self.basis
        found = [features]
        for weight, columns in ((self.position.place, place[:, :2]), (self.position.border, place[:, 2:])):
            found += [columns * (weight * self.length)] if weight else []
        return torch.cat(found, 1) if len(found) > 1 else features


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1)


def reweighted(distance: Tensor, queries: Tensor, index: Tensor, library: Tensor, around: Tensor) -> Tensor:
    """Raise distances to patches of the library whose surroundings are rare.

    With the nearest library patch m of a query x and the b patches m_1 … m_b nearest to m, m itself among them,
    s = (1 − exp ‖x − m‖ / Σ exp ‖x − m_i‖) ‖x − m‖.

    Args:
        distance: (N,) ‖x − m‖.
        queries: (N, D) x.
        index: (N,) rows m of the library.
        library: (M, D).
        around: (M, b) rows m_i.

    Returns:
        (N,) s >= 0.

    Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, eq. 7, where it weighs the largest alone.
    """
    rows = around[index]
    others = torch.stack([(queries - library[one]).norm(dim=1) for one in rows.T], 1)  # b turns, which bound the memory
    return (1 - (distance - others.logsumexp(1)).exp()).clamp_min(0.0) * distance


def score_maps(distance: Tensor, some: Tensor, valid: Tensor, padded: tuple[int, int], smoothing: float) -> Tensor:
    """Bring the distances of cells to the pixels of their images.

    Args:
        distance: (B, h, w) of the cells.
        some: (B, h, w) bool, False for cells without any data, which weigh nothing.
        valid: (B, H, W) bool, False for pixels without data.
        padded: (H', W') pixels that the cells cover.
        smoothing: standard deviation in pixels of a Gaussian, 0 for none.

    Returns:
        (B, H, W) float32; 0 where there is no data.
    """
    height, width = valid.shape[-2:]
    both = torch.stack([torch.where(some, distance, 0.0), some.float()], 1)
    score, weight = F.interpolate(both, padded, mode="bilinear", align_corners=False)[..., :height, :width].unbind(1)
    score = score / weight.clamp_min(1e-6)
    return gaussian(score, smoothing, valid) if smoothing else torch.where(valid, score, 0.0)


def judged_patches(key: Tensor, label: Tensor, classes: int) -> Tensor:
    """Choose the rows of at most 2,048 patches of each class, those with the smallest keys, which are a uniform sample."""
    order = key.argsort(stable=True)
    return torch.cat([order[label[order] == one][:_JUDGED] for one in range(classes)])


def left_out_scores(rows: Tensor, tags: Tensor, library: Tensor, library_tags: Tensor, classes: int) -> list[Tensor]:
    """Score normal patches of each class by what the library holds of the other images of their class.

    Args:
        rows: (N, D) scaled patches.
        tags: (N, 2) their class and image.
        library: (M, D).
        library_tags: (M, 2).
        classes: K.

    Returns:
        K tensors of distances on the processor; empty where the library knows one image of a class alone.
    """
    found = []
    for one in range(classes):
        mine = tags[:, 0] == one
        scores = [torch.empty(0)]
        for image in torch.unique(tags[mine, 1]):  # one search for each training image that has a patch among these
            others = library[(library_tags[:, 0] == one) & (library_tags[:, 1] != image)]
            if len(others):
                scores.append(nearest(rows[mine & (tags[:, 1] == image)], others).distance[:, 0].cpu())
        found.append(torch.cat(scores))
    return found
