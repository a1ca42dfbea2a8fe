"""Figures as a table one can read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

COLUMNS = (
    *("image_auroc", "auroc", "ap", "fpr95", "f1_max", "aupro", "auc_dt", "auc_ft"),
    *("change_f1", "change_iou", "change_kappa", "miou", "heat_ece"),
)


def figure_table(figures: Mapping[str, float | Tensor], prefix: str = "test_") -> str:
    """Lay logged figures out with one row for each scene or category, their mean, and everything pooled.

    Args:
        figures: as `trainer.callback_metrics` holds them: `<prefix><figure>`, `<prefix><figure>_mean` or
            `<prefix><figure>_mean_over_class`, `<prefix><figure>/<scene or category>`.
        prefix: `test_` or `val_`.

    Returns:
        Lines of text; only figures that were logged and are defined get a column, and only rows that hold something are printed. With one
        named scene, a mean or pooled row that repeats it is left out.
    """
    values = {name.removeprefix(prefix): float(value) for name, value in figures.items() if name.startswith(prefix)}
    values = {name: value for name, value in values.items() if not math.isnan(value)}
    columns = [c for c in COLUMNS if c in values]
    scenes = sorted({name.partition("/")[2] for name in values if "/" in name})
    rows = [(scene, [values.get(f"{c}/{scene}") for c in columns]) for scene in scenes]
    joint = [
        ("mean of scenes", [values.get(f"{c}_mean") for c in columns]),
        ("mean of classes", [values.get(f"{c}_mean_over_class") for c in columns]),
        ("all pixels", [values.get(c) for c in columns]),
    ]
    # One named scene need not be the only one: scenes of one class have no figures of their own, and count in the pooled ones.
    rows += joint if len(scenes) != 1 else [(name, cells) for name, cells in joint if not _repeats(cells, rows[0][1])]
    rows = [(name, cells) for name, cells in rows if any(cell is not None for cell in cells)]
    if not rows:
        rows = [("all pixels", [values.get(c) for c in columns])]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{c:>{_wide(c)}}" for c in columns)]
    for name, cells in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{_shown(cell):>{_wide(c)}}" for c, cell in zip(columns, cells, strict=True)))
    return "\n".join(lines)


def _repeats(cells: Sequence[float | None], others: Sequence[float | None]) -> bool:
    pairs = zip(cells, others, strict=True)
    return all(a is None or (b is not None and math.isclose(a, b, rel_tol=0.0, abs_tol=1e-6)) for a, b in pairs)


def _wide(column: str) -> int:
    return max(9, len(column) + 2)


def _shown(cell: float | None) -> str:
    return "" if cell is None else f"{cell:.4f}"
