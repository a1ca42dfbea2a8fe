"""Find the files that a template of paths names, and what its words stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

Matches = list[tuple[Path, dict[str, str]]]


def matching_files(folder: Path, template: str, suffixes: Sequence[str]) -> Matches:
    """List the files below a folder that fit a template.

    Args:
        folder: the root of the template.
        template: path with slashes. ``{word}`` stands for anything without a slash, the same where it occurs again; ``*`` for anything
            without a slash, as little as possible.
        suffixes: in small letters, of the files that count.

    Returns:
        (file, what each word stands for), sorted by path. Hidden files and what lies in hidden folders are left out, unless the template
        names them.
    """
    pattern, seen = "", set()
    for piece in re.split(r"(\{\w+\}|\*)", template):
        word = piece[1:-1]
        if piece == "*":
            pattern += "[^/]*?"  # as little as it can, or it would take the beginning of a name that follows
        elif piece.startswith("{"):
            pattern += f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+)"
            seen.add(word)
        else:
            pattern += re.escape(piece)
    listed: Matches = []
    for path in sorted(folder.glob(re.sub(r"\{\w+\}", "*", template))):
        below = path.relative_to(folder)
        match = re.fullmatch(pattern, below.as_posix())
        if match is not None and path.suffix.lower() in suffixes and not is_hidden(below, template) and path.is_file():
            listed.append((path, match.groupdict()))
    return listed


def is_hidden(path: Path, template: str) -> bool:
    """Say whether a part of a path begins with a dot where no part of a template does.

    Args:
        path: relative to the folder of the template.
        template: the pattern or template that found it.
    """
    named = any(part.startswith(".") for part in Path(template).parts)
    return not named and any(part.startswith(".") for part in path.parts)
