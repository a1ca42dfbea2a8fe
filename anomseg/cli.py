"""The Lightning command line, with short names, models from checkpoints, and errors one can act on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.checkpoint_file import read_checkpoint
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import USER_ERRORS, CheckpointError
from anomseg.methods.base import AnomalySegmenter
from anomseg.registry import TABLE, Kind, class_path
from anomseg.report.tables import figure_table
from anomseg.version import __version__

COMMANDS = ("fit", "validate", "test", "predict")
KINDS: dict[str, Kind] = {"--model": "method", "--data": "data"}


def expand_short_names(words: Sequence[str]) -> list[str]:
    """Turn `--model RX` and `--data=Hyperspectral` into class paths; other words pass unchanged.

    Raises:
        ValueError: a name is neither in the table nor a path.
    """
    expanded, option = [], ""
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in KINDS:
            expanded.append(f"{key}={_class_path(key, value)}")
        elif option in KINDS:
            expanded.append(_class_path(option, word))
        else:
            expanded.append(word)
        option = word
    return expanded


def _class_path(option: str, name: str) -> str:
    """Find the class path behind a short name; paths and JSON pass unchanged."""
    if "." in name or "{" in name:
        return name
    found = class_path(name, KINDS[option])
    if found is None:
        known = ", ".join(entry.short_name for entry in TABLE if entry.kind == KINDS[option])
        raise ValueError(f"Expected {option} to be one of {known}, or a class path, but got '{name}'. See `anomseg list`.")
    return found


def _value_of(option: str, words: Sequence[str]) -> str | None:
    found = None
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            found = words[index + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def model_from_checkpoint(words: Sequence[str]) -> list[str]:
    """Put the class and arguments of the checkpoint before the other options, so that options given by hand win.

    Args:
        words: a command and its options, with `--ckpt_path FILE` among them or not.

    Returns:
        The words, with `--model={...}` after the command where a checkpoint is evaluated.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the file is no checkpoint of this library, or of another class than `--model` names.
    """
    path = _value_of("--ckpt_path", words)
    if path is None or words[0] not in ("validate", "test", "predict") or path in ("best", "last"):
        return list(words)
    arguments = dict(read_checkpoint(path)["hyper_parameters"])
    saved = arguments.pop("_class_path")
    asked = _value_of("--model", words)
    if asked is not None and asked != saved:
        raise CheckpointError(f"Expected a checkpoint of {asked}, but '{path}' holds {saved}. Leave --model out to take the class from it.")
    rest = [w for i, w in enumerate(words) if not (w == "--model" or w.startswith("--model=") or (i and words[i - 1] == "--model"))]
    return [rest[0], f"--model={json.dumps({'class_path': saved, 'init_args': arguments})}", *rest[1:]]


class CommandLine(LightningCLI):
    """Add where predictions go, and print the figures as a table."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--output`."""
        parser.add_argument("--output", type=str, default="anomseg-output", help="Folder for the maps that `predict` writes.")

    def _parse_ckpt_path(self) -> None:
        """Leave arguments as they are: `model_from_checkpoint` has put those of the checkpoint first."""

    def before_predict(self) -> None:
        """Write scenes unless the configuration names a writer of its own."""
        callbacks = self._callbacks()
        if not any(isinstance(callback, SceneWriter) for callback in callbacks):
            callbacks.append(SceneWriter(self.config.predict.output))

    def after_predict(self) -> None:
        """Say what was written."""
        for callback in self._callbacks():
            if isinstance(callback, SceneWriter):
                print(f"wrote {len(callback.written)} files to {callback.folder}")

    def _callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]  # Lightning sets the attribute without declaring it
        return callbacks

    def after_fit(self) -> None:
        """Say where the checkpoint is."""
        callback = self.trainer.checkpoint_callback
        path = getattr(callback, "best_model_path", "")
        if path:
            print(f"checkpoint: {path}")

    def after_validate(self) -> None:
        """Print the validation figures."""
        print(figure_table(self.trainer.callback_metrics, "val_"))

    def after_test(self) -> None:
        """Print the test figures."""
        print(figure_table(self.trainer.callback_metrics, "test_"))


def run(words: Sequence[str]) -> CommandLine:
    """Run fit, validate, test or predict.

    Args:
        words: the command and its options.

    Returns:
        The command line, whose `trainer.callback_metrics` holds the figures.

    Raises:
        SystemExit: the options or the data are wrong; one line on standard error says what was expected, what came and what to do. With
            the variable ANOMSEG_TRACEBACK set, the error itself is raised.
    """
    if words[0] not in COMMANDS:
        raise SystemExit(f"anomseg: expected one of {', '.join(COMMANDS)}, demo, list, but got '{words[0]}'. See `anomseg --help`.")
    for noise in (
        ".*does not have many workers.*",  # scenes are read once and kept
        ".*LightningCLI's args parameter.*",  # words were rewritten on purpose
        ".*`tensorboardX` has been removed.*",
        ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6 with torch 2.15
        ".*was deprecated in v4.49.0.*",  # lightning 2.6 with jsonargparse 4.53
        "(?s).*skip_none parameter was deprecated.*",
        ".*smaller than the logging interval.*",
        ".*The dirpath has changed from.*",  # evaluating a checkpoint of another run is what `test` and `predict` are for
        ".*exists and is not empty.*",
        "Image AUROC is undefined.*",  # a folder of scenes has no normal image
    ):
        warnings.filterwarnings("ignore", noise)
    try:
        return CommandLine(
            AnomalySegmenter,
            SceneDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"version": __version__},
            args=model_from_checkpoint(expand_short_names(words)),
        )
    except (*USER_ERRORS, FileNotFoundError, ValueError) as error:
        ours = not isinstance(error, ValueError) or str(error).startswith("Expected ")  # as every message of this library begins
        if os.environ.get("ANOMSEG_TRACEBACK") or not ours:
            raise
        raise SystemExit(f"anomseg: {error}") from error
