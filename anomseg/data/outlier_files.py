"""List the pictures of a folder, and keep the latest of them in memory, for as long as the files stay as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def changed_at(path: Path) -> int:
    """Give the time of the last change of a file, or of the entries of a folder, in nanoseconds; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def visible_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, deep: bool = False) -> tuple[Path, ...]:
    """List the files of a folder, sorted; hidden ones, such as those that macOS adds to each picture, are left out.

    Args:
        folder: need not be there.
        suffixes: of the files, in lower case.
        deep: whether to search the folders in it, too. What is added to those later is not seen by a process that has listed them.
    """
    return _listed(folder, suffixes, deep, changed_at(folder))


@lru_cache(maxsize=16)
def _listed(folder: Path, suffixes: tuple[str, ...], deep: bool, changed: int) -> tuple[Path, ...]:
    found = folder.rglob("*") if deep else folder.glob("*")
    shown = (path for path in found if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return tuple(sorted(shown))


class PictureMemory:
    """Hold pictures as bytes, the latest ones, up to a number of bytes; one that alone exceeds it is held until the next one comes."""

    def __init__(self, limit: int) -> None:
        """Store the limit in bytes."""
        self.limit = limit
        self._held: OrderedDict[tuple[object, Path, int], Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Give the bytes that are held."""
        return sum(picture.nbytes for picture in self._held.values())

    def get(self, path: Path, read: Callable[[Path], Tensor]) -> Tensor:
        """Give a picture, read anew only if it is not held or its file has changed.

        Args:
            path: of the picture.
            read: gives it as (C, H, W) in [0, 1], with values of whole bytes.

        Returns:
            (C, H, W) uint8; not to be written to.
        """
        key = (read, path, changed_at(path))
        if key not in self._held:
            self._held[key] = (read(path) * 255).round().byte()
        self._held.move_to_end(key)
        while len(self._held) > 1 and self.nbytes > self.limit:
            self._held.popitem(last=False)
        return self._held[key]
