"""Synthetic streets with exact truth: a road in perspective, six known classes, and objects on the ground that are none of them.

Colour says little: cars, facades and unknown objects take theirs from overlapping ranges, and light and noise differ between scenes. What
gives an unknown object away is its shape and where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.data.scene import Scene
from anomseg.data.synthetic_pairs import smooth_noise
from anomseg.sample import ANOMALY, IGNORE, NORMAL

STREET_CLASSES = ("road", "pavement", "building", "sky", "car", "pole")
"""The known classes, in the order of their labels."""
ROAD, PAVEMENT, BUILDING, SKY, CAR, POLE = range(6)


def street_scene(size: tuple[int, int] = (96, 128), seed: int = 0, unknown: int = 0) -> Scene:
    """Draw one street.

    Args:
        size: (height, width) in pixels, each at least 48.
        seed: decides everything that is random; equal arguments give bit-equal scenes on one machine, and the street itself is the same
            with and without unknown objects.
        unknown: number of unknown objects, at least 0: boxes, cones, balls, animals and fallen trunks, on road or pavement.

    Returns:
        A scene with image (3, H, W) in [0, 1], label (H, W) of the classes of `STREET_CLASSES`, 255 on unknown objects, and mask (H, W),
        1 on unknown objects. Far objects may hide behind near ones.

    Raises:
        ValueError: an argument is out of its range.
    """
    if min(size) < 48 or unknown < 0 or seed < 0:
        raise ValueError(f"Expected at least 48 x 48 pixels, unknown >= 0 and seed >= 0, but got {tuple(size)}, {unknown} and {seed}.")
    generator = torch.Generator().manual_seed(seed)
    view = _View.drawn(size, generator)
    canvas = _ground(view, generator)
    things = _known_things(view, generator)
    light, noise = _light(size, generator), torch.randn(3, *size, generator=generator)
    things += [_Thing.drawn("unknown", view, generator) for _ in range(unknown)]
    for thing in sorted(things, key=lambda t: t.depth, reverse=True):
        _DRAW[thing.kind](canvas, view, thing)
    image = (canvas.image * light + 0.02 * noise).clamp(0.0, 1.0)
    mask = torch.where(canvas.label == IGNORE, ANOMALY, NORMAL)
    return Scene(f"synthetic-street-{seed}", image, mask, label=canvas.label)


@dataclass(frozen=True)
class _View:
    """Hold the camera: a point on the ground `side` beside the middle of the road at a depth lies at `foot`, in pixels."""

    size: tuple[int, int]
    horizon: float
    vanishing: float
    road: float
    pavement: float

    @staticmethod
    def drawn(size: tuple[int, int], generator: torch.Generator) -> _View:
        draw = torch.rand(4, generator=generator).tolist()
        height, width = size
        return _View(size, height * (0.36 + 0.12 * draw[0]), width * (0.35 + 0.3 * draw[1]), 0.8 + 0.4 * draw[2], 0.4 + 0.3 * draw[3])

    @property
    def edge(self) -> float:
        """Give the outer edge of the pavement, in units of depth."""
        return self.road + self.pavement

    def scale(self, depth: float) -> float:
        """Give the pixels of one unit at a depth; 1 is at the lower border."""
        return (self.size[0] - self.horizon) / depth

    def foot(self, side: float, depth: float) -> tuple[float, float]:
        """Give (row, column) of a point on the ground."""
        return self.horizon + self.scale(depth), self.vanishing + side * self.scale(depth)


@dataclass(frozen=True)
class _Thing:
    """Hold an object: what it is, where it stands, and the draws of its form and colour."""

    kind: str
    side: float
    depth: float
    draws: tuple[float, ...]

    @staticmethod
    def drawn(kind: str, view: _View, generator: torch.Generator) -> _Thing:
        draws = torch.rand(10, generator=generator).tolist()
        depth = 1.15 + 3.5 * draws[0] ** 1.5
        reach = view.edge if kind == "unknown" else view.road
        side = (2 * draws[1] - 1) * (reach - 0.2)
        if kind == "pole":
            side = math.copysign(view.road + view.pavement * (0.3 + 0.5 * abs(2 * draws[1] - 1)), draws[1] - 0.5)
        if kind == "car":  # in one of two lanes
            side = math.copysign(view.road * 0.5, draws[1] - 0.5) + 0.1 * (draws[2] - 0.5)
        return _Thing(kind, side, depth, tuple(draws[2:]))


@dataclass
class _Canvas:
    """Hold image (3, H, W) and label (H, W) while they are painted over."""

    image: Tensor
    label: Tensor

    def paint(self, cover: Tensor, colour: Tensor, label: int | None) -> None:
        """Lay a colour, (3,) or (3, H, W), over the pixels by their cover (H, W) in [0, 1]; None leaves the label."""
        colour = colour[:, None, None] if colour.ndim == 1 else colour
        self.image = torch.lerp(self.image, colour.expand_as(self.image), cover.clamp(0, 1))
        if label is not None:
            self.label = torch.where(cover > 0.5, label, self.label)


def _known_things(view: _View, generator: torch.Generator) -> list[_Thing]:
    cars, poles = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 4), (2, 5)))
    return [_Thing.drawn(kind, view, generator) for kind, count in (("car", cars), ("pole", poles)) for _ in range(count)]


def _ground(view: _View, generator: torch.Generator) -> _Canvas:
    """Paint sky, facades, pavement and road with its lane marks."""
    height, width = view.size
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    below = (rows - view.horizon).clamp_min(1e-3)
    beside = (columns - view.vanishing).abs()
    draw = torch.rand(12, generator=generator)
    grain = smooth_noise(view.size, 1.5, generator)
    sky = torch.lerp(torch.tensor([0.75, 0.78, 0.8]), torch.tensor([0.45, 0.62, 0.85]), draw[0])[:, None, None]
    image = (sky * (0.8 + 0.2 * rows / view.horizon) + 0.05 * smooth_noise(view.size, 12, generator)).expand(3, height, width).clone()
    canvas = _Canvas(image, torch.full(view.size, SKY))
    canvas.paint(*_facades(view, rows, beside, columns < view.vanishing, generator), BUILDING)
    ground = (rows > view.horizon) & (beside < view.edge * below)
    stone = (0.42 + 0.2 * draw[1]) * (1 + 0.06 * (draw[2:5] - 0.5))
    joints = (torch.remainder(view.scale(1.0) / below * 4, 1.0) < 0.12).float()
    canvas.paint(ground.float(), stone[:, None, None] * (1 + 0.05 * grain - 0.15 * joints), PAVEMENT)
    asphalt = (0.28 + 0.16 * draw[5]) * (1 + 0.06 * (draw[6:9] - 0.5))
    canvas.paint(((view.road * below - beside + 0.5).clamp(0, 1) * ground), asphalt[:, None, None] * (1 + 0.06 * grain), ROAD)
    dashes = (torch.remainder(view.scale(1.0) / below * 1.5 + draw[9], 1.0) < 0.5) & ground
    canvas.paint((0.035 * below - beside + 0.5).clamp(0, 1) * dashes * 0.8, torch.full((3,), 0.8), None)
    return canvas


def _facades(view: _View, rows: Tensor, beside: Tensor, left: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give the cover (H, W) and colour (3, H, W) of houses along both sides, whose lines meet at the vanishing point."""
    along = view.edge * view.scale(1.0) / beside.clamp_min(0.5)  # the depth at which a column meets the facade
    number = (along * 1.4).floor().clamp(0, 11).long() + 12 * left.long()
    colours = 0.2 + 0.5 * torch.rand(24, 1, generator=generator) + 0.14 * (torch.rand(24, 3, generator=generator) - 0.5)
    heights = 0.25 + 1.1 * torch.rand(24, generator=generator)
    above = (view.horizon - rows) / beside.clamp_min(0.5)
    cover = (
        ((heights[number] - above) * beside + 0.5).clamp(0, 1)
        * ((along < 9) | (rows > view.horizon))
        * ((view.horizon - rows) > -beside / view.edge)
    )
    window = (torch.remainder(along * 7, 1.0) < 0.45) & (torch.remainder(above * 5, 1.0) < 0.5) & (above > 0)
    glass = torch.rand(24, generator=generator)[number] * 0.5 + 0.1
    return cover, torch.where(window, glass, colours.T[:, number.expand_as(cover)])


def _car(canvas: _Canvas, view: _View, thing: _Thing) -> None:
    row, column = view.foot(thing.side, thing.depth)
    unit, draws = view.scale(thing.depth), thing.draws
    half, height = unit * (0.28 + 0.05 * draws[1]), unit * (0.36 + 0.1 * draws[2])
    body = torch.tensor(_paint_of(draws[3:6]))
    canvas.paint(0.6 * _ellipse(view.size, row, column, 0.05 * unit, 1.1 * half), torch.full((3,), 0.05), None)
    for side in (-1, 1):
        canvas.paint(_box(view.size, row - 0.05 * unit, column + side * 0.75 * half, 0.06 * unit, 0.16 * half), torch.full((3,), 0.06), CAR)
    canvas.paint(_box(view.size, row - 0.08 * unit - height * 0.27, column, height * 0.27, half), body, CAR)
    canvas.paint(_box(view.size, row - 0.08 * unit - height * 0.7, column, height * 0.3, half * 0.78), body * 0.9, CAR)
    canvas.paint(_box(view.size, row - 0.08 * unit - height * 0.7, column, height * 0.2, half * 0.66), torch.full((3,), 0.12), None)
    for side in (-1, 1):
        lamp = torch.tensor([0.8, 0.1, 0.1]) if draws[6] < 0.5 else torch.tensor([0.95, 0.95, 0.8])
        canvas.paint(_box(view.size, row - 0.1 * unit - height * 0.4, column + side * 0.8 * half, 0.03 * unit, 0.12 * half), lamp, None)


def _pole(canvas: _Canvas, view: _View, thing: _Thing) -> None:
    row, column = view.foot(thing.side, thing.depth)
    unit, height = view.scale(thing.depth), view.scale(thing.depth) * (1.2 + 0.8 * thing.draws[1])
    grey = torch.full((3,), 0.15 + 0.4 * thing.draws[2])
    canvas.paint(_box(view.size, row - height / 2, column, height / 2, max(0.9, 0.03 * unit)), grey, POLE)
    if thing.draws[3] < 0.5:
        canvas.paint(_box(view.size, row - height, column, 0.02 * unit + 0.5, 0.12 * unit), grey, POLE)


def _unknown(canvas: _Canvas, view: _View, thing: _Thing) -> None:
    row, column = view.foot(thing.side, thing.depth)
    draws = thing.draws
    tall = max(5.0, view.scale(thing.depth) * (0.18 + 0.3 * draws[1]))
    main, other = torch.tensor(_paint_of(draws[2:5])), torch.tensor(_paint_of(draws[5:8]))
    canvas.paint(0.6 * _ellipse(view.size, row, column, 0.08 * tall, 0.5 * tall), torch.full((3,), 0.05), None)
    kind = int(draws[0] * 5)
    if kind == 0:  # a crate with a cross
        canvas.paint(_box(view.size, row - tall / 2, column, tall / 2, tall / 2), main, IGNORE)
        canvas.paint(_box(view.size, row - tall / 2, column, tall / 2, tall * 0.08), other, IGNORE)
        canvas.paint(_box(view.size, row - tall / 2, column, tall * 0.08, tall / 2), other, IGNORE)
    elif kind == 1:  # a striped cone
        for step in range(5):
            part = other if step % 2 else main
            canvas.paint(_box(view.size, row - tall * (0.1 + 0.2 * step), column, tall * 0.1, tall * (0.4 - 0.08 * step)), part, IGNORE)
    elif kind == 2:  # a ball
        canvas.paint(_ellipse(view.size, row - tall * 0.35, column, tall * 0.35, tall * 0.35), main, IGNORE)
        canvas.paint(_ellipse(view.size, row - tall * 0.45, column - tall * 0.1, tall * 0.1, tall * 0.1), other, IGNORE)
    elif kind == 3:  # an animal
        for leg in (-0.45, -0.25, 0.25, 0.45):
            canvas.paint(_box(view.size, row - tall * 0.2, column + leg * tall, tall * 0.22, max(0.7, tall * 0.06)), main, IGNORE)
        canvas.paint(_ellipse(view.size, row - tall * 0.5, column, tall * 0.22, tall * 0.6), main, IGNORE)
        canvas.paint(_ellipse(view.size, row - tall * 0.82, column + tall * 0.58, tall * 0.2, tall * 0.17), other, IGNORE)
    else:  # a fallen trunk
        canvas.paint(_box(view.size, row - tall * 0.2, column, tall * 0.2, tall * 0.9), main, IGNORE)
        canvas.paint(_ellipse(view.size, row - tall * 0.2, column - tall * 0.9, tall * 0.2, tall * 0.12), other, IGNORE)


_DRAW = {"car": _car, "pole": _pole, "unknown": _unknown}


def _paint_of(draws: tuple[float, ...]) -> list[float]:
    """Give a colour between greys and full ones, (3,) in [0.05, 0.9]."""
    level, warm, cold = draws
    return [
        min(0.9, max(0.05, v)) for v in (level * (0.6 + 0.5 * warm), level * (0.9 - 0.35 * abs(warm - cold)), level * (0.6 + 0.5 * cold))
    ]


def _box(size: tuple[int, int], row: float, column: float, half_height: float, half_width: float) -> Tensor:
    """Give the share of each pixel that an upright rectangle covers, (H, W)."""
    down = (torch.arange(size[0])[:, None] + 0.5 - row).abs()
    right = (torch.arange(size[1])[None] + 0.5 - column).abs()
    return (half_height + 0.5 - down).clamp(0, 1) * (half_width + 0.5 - right).clamp(0, 1)


def _ellipse(size: tuple[int, int], row: float, column: float, half_height: float, half_width: float) -> Tensor:
    """Give about the share of each pixel that an ellipse covers, (H, W)."""
    down = (torch.arange(size[0])[:, None] + 0.5 - row) / max(half_height, 0.5)
    right = (torch.arange(size[1])[None] + 0.5 - column) / max(half_width, 0.5)
    return ((1 - (down.square() + right.square()).sqrt()) * max(0.5, min(half_height, half_width)) + 0.5).clamp(0, 1)


def _light(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw brightness, tint and soft shadows, (3, H, W)."""
    draws = torch.rand(4, generator=generator)
    tint = (0.7 + 0.5 * draws[0]) * (1 + 0.16 * (draws[1:] - 0.5))
    return tint[:, None, None] * torch.exp(0.12 * smooth_noise(size, max(size) / 3, generator).clamp(-2, 2))
