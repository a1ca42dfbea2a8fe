"""Read the file of a checkpoint, and nothing that could run code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from anomseg.errors import CheckpointError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, and check that a method of this library wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, holds more than tensors and plain data, or comes from elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a checkpoint at '{path}', but there is no such file. `trainer.fit` writes them below its log folder."
        )
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, UnpicklingError):  # torch then advises what would run the code in the file
            reason = "it holds something else."
        raise CheckpointError(
            f"Expected '{path}' to be a complete checkpoint of tensors and plain data, but it could not be read: {reason} "
            "Files that need more than `weights_only=True` are not loaded, because they can run code."
        ) from error
    if not isinstance(checkpoint, dict) or "anomseg_version" not in checkpoint:
        keys = sorted(checkpoint)[:8] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(
            f"Expected a checkpoint that a method of anomseg wrote, but '{path}' holds {keys}. "
            "Train with this library, or load the weights by hand."
        )
    return checkpoint
