"""Synthetic pairs with exact truth: fields that change with the season, light that moves, and buildings that come and go.

Both dates show the same land, ``x_t = g_t · ((1 − Σ c) · land_t + Σ c · roof) + n_t``, with coverages c of buildings and their shadows, a
smooth illumination g_t of each date, and noise. Only buildings that stand at one date alone are truth. All else differs too: crops have
other colours, shadows fall elsewhere, and one date lies a part of a pixel beside the other, so that a large difference says little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anomseg.data.scene import Scene

_PALETTE_SEED = 20  # the materials are the same in all scenes, so that what a building looks like can be learnt
_FIELDS, _ROOFS = 6, 4
_SEASONAL = 4  # of the fields, the first change their colour between the dates


@dataclass(frozen=True)
class PairDifficulty:
    """Set how much differs between the dates without being change.

    Attributes:
        season: largest change of a field's reflectance, at least 0.
        light: the illumination varies by a factor of e^±light within and between the dates, at least 0.
        shift: largest distance in pixels by which the first date lies beside the second, at least 0. Truth is that of the land, so that
            with a whole pixel a tenth of a building's edge is guesswork.
        noise: standard deviation of the sensor noise in reflectance, at least 0.
    """

    season: float = 0.25
    light: float = 0.25
    shift: float = 0.25
    noise: float = 0.02

    def __post_init__(self) -> None:
        if min(self.season, self.light, self.shift, self.noise) < 0:
            raise ValueError(f"Expected differences of at least 0, but got {self}. 0 switches one off.")


def synthetic_pair(size: tuple[int, int] = (128, 128), seed: int = 0, bands: int = 3, difficulty: PairDifficulty | None = None) -> Scene:
    """Draw one pair.

    Args:
        size: (height, width) in pixels, each at least 48.
        seed: decides everything that is random; equal arguments give bit-equal pairs on one machine.
        bands: number of bands, at least 1; the materials have fixed colours for each number.
        difficulty: what differs beside the change; by default `PairDifficulty()`.

    Returns:
        A scene with image (2, C, H, W) of reflectance in about [0, 1.5] and mask (H, W): 1 where a building covers more than half of the
        pixel at one date alone, 0 elsewhere.

    Raises:
        ValueError: an argument is out of its range.
    """
    if min(size) < 48 or bands < 1:
        raise ValueError(f"Expected at least 48 x 48 pixels and one band, but got size={tuple(size)} and bands={bands}.")
    difficulty = difficulty or PairDifficulty()
    generator = torch.Generator().manual_seed(seed)
    fields, roofs = _palette(bands)
    land = _land(size, fields, difficulty.season, generator)
    buildings = _buildings(size, len(roofs), generator)
    dates, covered = [], []
    for date in range(2):
        present = [building for building in buildings if building.stands[date]]
        image, coverage = _built(land[date], present, roofs, 2 * math.pi * float(torch.rand((), generator=generator)))
        dates.append(image * _illumination(size, difficulty.light, generator))
        covered.append(coverage)
    angle, length = (float(draw) for draw in torch.rand(2, generator=generator))
    reach = difficulty.shift * math.sqrt(length)
    dates[0] = _moved(dates[0], reach * math.sin(2 * math.pi * angle), reach * math.cos(2 * math.pi * angle))
    image = torch.stack(dates)
    image = (image + difficulty.noise * torch.randn(image.shape, generator=generator)).clamp_min(0.0)
    return Scene(f"synthetic-pair-{seed}", image, ((covered[0] > 0.5) != (covered[1] > 0.5)).long())


@dataclass(frozen=True)
class _Building:
    row: float
    column: float
    half: tuple[float, float]
    angle: float
    roof: int
    brightness: float
    stands: tuple[bool, bool]


def _palette(bands: int) -> tuple[Tensor, Tensor]:
    """Give reflectances of the fields and the roofs, (materials, C); roofs are brighter on average, but not all of them."""
    generator = torch.Generator().manual_seed(_PALETTE_SEED)
    levels, tints = torch.rand(_FIELDS + _ROOFS, 1, generator=generator), torch.rand(_FIELDS + _ROOFS, bands, generator=generator) * 2 - 1
    fields = (0.15 + 0.35 * levels[:_FIELDS]) * (1 + 0.35 * tints[:_FIELDS])
    roofs = (0.3 + 0.4 * levels[_FIELDS:]) * (1 + 0.35 * tints[_FIELDS:])
    return fields, roofs


def _land(size: tuple[int, int], fields: Tensor, season: float, generator: torch.Generator) -> list[Tensor]:
    """Draw both dates of the land without buildings, (C, H, W) each."""
    region = torch.stack([smooth_noise(size, 24, generator) for _ in range(len(fields))]).argmax(dim=0)
    parcels = (smooth_noise(size, 12, generator) > 0).long()  # halves the fields, so that parts of one kind change apart
    texture = sum((0.5**octave * smooth_noise(size, 2.0 * 2**octave, generator) for octave in range(3)), torch.zeros(size))
    dates = []
    for _ in range(2):
        draws = torch.rand(len(fields), 2, 1 + fields.shape[1], generator=generator) * 2 - 1
        change = 0.7 * draws[..., :1] + 0.3 * draws[..., 1:]
        change[_SEASONAL:] *= 0.1
        colour = fields[:, None] + season * change
        own = sum((0.5**octave * smooth_noise(size, 2.0 * 2**octave, generator) for octave in range(3)), torch.zeros(size))
        dates.append((colour[region, parcels].permute(2, 0, 1) * (1 + 0.12 * texture + 0.06 * own)).clamp_min(0.02))
    return dates


def _buildings(size: tuple[int, int], roofs: int, generator: torch.Generator) -> list[_Building]:
    """Place buildings that do not touch: about half stand at both dates, the others at one."""
    wanted = max(6, size[0] * size[1] // 1100)
    placed: list[_Building] = []
    for number in range(10 * wanted):
        draw = torch.rand(8, generator=generator).tolist()
        half = (2.5 + 4.5 * draw[0], 2.5 + 4.5 * draw[1])
        row, column = (10 + (length - 20) * draw[2 + axis] for axis, length in enumerate(size))
        reach = math.hypot(*half)
        if any(math.hypot(row - b.row, column - b.column) < reach + math.hypot(*b.half) + 3 for b in placed):
            continue
        stands = ((True, True), (False, True), (True, True), (True, False))[len(placed) % 4]
        placed.append(_Building(row, column, half, math.pi * draw[4], int(draw[5] * roofs), 0.8 + 0.4 * draw[6], stands))
        if len(placed) == wanted or number == 10 * wanted - 1:
            break
    return placed


def _built(land: Tensor, buildings: list[_Building], roofs: Tensor, sun: float) -> tuple[Tensor, Tensor]:
    """Lay shadows and roofs over the land; give the image and the (H, W) share that roofs cover."""
    size = (int(land.shape[-2]), int(land.shape[-1]))
    image, total = land, torch.zeros(size)
    for building in buildings:
        shadow = _coverage(size, building, 2.5 * math.sin(sun), 2.5 * math.cos(sun))
        image = image * (1 - 0.55 * shadow)
    for building in buildings:
        cover = _coverage(size, building, 0.0, 0.0)
        image = torch.lerp(image, (roofs[building.roof] * building.brightness)[:, None, None].expand_as(image), cover.expand_as(image))
        total = torch.maximum(total, cover)
    return image, total


def _coverage(size: tuple[int, int], building: _Building, down: float, right: float) -> Tensor:
    """Give the share of each pixel that a turned rectangle covers, (H, W) in [0, 1], exact along its axes."""
    rows = torch.arange(size[0])[:, None] - building.row - down
    columns = torch.arange(size[1])[None] - building.column - right
    along = rows * math.cos(building.angle) + columns * math.sin(building.angle)
    across = columns * math.cos(building.angle) - rows * math.sin(building.angle)
    shares = [(half + 0.5 - axis.abs()).clamp(0, 1) for half, axis in zip(building.half, (along, across), strict=True)]
    return shares[0] * shares[1]


def _illumination(size: tuple[int, int], light: float, generator: torch.Generator) -> Tensor:
    """Draw a smooth factor around a level of its own, (H, W)."""
    level = float(torch.rand((), generator=generator)) * 2 - 1
    return torch.exp(light * (0.6 * level + 0.4 * smooth_noise(size, max(size) / 2, generator).clamp(-1, 1)))


def smooth_noise(size: tuple[int, int], scale: float, generator: torch.Generator) -> Tensor:
    """Draw noise of mean 0 and deviation 1 that varies over a number of pixels.

    Args:
        size: (height, width) in pixels.
        scale: pixels from one value that is drawn to the next, at least 1; those between follow smoothly.
        generator: the only source of randomness.

    Returns:
        (H, W) float32.
    """
    coarse = torch.randn(1, 1, *(math.ceil(length / scale) + 3 for length in size), generator=generator)
    fine = functional.interpolate(coarse, scale_factor=scale, mode="bicubic", align_corners=False)[0, 0, : size[0], : size[1]]
    return (fine - fine.mean()) / fine.std().clamp_min(1e-6)


def _moved(image: Tensor, down: float, right: float) -> Tensor:
    """Move (C, H, W) by parts of pixels, bilinear, repeating the border."""
    height, width = image.shape[-2:]
    rows = (torch.arange(height) - down + 0.5) * 2 / height - 1
    columns = (torch.arange(width) - right + 0.5) * 2 / width - 1
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
    return functional.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
