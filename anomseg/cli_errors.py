"""Words of the command line that cannot be parsed, in one line: what was expected, what came, what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from anomseg.config import argument_names

REQUIRED = re.compile(r"arguments are required: \w+\.(\w+)")
KEY = re.compile(r'( *)Parser key "(\w+)"')
CLASS = re.compile(r"given class_path '([\w.]+)'")
REFUSED = re.compile(r"(?:Option '|unrecognized arguments: --|does not accept option ')([\w.]+)")
NOISE = re.compile(r"$|Given value|Subtypes:|Errors:|Does not validate against|Expected a <class 'NoneType'>")
NEEDED = {
    "model": "--model with the name of a method, such as --model RX, or --config with a file that holds one",
    "data": "--data with the name of a data module, such as --data Hyperspectral, or --config with a file that holds one",
}


def explain(message: str, command: str, options: Sequence[str]) -> str:
    """Say in one line what is wrong with the words of a command.

    Args:
        message: of jsonargparse, in several lines; one in a form that is not known is given without the lines that say nothing.
        command: fit, validate, test or predict.
        options: those of the command, such as `--model`; the nearest of them is offered for one that it does not have.
    """
    if missing := REQUIRED.search(message):
        return _missing(missing[1], command)
    if refused := _refused(message):
        return refused
    if unknown := REFUSED.search(message):
        near = _nearest(f"--{unknown[1]}", options) or _nearest(f"--{unknown[1].partition('.')[0]}", options)
        return f"Expected options of `anomseg {command}`, but got --{unknown[1]}.{near} `anomseg {command} --help` lists them."
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if not NOISE.match(line))
    return f"Expected options as `anomseg {command} --help` lists them, but got: {text}"


def told(error: BaseException | None) -> str | None:
    """Find what this library says in an error, or in one that it was raised from: jsonargparse wraps what a constructor refuses.

    Args:
        error: as it was caught.

    Returns:
        The message, which begins with "Expected "; None where none of them is ours.
    """
    while error is not None:
        # An error of jsonargparse may begin likewise, and names types.
        if str(error).startswith("Expected ") and not NOISE.match(str(error)):
            return str(error)
        error = error.__cause__
    return None


def _missing(name: str, command: str) -> str:
    needed = NEEDED.get(name, f"--{name}")
    if name == "model" and command != "fit":
        needed = "--ckpt_path with the file that `anomseg fit` has written, which holds the method and what it has learnt"
    return f"Expected {needed}, but got none."


def _refused(message: str) -> str | None:
    """Say which name a class does not take, what is near to it, and what the class takes; None where that is not what is wrong."""
    keys: list[tuple[int, str]] = []
    classes: list[type] = []
    name, wrong = "", ""
    for line in message.splitlines():
        if (key := KEY.match(line)) and not classes:
            keys = [*(held for held in keys if held[0] < len(key[1])), (len(key[1]), key[2])]
        elif found := CLASS.search(line):
            name = found[1]
        elif keys and name and (unknown := REFUSED.search(line)):
            module, _, attribute = name.rpartition(".")
            classes.append(getattr(import_module(module), attribute))
            wrong = unknown[1]
    if not classes:
        return None
    option = ".".join([f"--{keys[0][1]}", *(key for _, key in keys[1:])])
    names = sorted({one for cls in classes for part in argument_names(cls) for one in part})
    near = _nearest(wrong, names, f"{option}.")
    title = " or ".join(cls.__name__ for cls in classes)
    return f"Expected an option of {title}, but got {option}.{wrong}.{near} There are {', '.join(names)}."


def _nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    near = get_close_matches(word, known, 1)
    return f" Did you mean {prefix}{near[0]}?" if near else ""
