"""Paste objects that belong to no known class into frames, so that a net can learn, or be tested, to doubt them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.data.outlier_sources import OutlierSource, check_sources, trimmed
from anomseg.functional.smoothing import gaussian
from anomseg.sample import ANOMALY, IGNORE

Edge = Literal["hard", "soft"]
Position = Literal["anywhere", "on_road"]
_LEAST = 16  # pixels of an object that must be seen, or it was not pasted


class OutlierPaste:
    """Paste objects into a frame: image changed, `mask` 1 and `label` 255 where they lie.

    It works on the crop that is trained on, so an object cannot be lost by a crop that comes later; a frame into which none fits stays
    clean. One call, one draw, by the generator alone.

    Example:
        >>> paste = OutlierPaste((SyntheticOutliers(),), probability=0.5, size=(0.1, 0.4))
    """

    def __init__(
        self,
        sources: Sequence[OutlierSource],
        probability: float = 0.5,
        count: tuple[int, int] = (1, 2),
        size: tuple[float, float] = (0.08, 0.4),
        colour: float = 0.2,
        blur: float = 0.7,
        edge: Edge = "soft",
        position: Position = "anywhere",
        road: tuple[int, ...] = (),
        turn: float = 0.0,
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            sources: each is as likely; not empty.
            probability: share of the frames that get objects, 0 to 1.
            count: fewest and most objects of such a frame.
            size: lowest and highest share of the frame's height that an object takes; the shares between are equally likely by their
                logarithm.
            colour: gain and offset of each colour vary by as much, at least 0.
            blur: largest standard deviation in pixels by which an object is blurred.
            edge: `soft` blends an object's border over about a pixel, `hard` cuts it.
            position: `on_road` puts the lower end of an object on a pixel of the classes `road`.
            road: class ids of labels.
            turn: largest angle in degrees by which an object is turned either way, 0 to 180.

        Raises:
            ValueError: an argument is out of its range, or there is no source.
        """
        check_sources(sources)
        if not 0 <= probability <= 1 or not 1 <= count[0] <= count[1] or not 0 < size[0] <= size[1] <= 1 or min(colour, blur) < 0:
            raise ValueError(
                "Expected probability in [0, 1], 1 <= count[0] <= count[1], 0 < size[0] <= size[1] <= 1, colour and blur >= 0, "
                f"but got {probability}, {count}, {size}, {colour} and {blur}."
            )
        if not 0 <= turn <= 180:
            raise ValueError(f"Expected an angle from 0 to 180 degrees, but got turn={turn}.")
        if edge not in ("hard", "soft") or position not in ("anywhere", "on_road") or (position == "on_road" and not road):
            raise ValueError(
                f"Expected edge 'hard' or 'soft', and position 'anywhere' or 'on_road' with classes in road=, but got {edge!r}, "
                f"{position!r} and {road}."
            )
        self.sources = sources
        self.probability = probability
        self.count = count
        self.size = size
        self.colour = colour
        self.blur = blur
        self.edge = edge
        self.position = position
        self.road = road
        self.turn = turn

    def __call__(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Paste into a sample.

        Args:
            sample: `image` (3, H, W) in [0, 1], `mask` and, if there is one, `label` (H, W).
            generator: the only source of randomness.

        Returns:
            The sample with new tensors; the same one where nothing is pasted.

        Raises:
            ValueError: the image has not three bands.
        """
        image = sample["image"]
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(f"Expected an image (3, H, W) to paste into, but got {tuple(image.shape)}. Choose three bands.")
        if float(torch.rand((), generator=generator)) >= self.probability:
            return sample
        image, mask = image.clone(), sample["mask"].clone()
        label = sample["label"].clone() if "label" in sample else None
        wanted = int(torch.randint(self.count[0], self.count[1] + 1, (), generator=generator))
        for _ in range(wanted):
            self._paste(image, mask, label, generator)
        return {**sample, "image": image, "mask": mask, **({} if label is None else {"label": label})}

    def _paste(self, image: Tensor, mask: Tensor, label: Tensor | None, generator: torch.Generator) -> None:
        cutout = self._varied((image.shape[-2], image.shape[-1]), generator)
        height, width = int(cutout.shape[-2]), int(cutout.shape[-1])
        corner = self._corner(image, label, (height, width), generator)
        if corner is None:
            return
        rows, columns = slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)
        place = image[:, rows, columns]
        alpha = cutout[3] * torch.isfinite(place).all(0)  # nothing can lie where there is no data
        inside = alpha > 0.5
        if int(inside.sum()) < min(_LEAST, height * width):
            return
        image[:, rows, columns] = torch.where(alpha > 0, torch.lerp(place.nan_to_num(), cutout[:3], alpha), place)
        mask[rows, columns] = torch.where(inside, ANOMALY, mask[rows, columns])
        if label is not None:
            label[rows, columns] = torch.where(inside, IGNORE, label[rows, columns])

    def _varied(self, frame: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw an object, mirror, scale, tint and blur it."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        cutout = self.sources[int(torch.randint(len(self.sources), (), generator=generator))].draw(generator)
        if uniform(0, 1) < 0.5:
            cutout = cutout.flip(-1)
        if self.turn:
            cutout = _turned(cutout, math.radians(uniform(-self.turn, self.turn)))
        share = self.size[0] * (self.size[1] / self.size[0]) ** uniform(0, 1)
        scale = min(share * frame[0] / cutout.shape[-2], 0.9 * frame[1] / cutout.shape[-1])
        size = [max(1, round(scale * length)) for length in cutout.shape[-2:]]
        # Colours are weighed by alpha, or what lies around the object would bleed in.
        weighed = torch.cat([cutout[:3] * cutout[3:], cutout[3:]])
        scaled = F.interpolate(weighed[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        alpha = scaled[3:].clamp(0, 1)
        colour = (scaled[:3] / alpha.clamp_min(1e-3)).clamp(0, 1)
        tint = torch.tensor([[uniform(-1, 1) for _ in range(3)] for _ in range(2)]) * self.colour
        colour = (colour * (1 + tint[0, :, None, None]) + tint[1, :, None, None] / 2).clamp(0, 1)
        blur = uniform(0, self.blur)
        if blur > 0.2:
            colour = gaussian(colour, blur)
        return torch.cat([colour, alpha if self.edge == "soft" else (alpha > 0.5).float()])

    def _corner(self, image: Tensor, label: Tensor | None, size: tuple[int, int], generator: torch.Generator) -> tuple[int, int] | None:
        """Draw where the upper left pixel goes; None where there is no such place."""
        room = [length - own for length, own in zip(image.shape[-2:], size, strict=True)]
        if min(room) < 0:
            return None
        if self.position == "on_road":
            if label is None:
                raise ValueError("Expected labels to find the road by, but the sample has none. Take position='anywhere'.")
            ground = torch.isin(label, torch.tensor(self.road)).nonzero()
            ground = ground[(ground[:, 0] >= size[0] - 1) & (ground[:, 1] >= size[1] // 2) & (ground[:, 1] - size[1] // 2 <= room[1])]
            if not len(ground):
                return None
            row, column = ground[int(torch.randint(len(ground), (), generator=generator))].tolist()
            return row - size[0] + 1, column - size[1] // 2
        top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in room)
        return top, left


def _turned(cutout: Tensor, angle: float) -> Tensor:
    """Turn an object (4, h, w) by an angle in radians, in a frame that holds all of it and no empty border."""
    height, width = cutout.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    rows, columns = (math.ceil(abs(cos) * a + abs(sin) * b) for a, b in ((height, width), (width, height)))
    # The grid holds places in the object, from -1 to 1 along its own sides, of each pixel of the new frame.
    down, right = torch.meshgrid(torch.arange(rows) + 0.5 - rows / 2, torch.arange(columns) + 0.5 - columns / 2, indexing="ij")
    grid = torch.stack([(right * cos + down * sin) * 2 / width, (down * cos - right * sin) * 2 / height], dim=-1)
    weighed = torch.cat([cutout[:3] * cutout[3:], cutout[3:]])
    turned = F.grid_sample(weighed[None], grid[None], align_corners=False)[0]
    turned = torch.cat([turned[:3] / turned[3:].clamp_min(1e-3), turned[3:]]).clamp(0, 1)
    return trimmed(turned) if bool((turned[3] > 0.5).any()) else cutout  # which was too thin to be turned
