"""Tell which class of object or surface an image shows, whether that class was ever seen, and what its normal scores are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.config import check_choices
from anomseg.errors import NotFittedError
from anomseg.functional.ledoit_wolf import fourth_moments, ledoit_wolf
from anomseg.functional.whitening import whitening_basis
from anomseg.sample import finite_pixels

Stage = Literal["centroid", "pixel", "histogram", "pixel_histogram"]
_SIDE = 16  # of thumbnails, in cells
_BINS = 16
_REACH = 3.0  # standard deviations of a band that histograms cover


@dataclass(frozen=True)
class ClassRouting:
    """Describe how images find their class, and what follows from it.

    Attributes:
        stage: `centroid`: nearest class mean of whitened, averaged features. `pixel`: nearest representative image, pixel by pixel at
            16 x 16. `histogram`: nearest mean histogram of the bands. `pixel_histogram`: the second, and where it says a texture, the
            third among the textures.
        textures: names of the classes that `pixel_histogram` takes for textures; none stands for all.
        quantile: of the held-out distances of training images, in (0, 1].
        slack: factor on it, >= 1: an image farther from its class is of none that was seen.
        per_class: give the score of each image in units of its class, so that scores of different classes compare.
        restrict: look for neighbours in the part of the library that belongs to the class alone.
    """

    stage: Stage = "centroid"
    textures: tuple[str, ...] = ()
    quantile: float = 0.99
    slack: float = 1.5
    per_class: bool = True
    restrict: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.quantile <= 1 or not self.slack >= 1:
            raise ValueError(f"Expected quantile in (0, 1] and slack >= 1, but got {self}.")


class ImageDescriptors(NamedTuple):
    """Hold what is compared of B whole images.

    Attributes:
        pooled: (B, D) features averaged over the image.
        thumbnail: (B, 256 C) bands averaged over 16 x 16 cells.
        histogram: (B, 16 C) share of the pixels of each band in each bin.
    """

    pooled: Tensor
    thumbnail: Tensor
    histogram: Tensor

    def of(self, rows: Tensor) -> ImageDescriptors:
        """Choose images."""
        return ImageDescriptors(*(part[rows] for part in self))


@dataclass(frozen=True)
class Route:
    """Hold the classes of B images.

    Attributes:
        index: (B,) int64 place in the names of the router.
        margin: (B,) how much farther the second class is, >= 0; infinite where there is one class alone.
        known: (B,) bool, False where the image is farther from its class than training images are.
    """

    index: Tensor
    margin: Tensor
    known: Tensor


@torch.no_grad()
def describe_images(image: Tensor, features: Tensor, covered: Tensor) -> ImageDescriptors:
    """Describe whole images for a router.

    Args:
        image: (B, C, H, W) of mean 0 and deviation 1 over the training images, NaN where there is no data.
        features: (B, D, h, w) finite.
        covered: (B, h, w) bool, True for the cells that count; an image without any counts in full.
    """
    weight = torch.where(covered.any(2).any(1)[:, None, None], covered, True)[:, None].float()
    pooled = (features * weight).sum((2, 3)) / weight.sum((2, 3))
    keep = finite_pixels(image)[:, None]
    share = F.adaptive_avg_pool2d(keep.float(), _SIDE)
    thumbnail = F.adaptive_avg_pool2d(torch.where(keep, image, 0.0), _SIDE) / share.clamp_min(torch.finfo(share.dtype).tiny)
    bins = ((torch.where(keep, image, 0.0) / _REACH + 1) / 2 * _BINS).long().clamp(0, _BINS - 1).flatten(2)
    count = torch.zeros(*bins.shape[:2], _BINS, device=image.device).scatter_add_(2, bins, keep.float().flatten(2).expand(bins.shape))
    histogram = count / count.sum(2, keepdim=True).clamp_min(1)
    return ImageDescriptors(pooled.float().cpu(), thumbnail.flatten(1).float().cpu(), histogram.flatten(1).cpu())


class ClassRouter(nn.Module):
    """Find the nearest class of images, with all that was fitted in buffers.

    Args:
        routing: see `ClassRouting`.
    """

    centroid: Tensor
    basis: Tensor
    thumbnail: Tensor
    histogram: Tensor
    limit: Tensor
    letters: Tensor

    def __init__(self, routing: ClassRouting) -> None:
        super().__init__()
        self.routing = routing
        for name in ("centroid", "basis", "thumbnail", "histogram", "limit"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("letters", torch.empty(0, dtype=torch.uint8))  # the names, as a checkpoint of tensors can hold them

    @property
    def names(self) -> list[str]:
        """Name the classes, in the order of their indices."""
        return bytes(self.letters.tolist()).decode().split("\n") if self.letters.numel() else []

    @torch.no_grad()
    def fit(self, images: ImageDescriptors, categories: Sequence[str], device: torch.device | str = "cpu") -> None:
        """Learn the classes from training images.

        Prototypes are learnt from all of them. How far images of a class lie from it is learnt from halves: each image is compared with
        prototypes of the other half.

        Args:
            images: of N images on the processor; their order makes no difference.
            categories: N names.
            device: that the buffers go to.

        Raises:
            ValueError: no image, another number of names, or a texture that is no class.
        """
        names = sorted(set(categories))
        if not names or len(categories) != len(images.pooled):
            raise ValueError(f"Expected one category for each of one or more images, but got {len(images.pooled)} and {len(categories)}.")
        if unknown := sorted(set(self.routing.textures) - set(names)):
            raise ValueError(f"Expected textures to be classes of the training images, {names}, but got {unknown} as well.")
        order = images.pooled[:, 0].argsort(stable=True)
        images, label = images.of(order), torch.tensor([names.index(categories[i]) for i in order.tolist()])
        self.letters = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)
        place, count = place_in_class(label)
        single = count == 1
        far = [torch.empty(0)] * len(names)
        for half in (0, 1):
            held = (place % 2 == half) & ~single
            if bool(held.any()):
                self._take(images.of(~held), label[~held], len(names))
                distance = self._distances(images.of(held), label[held]).gather(1, label[held, None])[:, 0]
                far = [torch.cat([far[c], distance[label[held] == c]]) for c in range(len(names))]
        limits = torch.tensor([float(one.quantile(self.routing.quantile)) if len(one) else torch.nan for one in far])
        widest = limits[~limits.isnan()].max() if bool((~limits.isnan()).any()) else torch.tensor(torch.inf)
        self._take(images, label, len(names))
        self.limit = self.routing.slack * torch.where(limits.isnan(), widest, limits)
        self.to(device)

    @torch.no_grad()
    def route(self, images: ImageDescriptors) -> Route:
        """Find the class of images.

        Raises:
            NotFittedError: called before `fit`.
        """
        if not self.limit.numel():
            raise NotFittedError("Expected a fitted ClassRouter, but it knows no classes. Serve `category` in training batches.")
        device = self.limit.device
        images = ImageDescriptors(*(part.to(device) for part in images))
        with torch.autocast(device.type, enabled=False):  # limits were learnt in full precision
            distance = self._distances(images)
        near, index = distance.topk(min(2, distance.shape[1]), dim=1, largest=False)
        margin = near[:, 1] - near[:, 0] if distance.shape[1] > 1 else torch.full_like(near[:, 0], torch.inf)
        return Route(index[:, 0], margin, near[:, 0] <= self.limit[index[:, 0]])

    def _take(self, images: ImageDescriptors, label: Tensor, classes: int) -> None:
        """Learn prototypes of all classes."""
        of_class = [label == c for c in range(classes)]
        self.centroid = torch.stack([images.pooled[chosen].mean(0) for chosen in of_class])
        deviation = (images.pooled - self.centroid[label]).double()
        matrix = ledoit_wolf(fourth_moments(deviation)).covariance if len(deviation) > 1 else torch.zeros(0)
        spread = bool(matrix.numel()) and float(matrix.trace()) > 0
        self.basis = whitening_basis(matrix, len(matrix)).float() if spread else torch.eye(deviation.shape[1])
        self.thumbnail = torch.stack([_medoid(images.thumbnail[chosen]) for chosen in of_class])
        self.histogram = torch.stack([images.histogram[chosen].mean(0) for chosen in of_class])

    def _distances(self, images: ImageDescriptors, label: Tensor | None = None) -> Tensor:
        """Measure how far images lie from all classes, (B, K), with the measure of the class where it is given."""
        if self.routing.stage == "centroid":
            whitened: Tensor = torch.cdist(images.pooled @ self.basis, self.centroid @ self.basis)
            return whitened
        pixel: Tensor = torch.cdist(images.thumbnail, self.thumbnail) / images.thumbnail.shape[1] ** 0.5
        colour: Tensor = torch.cdist(images.histogram, self.histogram, p=1.0) * _BINS / images.histogram.shape[1] / 2
        if self.routing.stage == "pixel":
            return pixel
        if self.routing.stage == "histogram":
            return colour
        texture = torch.tensor([not self.routing.textures or name in self.routing.textures for name in self.names], device=pixel.device)
        among = torch.where(texture, colour, torch.inf)
        return torch.where(texture[pixel.argmin(1) if label is None else label][:, None], among, torch.where(texture, torch.inf, pixel))


def place_in_class(label: Tensor) -> tuple[Tensor, Tensor]:
    """Number the members of each class in their order, in the time of a sort.

    Args:
        label: (N,) int64 >= 0.

    Returns:
        (N,) int64 each: the number of a member within its class, from 0, and how many members the class has.
    """
    count, order = torch.bincount(label), label.argsort(stable=True)
    begin = count.cumsum(0) - count
    place = torch.empty_like(label)
    place[order] = torch.arange(len(label), device=label.device) - begin[label[order]]
    return place, count[label]


def _medoid(vectors: Tensor) -> Tensor:
    """Find the vector nearest to the mean."""
    nearest: Tensor = vectors[(vectors - vectors.mean(0)).square().sum(1).argmin()]
    return nearest


class ClassScale(nn.Module):
    """Hold where the normal scores of each class lie, and give scores in units of their class.

    The unit is the distance from the median to the 0.99 quantile of normal scores: what decides false alarms is their upper tail. The last
    entry is that of all classes together, for images of a class that was never seen and for classes without scores of their own.
    """

    location: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("location", torch.empty(0))
        self.register_buffer("scale", torch.empty(0))

    def fit(self, scores: Sequence[Tensor], device: torch.device | str = "cpu") -> None:
        """Take the scores of normal patches of each class, which may be empty; a class of equal scores keeps the common unit."""
        every = torch.cat([torch.zeros(0), *scores])
        every = every if len(every) else torch.zeros(1)
        parts = (*(one if len(one) else every for one in scores), every)
        pairs = [torch.stack([one.quantile(0.5), one.quantile(0.99)]) for one in parts]
        middle, upper = torch.stack(pairs).float().unbind(1)
        unit = upper - middle
        common = unit[-1] if float(unit[-1]) > 0 else torch.ones(())
        self.location, self.scale = middle.to(device), torch.where(unit > 0, unit, common).to(device)

    def forward(self, score: Tensor, route: Route) -> Tensor:
        """Standardise (B, H, W) scores."""
        chosen = torch.where(route.known, route.index, len(self.location) - 1)
        return (score - self.location[chosen][:, None, None]) / self.scale[chosen][:, None, None]
