"""The Lightning command line, with short names, models from checkpoints, and errors one can act on."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.checkpoint_file import read_checkpoint
from anomseg.cli_errors import explain, told
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.errors import USER_ERRORS, CheckpointError
from anomseg.methods.base import AnomalySegmenter
from anomseg.registry import TABLE, Kind, class_path
from anomseg.report.tables import figure_table
from anomseg.version import __version__

COMMANDS = ("fit", "validate", "test", "predict")
KINDS: dict[str, Kind] = {"--model": "method", "--data": "data"}
NO_FILES = ("best", "last", "hpc", "null")  # what `--ckpt_path` takes beside files


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


def _without_model(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part other words from those that set the model: `--model RX`, `--model={...}`, `--model.mode local` and the like."""
    others, own, awaits_value = list[str](), list[str](), False
    for word in words:
        key, equals, _ = word.partition("=")
        sets_model = key == "--model" or key.startswith("--model.")
        (own if sets_model or (awaits_value and not word.startswith("--")) else others).append(word)
        awaits_value = sets_model and not equals
    return others, own


def _saved_model(path: str) -> dict[str, Any]:
    arguments = dict(read_checkpoint(path)["hyper_parameters"])
    return {"class_path": arguments.pop("_class_path"), "init_args": arguments}


def _check_class(named: str, saved: str, path: str) -> None:
    """Refuse a class path that leads to another class than that of a checkpoint; `anomseg.RX` is `anomseg.methods.rx.RX`."""
    module, _, name = named.rpartition(".")
    with suppress(ImportError, ValueError, AttributeError):
        found = getattr(import_module(module), name)
        named = f"{found.__module__}.{found.__qualname__}"
    if named != saved:
        raise CheckpointError(
            f"Expected a checkpoint of {named}, which the options or a configuration file name, but '{path}' holds {saved}. "
            f"Give a checkpoint of that class, or overrule the file with --model {saved}."
        )


def parse_with_checkpoint(parser: LightningArgumentParser, words: Sequence[str], path: str) -> Namespace:
    """Parse words so that class and arguments of a checkpoint stand above configuration files and below `--model` words.

    Args:
        parser: of all commands.
        words: a command and its options.
        path: the checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the file is no checkpoint of this library, or of another class than the one named.
    """
    saved = _saved_model(path)
    model, class_path = f"--model={json.dumps(saved)}", saved["class_path"]
    others, own = _without_model(words)
    others.append(f"--ckpt_path={path}")  # last, so that no configuration file brings the weights of another
    asked = _value_of("--model", own)
    if asked is None:  # then the class that configuration files name counts, and it shows where they come last
        silent = [word for word in others[1:] if not word.startswith("--print_config")]
        _check_class(parser.parse_args([others[0], model, *silent])[others[0]].model.class_path, class_path, path)
    elif "{" not in asked and not Path(asked).is_file():
        _check_class(asked, class_path, path)
    config = parser.parse_args([*others, model, *own])
    _check_class(config[others[0]].model.class_path, class_path, path)  # of JSON or a file, too
    return config


def _output_folder(path: str) -> Path:
    folder = Path(path)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"Expected --output to name a folder, but '{there}' is a file. Name another folder, or move that file.")
    return folder


class LineEnd(Callback):
    """End the line of a progress bar when an error comes, so that its message has a line of its own."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print a line end where there is a bar."""
        if trainer.progress_bar_callback is not None:
            print(flush=True)


class CommandLine(LightningCLI):
    """Add where predictions go, and print the figures as a table."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--output`."""
        parser.add_argument("--output", type=str, default="anomseg-output", help="Folder for the maps that `predict` writes.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words; where a checkpoint is evaluated, its model stands above configuration files and below `--model` words.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            CheckpointError: the file is no checkpoint of this library, or of another class than the one named.
            ValueError: the words cannot be parsed.
        """
        words = list(cast(Sequence[str], args))  # as `run` gives them
        try:
            self._parse(parser, words)
        except ArgumentError as error:
            options = re.findall(r"--[\w.]+", self._parser(words[0]).format_usage())
            raise ValueError(explain(str(error), words[0], options)) from error

    def _parse(self, parser: LightningArgumentParser, words: Sequence[str]) -> None:
        command, path = words[0], _value_of("--ckpt_path", words)
        if command == "fit" or path is None or path in NO_FILES:
            self.config = parser.parse_args(words)
            path = self.config[command].get("ckpt_path")  # a configuration file may name it
        if path is None or path in NO_FILES:
            return
        if command != "fit":
            self.config = parse_with_checkpoint(parser, words, path)
        elif Path(path).is_file():  # training goes on with the arguments at hand, but in the same class
            _check_class(self.config.fit.model.class_path, _saved_model(path)["class_path"], path)

    def _parse_ckpt_path(self) -> None:
        """Leave arguments as they are: `parse_arguments` has set those of the checkpoint."""

    def before_predict(self) -> None:
        """Write scenes unless the configuration names a writer of its own, and keep none in memory unless asked to.

        Raises:
            ValueError: `--output` names a file.
        """
        given = self.config_init["predict"]
        if given["return_predictions"] is None:
            given["return_predictions"] = False
        callbacks = self._callbacks()
        if not any(isinstance(callback, SceneWriter) for callback in callbacks):
            callbacks.append(SceneWriter(_output_folder(given["output"])))

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
        self._say_what_is_undefined("val_")

    def after_validate(self) -> None:
        """Print the validation figures."""
        print(figure_table(self.trainer.callback_metrics, "val_"))
        self._say_what_is_undefined("val_")

    def after_test(self) -> None:
        """Print the test figures."""
        print(figure_table(self.trainer.callback_metrics, "test_"))
        self._say_what_is_undefined("test_")

    def _say_what_is_undefined(self, prefix: str) -> None:
        if math.isnan(self.trainer.callback_metrics.get(f"{prefix}auroc", 0.0)):
            print(
                "no pixels of both classes: AUROC and what else needs them is NaN. Without truth, or with normal images alone, that is "
                "as it should be, and the heat map is calibrated all the same; else see whether the masks are complete."
            )


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
        ".*`tensorboardX` has been removed.*",
        ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6 with torch 2.15
        ".*was deprecated in v4.49.0.*",  # lightning 2.6 with jsonargparse 4.53
        "(?s).*skip_none parameter was deprecated.*",
        ".*smaller than the logging interval.*",
        ".*The dirpath has changed from.*",  # evaluating a checkpoint of another run is what `test` and `predict` are for
        ".*exists and is not empty.*",
        "Image AUROC is undefined.*",  # a folder of scenes has no normal image
        ".* is undefined without (normal|anomalous) pixels.*",  # said in one line at the end
    ):
        warnings.filterwarnings("ignore", noise)
    try:
        return CommandLine(
            AnomalySegmenter,
            SceneDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"callbacks": LineEnd()},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"version": __version__, "exit_on_error": False},
            args=expand_short_names(words),
        )
    except (*USER_ERRORS, FileNotFoundError, ValueError) as error:
        text = told(error) if isinstance(error, ValueError) else str(error)
        if os.environ.get("ANOMSEG_TRACEBACK") or text is None:
            raise
        raise SystemExit(f"anomseg: {text}") from error
