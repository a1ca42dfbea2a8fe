"""What a monitor of collapses looks at: a few images of the training data, and the figures that a method gives on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F

from anomseg.callbacks.collapse_monitor_layers import Watched, thinned
from anomseg.errors import NotFittedError
from anomseg.functional.collapse import (
    copied_share,
    distance_ratio,
    error_contrast,
    mean_distance,
    relative_spread,
    singular_rank,
    skill,
    variance_ratio,
)
from anomseg.methods.base import AnomalySegmenter
from anomseg.nets.evaluation_mode import evaluation_mode
from anomseg.sample import IGNORE, finite_pixels

_NUMBERS = 2**25  # of all images together: fewer images of many bands are kept


@runtime_checkable
class Rebuilds(Protocol):
    """A method that rebuilds images: (B, C, H, W) in, the same out, in the image's units."""

    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild images."""


@runtime_checkable
class Describes(Protocol):
    """A method with features of images: (B, C, H, W) in, (B, D, h, w) out."""

    def features(self, image: Tensor) -> Tensor:
        """Describe images."""


@contextmanager
def untouched(module: pl.LightningModule) -> Iterator[None]:
    """Run a method in evaluation mode without gradients, and leave random states, modes and further maps as they were."""
    maps = getattr(module, "further_maps", None)
    with isolate_rng(), torch.no_grad(), evaluation_mode(module):
        try:
            yield
        finally:
            if maps is not None:
                module.further_maps = maps


class Probe:
    """Keep the first images of a training, and a copy of them with defects.

    Args:
        count: images to keep, fewer (but two) where they are too large together.
        size: larger images are cropped to the middle of this many pixels a side; None keeps them whole.
        seed: of the defects.
    """

    def __init__(self, count: int, size: int | None, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.image = torch.empty(0)
        self.valid = torch.empty(0, dtype=torch.bool)

    @property
    def full(self) -> bool:
        """Tell whether there are enough images."""
        return len(self.image) >= self.count

    def take(self, batch: Mapping[str, Any]) -> None:
        """Keep images of a batch as long as there are too few; those of another size than the first are left out."""
        image = batch["image"].detach()
        valid = finite_pixels(image)
        mask = batch.get("mask")
        if isinstance(mask, Tensor):
            valid = valid & (mask.reshape(valid.shape) != IGNORE)
        image, valid = self._cropped(image), self._cropped(valid)
        if not len(self.image):
            self.count = min(self.count, max(2, _NUMBERS // image[0].numel()))
        if not len(self.image) or image.shape[1:] == self.image.shape[1:]:
            room = self.count - len(self.image)
            self.image = torch.cat([self.image, image[:room].cpu()]) if len(self.image) else image[:room].cpu().clone()
            self.valid = torch.cat([self.valid, valid[:room].cpu()]) if len(self.valid) else valid[:room].cpu()

    def corrupted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupt each image by a square of its brightest or darkest values and a square pasted from the next image.

        Returns:
            The images (B, C, H, W), and where the flat and the pasted squares are, (B, H, W) bool each; they do not overlap.
        """
        generator = torch.Generator().manual_seed(self.seed)
        keep = self.valid[:, None]
        filled = torch.where(keep, self.image, 0.0)
        low, high = (
            end(torch.where(keep, self.image, none), (2, 3), True) for end, none in ((torch.amin, torch.inf), (torch.amax, -torch.inf))
        )
        bright = torch.arange(len(self.image))[:, None, None, None] % 2 == 0
        height, width = self.image.shape[-2:]
        foreign = filled.roll((1, height // 3, width // 3), (0, 2, 3))
        flat, pasted = self._squares(generator, 0), self._squares(generator, height // 2)
        image = torch.where(flat[:, None], torch.where(bright, high, low), torch.where(pasted[:, None], foreign, self.image))
        return torch.where(keep, image, self.image), flat & self.valid, pasted & self.valid

    def _squares(self, generator: torch.Generator, top: int) -> Tensor:
        """Draw a square of a quarter of each side in half of the rows of each image: (B, H, W) bool."""
        squares = torch.zeros_like(self.valid)
        height, width = squares.shape[-2:]
        rows, columns = max(height // 4, 1), max(width // 4, 1)
        for plane in squares:
            row = top + int(torch.randint(max(height // 2 - rows, 0) + 1, (), generator=generator))
            column = int(torch.randint(width - columns + 1, (), generator=generator))
            plane[row : row + rows, column : column + columns] = True
        return squares

    def _cropped(self, planes: Tensor) -> Tensor:
        if self.size is None:
            return planes
        height, width = planes.shape[-2:]
        top, left = max(height - self.size, 0) // 2, max(width - self.size, 0) // 2
        return planes[..., top : top + self.size, left : left + self.size]


def rebuilt_figures(module: Rebuilds, probe: Probe, device: torch.device, watched: Watched) -> tuple[dict[str, float], bool]:
    """Measure a method that rebuilds images.

    Returns:
        The figures, and whether all that it gave was finite where there is data.
    """
    clean, valid = probe.image.to(device), probe.valid.to(device)
    with watched.watching():
        output = module.reconstruct(clean).float()
    given, flat, pasted = (one.to(device) for one in probe.corrupted())
    repaired = module.reconstruct(given).float()
    finite = bool(torch.isfinite(output.movedim(1, -1)[valid]).all())
    figures = {"variance_ratio": variance_ratio, "distance_ratio": distance_ratio, "skill": skill}
    found = {name: float(figure(output, clean, valid)) for name, figure in figures.items()}
    # A shortcut copies whatever it is shown. What is pasted alone does not tell: on one even texture it is no defect.
    found["copied"] = min(float(copied_share(repaired, clean, given, place)) for place in (flat, pasted))
    found["error_contrast"] = float(error_contrast(repaired, given, flat | pasted, valid))
    pixels, target = output.movedim(1, -1)[valid], clean.movedim(1, -1)[valid]
    found["level"] = float(((pixels.mean(0) - target.mean(0)) / target.std(0).clamp_min(1e-12)).mean())
    return found, finite


def score_figures(score: Tensor, valid: Tensor) -> tuple[dict[str, float], bool]:
    """Measure score maps, which every method has.

    Args:
        score: (B, H, W).
        valid: (B, H, W) bool.

    Returns:
        The figures, and whether all scores are finite where there is data.
    """
    values = score.float()[valid]
    spread = values.double().std(correction=0)
    distance = mean_distance(score.float()[:, None], valid)
    found = {"score_spread": float(relative_spread(values[:, None]))}
    if bool(spread > 0):
        found["score_distance"] = float(distance / (spread * 2**0.5))
    return found, bool(torch.isfinite(values).all())


def feature_rows(features: Tensor, valid: Tensor) -> Tensor:
    """Gather features at valid places: (N, D), of which a few thousand rows are enough.

    Args:
        features: (B, D, h, w).
        valid: (B, H, W) bool, of the image's size; a place of a coarser grid counts where half of its pixels do.
    """
    size = (features.shape[-2], features.shape[-1])
    share = F.interpolate(valid[:, None].float(), size=size, mode="area")[:, 0]
    return thinned(features.float().movedim(1, -1)[share >= 0.5])


def feature_figures(rows: Tensor, scale: float | None) -> dict[str, float]:
    """Measure (N, D) features; `scale` is the largest size that they have had before."""
    own = float(rows.double().square().mean().sqrt())
    found = {"feature_spread": float(relative_spread(rows, max(own, scale or 0.0))), "feature_scale": own}
    if rows.shape[1] > 2 and len(rows) > 2:  # two directions or fewer cannot tell a line from all there is
        found["feature_rank"] = float(singular_rank(rows))
    return found


def method_figures(module: pl.LightningModule, probe: Probe, scale: float | None) -> tuple[dict[str, float], dict[str, str], bool]:
    """Measure a method on the probe; call it within `untouched`.

    Args:
        module: the method.
        probe: the images.
        scale: see `feature_figures`.

    Returns:
        Figures, the layer that `dead_units` is about, and whether all outputs are finite. A method that must be fitted first has none.
    """
    found: dict[str, float] = {}
    finite, watched, device = True, Watched(module), module.device
    with suppress(NotFittedError):
        image, valid = probe.image.to(device), probe.valid.to(device)
        if isinstance(module, Rebuilds):
            found, finite = rebuilt_figures(module, probe, device, watched)
        else:
            with watched.watching():
                score = cast(AnomalySegmenter, module).score_map(image)
            found, finite = score_figures(score, valid)
        features = module.features(image) if isinstance(module, Describes) else watched.descriptor
        if isinstance(features, Tensor):
            rows = feature_rows(features, valid)
            finite = finite and bool(torch.isfinite(rows).all())
            found |= feature_figures(rows, scale) if finite and len(rows) else {}
    layers = {}
    if watched.dead:
        worst = max(watched.dead.values())
        found["dead_units"] = worst
        layers["dead_units"] = next(name for name, share in watched.dead.items() if share == worst)
    return found, layers, finite
