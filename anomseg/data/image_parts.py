"""Share the images of a data set out among its parts, and keep those of a part that can serve it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.folder_image import FolderImage
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_folders import PARTS, FolderLayout, ImageFiles, Part, find_images, find_unlabelled
from anomseg.data.image_split import NameSplit, ShareSplit, block_windows
from anomseg.errors import SceneNotFoundError
from anomseg.sample import IGNORE, NORMAL

Parts = dict[Part, list[FolderImage]]


def shared_images(
    root: str | Path,
    layout: FolderLayout,
    classes: ClassAsNormal,
    split: ShareSplit | NameSplit | GroupSplit | None = None,
    bands: Sequence[int] | None = None,
    seed: int = 0,
) -> Parts:
    """Find the images of a data set and share them out.

    Args:
        root: the folder of the data set.
        layout: how it is laid out.
        classes: what is normal.
        split: how to share; None follows the folders of the layout, and without such folders ``ShareSplit()``.
        bands: indices of the bands to keep; None keeps all.
        seed: of a split by shares.

    Returns:
        Images, or blocks of images, that train, validate and test; none twice. Only a split by blocks reads headers.

    Raises:
        SceneNotFoundError: the folder is missing or no image fits the layout.
        ValueError: there are fewer images than parts, a named image is missing, or two that are to be split share a name.
    """
    found = find_images(root, layout)
    folders = {part: [_image(files, layout, classes, bands) for files in listed] for part, listed in found.items()}
    if split is None and "" not in folders:
        return {part: folders.get(part, []) for part in PARTS}
    split = split or ShareSplit()
    images = [image for listed in folders.values() for image in listed]
    if isinstance(split, ShareSplit) and split.block is not None:
        images = [image.block(window) for image in measured_images(images) for window in block_windows(image.size, split.block)]
    by_name = {image.name: image for image in images}
    if len(by_name) < len(images):
        twice = sorted({image.name for image in images if by_name[image.name] is not image})
        raise ValueError(f"Expected images of different names to split them, but {twice[:8]} occur twice. Rename them, or use the folders.")
    shared = split.share(list(by_name), seed)
    return {part: [by_name[name] for name in names] for part, names in zip(PARTS, shared, strict=True)}


def unlabelled_images(
    root: str | Path, layout: FolderLayout, classes: ClassAsNormal, bands: Sequence[int] | None = None
) -> list[FolderImage]:
    """Find images without truth; masks that lie beside them are used where they do.

    Args:
        root: a folder laid out as ``layout`` says, or with the images directly in it.
        layout: how the data set is laid out.
        classes: what is normal.
        bands: indices of the bands to keep; None keeps all.

    Raises:
        SceneNotFoundError: there is no image.
        ValueError: images differ in their bands.
    """
    return measured_images([_image(files, layout, classes, bands) for files in find_unlabelled(root, layout)])


def measured_images(images: Sequence[FolderImage]) -> list[FolderImage]:
    """Read the headers of images, and check that they have as many bands; costs a file access each.

    Returns:
        The images with their sizes.

    Raises:
        ValueError: images differ in their bands, or an image and its masks in size.
    """
    measured = [image.measured() for image in images]
    counts = {image.stored if image.bands is None else len(image.bands): image.files.bands[0] for image in reversed(measured)}
    if len(counts) > 1:
        named = ", ".join(f"{count} in '{path}'" for count, path in sorted(counts.items()))
        raise ValueError(f"Expected images of as many bands, but got {named}. Convert them, or give their folders a module each.")
    return measured


def usable_images(images: Sequence[FolderImage], part: Part) -> list[FolderImage]:
    """Read the masks of one part, and leave out images that cannot serve it: a warning says how many.

    Training needs a pixel of a normal class in each image, validation and test a pixel that counts.

    Args:
        images: the images of the part, or blocks of images.
        part: what they are for.

    Returns:
        The images that can serve, with their sizes.

    Raises:
        SceneNotFoundError: images lack their masks.
        SceneFormatError: a mask holds an id or colour outside the class table.
        ValueError: there is no image, images differ in their bands, a mask differs from its image in size, or no image can serve; the
            message names the classes found.
    """
    if not images:
        raise ValueError(
            f"Expected at least one image for '{part}', but the split gives none. Correct split=, or the folders of the layout."
        )
    lacking = [str(image.files.bands[0]) for image in images if not image.has_truth]
    if lacking:
        raise SceneNotFoundError(
            f"Expected a mask '{images[0].layout.masks}' for each image of '{part}', but {len(lacking)} of {len(images)} lack one, such as "
            f"{lacking[:4]}. Add the masks, or use predict_root= for images without truth."
        )
    unmeasured = [image for image in images if image.window is None]
    measured = measured_images(unmeasured) if unmeasured else list(images)
    kept = [image for image in measured if _can_serve(image, part)]
    chosen = f"of a normal class {images[0].classes.normal_classes}" if part == "train" else "that is not ignored"
    if not kept:
        found = sorted({name for image in images for name in image.found()})
        raise ValueError(
            f"Expected a pixel {chosen} among the {len(images)} images of '{part}', but there is none; their masks hold {found}. "
            "Correct the classes, or the split."
        )
    if len(kept) < len(images):
        warnings.warn(
            f"{len(images) - len(kept)} of {len(images)} images of '{part}' hold no pixel {chosen} and are left out.", stacklevel=2
        )
    return kept


def _can_serve(image: FolderImage, part: Part) -> bool:
    truth = image.truth()
    return bool(((truth == NORMAL) if part == "train" else (truth != IGNORE)).any())


def _image(files: ImageFiles, layout: FolderLayout, classes: ClassAsNormal, bands: Sequence[int] | None) -> FolderImage:
    return FolderImage(files.name, files, layout, classes, None if bands is None else tuple(bands))
