"""From the `score` of a method to maps of images of any size, and to the truth that they are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomseg.exporting import is_exporting
from anomseg.functional.windows import pad_to_multiple
from anomseg.metrics.score_state import check_scores
from anomseg.sample import IGNORE, NORMAL, finite_pixels, with_void

if TYPE_CHECKING:
    from anomseg.methods.base import AnomalySegmenter


def map_scores(method: AnomalySegmenter, image: Tensor) -> Tensor:
    """Score images of any size: pad to `size_multiple`, score, crop.

    Args:
        method: in evaluation mode; its `further_maps` are those of all images afterwards.
        image: (B, C, H, W) or (B, 2, C, H, W), NaN where there is no data.

    Returns:
        (B, H, W) float32; pixels without data have their map's lowest score. An image with fewer pixels than `least_pixels`, such as a tile
        of a collar, is not scored: its map is 0.

    Raises:
        ValueError: `score` gives another shape.
    """
    valid = finite_pixels(image)
    if is_exporting() or bool((enough := valid.flatten(1).sum(1) >= method.least_pixels).all()):
        return _cropped(method, image, valid)
    method.further_maps = {}
    score = image.new_zeros(valid.shape, dtype=torch.float32)
    if bool(enough.any()):
        score[enough] = _cropped(method, image[enough], valid[enough])
        method.further_maps = {name: _spread(one, enough) for name, one in method.further_maps.items()}
    return score


def _cropped(method: AnomalySegmenter, image: Tensor, valid: Tensor) -> Tensor:
    padded = pad_to_multiple(image, method.size_multiple)
    score = method.score(padded)
    if score.shape != (expected := (image.shape[0], *padded.shape[-2:])):
        came = f"{tuple(score.shape)} instead of {expected}"
        raise ValueError(f"Expected a score of shape (B, H, W) from {type(method).__name__}.score, but got {came}.")
    score = score[:, : image.shape[-2], : image.shape[-1]].float()
    lowest = torch.where(valid, score, torch.inf).amin((1, 2), keepdim=True)
    return torch.where(valid, score, torch.where(torch.isfinite(lowest), lowest, 0.0))


def _spread(some: Tensor, where: Tensor) -> Tensor:
    """Put maps of some images among zeros for the others."""
    spread = some.new_zeros(len(where), *some.shape[1:])
    spread[where] = some
    return spread


def judged_truth(batch: Mapping[str, Any]) -> Tensor:
    """Give the mask of a batch that is validated or tested, (B, H, W) int64, 255 where there is no data.

    Raises:
        ValueError: there is none.
    """
    if "mask" not in batch:
        raise ValueError(
            f"Expected 'mask' in batches that validate or test, but got {sorted(batch)}. Where nothing is known, serve zeros: all pixels "
            "then calibrate as normal ones."
        )
    return with_void(batch["mask"], ~finite_pixels(batch["image"]))


def check_map(score: Tensor, batch: Mapping[str, Any]) -> None:
    """Refuse scores that are not finite where there is data: in a file they would look like no data.

    Raises:
        ValueError: the message names the scene.
    """
    check_scores(score, torch.where(finite_pixels(batch["image"]), NORMAL, IGNORE), batch.get("name"))
