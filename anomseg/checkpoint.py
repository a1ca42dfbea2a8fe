"""Load any method from its checkpoint alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from anomseg.config import locate
from anomseg.errors import CheckpointError
from anomseg.methods.base import AnomalySegmenter


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


def load(path: str | Path) -> AnomalySegmenter:
    """Load a fitted method, with its weights, fitted state and calibration, ready to predict on the CPU.

    Args:
        path: a checkpoint that `trainer.fit` or `trainer.save_checkpoint` wrote. A class from outside this library must be imported before.

    Returns:
        The method in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint of this library, or needs a class that is not there.
    """
    checkpoint = read_checkpoint(path)
    class_path = checkpoint["hyper_parameters"]["_class_path"]
    module, _, name = class_path.rpartition(".")
    cls = locate(class_path) if module.split(".")[0] == "anomseg" else getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, AnomalySegmenter)):
        raise CheckpointError(
            f"Expected '{path}' to name a method, but it names '{class_path}'. Import the module that defines that class first."
        )
    method: AnomalySegmenter = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return method.eval()
