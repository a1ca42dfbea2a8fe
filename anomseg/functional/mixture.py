"""Gaussian mixtures with full covariances, fitted to pixels by expectation maximisation (EM) in float64 and in bounded memory.

A pixel x has the density p(x) = Σ_k π_k N(x; μ_k, Σ_k); its anomaly score is the energy -ln p(x), higher is more anomalous.

Glossary: π weight, μ mean, Σ covariance, r_k(x) responsibility of component k for x, L factor with L Lᵀ = Σ.

Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", J. R. Stat. Soc. B 39(1), 1977; start by
Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007. The ridge in units of each band's variance is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.sample import finite_pixels

_CHUNK = 8192  # pixels at once: 2 MB of float64 at 30 bands, whatever their number


@dataclass(frozen=True)
class GaussianMixture:
    """Hold the parameters of a mixture of K Gaussians in C dimensions.

    Attributes:
        weight: (K,) float64, sum 1.
        mean: (K, C) float64, in units of the pixels.
        covariance: (K, C, C) float64, positive definite, in squared units of the pixels.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        """Raise ValueError where the shapes do not belong together."""
        count, bands = self.mean.shape if self.mean.ndim == 2 else (-1, -1)
        if self.weight.shape != (count,) or self.covariance.shape != (count, bands, bands):
            came = f"{tuple(self.weight.shape)}, {tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            raise ValueError(f"Expected weight (K,), mean (K, C) and covariance (K, C, C), but got {came}. Full covariances are needed.")


@torch.no_grad()
def fit_mixture(
    pixels: Tensor,
    components: int,
    seed: int = 0,
    weight: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
    ridge: float = 1e-6,
    start: GaussianMixture | None = None,
) -> GaussianMixture:
    """Fit a mixture by EM until the mean log-likelihood of a pixel rises by less than the tolerance.

    Memory beyond the pixels themselves is one chunk of them. Pixels of weight 0 take no part at all: the result is bit for bit that
    without them, and they may be NaN. A component that loses all its pixels keeps its place and shape with a vanishing weight.

    Args:
        pixels: (N, C) of any floating type; finite wherever the weight is not 0.
        components: K, at least 1 and at most the number of pixels of positive weight.
        seed: draws the k-means++ centres that EM starts from.
        weight: (N,) >= 0, how often each pixel counts; None for once each.
        iterations: highest number of EM steps, at least 1.
        tolerance: rise of the mean log-likelihood in nats at which EM stops.
        ridge: > 0; this share of each band's variance over all pixels is added to the diagonal of every covariance.
        start: mixture to start from instead of k-means++ centres.

    Raises:
        ValueError: wrong shapes, negative weights, pixels without data at a positive weight, or fewer such pixels than components.
    """
    chosen, weights = _usable(pixels, weight, components)
    if iterations < 1 or ridge <= 0:
        raise ValueError(f"Expected iterations >= 1 and ridge > 0, but got {iterations} and {ridge}. Leave the defaults to start with.")
    origin, floor = _origin_and_floor(chosen, weights, ridge)
    mixture = _start(chosen, weights, components, seed, origin, floor) if start is None else start
    previous = -math.inf
    for _ in range(iterations):
        mixture, likelihood = _step(chosen, weights, mixture, origin, floor)
        if likelihood - previous < tolerance:
            break
        previous = likelihood
    return mixture


@torch.no_grad()
def log_likelihood(pixels: Tensor, mixture: GaussianMixture) -> Tensor:
    """Compute ln p(x) of (N, C) pixels: (N,) float64, in nats; pixels without data give NaN.

    Raises:
        ValueError: pixels and mixture differ in the number of bands.
    """
    if pixels.ndim != 2 or pixels.shape[1] != mixture.mean.shape[1]:
        came = f"{tuple(pixels.shape)} for a mixture in {mixture.mean.shape[1]} dimensions"
        raise ValueError(f"Expected pixels of shape (N, C), but got {came}. Flatten with x.movedim(1, -1).flatten(0, -2).")
    factors = _factors(mixture)
    parts = [_joint(chunk.double(), mixture, factors).logsumexp(1) for (chunk,) in _chunks(pixels)]
    return torch.cat(parts) if parts else pixels.new_empty(0, dtype=torch.float64)


def mixture_energy(image: Tensor, mixture: GaussianMixture) -> Tensor:
    """Score every pixel of an image by -ln p(x).

    Args:
        image: (B, C, H, W), NaN in any band where there is no data.
        mixture: background of the same bands.

    Returns:
        (B, H, W) float32 in nats, higher is more anomalous and of either sign; the lowest score of the image where there is no data.

    Raises:
        ValueError: image and mixture differ in the number of bands, or an image holds no data at all.
    """
    keep = finite_pixels(image)
    if not bool(keep.flatten(1).any(1).all()):
        raise ValueError(f"Expected data in every image, but got {tuple(image.shape)} with an image of no-data only. Skip empty tiles.")
    score = image.new_zeros(keep.shape, dtype=torch.float32)
    for index, chosen in enumerate(keep):
        energy = -log_likelihood(image[index][:, chosen].T, mixture).float()
        score[index] = energy.min()
        score[index, chosen] = energy
    return score


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of a bounded number of pixels, the same ones of every tensor."""
    for start in range(0, len(tensors[0]), _CHUNK):
        yield tuple(tensor[start : start + _CHUNK] for tensor in tensors)


def _usable(pixels: Tensor, weight: Tensor | None, components: int) -> tuple[Tensor, Tensor]:
    """Drop the pixels of weight 0 and check the others."""
    if pixels.ndim != 2 or not pixels.is_floating_point():
        raise ValueError(f"Expected floating-point pixels of shape (N, C), but got {tuple(pixels.shape)} {pixels.dtype}. Flatten and cast.")
    weights = pixels.new_ones(len(pixels), dtype=torch.float64) if weight is None else weight.double()
    if weights.shape != pixels.shape[:1] or bool((weights < 0).any()):
        raise ValueError(f"Expected weights >= 0 of shape {tuple(pixels.shape[:1])}, but got {tuple(weights.shape)}. Use 0 to ignore.")
    kept = weights > 0
    chosen = pixels if bool(kept.all()) else pixels[kept]
    if components < 1 or len(chosen) < components:
        came = f"{components} components for {len(chosen)} pixels of positive weight"
        raise ValueError(f"Expected 1 <= components <= number of pixels, but got {came}. Take fewer components.")
    if not bool(torch.isfinite(chosen.sum())) and not bool(torch.isfinite(chosen).all()):
        raise ValueError("Expected finite pixels, but got NaN or infinity at a positive weight. Give pixels without data the weight 0.")
    return chosen, weights[kept]


def _origin_and_floor(pixels: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Find the mean of all pixels, which products are centred on, and the (C,) variances that are added to every covariance."""
    total = weights.sum()
    pairs = list(_chunks(pixels, weights))  # views, not copies
    first = pixels[0].double()
    origin = first + torch.stack([(w[:, None] * (x.double() - first)).sum(0) for x, w in pairs]).sum(0) / total
    variance = torch.stack([(w[:, None] * (x.double() - origin).square()).sum(0) for x, w in pairs]).sum(0) / total
    return origin, torch.where(variance > 0, ridge * variance, ridge)


def _start(pixels: Tensor, weights: Tensor, components: int, seed: int, origin: Tensor, floor: Tensor) -> GaussianMixture:
    """Draw k-means++ centres in bands of unit variance and give every pixel to the nearest one."""
    generator = torch.Generator().manual_seed(seed)
    scale = floor.rsqrt()
    nearest = torch.full_like(weights, math.inf)
    owner = torch.zeros_like(weights, dtype=torch.int64)
    for index in range(components):  # one pass over the pixels for each component
        chance = (weights if index == 0 else weights * nearest).cumsum(0)
        if float(chance[-1]) == 0:
            break  # every distinct pixel is a centre already
        draw = torch.rand((), generator=generator, dtype=torch.float64).to(chance) * chance[-1]
        centre = pixels[int(torch.searchsorted(chance, draw, right=True).clamp_max(len(pixels) - 1))].double()
        distance = torch.cat([((x.double() - centre) * scale).square().sum(1) for (x,) in _chunks(pixels)])
        owner[distance < nearest] = index
        nearest = torch.minimum(nearest, distance)
    sums = _Sums.empty(components, pixels.shape[1], weights)
    for x, w, k in _chunks(pixels, weights, owner):
        sums.add(x.double() - origin, w[:, None] * torch.nn.functional.one_hot(k, components))
    spare = GaussianMixture(weights.new_zeros(components), origin.repeat(components, 1), floor.diag().repeat(components, 1, 1))
    return sums.mixture(origin, floor, spare)


def _step(pixels: Tensor, weights: Tensor, mixture: GaussianMixture, origin: Tensor, floor: Tensor) -> tuple[GaussianMixture, float]:
    """Take one EM step; return the new mixture and the mean log-likelihood of a pixel under the old one."""
    factors = _factors(mixture)
    sums = _Sums.empty(len(mixture.weight), pixels.shape[1], weights)
    likelihood = weights.new_zeros(())
    for x, w in _chunks(pixels, weights):  # K C² operations for each pixel, twice
        joint = _joint(x.double(), mixture, factors)
        evidence = joint.logsumexp(1)
        likelihood += (w * evidence).sum()
        sums.add(x.double() - origin, w[:, None] * (joint - evidence[:, None]).exp())
    return sums.mixture(origin, floor, mixture), float(likelihood / weights.sum())


def _factors(mixture: GaussianMixture) -> Tensor:
    """Factorise: (K, C, C) inverses of the lower Cholesky factors L."""
    lower = torch.linalg.cholesky(mixture.covariance)
    inverse: Tensor = torch.linalg.solve_triangular(lower, torch.eye(lower.shape[-1]).to(lower).expand_as(lower), upper=False)
    return inverse


def _joint(pixels: Tensor, mixture: GaussianMixture, factors: Tensor) -> Tensor:
    """Compute ln(π_k N(x; μ_k, Σ_k)) for every pixel and component: (n, K)."""
    parts = []
    constant = mixture.weight.log() + factors.diagonal(dim1=1, dim2=2).log().sum(1) - pixels.shape[1] * math.log(2 * math.pi) / 2
    for mean, factor in zip(mixture.mean, factors, strict=True):  # one component at a time, so that memory does not grow with K
        parts.append(((pixels - mean) @ factor.T).square().sum(1))
    joint: Tensor = constant - torch.stack(parts, 1) / 2
    return joint


@dataclass
class _Sums:
    """Gather what an M step needs, in float64 and centred on the mean of all pixels."""

    count: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def empty(cls, components: int, bands: int, like: Tensor) -> _Sums:
        return cls(like.new_zeros(components), like.new_zeros(components, bands), like.new_zeros(components, bands, bands))

    def add(self, centred: Tensor, responsibility: Tensor) -> None:
        self.count += responsibility.sum(0)
        self.first += responsibility.T @ centred
        for k, share in enumerate(responsibility.unbind(1)):
            self.second[k].addmm_((centred * share[:, None]).T, centred)

    def mixture(self, origin: Tensor, floor: Tensor, old: GaussianMixture) -> GaussianMixture:
        alive = self.count > torch.finfo(torch.float64).eps * self.count.sum()
        count = torch.where(alive, self.count, 1.0)[:, None]
        shift = self.first / count
        covariance = self.second / count[:, :, None] - shift[:, :, None] * shift[:, None, :] + floor.diag()
        weight = torch.where(alive, self.count, torch.finfo(torch.float64).tiny)
        mean = torch.where(alive[:, None], origin + shift, old.mean)
        return GaussianMixture(weight / weight.sum(), mean, torch.where(alive[:, None, None], covariance, old.covariance))
