"""Pictures of scenes and their maps: false colour, raw score, calibrated heat map and score histogram, side by side.

Figures are built without pyplot, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anomseg.sample import ANOMALY, IGNORE, NORMAL, finite_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NODATA_GREY = 0.78
"""Grey level of pixels without data, in [0, 1]."""
LARGEST_SIDE = 2000
"""Longest side of a picture in pixels; longer scenes are decimated."""

_VISIBLE = (650.0, 550.0, 450.0)
_REACH = 60.0  # nm between a wanted colour and the nearest band, beyond which the sensor is said not to cover it
_QUANTILES = (0.02, 0.98)
_OUTLINE, _NORMAL_BARS, _ANOMALY_BARS = "#00E5FF", "#5B6C7D", "#D55E00"


def false_colour(image: Tensor, wavelength: Sequence[float] | None = None, scale_of: Tensor | None = None) -> Tensor:
    """Turn an image of any number of bands into a picture.

    Red, green and blue are the bands nearest to 650, 550 and 450 nm where the sensor has a band within 60 nm of each. Otherwise they
    are the bands at 5/6, 1/2 and 1/6 of the range, so that longer wavelengths are red; an image of exactly 3 bands without
    wavelengths is taken as red, green, blue. Images of 1 or 2 bands become grey pictures of their first band.

    Args:
        image: (C, H, W); NaN in any band marks a pixel without data.
        wavelength: C band centres in nanometres, or None. Without them, bands count as ascending.
        scale_of: (C, H', W') image whose quantiles stretch this one, so that both compare; None for its own.

    Returns:
        (H, W, 3) float32 in [0, 1]. Each channel is stretched between its 2 % and 98 % quantiles over pixels with data; a constant
        channel is 0.5; pixels without data are ``NODATA_GREY``.

    Raises:
        ValueError: the image is not (C, H, W), the wavelengths are not one a band, or ``scale_of`` has other bands.
    """
    if image.ndim != 3:
        raise ValueError(f"Expected an image of shape (C, H, W), but got {tuple(image.shape)}. Pick one sample of a batch.")
    scale = image if scale_of is None else scale_of
    if scale.ndim != 3 or scale.shape[0] != image.shape[0]:
        raise ValueError(f"Expected scale_of with the {image.shape[0]} bands of the image, but got {tuple(scale.shape)}.")
    valid, measured = finite_pixels(image[None])[0], finite_pixels(scale[None])[0]
    picked = picture_bands(image.shape[0], wavelength)
    limits = {band: _limits(scale[band].float()[measured]) for band in set(picked)}
    channels = {band: _stretched(image[band].float(), *limits[band]).masked_fill(~valid, NODATA_GREY) for band in limits}
    return torch.stack([channels[band] for band in picked], dim=-1)


def heat_colours(heatmap: Tensor) -> Tensor:
    """Colour a heat map with inferno on the fixed scale 0 to 1, so that pictures of different scenes compare.

    Args:
        heatmap: (H, W) calibrated score in [0, 1]; values outside are clipped, NaN marks pixels without data.

    Returns:
        (H, W, 3) float32 in [0, 1], ``NODATA_GREY`` without data.
    """
    from matplotlib import colormaps

    finite = torch.isfinite(heatmap)
    coloured = colormaps["inferno"](heatmap.masked_fill(~finite, 0.0).clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(coloured).float().masked_fill(~finite.cpu()[..., None], NODATA_GREY)


def scene_panel(
    image: Tensor,
    score: Tensor,
    heatmap: Tensor,
    mask: Tensor | None = None,
    title: str = "",
    wavelength: Sequence[float] | None = None,
) -> Figure:
    """Draw a scene, its raw score and its heat map, and with a mask its outlines and a histogram of scores.

    Args:
        image: (C, H, W), or (2, C, H, W) for two dates, which get a panel each; NaN in any band marks a pixel without data.
        score: (H, W) raw score, higher is more anomalous; coloured between its 2 % and 98 % quantiles.
        heatmap: (H, W) calibrated score in [0, 1]; coloured on this fixed range.
        mask: (H, W) of 0, 1 and 255, or None.
        title: written above, such as the scene's name and its AUROC.
        wavelength: C band centres in nanometres, or None.

    Returns:
        A figure with 3 panels, 4 with a mask, and one more for a second date. Void pixels (no data, or 255 in the mask) are hatched.
        Scenes with a side above ``LARGEST_SIDE`` are decimated in the picture; the histogram counts every pixel.

    Raises:
        ValueError: score, heat map or mask do not have the image's height and width.
    """
    from matplotlib.figure import Figure

    size = tuple(image.shape[-2:])
    for name, plane in (("score", score), ("heatmap", heatmap), ("mask", mask)):
        if plane is not None and tuple(plane.shape) != size:
            raise ValueError(
                f"Expected {name} of shape {size} to fit the image, but got {tuple(plane.shape)}. Drop batch and channel axes."
            )
    step = max(1, math.ceil(max(size) / LARGEST_SIDE))
    small = (slice(None, None, step), slice(None, None, step))
    image, score, heatmap = image.detach().cpu(), score.detach().float().cpu(), heatmap.detach().float().cpu()
    mask = None if mask is None else mask.detach().cpu()
    valid = finite_pixels(image[None])[0]
    void = ~valid if mask is None else ~valid | (mask == IGNORE)
    anomaly = None if mask is None else _thinned(mask == ANOMALY, step)
    scored = score.masked_fill(~valid, torch.nan)
    dates = [("false colour", image)] if image.ndim == 3 else list(zip(("before", "after"), image, strict=True))
    columns = len(dates) + (2 if mask is None else 3)
    figure = Figure(figsize=_figure_size(size, columns), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns)
    seen, (raw, hot) = axes[: len(dates)], axes[len(dates) : len(dates) + 2]
    pictured = [(axis, false_colour(date[..., small[0], small[1]], wavelength)) for axis, (_, date) in zip(seen, dates, strict=True)]
    low, high = _limits(scored[valid])
    shown: tuple[tuple[Axes, Any, dict[str, Any]], ...] = (
        *((axis, colours.numpy(), {}) for axis, colours in pictured),
        (raw, scored[small].numpy(), {"cmap": "cividis", "vmin": low, "vmax": high}),
        (hot, heat_colours(heatmap.masked_fill(~valid, torch.nan)[small]).numpy(), {}),
    )
    for axis, colours, options in shown:
        axis.imshow(colours, interpolation="nearest", **options)
        _hatch(axis, void[small])
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if anomaly is not None:
        for axis in (*seen, hot):
            _outline(axis, anomaly)
    for axis, (name, _) in zip(seen, dates, strict=True):
        _caption(axis, name, "truth outlined" if mask is not None else "")
    _caption(raw, "raw score", "2–98 % stretch")
    _caption(hot, "heat map", "calibrated, 0–1")
    colour_bar(figure, raw, raw.images[0], extend="both")
    colour_bar(figure, hot, _unit_scale(), extend="neither")
    if mask is not None:
        axes[-1].set_box_aspect(min(max(size[0] / size[1], 0.75), 1.3))
        _histogram(axes[-1], score[valid & (mask == NORMAL)], score[valid & (mask == ANOMALY)])
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def save_panel(
    path: str | Path,
    image: Tensor,
    score: Tensor,
    heatmap: Tensor,
    mask: Tensor | None = None,
    title: str = "",
    wavelength: Sequence[float] | None = None,
) -> Path:
    """Draw a scene panel into a file that is there whole or not at all.

    Args:
        path: file to write; its suffix (.png, .pdf, .svg) picks the format, and missing folders are made.
        image: as in ``scene_panel``.
        score: as in ``scene_panel``.
        heatmap: as in ``scene_panel``.
        mask: as in ``scene_panel``.
        title: as in ``scene_panel``.
        wavelength: as in ``scene_panel``.

    Returns:
        The path written.

    Raises:
        ValueError: the shapes do not fit, or matplotlib does not write the suffix.
    """
    return save_figure(path, scene_panel(image, score, heatmap, mask, title, wavelength))


def save_figure(path: str | Path, figure: Figure) -> Path:
    """Write a figure into a file that is there whole or not at all; missing folders are made.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix or ".png", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            figure.savefig(file, format=path.suffix[1:] or "png")
        temporary.chmod(0o644)  # mkstemp keeps files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def picture_bands(count: int, wavelength: Sequence[float] | None) -> tuple[int, int, int]:
    """Pick the bands of red, green and blue as `false_colour` does; one band thrice where there are fewer than three."""
    if wavelength is not None and len(wavelength) != count:
        raise ValueError(f"Expected {count} wavelengths, one a band, but got {len(wavelength)}. Drop those of removed bands.")
    if count < 3:
        return 0, 0, 0
    if wavelength is None:
        order = [2, 1, 0] if count == 3 else list(range(count))
    else:
        nearest = [min((abs(centre - colour), band) for band, centre in enumerate(wavelength))[1] for colour in _VISIBLE]
        if all(abs(wavelength[band] - colour) <= _REACH for band, colour in zip(nearest, _VISIBLE, strict=True)):
            return nearest[0], nearest[1], nearest[2]
        order = sorted(range(count), key=lambda band: wavelength[band])
    return order[count * 5 // 6], order[count // 2], order[count // 6]


def thinned(values: Tensor) -> Tensor:
    """Keep every so many of (N,) values, at most two million: enough for a colour scale, and torch.quantile refuses 16 million."""
    return values[:: max(1, len(values) // 1_000_000)]


def _limits(values: Tensor) -> tuple[float, float]:
    """Give the 2 % and 98 % quantiles of the finite values; (0, 1) where there are none, one apart where they are constant."""
    kept = values[torch.isfinite(values)].double()
    if kept.numel() == 0:
        return 0.0, 1.0
    low, high = torch.quantile(thinned(kept), torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    return (low, high) if high - low > 1e-12 * max(1.0, abs(low)) else (low - 0.5, low + 0.5)


def _stretched(band: Tensor, low: float, high: float) -> Tensor:
    """Scale (H, W) so that the limits become 0 and 1, and clip."""
    return ((band - low) / (high - low)).clamp(0, 1)


def _thinned(plane: Tensor, step: int) -> Tensor:
    """Shrink (H, W) bool by a step; a cell is True where any of its pixels is, so that small objects stay."""
    if step == 1:
        return plane
    return torch.nn.functional.max_pool2d(plane[None, None].float(), step, ceil_mode=True)[0, 0] > 0


def _figure_size(size: tuple[int, ...], columns: int) -> tuple[float, float]:
    """Give width and height in inches, so that panels of the scene's aspect fill the figure."""
    aspect = min(max(size[0] / size[1], 0.4), 2.0)
    width = 3.4 if aspect <= 1.3 else 2.6
    return columns * width, width * aspect * 0.82 + 0.75


def _caption(axis: Axes, name: str, note: str) -> None:
    """Write what a panel shows above it."""
    axis.set_title(f"{name} · {note}" if note else name, fontsize=9, loc="left", color="#333333")


def colour_bar(figure: Figure, axis: Axes, shown: Any, extend: str) -> None:
    """Add a thin colour bar to the right of a panel."""
    bar = figure.colorbar(shown, ax=axis, fraction=0.045, pad=0.02, extend=extend)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)


def _unit_scale() -> Any:
    """Give the colours of the heat map on their fixed scale, for the colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), "inferno")


def _hatch(axis: Axes, void: Tensor) -> None:
    """Hatch the (H, W) void pixels and lay a light grey under the hatching."""
    if not bool(void.any()):
        return
    shade = torch.full((*void.shape, 4), NODATA_GREY)
    shade[..., 3] = 0.85 * void
    axis.imshow(shade.numpy(), interpolation="nearest")
    _regions(axis, void, filled=True)


def _outline(axis: Axes, region: Tensor) -> None:
    """Draw the pixel edges around an (H, W) region."""
    if bool(region.any()):
        _regions(axis, region, filled=False)


def _regions(axis: Axes, region: Tensor, filled: bool) -> None:
    """Hatch or outline an (H, W) bool region along pixel edges."""
    from matplotlib.collections import LineCollection

    if filled:
        padded = torch.nn.functional.pad(region.float(), (1, 1, 1, 1)).numpy()
        height, width = region.shape
        hatches = axis.contourf(range(-1, width + 1), range(-1, height + 1), padded, levels=[0.5, 1.5], colors="none", hatches=["////"])
        hatches.set(edgecolor="#8A8A8A", linewidth=0.0)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        return
    axis.add_collection(LineCollection(list(_pixel_edges(region)), colors=_OUTLINE, linewidths=0.9, capstyle="round"))


def _pixel_edges(region: Tensor) -> np.ndarray[Any, Any]:
    """Give the unit edges between an (H, W) region and the rest: (N, 2, 2), two ends (x, y) each, in pixel coordinates.

    Edges in one line that follow one another are joined, so that a drawing does not take a step for each pixel.
    """
    padded = np.pad(region.numpy(), 1)
    flat = _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])
    upright = _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)
    return np.concatenate([flat, upright[..., ::-1]])


def _runs(edges: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give where runs of True begin and end along the rows: (N, 2, 2), (x, y) on the edges of pixels."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (row, begin), (_, end) = np.nonzero(steps == 1), np.nonzero(steps == -1)  # both in the order of the rows
    return np.stack([np.stack([begin, row], 1), np.stack([end, row], 1)], 1) - 0.5


def _histogram(axis: Axes, normal: Tensor, anomalous: Tensor) -> None:
    """Count the scores of normal and anomalous pixels on a logarithmic count axis."""
    normal, anomalous = normal[torch.isfinite(normal)], anomalous[torch.isfinite(anomalous)]
    both = torch.cat([normal, anomalous])
    low, high = (float(both.min()), float(both.max())) if both.numel() else (0.0, 1.0)
    high = high if high > low else low + max(1.0, abs(low) * 1e-6)
    edges = np.linspace(low, high, 61)
    for values, colour, name, alpha in ((normal, _NORMAL_BARS, "normal", 0.55), (anomalous, _ANOMALY_BARS, "anomalous", 0.75)):
        counts = np.histogram(values.numpy(), edges)[0]  # in integers; float32 ends at 2^24 pixels
        axis.stairs(counts, edges, color=colour, fill=True, alpha=alpha, label=f"{name} ({values.numel():,})")
    if both.numel():
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.7)
    axis.locator_params(axis="x", nbins=5)  # long numbers must not run into each other
    axis.set_xlabel("raw score", fontsize=8)
    axis.set_ylabel("pixels", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper right")
    _caption(axis, "score histogram", "log counts")
