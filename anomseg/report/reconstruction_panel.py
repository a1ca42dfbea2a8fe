"""Pictures of reconstructions: one panel for a moment of training, and one strip over the epochs.

All scales are fixed and printed: a reconstruction has the colours of its input, a residual goes from 0 to two standard deviations of the
input, a heat map from 0 to 1. Only so can two pictures be compared. Figures are built without pyplot, as in `anomseg.report.pictures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomseg.report.pictures import NODATA_GREY, false_colour, heat_colours, save_figure
from anomseg.sample import ANOMALY, IGNORE, finite_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE = 512
"""Longest side of a single picture in pixels; larger images are decimated."""
STRIP_SIDE = 256
"""The same for the pictures of a strip, which are drawn smaller."""
_TRUTH = {"normal": (0.12, 0.14, 0.18), "anomalous": (0.95, 0.45, 0.1), "ignored": (NODATA_GREY,) * 3}


@dataclass(frozen=True)
class Frame:
    """Hold what a method made of an image after an epoch.

    Attributes:
        epoch: of training, from 0.
        reconstruction: (C, H, W) in units of the image.
        score: (H, W) raw score.
        heatmap: (H, W) in [0, 1], or None before calibration.
    """

    epoch: int
    reconstruction: Tensor
    score: Tensor
    heatmap: Tensor | None = None


@dataclass(frozen=True)
class StripPictures:
    """Hold what a strip shows of an epoch, no side longer than `STRIP_SIDE`: 20 bytes a pixel, whatever the number of bands.

    Attributes:
        epoch: of training, from 0.
        rebuilt: (h, w, 3) colours of the reconstruction, in [0, 1].
        residual: (h, w) in units of the image, NaN where there is no data.
        heatmap: (h, w) in [0, 1], NaN where there is no data; None before calibration.
    """

    epoch: int
    rebuilt: Tensor
    residual: Tensor
    heatmap: Tensor | None


def strip_pictures(image: Tensor, frame: Frame, wavelength: Sequence[float] | None = None) -> StripPictures:
    """Take from a frame what a strip shows of it; arguments as `reconstruction_strip`."""
    image, frame, _ = _small(image, frame, None, STRIP_SIDE)
    return StripPictures(
        frame.epoch, _rebuilt(image, frame, wavelength), residual_map(image, frame.reconstruction), _known_heat(image, frame)
    )


def residual_map(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Compute the root mean square over bands of image minus reconstruction.

    Args:
        image: (C, H, W), NaN where there is no data.
        reconstruction: (C, H, W).

    Returns:
        (H, W) in units of the image, NaN where there is no data.

    Raises:
        ValueError: the shapes differ.
    """
    if image.ndim != 3 or image.shape != reconstruction.shape:
        raise ValueError(
            f"Expected image and reconstruction of one shape (C, H, W), but got {tuple(image.shape)} and {tuple(reconstruction.shape)}."
        )
    return (image.float() - reconstruction.float()).square().mean(0).sqrt()


def residual_limit(image: Tensor) -> float:
    """Give the residual at which the scale of colours ends: two standard deviations of the image, as root mean square over bands."""
    pixels = image.float()[:, finite_pixels(image[None])[0]]
    spread = float(pixels.std(1, correction=0).square().mean().sqrt()) if pixels.numel() else 0.0
    return 2 * spread if spread > 0 else 1.0


def reconstruction_panel(
    image: Tensor,
    frame: Frame,
    mask: Tensor | None = None,
    score_limits: tuple[float, float] | None = None,
    title: str = "",
    wavelength: Sequence[float] | None = None,
) -> Figure:
    """Draw input, reconstruction, residual, score, heat map and truth side by side.

    Args:
        image: (C, H, W), NaN where there is no data; of many bands three are shown, see `false_colour`.
        frame: what the method made of it.
        mask: (H, W) of 0, 1 and 255, or None.
        score_limits: both ends of the score's colours, such as those of all images of an epoch; None for the ends of this map.
        title: written above, with the epoch.
        wavelength: C band centres in nanometres, or None.

    Returns:
        A figure of six pictures; without a mask or a heat map their place says so.

    Raises:
        ValueError: a map does not have the image's height and width.
    """
    from matplotlib.figure import Figure

    image, frame, mask = _small(image, frame, mask, SIDE)
    valid = finite_pixels(image[None])[0]
    limit = residual_limit(image)
    low, high = score_limits or _ends(frame.score[valid])
    figure = Figure(figsize=(6 * 2.6, 2.6 * _aspect(image) + 0.75), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 6)
    scaled: dict[str, Any] = {"cmap": "magma", "vmin": 0.0, "vmax": limit}
    _show(axes[0], "input", "2–98 % stretch", false_colour(image, wavelength))
    _show(axes[1], "reconstruction", "the input's colours", _rebuilt(image, frame, wavelength))
    _show(axes[2], "residual", f"0–{limit:.3g}, two s.d.", residual_map(image, frame.reconstruction), **scaled)
    scored = frame.score.masked_fill(~valid, torch.nan)
    _show(axes[3], "score", f"{low:.3g} to {high:.3g}", scored, cmap="cividis", vmin=low, vmax=high)
    _show_heat(axes[4], _known_heat(image, frame))
    _show_truth(axes[5], mask)
    figure.suptitle(
        f"{title} · epoch {frame.epoch}" if title else f"epoch {frame.epoch}", fontsize=10, fontweight="bold", x=0.01, ha="left"
    )
    return figure


def reconstruction_strip(
    image: Tensor,
    frames: Sequence[Frame | StripPictures],
    mask: Tensor | None = None,
    title: str = "",
    wavelength: Sequence[float] | None = None,
    columns: int = 10,
) -> Figure:
    """Draw an image over the epochs: rows of reconstructions, residuals and heat maps beside the input and its truth.

    Args:
        image: (C, H, W), NaN where there is no data.
        frames: one for each epoch, in their order; `strip_pictures` of it does as well, and takes less memory.
        mask: (H, W) of 0, 1 and 255, or None.
        title: written above.
        wavelength: C band centres in nanometres, or None.
        columns: epochs shown at most, >= 2: the first, the last, and others at equal steps between them.

    Returns:
        A figure of three rows; the first column is input, truth, and a note of the scales.

    Raises:
        ValueError: there is no frame, or fewer than two columns are asked for.
    """
    from matplotlib.figure import Figure

    if not frames or columns < 2:
        raise ValueError(f"Expected frames and columns >= 2, but got {len(frames)} frames and {columns} columns.")
    picked = [frames[i] for i in spread_indices(len(frames), columns)]
    shown = [one if isinstance(one, StripPictures) else strip_pictures(image, one, wavelength) for one in picked]
    width = len(shown) + 1
    figure = Figure(figsize=(1.6 * width + 0.4, 3 * 1.6 * _aspect(image) + 0.9), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(3, width, squeeze=False)
    limit = residual_limit(image)
    for column, one in enumerate(shown, start=1):
        _show(axes[0, column], f"epoch {one.epoch}", "", one.rebuilt)
        _show(axes[1, column], "", "", one.residual, cmap="magma", vmin=0.0, vmax=limit)
        _show_heat(axes[2, column], one.heatmap, named=False)
    part, step = _decimation(image, STRIP_SIDE)
    _show(axes[0, 0], "input", "", false_colour(image.detach().float().cpu()[part], wavelength))
    _show_truth(axes[1, 0], _small_truth(mask, step))
    _say(axes[2, 0], f"rows:\nreconstruction\nresidual, 0–{limit:.3g}\n(two s.d. of input)\nheat map, 0–1")
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def save_reconstruction_panel(
    path: str | Path,
    image: Tensor,
    frame: Frame,
    mask: Tensor | None = None,
    score_limits: tuple[float, float] | None = None,
    title: str = "",
    wavelength: Sequence[float] | None = None,
) -> Path:
    """Draw a panel into a file that is there whole or not at all; arguments as `reconstruction_panel`.

    Returns:
        The path written.
    """
    return save_figure(path, reconstruction_panel(image, frame, mask, score_limits, title, wavelength))


def spread_indices(count: int, most: int) -> list[int]:
    """Pick at most so many of 0 .. count − 1 at about equal steps, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _decimation(image: Tensor, side: int) -> tuple[tuple[Any, slice, slice], int]:
    """Give what to index with so that no side is longer, and the step."""
    step = max(1, math.ceil(max(image.shape[-2:]) / side))
    return (..., slice(None, None, step), slice(None, None, step)), step


def _small(image: Tensor, frame: Frame, mask: Tensor | None, side: int) -> tuple[Tensor, Frame, Tensor | None]:
    """Bring all to the CPU, and decimate what is larger; an anomaly in a cell of the mask stays."""
    size = tuple(image.shape[-2:])
    planes = {"reconstruction": frame.reconstruction, "score": frame.score, "heatmap": frame.heatmap, "mask": mask}
    for name, plane in planes.items():
        if plane is not None and tuple(plane.shape[-2:]) != size:
            raise ValueError(f"Expected {name} of height and width {size}, but got {tuple(plane.shape)}. Crop it to the image.")
    part, step = _decimation(image, side)
    heat = None if frame.heatmap is None else frame.heatmap.detach().float().cpu()[part]
    small = Frame(frame.epoch, frame.reconstruction.detach().float().cpu()[part], frame.score.detach().float().cpu()[part], heat)
    return image.detach().float().cpu()[part], small, _small_truth(mask, step)


def _small_truth(mask: Tensor | None, step: int) -> Tensor | None:
    if mask is None:
        return None
    mask = mask.detach().cpu().long()
    grown = torch.nn.functional.max_pool2d((mask == ANOMALY).float()[None, None], step, ceil_mode=True)[0, 0] > 0
    return mask[::step, ::step].masked_fill(grown, ANOMALY)


def _rebuilt(image: Tensor, frame: Frame, wavelength: Sequence[float] | None) -> Tensor:
    hidden = frame.reconstruction.masked_fill(~finite_pixels(image[None])[0], torch.nan)
    return false_colour(hidden, wavelength, scale_of=image)


def _ends(values: Tensor) -> tuple[float, float]:
    """Give least and largest of the finite values, one apart where they are equal."""
    kept = values[torch.isfinite(values)]
    if not kept.numel():
        return 0.0, 1.0
    low, high = float(kept.min()), float(kept.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _aspect(image: Tensor) -> float:
    return min(max(image.shape[-2] / image.shape[-1], 0.4), 2.0)


def _show(axis: Axes, name: str, note: str, plane: Tensor, **colours: Any) -> None:
    axis.set_facecolor((NODATA_GREY,) * 3)
    axis.imshow(plane.numpy(), interpolation="nearest", **colours)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(f"{name} · {note}" if note else name, fontsize=8, loc="left", color="#333333")


def _known_heat(image: Tensor, frame: Frame) -> Tensor | None:
    return None if frame.heatmap is None else frame.heatmap.masked_fill(~finite_pixels(image[None])[0], torch.nan)


def _show_heat(axis: Axes, heatmap: Tensor | None, named: bool = True) -> None:
    if heatmap is None:
        _say(axis, "not calibrated yet")
    else:
        _show(axis, "heat map" if named else "", "0–1" if named else "", heat_colours(heatmap))


def _show_truth(axis: Axes, mask: Tensor | None) -> None:
    if mask is None:
        _say(axis, "no truth")
        return
    colours = torch.tensor(list(_TRUTH.values()))[torch.where(mask == IGNORE, 2, mask.long())]
    note = "all ignored" if bool((mask == IGNORE).all()) else "anomaly orange"
    _show(axis, "truth", note, colours)


def _say(axis: Axes, text: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, color="#333333", transform=axis.transAxes)
