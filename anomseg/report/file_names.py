"""Where the files of a scene go."""

from __future__ import annotations

from pathlib import Path


def file_of_scene(folder: str | Path, name: str, ending: str) -> Path:
    """Give the file of a scene below a folder.

    Args:
        folder: that files are written to.
        name: of the scene; it may hold subfolders.
        ending: what follows the name, with the suffix, such as `_change.png`.

    Returns:
        `<folder>/<name><ending>`; nothing is made.

    Raises:
        ValueError: the name leads out of the folder.
    """
    folder = Path(folder)
    path = folder / f"{name}{ending}"
    place = path.parent.resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(
            f"Expected scene names that stay below the folder '{folder}', but '{name}' would write into '{place}'. "
            f"Give the sample a relative name without '..', such as '{Path(str(name)).name}'."
        )
    return path
