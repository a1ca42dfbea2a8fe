"""Pictures of what a change map got right and wrong: before, after, truth, score and errors side by side.

Figures are built without pyplot, as in `anomseg.report.pictures`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomseg.functional.confusion import ChangeFigures, change_figures, confusion
from anomseg.report.file_names import file_of_scene
from anomseg.report.pictures import LARGEST_SIDE, colour_bar, false_colour, save_figure, thinned
from anomseg.sample import ANOMALY, NORMAL, finite_pixels, flat_truth, with_void

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from anomseg.methods.base import AnomalySegmenter

Colour = tuple[float, float, float]
ERROR_COLOURS: dict[str, Colour] = {
    "changed, found": (1.0, 1.0, 1.0),
    "unchanged, passed": (0.0, 0.0, 0.0),
    "false alarm": (0.86, 0.15, 0.15),
    "missed": (0.20, 0.72, 0.28),
    "ignored": (0.55, 0.55, 0.55),
}
"""Red, green and blue of each outcome, in [0, 1], in the order TP, TN, FP, FN, ignored."""


def error_map(score: Tensor, mask: Tensor, threshold: float = 0.0) -> Tensor:
    """Colour each pixel by its outcome: found white, passed black, false alarm red, missed green, ignored grey.

    Args:
        score: (H, W) raw score, higher is more changed; where it is not finite the pixel counts as ignored.
        mask: (H, W) of 0 normal, 1 anomaly, 255 ignored.
        threshold: flags `score >= threshold`.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if score.shape != mask.shape or score.ndim != 2:
        raise ValueError(f"Expected score and mask of one shape (H, W), but got {tuple(score.shape)} and {tuple(mask.shape)}. Drop axes.")
    flagged, known = score >= threshold, torch.isfinite(score)
    outcome = torch.full(score.shape, 4, dtype=torch.long, device=score.device)
    for number, place in enumerate(
        ((mask == ANOMALY) & flagged, (mask == NORMAL) & ~flagged, (mask == NORMAL) & flagged, (mask == ANOMALY) & ~flagged)
    ):
        outcome[place & known] = number
    return torch.tensor(list(ERROR_COLOURS.values()), device=score.device)[outcome]


def change_panel(image: Tensor, mask: Tensor, score: Tensor, threshold: float = 0.0, title: str = "") -> Figure:
    """Draw a pair: before, after, truth, score and errors.

    Args:
        image: (2, C, H, W); NaN in any band marks a pixel without data.
        mask: (H, W) of 0, 1 and 255.
        score: (H, W) raw score, higher is more changed; where it is not finite the pixel counts as ignored, in picture and figures.
        threshold: flags `score >= threshold`; the score is coloured around it.
        title: written above; the figures at the threshold follow it.

    Returns:
        A figure of five panels. Pairs with a side above ``LARGEST_SIDE`` are decimated in the picture.

    Raises:
        ValueError: the image is no pair, or score or mask do not have its height and width.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if image.ndim != 4 or len(image) != 2:
        raise ValueError(f"Expected a pair of shape (2, C, H, W), but got {tuple(image.shape)}. Use scene_panel for one date.")
    if not tuple(image.shape[-2:]) == tuple(mask.shape) == tuple(score.shape):
        raise ValueError(
            f"Expected mask and score of the pair's shape {tuple(image.shape[-2:])}, but got {tuple(mask.shape)} and {tuple(score.shape)}."
        )
    image, score = image.detach().cpu().float(), score.detach().cpu().float()
    known = finite_pixels(image[None])[0] & torch.isfinite(score)
    mask = with_void(mask.detach().cpu(), ~known)
    figures = change_figures(confusion(score >= threshold, mask))
    step = max(1, math.ceil(max(mask.shape) / LARGEST_SIDE))
    small = (slice(None, None, step), slice(None, None, step))
    beside = thinned((score[known] - threshold).abs())
    reach = max(float(beside.quantile(0.98)), 1e-9) if len(beside) else 1.0
    limits = {"cmap": "RdGy_r", "vmin": threshold - reach, "vmax": threshold + reach}
    shown: list[tuple[str, Tensor, dict[str, Any]]] = [
        ("before", false_colour(image[0][..., small[0], small[1]]), {}),
        ("after", false_colour(image[1][..., small[0], small[1]]), {}),
        ("truth", error_map(torch.where(mask == ANOMALY, 1.0, -1.0), mask)[small], {}),
        ("score", score.masked_fill(~known, torch.nan)[small], limits),
        ("errors", error_map(score, mask, threshold)[small], {}),
    ]
    aspect = min(max(mask.shape[0] / mask.shape[1], 0.4), 2.0)
    figure = Figure(figsize=(5 * 2.8, 2.8 * aspect + 0.75), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 5)
    for axis, (name, plane, options) in zip(axes, shown, strict=True):
        axis.imshow(plane.numpy(), interpolation="nearest", **options)
        axis.set_title(name, fontsize=9, loc="left", color="#333333")
        axis.set(xticks=[], yticks=[])
    colour_bar(figure, axes[3], axes[3].images[0], extend="both")
    patches = [Patch(facecolor=colour, edgecolor="#888888", label=name) for name, colour in ERROR_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower right", ncols=5, fontsize=7, frameon=False)
    figure.suptitle(f"{title}   {_figures(figures)}".strip(), fontsize=10, x=0.01, ha="left")
    return figure


def save_change_panel(path: str | Path, image: Tensor, mask: Tensor, score: Tensor, threshold: float = 0.0, title: str = "") -> Path:
    """Draw a pair into a file that is there whole or not at all; arguments as `change_panel`.

    Returns:
        The path written.
    """
    return save_figure(path, change_panel(image, mask, score, threshold, title))


def write_error_maps(
    method: AnomalySegmenter,
    batches: Iterable[Mapping[str, Any]],
    folder: str | Path,
    threshold: float = 0.0,
    limit: int | None = None,
) -> list[Path]:
    """Score batches of whole pairs, and write a panel for each pair as `<name>_change.png`.

    A name may hold subfolders, but none that lead out of the folder.

    Args:
        method: gives the score.
        batches: of the batch contract, such as a test loader without ``tile``.
        folder: where to write; it is made.
        threshold: flags `score >= threshold`; from validation.
        limit: pairs to write at most; None writes all.

    Returns:
        The paths written.

    Raises:
        ValueError: a batch holds tiles, a name comes twice, or one leads out of the folder.
    """
    written: list[Path] = []
    for batch in map(flat_truth, batches):
        with torch.no_grad():
            score = method.score_map(batch["image"].to(method.device)).cpu()
        for index in range(len(score)):
            if limit is not None and len(written) >= limit:
                return written
            name = batch["name"][index] if "name" in batch else f"pair-{len(written)}"
            if "scene_size" in batch and tuple(batch["scene_size"][index]) != tuple(score.shape[-2:]):
                raise ValueError(f"Expected whole pairs, but got a tile of '{name}'. Serve them with tile=None.")
            path = file_of_scene(folder, name, "_change.png")
            if path in written:
                raise ValueError(f"Expected a name of its own for each pair, but '{name}' came again and would overwrite '{path}'.")
            written.append(save_change_panel(path, batch["image"][index], batch["mask"][index], score[index], threshold, str(name)))
    return written


def _figures(figures: ChangeFigures) -> str:
    shown = {name: value for name, value in dataclasses.asdict(figures).items() if name in ("precision", "recall", "f1", "iou")}
    return "   ".join(f"{'F1' if name == 'f1' else 'IoU' if name == 'iou' else name} {value:.3f}" for name, value in shown.items())
