"""Load any method from its checkpoint alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomseg.checkpoint_file import read_checkpoint
from anomseg.config import argument_names, locate
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
        CheckpointError: the file is no checkpoint of this library, needs a class that is not there, or holds arguments that the class does
            not take.
    """
    checkpoint = read_checkpoint(path)
    class_path = checkpoint["hyper_parameters"]["_class_path"]
    module, _, name = class_path.rpartition(".")
    cls = locate(class_path) if module.split(".")[0] == "anomseg" else getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, AnomalySegmenter)):
        raise CheckpointError(
            f"Expected '{path}' to name a method, but it names '{class_path}'. Import the module that defines that class first."
        )
    method = _built(cls, checkpoint["hyper_parameters"], path)
    method.configure_model()
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=method.strict_loading)
    return method.eval()


def _built(cls: type[AnomalySegmenter], saved: Mapping[str, Any], path: str | Path) -> AnomalySegmenter:
    # Not `load_from_checkpoint`: where a constructor takes **, Lightning hands it the class path too.
    own, handed_on = argument_names(cls)
    arguments = {name: saved[name] for name in (*own, *handed_on) if name in saved}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"Expected {cls.__qualname__} to take the arguments {sorted(arguments)} that '{path}' holds, but got: {error}. If the class "
            "has changed, load with the version that saved it; an argument of a base that its constructor sets must be in its signature."
        ) from error
