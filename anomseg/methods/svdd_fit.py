"""What an SVDD knows of descriptors besides its weights: centre, radius, distributions; gathered in passes over the training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from anomseg.functional.descriptor_statistics import descriptor_moments, image_means, push_from_zero, spread
from anomseg.functional.ledoit_wolf import FourthMoments, ledoit_wolf, merge_moments
from anomseg.functional.pixel_sample import PixelSample, add_pixels, join_samples
from anomseg.functional.rx import covariance, mahalanobis
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.svdd import squared_distance
from anomseg.functional.svdd_radius import boundary_radius, largest_distances, mean_radius, quantile_radius
from anomseg.functional.svdd_scores import DescriptorScore, NormalDescriptors, descriptor_score, two_sided_score
from anomseg.methods.svdd_training import SVDDTraining
from anomseg.methods.training_data import gathered_objects, own_rank
from anomseg.metrics.score_state import ScoreState
from anomseg.sample import IGNORE, NORMAL


class DescribedBatch(NamedTuple):
    """Hold what a net saw and said of a batch: (B, F, H, W), (B, D, H, W), and (B, H, W) bool for normal and for all counted pixels."""

    inputs: Tensor
    descriptor: Tensor
    normal: Tensor
    data: Tensor


class LogRatio(nn.Module):
    """Hold two Gaussians, of normal and of all pixels, and score by ln p_all − ln p_normal."""

    mean: Tensor
    precision: Tensor
    all_mean: Tensor
    all_precision: Tensor
    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "precision", "all_mean", "all_precision"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("constant", torch.zeros(()))

    def fit(self, normal: FourthMoments, everything: FourthMoments, device: torch.device) -> None:
        """Fit both, each with Ledoit-Wolf shrinkage."""
        near, far = ledoit_wolf(normal), ledoit_wolf(everything)
        self.mean, self.all_mean = normal.mean.to(device), everything.mean.to(device)
        self.precision, self.all_precision = near.precision().to(device), far.precision().to(device)
        self.constant = (near.covariance.logdet() - far.covariance.logdet()).float().to(device)

    def score(self, values: Tensor) -> Tensor:
        """Score (B, D, H, W): (B, H, W) float32, higher is more anomalous, in nats."""
        near = mahalanobis(values, self.mean, self.precision)
        return 0.5 * (near - mahalanobis(values, self.all_mean, self.all_precision) + self.constant)


ScoreRule = Literal["ratio", "margin_ratio", "two_sided"] | DescriptorScore

KEPT_PIXELS = 1 << 16
COLLAPSED = 1e-4  # of the first spread


class _Boundary(ScoreState):
    """Find the radius that a share of all normal pixels exceeds, in bounded memory."""

    def __init__(self, nu: float) -> None:
        # What is counted lies on the processor, and tensors there are nothing that NCCL could gather.
        super().__init__(sync_on_compute=False)
        self.nu = nu

    def compute(self) -> Tensor:
        """Give R of the pixels seen here, () float64."""
        return boundary_radius(self.counts(), self.nu)

    def of_all_ranks(self) -> Tensor:
        """Give R of the pixels of all ranks, () float64; every rank has to ask for it."""
        whole = _Boundary(self.nu)
        for state in gathered_objects(self.metric_state):
            whole.merge_state(state)
        return boundary_radius(whole.counts(), self.nu)


@dataclass(frozen=True)
class _Gathered:
    """What one pass over the described training data of all ranks found, on the processor.

    Attributes:
        moments: of the descriptors of normal pixels and of all pixels with data, and of the inputs of both.
        means: (M, D) mean normal descriptor of each image.
        largest: (M,) largest squared distance of a normal pixel of each image.
        boundary: () radius that the share ν of all normal pixels exceeds.
        sample: (N, D) descriptors of at most 65,536 normal pixels, drawn from all of them alike.
    """

    moments: tuple[FourthMoments, ...]
    means: Tensor
    largest: Tensor
    boundary: Tensor
    sample: Tensor

    @classmethod
    def of(cls, described: Iterable[DescribedBatch], centre: Tensor, nu: float) -> _Gathered:
        boundary = _Boundary(nu)
        parts: list[Any] = []
        sample: PixelSample | None = None
        generator = torch.Generator().manual_seed(own_rank())
        for inputs, descriptor, normal, data in described:
            z = descriptor.float()
            distance = torch.where(normal, squared_distance(torch.where(normal[:, None], z, 0.0), centre), 0.0)
            boundary.update(distance.cpu(), torch.where(normal, NORMAL, IGNORE).cpu())
            four = tuple(_on_processor(descriptor_moments(x, keep)) for x in (z, inputs) for keep in (normal, data))
            parts.append((four, image_means(z, normal).cpu(), largest_distances(z, centre, normal).cpu()))
            sample = add_pixels(sample, z.movedim(1, -1)[normal].cpu(), KEPT_PIXELS, generator)
            if len(parts) == 64:  # bounded memory at any number of images
                parts = [_joined(parts)]
        found = [part for part in gathered_objects((_joined(parts), sample) if parts else None) if part is not None]
        if not found:
            raise ValueError("Expected batches of training data, but there are none. Check the data module and limit_train_batches.")
        statistics, samples = zip(*found, strict=True)
        pixels = join_samples(samples, KEPT_PIXELS).pixels
        moments, means, largest = _joined(list(statistics))
        return cls(moments, means, largest, boundary.of_all_ranks(), pixels)


def _on_processor(found: FourthMoments) -> FourthMoments:
    return FourthMoments(*(getattr(found, field.name).cpu() for field in fields(found)))


def _joined(parts: list[Any]) -> Any:
    """Join what batches or ranks found, at least one."""
    moments, means, largest = zip(*parts, strict=True)
    merged = tuple(reduce(merge_moments, kind) for kind in zip(*moments, strict=True))
    return merged, torch.cat(means), torch.cat(largest)


class DescriptorFit(nn.Module):
    """Hold the sphere and the distributions of descriptors in buffers, and fit them to described training data.

    `distances` are those of a uniform sample of normal training pixels, (N,) with N <= 65,536, that the score rule `two_sided` counts.
    """

    centre: Tensor
    radius: Tensor
    covariance: Tensor
    distances: Tensor
    first_spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("centre", "covariance", "distances"):
            self.register_buffer(name, torch.empty(0))
        for name in ("radius", "first_spread"):
            self.register_buffer(name, torch.zeros(()))
        self.descriptor_ratio = LogRatio()
        self.input_ratio = LogRatio()

    def begin(self, described: Iterable[DescribedBatch], recipe: SVDDTraining, device: torch.device) -> None:
        """Set the first centre, the mean over images of their mean normal descriptor, and the first radius."""
        found = gathered_objects([image_means(one.descriptor, one.normal).cpu() for one in described])
        means = torch.cat([batch for rank in found for batch in rank])  # a rank may have no samples
        self.centre = (
            push_from_zero(means.mean(0).float()).to(device) if recipe.objective == "one_class" else means.mean(0).float().to(device)
        )
        self.radius = torch.tensor(float(recipe.radius_start), device=device)

    def refresh(
        self, described: Iterable[DescribedBatch], recipe: SVDDTraining, epoch: int, *, warming_up: bool, ended: bool = True
    ) -> None:
        """Fit everything after an epoch, or the distributions alone within one.

        Args:
            described: the training data in evaluation mode.
            recipe: see `SVDDTraining`.
            epoch: the present one, from 0.
            warming_up: whether the SVDD loss is not yet in use, so that the radius stays.
            ended: whether the epoch is over; within one the sphere stays, so that how often is validated changes nothing of the training.

        Raises:
            RuntimeError: the descriptors have collapsed.
        """
        gathered = _Gathered.of(described, self.centre, recipe.nu)
        device = self.centre.device
        normal, everything, normal_inputs, all_inputs = gathered.moments
        if ended and recipe.objective != "contrast" and not warming_up:
            self.radius = self._new_radius(gathered, recipe).to(device)
        if ended and recipe.centre_every and (epoch + 1) % recipe.centre_every == 0:
            self.centre = gathered.means.mean(0).float().to(device)
        self.descriptor_ratio.fit(normal, everything, device)
        self.input_ratio.fit(normal_inputs, all_inputs, device)
        self.covariance = covariance(normal.second()).to(device)
        self.distances = descriptor_score(gathered.sample.T.to(device)[None, :, :, None], self._normal(), "mahalanobis").flatten()
        self._check_collapse()

    def score(self, inputs: Tensor, descriptors: Tensor, rule: ScoreRule) -> Tensor:
        """Score (B, F, H, W) inputs and (B, D, H, W) descriptors by a rule: (B, H, W), higher is more anomalous, finite."""
        if rule == "ratio":
            return self.descriptor_ratio.score(descriptors)
        if rule == "margin_ratio":
            return descriptor_score(descriptors, self._normal(), "dist_r2") + self.input_ratio.score(inputs)
        if rule == "two_sided":
            return two_sided_score(descriptor_score(descriptors, self._normal(), "mahalanobis"), count_scores([self.distances], []))
        return descriptor_score(descriptors, self._normal(), rule)

    def _normal(self) -> NormalDescriptors:
        return NormalDescriptors(self.centre, self.radius, self.descriptor_ratio.mean, self.descriptor_ratio.precision)

    def _new_radius(self, gathered: _Gathered, recipe: SVDDTraining) -> Tensor:
        if recipe.radius == "one_minus_nu":
            radius = gathered.boundary
        elif recipe.radius == "quantile":
            radius = quantile_radius(gathered.largest, recipe.radius_quantile)
        else:
            radius = mean_radius(gathered.largest)
        return torch.minimum(radius.float(), self.radius.cpu()) if recipe.radius_falls else radius.float()

    def _check_collapse(self) -> None:
        now = spread(self.covariance).float()
        if not float(self.first_spread):
            self.first_spread = now
        if float(now) <= COLLAPSED * float(self.first_spread):
            raise RuntimeError(
                f"Expected descriptors that differ between pixels, but their spread fell from {float(self.first_spread):.3g} to "
                f"{float(now):.3g}: they collapsed onto the centre. Raise the diversity or reconstruction weight (recipe.weights), use "
                "recipe.diversity='element' or recipe.objective='contrast', or build the descriptor without bias and norm."
            )
