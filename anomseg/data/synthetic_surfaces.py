"""Synthetic surfaces and parts with exact truth: cloth, grains, brushed metal, tiles, gears and brackets, and what goes wrong with them.

Light, position, colour and noise differ from image to image by more than a defect changes the image as a whole. Defects follow rules of
their own, unlike those that corrupt training images: threads, grains, teeth and holes are left out or take a foreign colour, scratches are
curves with a raised edge, stains darken softly, pits throw a shadow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from anomseg.data.defect_noise import fractal_noise
from anomseg.data.defect_regions import uniform, whole
from anomseg.data.scene import Scene
from anomseg.sample import ANOMALY, NORMAL

SurfaceKind = Literal["woven", "grains", "streaks", "tiles", "gear", "bracket"]
SurfaceDefect = Literal["scratch", "pit", "stain", "missing", "colour"]
_VISIBLE = 0.05  # a pixel is defective where some band changes by more
_LEAST = 10  # pixels that a defect changes, or it is drawn again
_DRAWS = 20


@dataclass(frozen=True)
class _Drawing:
    """Hold a surface without light: grey (H, W), the piece that each pixel belongs to (-1 for none), and what lies beneath the pieces."""

    grey: Tensor
    pieces: Tensor
    beneath: Tensor


def surface_scene(
    kind: SurfaceKind, size: tuple[int, int] = (64, 64), seed: int = 0, defect: SurfaceDefect | None = None, bands: int = 3
) -> Scene:
    """Draw one surface or part.

    Args:
        kind: what it is.
        size: (height, width) in pixels, each at least 32.
        seed: decides everything that is random; the surface itself is the same with and without a defect.
        defect: what is wrong with it; None for nothing.
        bands: number of bands, at least 1.

    Returns:
        A scene named `kind/defect/seed` with image (bands, H, W) in [0, 1], mask 1 where the defect changes some band by more than 0.05
        before noise, image label and category.

    Raises:
        ValueError: an argument is out of its range.
    """
    if kind not in get_args(SurfaceKind) or defect not in (None, *get_args(SurfaceDefect)):
        raise ValueError(
            f"Expected a kind of {get_args(SurfaceKind)} and None or a defect of {get_args(SurfaceDefect)}, but got {kind!r}, {defect!r}."
        )
    if min(size) < 32 or seed < 0 or bands < 1:
        raise ValueError(f"Expected at least 32 x 32 pixels, seed >= 0 and bands >= 1, but got {tuple(size)}, {seed} and {bands}.")
    generator = torch.Generator().manual_seed(10 * seed + get_args(SurfaceKind).index(kind))
    drawing = _DRAW[kind](size, generator)
    dark, bright = _colours(kind, bands, generator)
    light = _light(size, generator)
    noise = 0.02 * torch.randn(bands, *size, generator=generator)
    clean = _coloured(drawing.grey, dark, bright)
    found, mask = clean, torch.zeros(size, dtype=torch.bool)
    for _ in range(_DRAWS if defect is not None else 0):
        found = _spoil(str(defect), drawing, clean, dark, bright, generator)
        mask = ((found - clean) * light).abs().amax(0) > _VISIBLE
        if int(mask.sum()) >= _LEAST:
            break
    image = (found * light + noise).clamp(0, 1)
    truth = torch.where(mask, ANOMALY, NORMAL)
    return Scene(f"{kind}/{defect or 'good'}/{seed:06d}", image, truth, image_label=int(defect is not None), category=kind)


def _coloured(grey: Tensor, dark: Tensor, bright: Tensor) -> Tensor:
    return dark[:, None, None] + (bright - dark)[:, None, None] * grey.clamp(0, 1)


def _colours(kind: str, bands: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give the darkest and brightest colour of a kind, a little different in each image."""
    fixed = torch.Generator().manual_seed(get_args(SurfaceKind).index(kind) + 31)
    dark, bright = 0.1 + 0.2 * torch.rand(bands, generator=fixed), 0.55 + 0.35 * torch.rand(bands, generator=fixed)
    dark = dark * (1 + 0.04 * torch.randn(bands, generator=generator))
    return dark, bright * (1 + 0.04 * torch.randn(bands, generator=generator))


def _light(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw the light: a level of its own for each image, and a slope across it."""
    level, angle, slope = uniform(0.75, 1.1, generator), uniform(0, 2 * math.pi, generator), uniform(0, 0.15, generator)
    rows, columns = torch.linspace(-1, 1, size[0])[:, None], torch.linspace(-1, 1, size[1])
    return level * (1 + slope * (rows * math.sin(angle) + columns * math.cos(angle)))


def _grid(size: tuple[int, int], turn: float, centre: tuple[float, float] = (0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Give down and right of each pixel, turned about a centre, in pixels."""
    rows, columns = torch.meshgrid(torch.arange(size[0]) - centre[0], torch.arange(size[1]) - centre[1], indexing="ij")
    return rows * math.cos(turn) - columns * math.sin(turn), rows * math.sin(turn) + columns * math.cos(turn)


def _woven(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    period = uniform(6.5, 7.5, generator)
    down, right = _grid(size, uniform(-0.05, 0.05, generator))
    wobble = 0.06 * fractal_noise(size, 3, generator)
    u, v = right / period + wobble + uniform(0, 1, generator), down / period + wobble.flip(0) + uniform(0, 1, generator)
    warp, weft = (torch.sin(math.pi * (part - part.floor())) for part in (u, v))
    on_top = (u.floor() + v.floor()) % 2 == 0
    upper, lower = torch.where(on_top, warp, weft), torch.where(on_top, weft, warp)
    pieces = torch.where(on_top, u.floor() + 500, v.floor() + 1500).long()
    return _Drawing(0.15 + 0.75 * upper.sqrt() * (0.7 + 0.3 * lower), pieces, 0.1 + 0.2 * lower)


def _grains(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    step = 8
    rows, columns = torch.meshgrid(torch.arange(-1, size[0] // step + 2), torch.arange(-1, size[1] // step + 2), indexing="ij")
    seeds = (torch.stack([rows.flatten(), columns.flatten()], 1) + torch.rand(rows.numel(), 2, generator=generator)) * step
    pixels = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"), -1).view(-1, 2).float()
    near, which = torch.cdist(pixels, seeds).topk(2, largest=False)
    rim = ((near[:, 1] - near[:, 0]) / 3).clamp(0, 1).view(size)
    tone = 0.35 + 0.5 * torch.rand(len(seeds), generator=generator)
    return _Drawing(0.1 + (tone[which[:, 0]].view(size) - 0.1) * rim, which[:, 0].view(size), torch.full(size, 0.12))


def _streaks(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    _, right = _grid(size, uniform(-0.06, 0.06, generator))
    reach = 2 * max(size)
    profile = torch.randn(2 * reach, generator=generator)
    smooth = (profile + profile.roll(1) + profile.roll(2)) / 3
    place = (right + reach).clamp(0, 2 * reach - 2)
    first = place.long()
    lines = smooth[first] + (place - first) * (smooth[first + 1] - smooth[first])
    fade = 0.8 + 0.25 * fractal_noise(size, 2, generator, octaves=1)
    return _Drawing(0.5 + 0.22 * lines * fade, (right / 5).floor().long() + 500, torch.full(size, 0.5))


def _tiles(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    height, width = 11.0, 18.0
    down, right = _grid(size, uniform(-0.03, 0.03, generator))
    v = down / height + uniform(0, 1, generator)
    u = right / width + 0.5 * (v.floor() % 2) + uniform(0, 1, generator)
    edge = torch.minimum((v - v.round()).abs() * height, (u - u.round()).abs() * width)
    pieces = ((v.floor() + 50) * 100 + u.floor() + 50).long()
    tone = 0.45 + 0.35 * torch.rand(int(pieces.max()) + 1, generator=generator)
    grain = 0.05 * fractal_noise(size, 10, generator)
    body = (edge / 1.5 - 0.3).clamp(0, 1)
    return _Drawing(0.1 + (tone[pieces] + grain - 0.1) * body, torch.where(body > 0.5, pieces, -1), torch.full(size, 0.15))


def _gear(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    down, right, scale = _placed(size, uniform(0, 2 * math.pi, generator), generator)
    radius, angle = (down.square() + right.square()).sqrt() / scale, torch.atan2(down, right)
    teeth = 10
    phase = angle / (2 * math.pi) * teeth
    body = _inside(0.34 - radius, scale) * _inside(radius - 0.12, scale)
    tooth = _inside(0.42 - radius, scale) * _inside(radius - 0.33, scale) * _inside((0.27 - (phase - phase.round()).abs()) * 0.24, scale)
    ground = 0.2 + 0.03 * fractal_noise(size, 6, generator)
    metal = 0.7 + 0.06 * torch.cos(12 * radius * 2 * math.pi) + 0.03 * fractal_noise(size, 4, generator)
    beneath = torch.lerp(ground, metal, body)
    pieces = torch.where(tooth > 0.3, (phase.round() % teeth).long(), -1)
    return _Drawing(torch.lerp(beneath, metal, tooth), pieces, beneath)


def _bracket(size: tuple[int, int], generator: torch.Generator) -> _Drawing:
    down, right, scale = _placed(size, uniform(-0.15, 0.15, generator), generator)
    y, x = down / scale, right / scale
    ground = 0.75 + 0.03 * fractal_noise(size, 6, generator)
    metal = 0.4 + 0.03 * fractal_noise(size, 12, generator)
    plate = _inside(0.3 - y.abs(), scale) * _inside(0.4 - x.abs(), scale)
    grey, pieces = torch.lerp(ground, metal, plate), torch.full(size, -1)
    beneath = grey
    for number, (row, column) in enumerate([(-0.19, -0.28), (-0.19, 0.28), (0.19, -0.28), (0.19, 0.28), (0.0, 0.0)]):
        hole = _inside((0.065 if number < 4 else 0.1) - ((y - row).square() + (x - column).square()).sqrt(), scale)
        grey, pieces = torch.lerp(grey, ground - 0.1, hole), torch.where(hole > 0.3, number, pieces)
    return _Drawing(grey, pieces, beneath)


def _placed(size: tuple[int, int], turn: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Turn and shift a part a little; also give the pixels of its unit."""
    centre = [length / 2 + uniform(-0.04, 0.04, generator) * length for length in size]
    down, right = _grid(size, turn, (centre[0], centre[1]))
    return down, right, min(size) * uniform(0.95, 1.05, generator)


def _inside(distance: Tensor, scale: float) -> Tensor:
    """Turn a distance from an edge, positive inside, into cover that falls over a pixel."""
    return (distance * scale + 0.5).clamp(0, 1)


_DRAW: dict[str, Callable[[tuple[int, int], torch.Generator], _Drawing]] = {
    "woven": _woven,
    "grains": _grains,
    "streaks": _streaks,
    "tiles": _tiles,
    "gear": _gear,
    "bracket": _bracket,
}


def _spoil(defect: str, drawing: _Drawing, clean: Tensor, dark: Tensor, bright: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a defect into a surface (C, H, W) without light."""
    size = (clean.shape[-2], clean.shape[-1])
    if defect == "missing":
        piece = _piece(drawing, size, generator)
        return _coloured(torch.where(piece, drawing.beneath, drawing.grey), dark, bright)
    if defect == "colour":
        piece = _piece(drawing, size, generator)
        swapped = (clean + clean.flip(0)) / 2
        tint = 1 + 0.25 * (2 * torch.randint(0, 2, (len(clean), 1, 1), generator=generator) - 1)
        return torch.where(piece, swapped * tint, clean)
    if defect == "scratch":
        return clean + _scratch(size, generator) * uniform(0.15, 0.3, generator)
    if defect == "pit":
        down, right = _grid(size, uniform(0, math.pi, generator), _spot(size, generator))
        radius = ((down / uniform(2, 4, generator)).square() + (right / uniform(2, 4, generator)).square()).sqrt()
        shadow = torch.sigmoid(6 * (1 - radius)) * (-0.6 + 0.3 * (right / 4).clamp(-1, 1))
        return clean * (1 + shadow)
    down, right = _grid(size, uniform(0, math.pi, generator), _spot(size, generator))
    length, breadth = uniform(6, 12, generator), uniform(4, 8, generator)
    field = 1.3 - (down / length).square() - (right / breadth).square() + 0.5 * fractal_noise(size, 6, generator)
    tint = 0.35 + 0.2 * torch.rand(len(clean), 1, 1, generator=generator)
    return clean * (1 - tint * torch.sigmoid(3 * field))


def _spot(size: tuple[int, int], generator: torch.Generator) -> tuple[float, float]:
    return uniform(0.2, 0.8, generator) * size[0], uniform(0.2, 0.8, generator) * size[1]


def _piece(drawing: _Drawing, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Choose a piece of the surface, no longer than a third of the image."""
    places = (drawing.pieces >= 0).nonzero()
    row, column = (int(place) for place in places[whole(0, len(places) - 1, generator)])
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    near = ((rows - row).abs() <= size[0] // 6) & ((columns - column).abs() <= size[1] // 6)
    return (drawing.pieces == drawing.pieces[row, column]) & near


def _scratch(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a curve with a dark groove and a bright edge beside it, (H, W) in [-1, 1]."""
    start, bend, end = (torch.tensor([uniform(0.1, 0.9, generator) * length for length in size]) for _ in range(3))
    end = start + (end - start) * min(1.0, 0.5 * min(size) / float((end - start).norm().clamp_min(1)))
    bend = torch.lerp((start + end) / 2, bend, 0.3)
    t = torch.linspace(0, 1, 48)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    pixels = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"), -1).view(-1, 2).float()
    groove, edge = (torch.cdist(pixels, points + shift).amin(1).view(size) for shift in (0.0, 1.2))
    breadth = uniform(0.5, 0.9, generator)
    raised, cut = (torch.exp(-(distance / breadth).square()) for distance in (edge, groove))
    return raised - cut
