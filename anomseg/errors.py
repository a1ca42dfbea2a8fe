"""Errors that name what was expected, what came and what to do."""

from __future__ import annotations


class NotFittedError(RuntimeError):
    """Raise when fitted state is used before the call that fits it."""


class SceneNotFoundError(FileNotFoundError):
    """Raise when a folder, glob or list names no readable scene."""


class SceneFormatError(ValueError):
    """Raise when a file is there but does not hold what a scene needs."""


class MissingDependencyError(ImportError):
    """Raise when an optional reader or exporter is not installed; the message names the extra."""


class CheckpointError(ValueError):
    """Raise when a file is no checkpoint of this library, or of another class than the one asked for."""


USER_ERRORS = (NotFittedError, SceneNotFoundError, SceneFormatError, MissingDependencyError, CheckpointError)
