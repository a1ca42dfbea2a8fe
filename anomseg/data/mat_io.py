"""Read cubes and truth maps from MATLAB files of every version, whatever their variables are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomseg.errors import MissingDependencyError, SceneFormatError, SceneNotFoundError

IMAGE_KEYS = ("data", "hsi", "image", "img", "X", "Sandiego")
MASK_KEYS = ("map", "gt", "groundtruth", "mask", "label", "PlaneGT")
_NUMERIC = frozenset({"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class _MatFile:
    """Hold what a MATLAB file lists before any array is read: its numeric variables and their shapes as MATLAB shows them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    hdf5: bool

    def listing(self) -> str:
        return ", ".join(f"'{key}' {shape}" for key, shape in self.shapes.items()) or "no numeric array"

    def read(self, key: str) -> np.ndarray[Any, Any]:
        try:
            if not self.hdf5:
                from scipy.io import loadmat

                stored: np.ndarray[Any, Any] = np.asarray(loadmat(self.path, variable_names=[key])[key])
                return stored
            with _open_hdf5(self.path) as file:
                cube: np.ndarray[Any, Any] = np.asarray(
                    file[key][()]
                ).T  # HDF5 stores MATLAB's column-major arrays with their axes reversed
                return cube
        except Exception as error:
            raise _unreadable(self.path, error) from error


def read_mat(
    path: Path, image_key: str | None = None, mask_key: str | None = None, with_mask: bool = True
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Read a cube, and its truth where the file holds one.

    The image is ``image_key``, else the first of ``IMAGE_KEYS`` with three axes, else the only array with three axes, else a 2-D array
    under one of those names or the only 2-D array that is not named like a truth. The truth is ``mask_key``, else the first of
    ``MASK_KEYS`` of the image's height and width, else the only other 2-D array of that size.

    Args:
        path: a ``.mat`` file of MATLAB 4 to 7.2, or 7.3 (HDF5).
        image_key: variable that holds the cube.
        mask_key: variable that holds the truth.
        with_mask: also look for a truth; False where it lies in a file of its own.

    Returns:
        The image (H, W, C) or (H, W) as stored, and the truth (H, W) as stored or None.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: the file cannot be read, a key is missing, or no image can be told apart; the message lists the keys.
        MissingDependencyError: the file is of version 7.3 and h5py is not installed.
    """
    file = _list(path)
    image_name = _explicit(file, image_key, "image_key") if image_key else _find_image(file)
    size = file.shapes[image_name][:2]
    if not with_mask:
        return file.read(image_name), None
    mask_name = _explicit(file, mask_key, "mask_key") if mask_key else _find_mask(file, image_name, size)
    return file.read(image_name), None if mask_name is None else file.read(mask_name)


def read_mat_mask(path: Path, mask_key: str | None = None) -> np.ndarray[Any, Any]:
    """Read a truth that lies in a file of its own.

    Args:
        path: a ``.mat`` file.
        mask_key: variable that holds the truth; by default the first of ``MASK_KEYS``, else the only 2-D array.

    Returns:
        (H, W) as stored.

    Raises:
        SceneNotFoundError: there is no such file.
        SceneFormatError: the file cannot be read, or no truth can be told apart; the message lists the keys.
        MissingDependencyError: the file is of version 7.3 and h5py is not installed.
    """
    file = _list(path)
    if mask_key:
        return file.read(_explicit(file, mask_key, "mask_key"))
    planes = [key for key, shape in file.shapes.items() if _is_plane(shape)]
    named = [key for key in MASK_KEYS if key in planes]
    if named or len(planes) == 1:
        return file.read((named or planes)[0])
    raise SceneFormatError(
        f"Expected one truth map in '{path}' (one of {MASK_KEYS}, or a single 2-D array), but found {file.listing()}. "
        "Name the variable with mask_key=."
    )


def _find_image(file: _MatFile) -> str:
    cubes = [key for key, shape in file.shapes.items() if len(shape) == 3]
    planes = [key for key, shape in file.shapes.items() if _is_plane(shape)]
    unnamed = [key for key in planes if key not in MASK_KEYS and key not in IMAGE_KEYS]
    for found in (_named(IMAGE_KEYS, cubes), cubes if len(cubes) == 1 else [], _named(IMAGE_KEYS, planes) if not cubes else []):
        if found:
            return found[0]
    if not cubes and len(unnamed) == 1:
        return unnamed[0]
    raise SceneFormatError(
        f"Expected one image in '{file.path}' (one of {IMAGE_KEYS}, or a single 3-D array), but found {file.listing()}. "
        "Name the variable with image_key=."
    )


def _find_mask(file: _MatFile, image_name: str, size: tuple[int, ...]) -> str | None:
    planes = [key for key, shape in file.shapes.items() if _is_plane(shape) and key != image_name]
    fitting = [key for key in planes if file.shapes[key][:2] == size]
    named = _named(MASK_KEYS, planes)
    for found in (_named(MASK_KEYS, fitting), fitting if len(fitting) == 1 and not named else []):
        if found:
            return found[0]
    if named:
        raise SceneFormatError(
            f"Expected a truth of {size} pixels to fit '{image_name}' in '{file.path}', but found {file.listing()}. "
            "Crop the image to its truth, or name the right variable with mask_key=."
        )
    return None


def _named(keys: Sequence[str], among: Sequence[str]) -> list[str]:
    return [key for key in keys if key in among]


def _is_plane(shape: tuple[int, ...]) -> bool:
    # MATLAB stores scalars and vectors as 2-D arrays too: those are settings and wavelengths, not maps.
    return (len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)) and min(shape[:2]) > 1


def _explicit(file: _MatFile, key: str, argument: str) -> str:
    if key not in file.shapes:
        raise SceneFormatError(f"Expected {argument}='{key}' in '{file.path}', but found {file.listing()}. Pass one of these keys.")
    return key


def _list(path: Path) -> _MatFile:
    if not path.is_file():
        raise SceneNotFoundError(f"Expected a MATLAB file at '{path}', but there is none. Check the path.")
    with path.open("rb") as stream:
        head = stream.read(1024)
    if _HDF5_SIGNATURE in (head[:8], head[512:520]):
        return _list_hdf5(path)
    from scipy.io import whosmat

    try:
        shapes = {key: tuple(shape) for key, shape, kind in whosmat(path) if kind in _NUMERIC}
    except Exception as error:
        raise _unreadable(path, error) from error
    return _MatFile(path, shapes, hdf5=False)


def _list_hdf5(path: Path) -> _MatFile:
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with _open_hdf5(path) as file:
            for key, item in file.items():
                kind = item.attrs.get("MATLAB_class", b"double")
                name = kind.decode() if isinstance(kind, bytes) else str(kind)
                if hasattr(item, "shape") and name in _NUMERIC and "MATLAB_empty" not in item.attrs:
                    shapes[key] = tuple(item.shape[::-1])
    except MissingDependencyError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return _MatFile(path, shapes, hdf5=True)


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"'{path}' is a MATLAB v7.3 file, which is HDF5, and h5py is not installed. "
            "Install it with: pip install 'anomseg[hyperspectral]', or save the file with MATLAB's option '-v7'."
        ) from error
    return h5py.File(path, "r")


def _unreadable(path: Path, error: Exception) -> SceneFormatError:
    return SceneFormatError(
        f"Expected a readable MATLAB file at '{path}' ({path.stat().st_size} bytes), but reading failed with "
        f"{type(error).__name__}: {error}. Is it cut short? Copy or download it again."
    )
