"""A library of normal patch features: what has no near neighbour in it was not in the training images."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.config import build, describe
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.functional.coreset import Reservoir, greedy_coreset, random_projection
from anomseg.functional.nearest import nearest
from anomseg.functional.windows import pad_to_multiple
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.class_router import ClassRouter, ClassRouting, ClassScale, ImageDescriptors, Route, describe_images
from anomseg.methods.feature_library_parts import (
    CHUNK,
    PLACES,
    Normalisation,
    PatchPosition,
    PatchScaler,
    judged_patches,
    left_out_scores,
    patch_places,
    reweighted,
    score_maps,
)
from anomseg.methods.svdd_inputs import channel_statistics
from anomseg.methods.training_data import gathered_objects, normal_pixels, training_batches
from anomseg.nets.feature_encoder import EncoderNet, FeatureEncoder, TimmFeatures, covered_cells, fingerprint, joined_levels
from anomseg.sample import finite_pixels

DIMENSIONS = 128
"""Of the random projection in which the coreset is chosen."""


class _Patches(NamedTuple):
    """Patches of a batch: (B, D + 4, h, w) features and places, (B, h, w) bool whole and some, and the size of the padded image."""

    rows: Tensor
    whole: Tensor
    some: Tensor
    padded: tuple[int, int]


class _Gathered(NamedTuple):
    """What one rank found: keys of patches, the patches, the number of the image of each, and the categories of its images.

    Further, how many patches its images have that are wholly normal, and how many that hold data alone.
    """

    key: Tensor
    rows: Tensor
    image: Tensor
    categories: list[str]
    described: list[ImageDescriptors]
    normal: int
    complete: int


class FeatureLibrary(AnomalySegmenter):
    """Score a patch by its distance to the nearest of the normal patches that were kept from training.

    Nothing is learnt by descent. Two passes over the training data, one of them without the encoder, take the statistics of the bands and
    a uniform sample of at most `memory` patches; a greedy coreset of these is the library. Patches that touch void pixels, anomalies or
    pixels without data never enter it. With `category` in the training batches, each patch remembers its class.

    After `score`, `route` holds the class of each image where there is a router, and `predict` returns `category`, (B, H, W) int64: its
    place in `router.names`, -1 for a class that was never seen.

    Args:
        in_channels: bands of the images.
        encoder: whose features; `TimmFeatures()` by default, a ResNet-18 with random weights.
        patch: side in cells of the average that describes a patch, odd.
        coreset: below 1 the share of the patches that stays; from 1 on their number.
        neighbours: library patches around the nearest that its distance is weighed by, see `reweighted`; 1 for none.
        normalise: see `PatchScaler`.
        position: see `PatchPosition`; needs whole images, not tiles. None leaves the place out.
        routing: finds the class of each image, see `ClassRouting`; needs `category` in the training batches. None for one class.
        memory: patches kept before the coreset is chosen, at least 2.
        smoothing: standard deviation in pixels of a Gaussian over the score, 0 for none.
        seed: of the sample and the projection.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range; in fitting, the images have another band count, no patch is normal, or there is no
            `category` to route by.
        NotFittedError: scored before fitting.
        CheckpointError: the encoder is another one than the library was made with.

    Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022. The place, the classes and the
        bounded sample are ours.
    """

    learns = False
    band_mean: Tensor
    band_std: Tensor
    library: Tensor
    library_class: Tensor
    around: Tensor
    encoder_fingerprint: Tensor
    radius: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        encoder: FeatureEncoder | None = None,
        patch: int = 3,
        coreset: float = 0.1,
        neighbours: int = 1,
        normalise: Normalisation = "l2",
        position: PatchPosition | None = None,
        routing: ClassRouting | None = None,
        memory: int = 1 << 16,
        smoothing: float = 4.0,
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if in_channels < 1 or patch < 1 or patch % 2 == 0 or not coreset > 0 or neighbours < 1 or memory < 2 or not smoothing >= 0:
            raise ValueError(
                "Expected in_channels and neighbours >= 1, an odd patch, coreset > 0, memory >= 2 and smoothing >= 0, but got "
                f"{in_channels}, {neighbours}, {patch}, {coreset}, {memory} and {smoothing}."
            )
        if coreset >= 1 and coreset != int(coreset):
            raise ValueError(f"Expected coreset to be a share below 1 or a whole number of patches, but got {coreset}.")
        self.in_channels, self.patch, self.coreset, self.neighbours = in_channels, patch, coreset, neighbours
        self.normalise, self.memory, self.smoothing, self.seed = normalise, memory, smoothing, seed
        self.encoder: FeatureEncoder = build(encoder) or TimmFeatures()
        self.position: PatchPosition | None = build(position, PatchPosition)
        self.routing: ClassRouting | None = build(routing, ClassRouting)
        self.net: EncoderNet = self.encoder.build(in_channels)
        self.scaler = PatchScaler(normalise, self.position or PatchPosition())
        self.router = ClassRouter(self.routing) if self.routing else None
        self.class_scale = ClassScale() if self.routing and self.routing.per_class else None
        self.route: Route | None = None
        for name in ("band_mean", "band_std", "library", "radius"):
            self.register_buffer(name, torch.empty(0))
        for name in ("library_class", "around", "encoder_fingerprint"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        self._checked = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a library that was made with another encoder."""
        made = (checkpoint.get("hyper_parameters") or {}).get("encoder")
        if made is not None and made != (now := describe(self.encoder)):
            raise CheckpointError(
                f"Expected the encoder that the library was made with, {made}, but this method is configured with {now}. Distances between "
                "features of two encoders mean nothing: take that encoder, or fit again."
            )
        self._checked = False

    def on_train_start(self) -> None:
        """Fit everything, in two passes over the training data."""
        batches = ((batch["image"], normal_pixels(batch)) for batch in training_batches(self))
        self.band_mean, self.band_std = (value.to(self.device) for value in channel_statistics(batches, self.in_channels))
        self._fit(gathered_objects(self._gather()))
        self.encoder_fingerprint, self._checked = fingerprint(self.net).to(self.device), True

    @torch.no_grad()
    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W); see the base class."""
        self._check(image)
        valid = finite_pixels(image)
        patches = self._patches(image, valid)
        self.route = self._find_route(image, patches)
        size = patches.some.shape
        queries = self.scaler(patches.rows.movedim(1, -1).flatten(0, -2)).view(*size, -1)
        distance = torch.empty(size, device=queries.device)
        for chosen, rows in self._searches(len(image)):
            distance[chosen] = self._distance(queries[chosen].flatten(0, 2), rows).view(-1, *size[1:])
        score = score_maps(distance, patches.some, valid, patches.padded, self.smoothing)
        return score if self.route is None or self.class_scale is None else self.class_scale(score, self.route)

    def diagnostics(self) -> dict[str, Tensor]:
        """Give the patches of the library, and its radius: no patch that it was chosen from is farther from it."""
        return {"library_patches": torch.tensor(float(len(self.library))), "library_radius": self.radius[0]} if self.radius.numel() else {}

    def _check(self, image: Tensor) -> None:
        if not self.library.numel():
            raise NotFittedError("Expected a fitted FeatureLibrary, but it holds no patches. Call `trainer.fit` first.")
        if image.shape[1] != self.in_channels:
            raise ValueError(f"Expected images of {self.in_channels} bands, as in training, but got {image.shape[1]}.")
        if not self._checked and not torch.equal(fingerprint(self.net), self.encoder_fingerprint.cpu()):
            raise CheckpointError(
                "Expected the encoder that the library was made with, but its weights have changed since. Load both from one checkpoint, "
                "or fit again."
            )
        self._checked = True

    def _standardised(self, image: Tensor) -> Tensor:
        return (image - self.band_mean[:, None, None]) / self.band_std[:, None, None]

    def _patches(self, image: Tensor, keep: Tensor) -> _Patches:
        """Describe the patches of (B, C, H, W), of which those of kept pixels alone are whole."""
        scaled = image if self.net.reads_raw else self._standardised(image)
        data = finite_pixels(image)
        padded = pad_to_multiple(torch.where(data[:, None], scaled, torch.nan), self.net.multiple)
        edges = (0, padded.shape[-1] - image.shape[-1], 0, padded.shape[-2] - image.shape[-2])
        features = joined_levels(self.net(padded, torch.nn.functional.pad(data, edges)), self.patch)
        grid = (features.shape[2], features.shape[3])
        size = (padded.shape[-2], padded.shape[-1])
        place = patch_places(grid, size, (image.shape[-2], image.shape[-1])).to(features)
        rows = torch.cat([features, place.expand(len(image), *place.shape)], 1)
        return _Patches(rows, *self._cells(keep, data, grid, size), size)

    def _cells(self, keep: Tensor, data: Tensor, grid: tuple[int, int], padded: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Find the cells (B, h, w) with data whose patch holds kept pixels alone, and all with data.

        The padding is made of the image, and alike in every one: were it missing, no patch of that rim would be in the library.
        """
        edges = (0, padded[1] - keep.shape[-1], 0, padded[0] - keep.shape[-2])
        some = covered_cells(torch.nn.functional.pad(data, edges), grid)[1]
        return covered_cells(torch.nn.functional.pad(keep, edges, value=True), grid, self.patch)[0] & some, some

    def _find_route(self, image: Tensor, patches: _Patches) -> Route | None:
        if self.router is None:
            return None
        route = self.router.route(self._described(image, patches))
        category = torch.where(route.known, route.index, -1)
        self.further_maps = {"category": category[:, None, None].expand(len(image), *image.shape[-2:])}
        return route

    def _described(self, image: Tensor, patches: _Patches) -> ImageDescriptors:
        return describe_images(self._standardised(image), patches.rows[:, :-PLACES], patches.some)

    def _searches(self, images: int) -> list[tuple[Tensor, Tensor | None]]:
        """Say which images search which rows of the library; None for all."""
        every = torch.arange(images, device=self.library.device)
        if self.route is None or self.routing is None or not self.routing.restrict:
            return [(every, None)]
        place = torch.where(self.route.known, self.route.index, -1)
        return [(every[place == c], (self.library_class == c).nonzero()[:, 0] if c >= 0 else None) for c in torch.unique(place).tolist()]

    def _distance(self, queries: Tensor, rows: Tensor | None) -> Tensor:
        """Compare (N, D) with the library, or with some of its rows: (N,)."""
        found = nearest(queries, self.library if rows is None else self.library[rows])
        distance, index = found.distance[:, 0], found.index[:, 0]
        if self.neighbours == 1:
            return distance
        return reweighted(distance, queries, index if rows is None else rows[index], self.library, self.around)

    @torch.no_grad()
    def _gather(self) -> _Gathered:
        """Describe this rank's training images, and keep a sample of their patches."""
        kept = Reservoir(self.memory, torch.Generator().manual_seed(self.seed * 1009 + self.global_rank))
        categories: list[str] = []
        described: list[ImageDescriptors] = []
        complete = 0
        for batch in training_batches(self):
            normal = normal_pixels(batch)
            image = torch.where(normal[:, None], batch["image"], torch.nan)  # what is not normal reaches no neighbour's features
            patches = self._patches(image, normal)
            data, grid = finite_pixels(batch["image"]), (patches.whole.shape[1], patches.whole.shape[2])
            complete += int(self._cells(data, data, grid, patches.padded)[0].sum())  # normal or not
            number = torch.arange(len(image)) + len(categories)
            rows = patches.rows.movedim(1, -1)[patches.whole]
            kept.add(rows, number.repeat_interleave(patches.whole.sum((1, 2)).cpu())[:, None])
            if self.router:
                described.append(self._described(image, patches))
                if "category" not in batch:
                    raise ValueError("Expected `category` in the training batches to route by, but it is not there. Use routing=None.")
            categories += list(batch.get("category", [""] * len(image)))
        tags = kept.tags[:, 0] if kept.seen else torch.empty(0)
        return _Gathered(kept.key, kept.rows, tags, categories, described, kept.seen, complete)

    @torch.no_grad()
    def _fit(self, parts: list[_Gathered]) -> None:
        """Make the library of what all ranks found."""
        key, rows, image, categories = _merged(parts, self.memory)
        if not len(rows):
            raise ValueError(
                "Expected patches of normal pixels alone (mask 0, with data) in the training images, but there are none. Check the masks, "
                "or take a finer encoder or a smaller patch."
            )
        _say_what_is_left(sum(part.normal for part in parts), sum(part.complete for part in parts))
        names = sorted(set(categories))
        label = torch.tensor([names.index(name) for name in categories])[image]
        self.scaler.fit(rows, self.device)
        chosen = self._coreset(rows)
        self.library = self.scaler(rows[chosen].to(self.device))
        self.library_class = label[chosen].to(self.device)
        self.around = self._around()
        if self.router is not None:
            described = [one for part in parts for one in part.described]
            self.router.fit(ImageDescriptors(*(torch.cat(part) for part in zip(*described, strict=True))), categories, self.device)
        if self.class_scale is not None:
            judged = judged_patches(key, label, len(names))
            tags = torch.stack([label, image], 1).to(self.device)
            scores = left_out_scores(self.scaler(rows[judged].to(self.device)), tags[judged], self.library, tags[chosen], len(names))
            self.class_scale.fit(scores, self.device)

    def _coreset(self, rows: Tensor) -> Tensor:
        """Choose the rows that stay."""
        projected = torch.cat([self._projected(part.to(self.device)) for part in torch.split(rows, CHUNK)])
        count = int(self.coreset) if self.coreset >= 1 else round(self.coreset * len(rows))
        found = greedy_coreset(projected, min(max(1, count), len(rows)))
        self.radius = found.radius[None]
        return found.index.cpu()

    def _projected(self, rows: Tensor) -> Tensor:
        """Scale rows and project them, every time by the same directions."""
        return random_projection(self.scaler(rows), DIMENSIONS, torch.Generator().manual_seed(self.seed))

    def _around(self) -> Tensor:
        """Find the neighbours of each library patch, itself among them, in its class where images search it alone."""
        if self.neighbours == 1:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        apart = self.library_class if self.routing and self.routing.restrict else torch.zeros_like(self.library_class)
        count = min(self.neighbours, int(torch.bincount(apart)[apart].min()))
        around = torch.empty(len(apart), count, dtype=torch.int64, device=self.device)
        for one in torch.unique(apart):
            rows = (apart == one).nonzero()[:, 0]
            around[rows] = rows[nearest(self.library[rows], self.library[rows], count).index]
        return around


def _say_what_is_left(normal: int, complete: int) -> None:
    """Warn where less than half of the patches with data are wholly normal, as between blocks that are held out to calibrate."""
    if 2 * normal < complete:
        warnings.warn(
            f"Only {normal} of the {complete} patches of the training images hold normal pixels alone, and make the library: the others "
            "touch void or anomalous pixels. Where blocks are held out to calibrate, give images that validate instead (more images, with "
            "val_share above 0) or larger blocks (calibration_block=); else check the masks, or take a finer encoder or a smaller patch.",
            stacklevel=2,
        )


def _merged(parts: list[_Gathered], memory: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Join what the ranks found: keys, rows, images and their categories."""
    filled = [part for part in parts if len(part.rows)]
    if len(parts) == 1 or not filled:
        return parts[0].key, parts[0].rows, parts[0].image, parts[0].categories
    kept = Reservoir(memory, torch.Generator())
    categories: list[str] = []
    for part in parts:
        if len(part.rows):
            kept.add(part.rows, part.image[:, None] + len(categories), part.key)
        categories += part.categories
    return kept.key, kept.rows, kept.tags[:, 0], categories
