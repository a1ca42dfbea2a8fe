"""Turn a file of any supported format into a scene that keeps the batch contract, and find such files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomseg.data.binary_mask import coding_of, is_lossy, marked_pixels
from anomseg.data.mat_io import read_mat, read_mat_mask
from anomseg.data.path_template import is_hidden
from anomseg.data.raster_align import grid_of
from anomseg.data.raster_io import ENVI_DATA_SUFFIXES, Raster, envi_header, file_beside, kept_bands, read_raster, read_raster_mask
from anomseg.data.scene import Scene
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.sample import ANOMALY, IGNORE, NORMAL

Root = str | Path | Sequence[str | Path]
SCENE_SUFFIXES = (".mat", ".hdr", ".tif", ".tiff", ".npy", *(suffix for suffix in ENVI_DATA_SUFFIXES if suffix))
PICTURE_SUFFIXES = (".png", ".bmp")
MASK_SUFFIXES = (*PICTURE_SUFFIXES, *SCENE_SUFFIXES)
ARRAY_SUFFIXES = (".mat", ".npy")
_logger = logging.getLogger("anomseg")


def read_scene(
    path: str | Path,
    image_key: str | None = None,
    mask_key: str | None = None,
    mask_path: str | Path | None = None,
    bands: Sequence[int] | None = None,
) -> Scene:
    """Read one scene from MATLAB (.mat), ENVI (.hdr or its data file), GeoTIFF (.tif) or NumPy (.npy).

    Arrays of MATLAB and NumPy are (H, W, C); a 2-D array is one band. Values are cast to float32 and never rescaled, except by the
    reflectance scale factor of an ENVI header. A pixel that has a no-data value, NaN or infinity in any band that is kept becomes NaN in
    all of them and 255 in the mask; their number is logged once a scene.

    Args:
        path: the file; its stem names the scene.
        image_key: variable of a MATLAB file that holds the cube, found by name and shape by default.
        mask_key: variable of a MATLAB file that holds the truth, found likewise.
        mask_path: separate truth in any of these formats, .png or .bmp; see ``read_mask`` for its values. Wins over one inside ``path``.
        bands: indices from 0 of the bands to keep, in this order; None keeps all.

    Returns:
        The scene; its mask is None where there is no truth.

    Raises:
        SceneNotFoundError: a file is missing.
        SceneFormatError: a file is unreadable, of an unknown kind, or holds complex, object or empty arrays.
        MissingDependencyError: a MATLAB v7.3 file meets an installation without h5py.
        ValueError: the truth does not fit the image, or lies elsewhere on earth, or a band to keep does not exist.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    truth: np.ndarray[Any, Any] | None = None
    raster: Raster | None = None
    if suffix == ".mat":
        array, truth = read_mat(path, image_key, mask_key if mask_path is None else None, with_mask=mask_path is None)
        image = _bands_first(array, path, bands)
    elif suffix == ".npy":
        image = _bands_first(_read_npy(path), path, bands)
    elif suffix in SCENE_SUFFIXES or envi_header(path) is not None:
        raster = read_raster(path, keep=bands)
        image = _float32(raster.image, path)
    else:
        raise SceneFormatError(
            f"Expected a scene of kind {SCENE_SUFFIXES}, but got '{path}'. Convert it, or pass a loader that returns a Scene."
        )
    mask = read_mask(mask_path, mask_key) if mask_path is not None else None if truth is None else as_mask(truth, path)
    valid = np.isfinite(image).all(axis=0)
    if raster is None:
        return _finish(scene_name(path), image, valid, mask)
    if mask_path is not None and raster.transform is not None and Path(mask_path).suffix.lower() not in ARRAY_SUFFIXES:
        grid_of(path)[0].check_same(grid_of(Path(mask_path))[0], mask_path, path)
    return _finish(scene_name(path), image, valid & raster.valid, mask, raster)


def _finish(
    name: str, image: np.ndarray[Any, Any], valid: np.ndarray[Any, Any], mask: Tensor | None, raster: Raster | None = None
) -> Scene:
    missing = int(valid.size - np.count_nonzero(valid))
    if missing:
        image[:, ~valid] = np.nan
        _log_missing(name, missing, valid.size)
    wavelength, transform, crs = (None, None, None) if raster is None else (raster.wavelength, raster.transform, raster.crs)
    if missing and mask is not None and tuple(mask.shape) == valid.shape:
        mask[torch.from_numpy(~valid)] = IGNORE
    return Scene(name, torch.from_numpy(image), mask, wavelength, transform, crs)


@lru_cache(maxsize=1024)
def _log_missing(name: str, missing: int, pixels: int) -> None:
    # Cached, because epochs read a scene again and again and the message is due once.
    _logger.info(
        "Scene '%s': %d of %d pixels (%.2f %%) hold no data in some band and are ignored.", name, missing, pixels, 100 * missing / pixels
    )


def read_mask(path: str | Path, mask_key: str | None = None) -> Tensor:
    """Read a truth map from a file of its own.

    Args:
        path: .png, .bmp, .tif, .npy, .mat, or ENVI.
        mask_key: variable of a MATLAB file that holds the truth.

    Returns:
        (H, W) int64 of 0, 1 and 255 by the rule of ``as_mask``.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: the file is unreadable or holds no 2-D real array.
    """
    path = Path(path)
    if path.suffix.lower() == ".mat":
        return as_mask(read_mat_mask(path, mask_key), path)
    if path.suffix.lower() == ".npy":
        return as_mask(_read_npy(path), path)
    return as_mask(read_raster_mask(path), path)


def as_mask(values: np.ndarray[Any, Any], source: str | Path = "array") -> Tensor:
    """Bring stored truth values to 0 normal, 1 anomaly, 255 ignored.

    NaN and negative values are ignored (255); the others mean what `coding_of` says: 0 and 1 with 255 ignored, or 0 and 255, or greys of a
    picture. In an array, or a file that is no picture, other values number the objects of the scene: all above 0 are anomalies, 255 too.

    So a truth with ignored pixels must be written with its anomalies as 1, and needs at least one of them.

    Args:
        values: (H, W) real numbers or bool; axes of length 1 beside them are dropped.
        source: the file, whose suffix tells pictures (PNG, BMP, JPEG) from arrays, and for messages.

    Returns:
        (H, W) int64 of 0, 1 and 255.

    Raises:
        SceneFormatError: the array is empty, not 2-D, or neither numbers nor bool, or a picture holds numbers other than 0 and 1, and no
            white.
    """
    _check_real(values, source)
    plane = values
    if values.ndim == 3:
        plane = values[..., 0] if values.shape[-1] == 1 else values[0] if values.shape[0] == 1 else values
    if plane.ndim != 2:
        raise SceneFormatError(f"Expected a truth map of shape (H, W) in '{source}', but got {values.shape}. Pick one channel of it.")
    void = np.isnan(plane) | (plane < 0)
    found = np.unique(plane[~void]).tolist()
    coding = coding_of(source, lambda: found)
    if coding == "numbers" and _is_picture(source):
        raise SceneFormatError(
            f"Expected a picture of 0 and 1, or of black and white with values above 127, in '{source}', but got the values "
            f"[{', '.join(f'{value:g}' for value in found[:16])}]. Store 0 and 255, or numbered objects as .npy, .mat or .tif."
        )
    marked, known = marked_pixels(plane, "numbers" if coding == "grey" and not _is_picture(source) else coding)
    mask = np.where(marked, ANOMALY, NORMAL).astype(np.int64)
    mask[void | ~known] = IGNORE
    return torch.from_numpy(mask)


def _is_picture(source: str | Path) -> bool:
    return is_lossy(source) or Path(source).suffix.lower() in PICTURE_SUFFIXES


def _bands_first(array: np.ndarray[Any, Any], path: Path, bands: Sequence[int] | None) -> np.ndarray[Any, Any]:
    if array.ndim not in (2, 3):
        raise SceneFormatError(
            f"Expected an image of shape (H, W, C) or (H, W) in '{path}', but got {array.shape}. Store one scene a file."
        )
    stored = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return _float32(stored if bands is None else stored[kept_bands(len(stored), bands, path)], path)


def _float32(array: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
    _check_real(array, path)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and so a pixel without data
        return np.require(array, np.float32, ["C", "W"])


def _check_real(array: np.ndarray[Any, Any], source: str | Path) -> None:
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise SceneFormatError(
            f"Expected a non-empty array of real numbers in '{source}', but got {array.shape} of {array.dtype}. "
            "Take the magnitude of complex data, and unpack cells and structures."
        )


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    if not path.is_file():
        raise SceneNotFoundError(f"Expected a NumPy file at '{path}', but there is none. Check the path.")
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SceneFormatError(
            f"Expected a NumPy array of numbers in '{path}', but reading failed with {error}. Save it again with numpy.save."
        ) from error
    return array


def scene_name(path: Path) -> str:
    """Name a scene after its file: the stem, also of ENVI pairs like ``scene.img`` with ``scene.img.hdr``.

    Args:
        path: the scene's file.

    Returns:
        The name without suffixes of format.
    """
    stem = Path(path.stem)
    return stem.stem if path.suffix.lower() == ".hdr" and stem.suffix.lower() in ENVI_DATA_SUFFIXES else path.stem


def find_scenes(root: Root) -> list[Path]:
    """List the scene files that a folder, a glob pattern, a file, or a list of these names.

    Args:
        root: a folder (the readable files directly in it), a pattern such as ``"scenes/**/*.mat"``, a file, or a list of these. Folders and
            patterns leave out hidden files, what lies in hidden folders unless the pattern names these, and ENVI data files without a
            header. An ENVI pair counts once, by its header.

    Returns:
        Paths, sorted within each entry of the list, each once.

    Raises:
        SceneNotFoundError: an entry names no readable scene.
    """
    entries = [root] if isinstance(root, (str, Path)) else list(root)
    found: dict[Path, None] = {}
    for entry in entries:
        path = Path(entry).expanduser()
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = _scenes_among(path.iterdir())
        else:
            files = _scenes_among(_matching(path))
        if not files:
            raise _nothing_found(entry, path)
        found.update(dict.fromkeys(files))
    if not found:
        raise _nothing_found(root, None)
    return list(found)


def _matching(pattern: Path) -> list[Path]:
    """List what a glob pattern names, without hidden files and folders that it does not name itself."""
    fixed = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), pattern.parts))
    if fixed == pattern:
        return []
    below = str(pattern.relative_to(fixed))
    return [path for path in fixed.glob(below) if not is_hidden(path.relative_to(fixed), below)]


def _scenes_among(files: Iterable[Path]) -> list[Path]:
    scenes: set[Path] = set()
    for file in files:
        suffix = file.suffix.lower()
        if file.name.startswith(".") or not file.is_file():
            continue
        header = envi_header(file) if suffix in ENVI_DATA_SUFFIXES else None
        if header is not None:
            scenes.add(header)
        elif suffix in SCENE_SUFFIXES and suffix not in ENVI_DATA_SUFFIXES:
            scenes.add(file)
    return sorted(scenes)


def find_mask(folder: Path, scene: Path) -> Path | None:
    """Find the truth of a scene in a folder of truths.

    Args:
        folder: holds truths under the scenes' stems, in any case of letters.
        scene: the scene's file. In its own folder only a .png or .bmp can be its truth.

    Returns:
        The first file in the order of ``MASK_SUFFIXES``, or None.
    """
    suffixes = PICTURE_SUFFIXES if folder.resolve() == scene.parent.resolve() else MASK_SUFFIXES
    return file_beside(folder, [f"{scene_name(scene)}{suffix}" for suffix in suffixes])


def find_masks(folder: Path, scenes: Sequence[Path]) -> dict[Path, Path | None]:
    """Find the truths of scenes in a folder of truths, as `find_mask` does.

    Returns:
        The truth of each scene, or None. A warning lists the scenes without one where others have theirs.
    """
    masks = {path: find_mask(folder, path) for path in scenes}
    lacking = [scene_name(path) for path, mask in masks.items() if mask is None]
    if 0 < len(lacking) < len(scenes):
        warnings.warn(
            f"{len(lacking)} of {len(scenes)} scenes have no truth in '{folder}' under their name and one of {MASK_SUFFIXES}, and count as "
            f"unlabelled: {lacking[:16]}{', ...' if len(lacking) > 16 else ''}.",
            stacklevel=3,
        )
    return masks


def _nothing_found(looked_for: object, path: Path | None) -> SceneNotFoundError:
    state = "a folder without one" if path is not None and path.is_dir() else "nothing there"
    return SceneNotFoundError(
        f"Expected scenes ({', '.join(SCENE_SUFFIXES)}) at {str(looked_for)!r}, but found {state} (looked from '{Path.cwd()}'). "
        "Either correct root= to a folder, file, glob or list that holds them, or copy or convert your scenes there."
    )
