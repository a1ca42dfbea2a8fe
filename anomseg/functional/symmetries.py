"""Symmetries of the square: views of an image, and the mean of what is found in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Views = Literal[1, 4, 8]
# Quarter turns, and whether the turned image is mirrored, too. The first four keep height and width.
SYMMETRIES: tuple[tuple[int, bool], ...] = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))


def view_of(planes: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Turn (..., H, W) by quarter turns, then mirror its columns."""
    planes = planes.rot90(turns, (-2, -1))
    return planes.flip(-1) if mirrored else planes


def undo_view(planes: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Lay (..., h, w), found in a view, where it lies in the image."""
    return (planes.flip(-1) if mirrored else planes).rot90(-turns, (-2, -1))


def mean_over_views(find: Callable[..., Tensor], *planes: Tensor, views: int) -> Tensor:
    """Average what is found in several views of the same planes, each laid back before: it then turns and mirrors as the planes do.

    Args:
        find: takes one view of each plane, and returns maps (..., H, W) of the size of the view.
        planes: (..., H, W) each, of one height and width.
        views: 1 for the planes as they are, 4 for their mirror images along rows, columns and both, 8 for these turned by 90 degrees, too.

    Returns:
        The mean, in the shape of what is found in the planes as they are. One view is held at a time.

    Raises:
        ValueError: another number of views.
    """
    check_views(views)
    total = find(*planes)
    for symmetry in SYMMETRIES[1:views]:
        total = total + undo_view(find(*(view_of(plane, *symmetry) for plane in planes)), *symmetry)
    return total / views if views > 1 else total


def check_views(views: int) -> None:
    """Refuse a number of views that is no group of symmetries.

    Raises:
        ValueError: not 1, 4 or 8.
    """
    if views not in (1, 4, 8):
        raise ValueError(f"Expected 1 view, 4 (mirror images) or 8 (turned by 90 degrees, too), but got {views}.")
