"""Synthetic defects that are pieces of images in the wrong place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.data.defect_base import Defect, Surface
from anomseg.data.defect_regions import bar_region, blob_region, bounds, box_region, uniform, whole
from anomseg.functional.smoothing import gaussian

BlendEdge = Literal["seamless", "feathered"]


@dataclass(frozen=True)
class CutPaste(Defect):
    """Copy a box from one place of an image to another.

    Attributes:
        jitter: its gain and offset vary by as much of the spread, at least 0.

    Source:
        Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR 2021.
    """

    size: tuple[float, float] = (0.01, 0.1)
    jitter: float = 0.3

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = box_region(surface.size, self._area(surface, generator), generator)
        full, held = _displaced(surface, region, generator)
        return _jittered(full, surface, self.jitter, generator), self.strength * (region & held)

    def _check(self) -> None:
        _check_jitter(self.jitter)


@dataclass(frozen=True)
class Scar(Defect):
    """Copy a long thin bar, at any angle, from one place of an image to another, in another light.

    Attributes:
        jitter: its gain and offset vary by as much of the spread, at least 0.

    Source:
        Li et al., "CutPaste", CVPR 2021: "CutPaste-Scar".
    """

    size: tuple[float, float] = (0.002, 0.02)
    jitter: float = 1.5

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = bar_region(surface.size, self._area(surface, generator), generator)
        if not bool(region.any()):
            return surface.image, region.float()
        full, held = _displaced(surface, region, generator)
        return _jittered(full, surface, self.jitter, generator), self.strength * (region & held)

    def _check(self) -> None:
        _check_jitter(self.jitter)


@dataclass(frozen=True)
class Blend(Defect):
    """Blend an irregular piece of another image in, or of another place where there is no other image, scaled by 0.7 to 1.4.

    Attributes:
        edge: `seamless` shifts the piece by the smoothest field that makes it meet the image at its border; `feathered` lets it fade
            out over two pixels.

    Source:
        Schlüter et al., "Natural Synthetic Anomalies for Self-supervised Anomaly Detection and Localization", ECCV 2022.
    """

    size: tuple[float, float] = (0.01, 0.1)
    edge: BlendEdge = "seamless"

    takes_others: ClassVar[bool] = True

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = blob_region(surface.size, self._area(surface, generator), generator)
        top, left, height, width = bounds(region)
        source = others[whole(0, len(others) - 1, generator)] if others else torch.where(surface.valid, surface.image, torch.nan)
        piece, held = _piece(source, (height, width), generator)
        rows, columns = slice(top, top + height), slice(left, left + width)
        full, inside = surface.image.clone(), region.clone()
        full[:, rows, columns] = piece
        inside[rows, columns] &= held
        inside &= surface.valid
        if self.edge == "seamless":
            return membrane(full, surface.image, inside), self.strength * inside
        soft = gaussian(inside[None].float(), 1.0)[0]
        return full, self.strength * torch.where(inside, (2 * soft - 0.6).clamp(0, 1), 0.0)

    def _check(self) -> None:
        if self.edge not in ("seamless", "feathered"):
            raise ValueError(f"Expected edge 'seamless' or 'feathered', but got {self.edge!r}.")


@dataclass(frozen=True)
class StructuralShift(Defect):
    """Shift the contents of a box a little, so that lines and patterns no longer meet at its border.

    Attributes:
        reach: largest shift, at strength 1, as a share of the image's shorter side, above 0 to 0.5.
    """

    size: tuple[float, float] = (0.02, 0.15)
    reach: float = 0.12

    def paint(self, surface: Surface, generator: torch.Generator, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Draw one; see the base class."""
        region = box_region(surface.size, self._area(surface, generator), generator)
        most = max(1.0, self.strength * self.reach * min(surface.size))
        length, angle = uniform(max(1.0, most / 2), most, generator), uniform(0, 2 * math.pi, generator)
        top, left, height, width = bounds(region)
        down = _within(round(length * math.sin(angle)), top, height, surface.size[0])
        right = _within(round(length * math.cos(angle)), left, width, surface.size[1])
        full, held = _rolled(surface, down, right)
        return full, (region & held).float()

    def _check(self) -> None:
        if not 0 < self.reach <= 0.5:
            raise ValueError(f"Expected a reach above 0 to 0.5, but got {self.reach}.")


def membrane(piece: Tensor, image: Tensor, inside: Tensor) -> Tensor:
    """Shift a piece by a harmonic field, so that it meets the image all around.

    The field solves Laplace's equation inside, with the difference of image and piece on the pixels around: the same as pasting the
    piece's gradients. Pixels at the border of the image have no neighbour beyond it. Solved by red-black over-relaxation in the box
    around the piece, at a cost of its area times its longer side.

    Args:
        piece: (C, H, W) with the contents to paste.
        image: (C, H, W) that it is pasted into.
        inside: (H, W) bool, where.

    Returns:
        (C, H, W): the shifted piece inside, the image elsewhere.

    Source:
        Pérez, Gangnet and Blake, "Poisson image editing", SIGGRAPH 2003, equation 4.
    """
    if not bool(inside.any()):
        return image
    top, left, height, width = bounds(inside)
    rows = slice(max(0, top - 1), min(top + height + 1, image.shape[-2]))
    columns = slice(max(0, left - 1), min(left + width + 1, image.shape[-1]))
    hole = inside[rows, columns]
    # Outside of the hole the piece is unknown; its nearest known value is what counts, so the difference there is taken along the rim.
    field = F.pad(torch.where(hole, 0.0, _rim(image[:, rows, columns], piece[:, rows, columns], hole)), (1, 1, 1, 1))
    middle = field[:, 1:-1, 1:-1]
    up, down, left_of, right_of = field[:, :-2, 1:-1], field[:, 2:, 1:-1], field[:, 1:-1, :-2], field[:, 1:-1, 2:]
    around = F.conv2d(torch.ones_like(hole, dtype=field.dtype)[None, None], _CROSS, padding=1)[0, 0]
    colour = (torch.arange(hole.shape[0])[:, None] + torch.arange(hole.shape[1])) % 2
    omega = 2 / (1 + math.sin(math.pi / (max(hole.shape) + 1)))
    steps = [omega * (hole & (colour == half)) for half in (0, 1)]
    for _ in range(math.ceil(1.5 * max(hole.shape))):
        for step in steps:
            middle.addcmul_(step, (up + down + left_of + right_of) / around - middle)
    result = image.clone()
    result[:, rows, columns] = torch.where(hole, piece[:, rows, columns] + middle, image[:, rows, columns])
    return result


_CROSS = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


def _rim(image: Tensor, piece: Tensor, hole: Tensor) -> Tensor:
    """Give the image minus what the piece holds in the nearest pixels inside: their mean."""
    weight = F.conv2d(hole[None, None].float(), torch.ones(1, 1, 3, 3), padding=1)[0, 0]
    summed = F.conv2d(torch.where(hole, piece, 0.0)[:, None], torch.ones(1, 1, 3, 3), padding=1)[:, 0]
    return torch.where(weight > 0, image - summed / weight.clamp_min(1), 0.0)


def _displaced(surface: Surface, region: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift the image so that another place of it lies in the region; also tell which pixels hold data then."""
    top, left, height, width = bounds(region)
    down = top - whole(0, surface.size[0] - height, generator)
    right = left - whole(0, surface.size[1] - width, generator)
    return _rolled(surface, down, right)


def _rolled(surface: Surface, down: int, right: int) -> tuple[Tensor, Tensor]:
    return surface.image.roll((down, right), (1, 2)), surface.valid.roll((down, right), (0, 1))


def _within(shift: int, first: int, length: int, whole_length: int) -> int:
    """Turn or shorten a shift so that what comes into a box was in the image."""
    if first - shift < 0 or first - shift + length > whole_length:
        shift = -shift
    return max(first + length - whole_length, min(shift, first))


def _jittered(full: Tensor, surface: Surface, jitter: float, generator: torch.Generator) -> Tensor:
    mean, spread = surface.mean[:, None, None], surface.spread[:, None, None]
    gain = 1 + min(jitter, 0.5) * uniform(-1, 1, generator)
    return mean + gain * (full - mean) + jitter * uniform(-1, 1, generator) * spread


def _check_jitter(jitter: float) -> None:
    if not 0 <= jitter < math.inf:
        raise ValueError(f"Expected a jitter of at least 0, but got {jitter}.")


def _piece(source: Tensor, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut a piece of any place out of an image and bring it to a size; also tell which pixels hold data."""
    scale = 1.4 ** uniform(-1, 1, generator)
    rows, columns = (max(1, min(round(length * scale), available)) for length, available in zip(size, source.shape[-2:], strict=True))
    top, left = whole(0, source.shape[-2] - rows, generator), whole(0, source.shape[-1] - columns, generator)
    cut = source[:, top : top + rows, left : left + columns]
    valid = torch.isfinite(cut).all(0)
    both = torch.cat([torch.where(valid, cut, 0.0), valid[None].float()])
    scaled = F.interpolate(both[None], size, mode="bilinear", align_corners=False)[0]
    return scaled[:-1] / scaled[-1].clamp_min(1e-6), scaled[-1] > 0.99
