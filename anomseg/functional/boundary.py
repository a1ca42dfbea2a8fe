"""Compare the outlines of two maps: which share of each lies within a few pixels of the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from anomseg.sample import ANOMALY, IGNORE


def inner_boundary(region: Tensor, known: Tensor) -> Tensor:
    """Mark the pixels of a region that touch a known pixel outside of it, along rows or columns.

    Args:
        region: (B, H, W) bool.
        known: (B, H, W) bool; a region does not end where it meets an unknown pixel or the border of the image.

    Returns:
        (B, H, W) bool.
    """
    outside = functional.pad((~region & known).float(), (1, 1, 1, 1))
    touching = outside[:, :-2, 1:-1] + outside[:, 2:, 1:-1] + outside[:, 1:-1, :-2] + outside[:, 1:-1, 2:]
    return region & known & (touching > 0)


def within(plane: Tensor, distance: float) -> Tensor:
    """Mark the pixels whose centre lies within a distance of that of a marked pixel.

    Args:
        plane: (B, H, W) bool.
        distance: Euclidean, in pixels, at least 0.

    Returns:
        (B, H, W) bool.
    """
    reach = int(distance)
    offsets = torch.arange(-reach, reach + 1, device=plane.device)
    disc = (offsets[:, None] ** 2 + offsets**2 <= distance**2).float()[None, None]
    return functional.conv2d(plane[:, None].float(), disc, padding=reach)[:, 0] > 0.5


def boundary_matches(flagged: Tensor, mask: Tensor, tolerance: float = 3.0) -> Tensor:
    """Count the boundary pixels of prediction and truth, and how many of them lie near the other's.

    Args:
        flagged: (B, H, W) bool, predicted.
        mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored; ignored pixels belong to neither region and end none.
        tolerance: distance in pixels up to which two boundary pixels match, Euclidean, at least 0.

    Returns:
        (4,) int64: predicted boundary pixels near the true boundary, predicted ones, true ones near the predicted boundary, true ones.
        Precision is the first over the second, recall the third over the fourth.

    Raises:
        ValueError: the shapes differ, or the tolerance is negative.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; counts are added up over images here,
    where the paper averages the figures of images.
    """
    if flagged.shape != mask.shape or flagged.ndim != 3:
        raise ValueError(f"Expected maps of one shape (B, H, W), but got {tuple(flagged.shape)} and {tuple(mask.shape)}. Crop one.")
    if tolerance < 0:
        raise ValueError(f"Expected a tolerance of at least 0 pixels, but got {tolerance}. The usual one is 3.")
    known = mask != IGNORE
    predicted, true = inner_boundary(flagged.bool() & known, known), inner_boundary(mask == ANOMALY, known)
    hits, found = predicted & within(true, tolerance), true & within(predicted, tolerance)
    return torch.stack([plane.sum() for plane in (hits, predicted, found, true)])
