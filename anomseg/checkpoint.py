"""Load any method from its checkpoint alone."""

from __future__ import annotations

import sys
from pathlib import Path

from anomseg.checkpoint_file import read_checkpoint
from anomseg.config import locate
from anomseg.errors import CheckpointError
from anomseg.methods.base import AnomalySegmenter


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
