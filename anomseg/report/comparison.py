"""Pictures that compare detectors: their maps side by side on one scale, and boxes of how far each keeps anomalies from the background.

Figures are built without pyplot, as in `anomseg.report.pictures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomseg.functional.score_curves import auroc
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.separability import Normalisation, ScoreBox, separability, share_at_or_above
from anomseg.report.pictures import NODATA_GREY, false_colour
from anomseg.sample import ANOMALY, IGNORE, check_mask, finite_pixels, with_void

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_SIDE = 400
"""Longest side of a panel in pixels; longer scenes are decimated."""
DECADES = 3.0
"""Range of the panels' scale: from all pixels (0) to the highest thousandth (3)."""

_BACKGROUND, _ANOMALY, _TEXT = "#8A99A8", "#D55E00", "#333333"
_TRUTH = (0.0, 0.9, 1.0)  # the outlines' colour in pictures of one scene, which the maps' scale does not hold
_CLASS_NAMES = {_BACKGROUND: "background", _ANOMALY: "anomalies"}


@dataclass(frozen=True)
class ComparisonRow:
    """Hold a scene and what the detectors made of it.

    Attributes:
        name: of the scene.
        image: (C, H, W); NaN in any band marks a pixel without data.
        mask: (H, W) of 0, 1 and 255.
        maps: name of a detector -> its (H, W) score, higher is more anomalous, finite where the image has data and the mask is not 255.
        wavelength: C band centres in nanometres, or None.

    Raises:
        ValueError: a shape does not fit the image, the mask holds other values, or there is no map.
    """

    name: str
    image: Tensor
    mask: Tensor
    maps: Mapping[str, Tensor]
    wavelength: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise ValueError(f"Expected an image of shape (C, H, W), but got {tuple(self.image.shape)}. Pick one sample of a batch.")
        if not self.maps:
            raise ValueError(f"Expected one or more maps of scene '{self.name}', but got none. Pass maps={{'RX': score}}.")
        for name, plane in {"mask": self.mask, **self.maps}.items():
            _check_size(name, plane, tuple(self.image.shape[-2:]))
        check_mask(self.mask[None], [self.name])

    def truth(self) -> Tensor:
        """Give the (H, W) mask on the CPU with 255 where the image has no data."""
        return with_void(self.mask.detach().cpu(), ~finite_pixels(self.image.detach().cpu()[None])[0])


def comparison_sheet(rows: Sequence[ComparisonRow]) -> Figure:
    """Draw a row for each scene: false colour, truth, and a panel for each detector with its AUROC above.

    Every panel shows -log10 of `share_at_or_above` between 0 and 3: how far up a pixel ranks in its own map, in powers of ten. The same
    colour flags the same share of the scene's pixels by every detector, so that panels compare whatever the unit, power or tail of the
    scores; what the scale hides is how large a score is. A threshold at n flags the pixels that are brighter than n.

    Args:
        rows: one or more scenes, each with maps of the same detectors in the same order.

    Returns:
        A figure. Void pixels (no data, or 255 in the mask) are grey, and neither ranks nor AUROC count them. Scenes with a side above
        ``PANEL_SIDE`` are decimated so that a cell shows the highest of its pixels; AUROC counts every pixel.

    Raises:
        ValueError: no rows, rows of different detectors, or a counted score that is not finite.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("Expected one or more rows, but got none. Make a ComparisonRow of each scene.")
    names = list(rows[0].maps)
    for row in rows:
        if list(row.maps) != names:
            raise ValueError(f"Expected maps of {names} in every row, but got {list(row.maps)} in '{row.name}'. Score it by the same.")
    heights = [min(max(row.image.shape[-2] / row.image.shape[-1], 0.4), 2.0) for row in rows]
    side, columns = 1.7, len(names) + 2
    size = (columns * side + 0.4, sum(heights) * side + 0.42 * len(rows) + 0.7)
    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows, strict=True):
        scale = _draw_row(line, row)
    bar = figure.colorbar(
        scale, ax=axes, location="bottom", fraction=0.5 / size[1], aspect=60, pad=0.25 / size[1], shrink=0.6, extend="max"
    )
    bar.set_ticks(range(int(DECADES) + 1), labels=[_percent(10.0**-n) for n in range(int(DECADES) + 1)])
    bar.set_label("share of the scene's pixels that score at least as high, in the same detector's map", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def separability_plot(maps: Mapping[str, Tensor], mask: Tensor, title: str = "", normalisation: Normalisation = "min-max") -> Figure:
    """Draw two boxes for each map, of background and anomalies, with the gap between them written above.

    A box spans the 10 to 90 % quantiles, its line is the median, its whiskers are the extremes. The gap is the lower end of the
    anomalies' box less the upper end of the background's: above 0 a threshold keeps nine tenths of both classes apart.

    Args:
        maps: name of a detector -> its score, (H, W), higher is more anomalous, finite where the mask is not 255.
        mask: (H, W) of 0, 1 and 255.
        title: written above, such as the scene's name.
        normalisation: what brings each map to [0, 1]; see `separability`. Compare detectors by "rank", which no transform changes.

    Returns:
        A figure; a class without pixels, or a map without contrast, has no box.

    Raises:
        ValueError: no map, a shape that does not fit the mask, other mask values, or a counted score that is not finite.
    """
    from matplotlib.figure import Figure

    if not maps:
        raise ValueError("Expected one or more maps, but got none. Pass {'RX': score}.")
    for name, score in maps.items():
        _check_size(name, score, tuple(mask.shape))
    figure = Figure(figsize=(max(4.5, 1.25 * len(maps) + 1.2), 3.6), dpi=130, layout="constrained", facecolor="white")
    axis = figure.subplots()
    for place, score in enumerate(maps.values()):
        found = separability(score.detach().cpu(), mask.cpu(), normalisation)
        _draw_box(axis, found.background, place - 0.19, _BACKGROUND)
        _draw_box(axis, found.anomaly, place + 0.19, _ANOMALY)
        apart = found.gap >= 0.005  # what is written as +0.00 is no gap
        axis.text(place, 1.04, _gap(found.gap), ha="center", fontsize=8, fontweight="bold" if apart else "normal", color=_TEXT)
    axis.set_xticks(range(len(maps)), labels=[_folded(name) for name in maps], fontsize=8)
    axis.set(xlim=(-0.55, len(maps) - 0.45), ylim=(-0.02, 1.12), yticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    axis.set_ylabel("score, min–max" if normalisation == "min-max" else "−log10 of the share at or above, min–max", fontsize=8)
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(axis)
    if title:
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _check_size(name: str, plane: Tensor, size: tuple[int, ...]) -> None:
    if tuple(plane.shape) != size or len(size) != 2:
        raise ValueError(f"Expected {name} of shape {size} (H, W), but got {tuple(plane.shape)}. Drop batch and channel axes.")


def _draw_row(line: Sequence[Axes], row: ComparisonRow) -> Any:
    """Fill the panels of one scene, and give the scale that its maps share with all others."""
    step = max(1, math.ceil(max(row.mask.shape) / PANEL_SIDE))
    truth = row.truth()
    void = (truth == IGNORE)[::step, ::step]
    picture = false_colour(row.image.detach().cpu()[:, ::step, ::step], row.wavelength)
    _panel(line[0], f"{row.name}\nfalse colour", picture)
    line[0].set_ylabel(f"{truth.shape[0]} × {truth.shape[1]} × {row.image.shape[0]}", fontsize=7, color=_TEXT)
    marks = _highest((truth == ANOMALY).float(), step) > 0
    colours = torch.where(void, NODATA_GREY, 0.0)[..., None].expand(-1, -1, 3)
    _panel(line[1], f"truth\n{int((truth == ANOMALY).sum()):,} pixels", torch.where(marks[..., None], torch.tensor(_TRUTH), colours))
    for axis, (name, score) in zip(line[2:], row.maps.items(), strict=True):
        held = score.detach().cpu().float()
        height = _highest(-share_at_or_above(held, truth).log10().nan_to_num(-torch.inf), step)
        shown = _panel(axis, f"{_folded(name)}\n{_auroc(held, truth)}", height.masked_fill(height == -torch.inf, torch.nan))
    return shown


def _panel(axis: Axes, words: str, plane: Tensor) -> Any:
    """Show an (H, W, 3) picture, or an (H, W) plane of powers of ten whose NaN is grey, under its words."""
    from matplotlib import colormaps

    colours = colormaps["inferno"].with_extremes(bad=(NODATA_GREY,) * 3)
    shown = axis.imshow(plane.numpy(), cmap=colours, vmin=0.0, vmax=DECADES, interpolation="nearest")
    axis.set_title(words, fontsize=8, color=_TEXT, linespacing=1.1, pad=3)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return shown


def _highest(plane: Tensor, step: int) -> Tensor:
    """Shrink (H, W) by a step, each cell the highest of its pixels, so that small objects stay."""
    return torch.nn.functional.max_pool2d(plane[None, None], step, ceil_mode=True)[0, 0]


def _auroc(score: Tensor, truth: Tensor) -> str:
    value = float(auroc(count_scores([score[truth != IGNORE]], [score[truth == ANOMALY]])))
    return "no AUROC" if math.isnan(value) else f"AUROC {value:.4f}"


def _gap(gap: float) -> str:
    rounded = round(gap, 2) + 0.0 if not math.isnan(gap) else gap  # + 0.0 turns -0.0 into 0.0
    return "no gap" if math.isnan(gap) else f"gap {rounded:+.2f}".replace("-", "−").replace("+0.00", "0.00")


def _draw_box(axis: Axes, box: ScoreBox, place: float, colour: str) -> None:
    if math.isnan(box.median):
        return
    drawn = {"whislo": box.lowest, "q1": box.lower, "med": box.median, "q3": box.upper, "whishi": box.highest}
    axis.bxp(
        [drawn],
        positions=[place],
        widths=0.3,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75},
        medianprops={"color": "black", "linewidth": 1.4},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        manage_ticks=False,
    )


def _legend(axis: Axes) -> None:
    """Name the two colours below the axis, where no box can lie."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, alpha=0.75, label=name) for colour, name in _CLASS_NAMES.items()]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False)


def _folded(name: str) -> str:
    """Break a long name of a detector into lines."""
    from textwrap import fill

    return fill(name, 17)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
