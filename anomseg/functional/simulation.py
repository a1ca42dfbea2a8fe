"""Simulated anomalies in a scene: small and deviating is anomalous, large and deviating is normal.

Everything happens in whitened coordinates z = Wᵀ(x − μ). That map is affine, so mixing spectra x with an abundance a is mixing their z with
the same a, and a spectrum that is permuted or brightened in bands is projected once and then implanted anywhere.

Source: rectangles of permuted bands from Li et al., "One-step detection paradigm for hyperspectral anomaly detection" (TDD), TGRS 2024;
large deviating objects as negatives from their UniADRS, TIP 2024; deviation control, brightness and sub-pixel abundance are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.functional.rx import covariance, pixel_statistics, usable_pixels
from anomseg.functional.whitening import whitening_basis
from anomseg.sample import ANOMALY, IGNORE, NORMAL


@dataclass(frozen=True)
class WhitenedScene:
    """Hold a scene in whitened coordinates, and what is needed to bring other spectra there.

    Attributes:
        z: (k, H, W) float32 whitened components, 0 where there is no data.
        image: (C, H, W) float32 the scene in its own units.
        mean: (C,) float64 of the valid pixels.
        basis: (C, k) float64; z = (x − mean) @ basis.
        valid: (H, W) bool.
    """

    z: Tensor
    image: Tensor
    mean: Tensor
    basis: Tensor
    valid: Tensor

    @classmethod
    def of(cls, image: Tensor, components: int) -> WhitenedScene:
        """Whiten a scene.

        Args:
            image: (C, H, W), NaN in any band where there is no data.
            components: number of principal components, at least 1; above C it is reduced to C.

        Raises:
            ValueError: fewer than 2 pixels hold data.
        """
        valid = usable_pixels(image[None])[0]
        pixels = image[:, valid].T
        statistics = pixel_statistics(pixels)
        basis = whitening_basis(covariance(statistics), min(components, image.shape[0]))
        z = image.new_zeros(basis.shape[1], *image.shape[1:], dtype=torch.float32)
        z[:, valid] = ((pixels.double() - statistics.mean) @ basis).T.float()
        return cls(z, torch.where(valid, image, 0.0), statistics.mean, basis, valid)

    def project(self, spectra: Tensor) -> Tensor:
        """Bring (N, C) spectra to whitened coordinates, (N, k) float32."""
        return ((spectra.double() - self.mean) @ self.basis).float()


@dataclass(frozen=True)
class AnomalySimulation:
    """Describe what is implanted into a scene.

    Attributes:
        density: expected small targets for each 10,000 pixels.
        area: smallest and largest area of a small target in pixels, drawn log-uniformly.
        large: expected large deviating areas for each 10,000 pixels; their pixels stay normal. They teach that a target is small.
        large_area: their smallest and largest area in pixels, drawn log-uniformly.
        kinds: chances of a spectrum copied from another pixel, of permuted bands, of a random direction, and of changed brightness.
        mixing: lowest and highest share of a copied spectrum against the background below it.
        strength: lowest and highest length of a deviation in units of √k (1 is a typical background pixel), drawn log-uniformly; a copied
            spectrum keeps its own length.
        abundance: lowest and highest share of a target pixel that the target fills, before its edge fades.
        rectangles: chance of a rectangle instead of a warped blob.
    """

    density: float = 25.0
    area: tuple[float, float] = (1.0, 40.0)
    large: float = 1.0
    large_area: tuple[float, float] = (120.0, 2500.0)
    kinds: tuple[float, float, float, float] = (0.2, 0.35, 0.35, 0.1)
    mixing: tuple[float, float] = (0.3, 1.0)
    strength: tuple[float, float] = (1.0, 6.0)
    abundance: tuple[float, float] = (0.6, 1.0)
    rectangles: float = 0.3

    def __post_init__(self) -> None:
        for name in ("area", "large_area", "mixing", "strength", "abundance"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"Expected {name} = (low, high) with 0 < low <= high, but got {(low, high)}.")
        if self.density <= 0 or self.large < 0 or min(self.kinds) < 0 or not sum(self.kinds) > 0:
            raise ValueError(
                f"Expected density > 0, large >= 0 and chances >= 0 that are not all 0, but got {self.density}, {self.large}, {self.kinds}."
            )

    def implant(self, scene: WhitenedScene, ignored: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Implant targets into a scene.

        Args:
            scene: the scene.
            ignored: (H, W) bool, pixels that shall not be trained as background (likely real anomalies); targets may lie on them.
            generator: draws everything.

        Returns:
            (k, H, W) whitened components with targets, and (H, W) int64 labels: 1 on small targets, 0 elsewhere, 255 on ignored pixels and
            on faint target edges. Large deviating areas are labelled 0.
        """
        z, label = scene.z.clone(), torch.where(ignored | ~scene.valid, IGNORE, NORMAL)
        pixels = z.shape[1] * z.shape[2]
        large = _poisson(self.large * pixels / 1e4, generator)
        small = max(1, _poisson(self.density * pixels / 1e4, generator))
        spectra = self._spectra(scene, large + small, generator)
        for index in range(large + small):  # some dozens of small windows for a scene of 10,000 pixels: 3 ms
            is_large = index < large
            area = _log_uniform(self.large_area if is_large else self.area, generator)
            rows, columns, cover = _shape(area, z.shape[1:], self.rectangles, generator)
            fill = 1.0 if is_large else _uniform(self.abundance, generator)
            share = (cover * fill)[None]
            window = (slice(None), rows, columns)
            z[window] = (1 - share) * z[window] + share * spectra[index][:, None, None]
            seen = label[rows, columns]
            if is_large:
                seen[(cover > 0.5) & (seen == ANOMALY)] = NORMAL
            else:
                seen[cover * fill >= 0.3] = ANOMALY
                seen[(cover * fill > 0.05) & (cover * fill < 0.3)] = IGNORE
        label[~scene.valid] = IGNORE
        return z * scene.valid, label

    def _spectra(self, scene: WhitenedScene, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, k) whitened target spectra."""
        k, bands = scene.z.shape[0], scene.image.shape[0]
        place = scene.valid.flatten().nonzero()[:, 0]
        chosen = place[torch.randint(len(place), (count,), generator=generator)]
        source = scene.image.flatten(1)[:, chosen].T
        kind = torch.multinomial(torch.tensor(self.kinds), count, replacement=True, generator=generator)
        length = math.sqrt(k) * torch.tensor([_log_uniform(self.strength, generator) for _ in range(count)])
        mix = torch.rand(count, generator=generator) * (self.mixing[1] - self.mixing[0]) + self.mixing[0]
        order = torch.rand(count, bands, generator=generator).argsort(1)
        factor = torch.rand(count, generator=generator) * 1.5 + 0.2
        share_of_components = torch.tensor([0.1, 0.3, 1.0])[torch.randint(3, (count,), generator=generator)]
        used = torch.rand(count, k, generator=generator) < share_of_components[:, None]
        used[torch.arange(count), torch.randint(k, (count,), generator=generator)] = True
        direction = torch.randn(count, k, generator=generator) * used
        permuted = scene.project(source.gather(1, order))
        brightened = scene.project(source * factor[:, None])
        own = scene.z.flatten(1)[:, chosen].T
        drawn = torch.stack([own * mix[:, None], permuted, direction, brightened])[kind, torch.arange(count)]
        norm = drawn.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return torch.where((kind == 0)[:, None], drawn, drawn / norm * length[:, None])


def _uniform(bounds: tuple[float, float], generator: torch.Generator) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(torch.rand((), generator=generator))


def _log_uniform(bounds: tuple[float, float], generator: torch.Generator) -> float:
    return math.exp(_uniform((math.log(bounds[0]), math.log(bounds[1])), generator))


def _poisson(mean: float, generator: torch.Generator) -> int:
    return int(torch.poisson(torch.tensor(mean), generator=generator))


def _shape(area: float, size: torch.Size, rectangles: float, generator: torch.Generator) -> tuple[slice, slice, Tensor]:
    """Draw a shape: the window it lies in, and its cover in [0, 1] there, fading over one pixel at the edge."""
    aspect = _log_uniform((1 / 3, 3.0), generator)
    angle = _uniform((0.0, math.pi), generator)
    is_rectangle = float(torch.rand((), generator=generator)) < rectangles
    # half axes of an ellipse, or half sides of a rectangle, of that area
    unit = 0.5 * math.sqrt(area) if is_rectangle else math.sqrt(area / math.pi)
    first, second = unit * math.sqrt(aspect), unit / math.sqrt(aspect)
    row, column = (_uniform((0.0, n - 1.0), generator) for n in size)
    if area < 2:  # a single pixel stays one
        row, column, first, second = round(row), round(column), 0.5, 0.5
    reach = math.ceil(1.5 * max(first, second)) + 1
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    bottom, right = min(size[0], int(row) + reach + 2), min(size[1], int(column) + reach + 2)
    y = torch.arange(top, bottom)[:, None] - row
    x = torch.arange(left, right)[None] - column
    if is_rectangle:
        signed = torch.maximum(y.abs() - first, x.abs() - second).expand(bottom - top, right - left)
        cover = (0.5 - signed).clamp(0, 1)
    else:
        u, v = math.cos(angle) * y + math.sin(angle) * x, math.cos(angle) * x - math.sin(angle) * y
        radius = ((u / first) ** 2 + (v / second) ** 2).sqrt()
        lobes, phase = int(torch.randint(2, 6, (), generator=generator)), _uniform((0.0, 2 * math.pi), generator)
        warp = 1 + (0.25 * torch.sin(lobes * torch.atan2(v, u) + phase) if area >= 6 else torch.zeros(()))
        cover = (0.5 + (warp - radius) * min(first, second)).clamp(0, 1)
    return slice(top, bottom), slice(left, right), cover
