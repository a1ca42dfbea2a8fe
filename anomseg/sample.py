"""The batch contract: which keys a sample carries, and what each of them means.

A sample is a plain dict, so that a torchgeo or hand-written loader can feed every method:

| key | meaning | shape, dtype, range |
|---|---|---|
| ``image`` | input; NaN in any band marks a pixel without data | (B, C, H, W) float32; change detection (B, 2, C, H, W) |
| ``mask`` | truth: 0 normal, 1 anomaly, 255 void, unknown or no data | (B, H, W) int64 |
| ``label`` | semantic class ids, 255 ignored, where a method trains on them | (B, H, W) int64 |
| ``image_label`` | truth of the whole image: 0 normal, 1 anomalous, 255 unknown | (B,) int64 |
| ``corrupted`` | ``image`` with synthetic defects, which a method that removes them sees; ``image`` stays its target | as ``image`` |
| ``defect`` | where ``corrupted`` differs: 1 there, 0 elsewhere, 255 ignored | (B, H, W) int64 |
| ``name`` | the scene a sample comes from | list of B strings |
| ``category`` | the kind of object or surface it shows | list of B strings |
| ``window`` | where it lies in that scene: (row, column, height, width) in pixels | list of B 4-tuples |
| ``scene_size`` | (height, width) of the whole scene in pixels | list of B 2-tuples |
| ``transform`` | affine pixel-to-map coefficients (a, b, c, d, e, f) of the *scene*, or None | list of B |
| ``crs`` | coordinate reference system as WKT, or None | list of B |
| ``wavelength`` | band centres in nanometres, or None | list of B tuples |

Scores follow one direction everywhere: **higher is more anomalous**, unbounded, finite. Heat maps are calibrated scores in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anomseg.exporting import is_exporting

NORMAL = 0
ANOMALY = 1
IGNORE = 255
METADATA = ("name", "category", "window", "scene_size", "transform", "crs", "wavelength")


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def finite_pixels(image: Tensor) -> Tensor:
    """Mark the pixels that hold data in every band (and at every date).

    Args:
        image: (B, C, H, W) or (B, T, C, H, W); NaN or infinity in any band marks a pixel without data.

    Returns:
        (B, H, W) bool, True where there is data.
    """
    bands = image.flatten(1, -3)
    summed = torch.isfinite(bands.sum(dim=1))  # a finite sum has finite terms: one pass instead of five where nothing is missing
    return summed if not is_exporting() and bool(summed.all()) else torch.isfinite(bands).all(dim=1)


def fill_nodata(image: Tensor) -> tuple[Tensor, Tensor]:
    """Replace pixels without data by their band's mean, so that a network can take the image.

    Args:
        image: (B, C, H, W) or (B, T, C, H, W), NaN where there is no data.

    Returns:
        The filled image, same shape, and (B, H, W) bool, True where there was data. A band without any data becomes 0.
    """
    valid = finite_pixels(image)
    if not is_exporting() and bool(valid.all()):
        return image, valid
    keep = valid[:, None] if image.ndim == 4 else valid[:, None, None]
    kept = torch.where(keep, image, 0.0)
    count = keep.sum(dim=(-2, -1), keepdim=True).clamp_min(1)
    return torch.where(keep, image, kept.sum(dim=(-2, -1), keepdim=True) / count), valid


def with_void(mask: Tensor, void: Tensor) -> Tensor:
    """Mark pixels of a mask as ignored.

    Args:
        mask: integers or bool of any shape; a bool or int8 mask cannot hold 255, which is why the answer is of another type.
        void: bool of the same shape, True where the pixel is not to count.

    Returns:
        int64 of the same shape: 255 where `void`, else the mask.
    """
    return mask.long().masked_fill(void, IGNORE)


def flat_truth(batch: Any) -> Any:
    """Drop the channel axis of truth that was stacked as (B, 1, H, W), as torchgeo does for some data sets; leave all else.

    Args:
        batch: of the contract; anything but a mapping is given back as it is, so that `check_sample` can say what is wrong.
    """
    if not isinstance(batch, Mapping):
        return batch
    stacked = {k: v[:, 0] for k in ("mask", "label") if isinstance(v := batch.get(k), Tensor) and v.ndim == 4 and v.shape[1] == 1}
    return {**batch, **stacked} if stacked else batch


def check_sample(batch: Mapping[str, Any]) -> None:
    """Check one batch against the contract, and say what is wrong where it breaks it.

    Args:
        batch: dict with at least ``image``; see the module's table for the other keys.

    Raises:
        TypeError: a key holds the wrong type or dtype.
        ValueError: a key is missing, has the wrong shape, or a mask value is none of 0, 1 and 255.
    """
    if "image" not in batch:
        raise ValueError(f"Expected key 'image' in the batch, but got keys {sorted(batch)}. Return a dict with 'image' from the dataset.")
    image = batch["image"]
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise TypeError(f"Expected batch['image'] to be a floating-point tensor, but got {_shape(image)}. Cast it with .float().")
    if image.ndim not in (4, 5):
        raise ValueError(
            f"Expected batch['image'] of shape (B, C, H, W) or (B, 2, C, H, W), but got {_shape(image)}. Add the missing axes."
        )
    if image.ndim == 5 and image.shape[1] != 2:
        raise ValueError(
            f"Expected two dates in batch['image'] of (B, 2, C, H, W), but got {_shape(image)}. Pick two, or stack them as bands."
        )
    _check_metadata(batch, len(image))
    expected = (image.shape[0], *image.shape[-2:])
    for key in ("mask", "label", "defect"):
        if key not in batch:
            continue
        value = batch[key]
        if not isinstance(value, Tensor) or value.is_floating_point():
            raise TypeError(f"Expected batch['{key}'] to be an integer tensor (B, H, W), but got {_shape(value)}. Cast it with .long().")
        if tuple(value.shape) != expected:
            raise ValueError(
                f"Expected batch['{key}'] of shape {expected} to fit the image {tuple(image.shape)}, but got {_shape(value)}. "
                "Crop or resize the truth with the image, and drop a channel axis."
            )
    for key in ("mask", "defect"):
        if key in batch:
            check_mask(batch[key], batch.get("name"))
    _check_whole(batch, image)


def _check_metadata(batch: Mapping[str, Any], count: int) -> None:
    """Check that each key of metadata has an entry for each image."""
    for key in METADATA:
        value = batch.get(key)
        if value is None:
            continue
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise TypeError(f"Expected batch['{key}'] to be a list of {count} entries, but got {value!r}. Put it into a list.")
        if len(value) != count:
            raise ValueError(f"Expected {count} entries in batch['{key}'], one an image, but got {len(value)}: {value!r}.")


def _check_whole(batch: Mapping[str, Any], image: Tensor) -> None:
    """Check the keys that are there for whole images."""
    if "corrupted" in batch and (not isinstance(batch["corrupted"], Tensor) or batch["corrupted"].shape != image.shape):
        raise ValueError(f"Expected batch['corrupted'] of the image's shape {tuple(image.shape)}, but got {_shape(batch['corrupted'])}.")
    if "image_label" in batch:
        value = batch["image_label"]
        if not isinstance(value, Tensor) or value.is_floating_point() or tuple(value.shape) != (image.shape[0],):
            raise ValueError(f"Expected batch['image_label'] of {image.shape[0]} integers, one an image, but got {_shape(value)}.")
        if not set(value.tolist()) <= {NORMAL, ANOMALY, IGNORE}:
            raise ValueError(f"Expected batch['image_label'] of 0 (normal), 1 (anomalous) and 255 (unknown), but got {value.tolist()}.")


def check_mask(mask: Tensor, names: Sequence[str] | None = None) -> None:
    """Check that a mask holds nothing but 0 (normal), 1 (anomaly) and 255 (ignored).

    Args:
        mask: (B, H, W) integers or bool.
        names: the B scene names, for the message.

    Raises:
        ValueError: another value is present; the message lists the values found and the sample that holds them.
    """
    wrong = (mask != NORMAL) & (mask != ANOMALY) & (mask != IGNORE)
    if not bool(wrong.any()):
        return
    index = int(wrong.flatten(1).any(dim=1).nonzero()[0])
    found = torch.unique(mask[index])[:8].tolist()
    where = f"sample {index}" + (f" ('{names[index]}')" if names else "")
    raise ValueError(
        f"Expected mask values 0 (normal), 1 (anomaly) and 255 (ignored), but got {found} in {where}. "
        "A mask stored as 0/255 is read as normal/ignored: convert it with (mask > 127).long()."
    )


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of one size into a batch: tensors gain a first axis, metadata become lists.

    Args:
        samples: dicts as the datasets return them, without the batch axis.

    Returns:
        A batch as the module's table describes it.

    Raises:
        ValueError: the images differ in size, or a key is in some samples and not in others.
    """
    for number, sample in enumerate(samples):
        if sample.keys() != samples[0].keys():
            named = [str(s.get("name", i)) for i, s in ((0, samples[0]), (number, sample))]
            raise ValueError(
                f"Expected the same keys in all samples of a batch, but {sorted(sample.keys() ^ samples[0].keys())} are in only one of "
                f"'{named[0]}' and '{named[1]}'. Give every scene such a key, a mask of 255 where there is no truth, or use batch_size=1."
            )
    sizes = {tuple(s["image"].shape) for s in samples}
    if len(sizes) > 1:
        named = [f"{s.get('name', i)}: {tuple(s['image'].shape)}" for i, s in enumerate(samples)]
        raise ValueError(f"Expected images of one size in a batch, but got {named}. Use batch_size=1 for whole scenes, or set a tile size.")
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [s[key] for s in samples]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return batch
