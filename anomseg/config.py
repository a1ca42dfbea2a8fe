"""Describe objects as plain data and build them again, so that checkpoints load with `weights_only=True`.

An object is described by its class path and its constructor arguments, read from attributes **of the same name**: a class of this library
keeps every constructor argument under its own name. One whose constructor takes ** hands the rest on to its base, and keeps what the base
keeps; what it sets for the base itself must stand in its own signature. Classes of this library are built again, and those that derive from
them in a module that is imported already: a checkpoint can neither import a module nor call what is not a component.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

PLAIN = (str, int, float, bool, type(None))


def argument_names(cls: type) -> tuple[list[str], list[str]]:
    """Name the arguments that a constructor takes.

    Args:
        cls: the class.

    Returns:
        Those in its signature; and those that it hands on with ``**``: of the next class in the order of inheritance that has a
        constructor, and so on while that one takes ``**`` as well.
    """
    names: list[list[str]] = []
    for owner in (base for base in cls.__mro__ if "__init__" in vars(base)):
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        names.append([p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)])
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    own, *inherited = names
    return own, list(dict.fromkeys(name for part in inherited for name in part if name not in own))


def arguments_of(obj: object) -> dict[str, Any]:
    """Read the constructor arguments of an object back as plain data.

    Args:
        obj: an object whose class keeps each constructor argument as an attribute of the same name.

    Raises:
        TypeError: an argument is neither plain nor described by a class of this library.
    """
    own, handed_on = argument_names(type(obj))
    names = [*own, *(n for n in handed_on if hasattr(obj, n))]
    return {n: describe(getattr(obj, n), f"{type(obj).__name__}.{n}") for n in names}


def describe(value: Any, where: str = "value") -> Any:
    """Turn a value into plain data.

    Numbers and strings stay, or become the plain type that they are a kind of (scalars of NumPy, members of an enum of strings), containers
    become lists and dicts, a dataclass of this library becomes a dict of its fields (the command line takes it in this form), any other
    object of this library, or a dataclass under an abstract class, becomes {class_path, init_args}, and so does an object of your own whose
    class derives from one of this library.

    Raises:
        TypeError: there is something else, or a class that could not be found again by its path.
    """
    value = _plain(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [describe(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): describe(v, where) for k, v in value.items()}
    cls = type(value)
    # A dataclass that is one of several kinds needs its class path.
    if dataclasses.is_dataclass(cls) and cls.__module__.split(".")[0] == "anomseg" and not any(map(inspect.isabstract, cls.__mro__)):
        return {f.name: describe(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value) if f.init}
    path = f"{cls.__module__}.{cls.__qualname__}"
    if not _is_component(cls):
        raise TypeError(
            f"Expected {where} to be plain data or an object of anomseg, but got {path}. A checkpoint stores constructor arguments as "
            "plain data only: derive the class from one of anomseg, such as Calibration, and keep each argument under its own name."
        )
    if _imported(path) is not cls:
        raise TypeError(f"Expected the class of {where} at the top of a module, so that a checkpoint can name it, but got {path}.")
    return {"class_path": path, "init_args": arguments_of(value)}


def _is_component(cls: Any) -> bool:
    """Tell whether a class is one of this library or derives from one."""
    return inspect.isclass(cls) and any(base.__module__.split(".")[0] == "anomseg" for base in cls.__mro__)


def _imported(class_path: str) -> Any:
    """Find what a dotted path names among the modules that are imported, or None."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _plain(value: Any) -> Any:
    # A float64 of NumPy is a float, and a member of an enum of strings is a str, but with `weights_only=True` only the very types load.
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return str.__str__(value)  # `str(value)` of an enum would give the name of the member
    if isinstance(value, int):
        return value if isinstance(value, bool) else int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def build(value: Any, dataclass: type | None = None) -> Any:
    """Build what `describe` described; plain data and finished objects pass unchanged.

    Args:
        value: plain data or an object.
        dataclass: the class that a dict of fields stands for.

    Raises:
        ValueError: a class path names no component; see `locate`.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        found: Any = locate(value["class_path"])
        arguments = {k: build(v) for k, v in (value.get("init_args") or {}).items()}
        return found(**(_with_tuples(arguments) if dataclasses.is_dataclass(found) else arguments))
    if isinstance(value, Mapping) and dataclass is not None:
        return dataclass(**_with_tuples(value))
    return [build(v) for v in value] if isinstance(value, list) else value


def _with_tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists into tuples, which the fields of frozen dataclasses are."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def locate(class_path: str) -> Any:
    """Import a class of this library by its dotted path, or find one that derives from them where it is imported already.

    Raises:
        ValueError: the path names nothing in this library, or outside of it no class that derives from one of this library and is imported.
    """
    module, _, name = class_path.rpartition(".")
    if module.split(".")[0] != "anomseg":
        own = _imported(class_path)
        if not _is_component(own):
            raise ValueError(
                f"Expected a class of anomseg, or one that derives from them in a module that is imported already, but got '{class_path}'. "
                "Import the module that defines it first; checkpoints of other libraries are not loaded."
            )
        return own
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected '{class_path}' in this version of anomseg, but it is not there ({error}).") from error
    if not (inspect.isclass(found) and (dataclasses.is_dataclass(found) or found.__module__ == module)):
        raise ValueError(f"Expected '{class_path}' to be a class of anomseg, but got {found!r}.")
    return found


def check_choices(described: object) -> None:
    """Check that every field of a dataclass that is typed as a `Literal` holds one of its values.

    Args:
        described: an object whose class can be read at run time, with all names of its annotations.

    Raises:
        ValueError: a field holds another value.
    """
    for name, hint in get_type_hints(type(described)).items():
        allowed, value = _choices(hint), getattr(described, name)
        if allowed and value not in allowed:
            raise ValueError(f"Expected {type(described).__name__}.{name} of {allowed}, but got {value!r}.")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Name the values that a `Literal`, or a union of them, allows; nothing where other values are allowed as well."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) not in (Union, UnionType):
        return (None,) if hint is NoneType else ()
    parts = [_choices(part) for part in get_args(hint)]
    return tuple(value for part in parts for value in part) if all(parts) else ()


def size_empty_buffers(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give buffers that are empty before fitting the size that they have in a saved state, so that it can be loaded.

    Args:
        module: the module, changed in place; buffers that already hold something are left alone.
        state: a state dict of the same module after fitting.
    """
    for name, buffer in list(module.named_buffers()):
        saved = state.get(name)
        if saved is not None and not buffer.numel() and saved.numel():
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, saved.new_empty(saved.shape, device=buffer.device))


def size_before_loading(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Size the empty buffers of a module wherever a state is loaded into it, with a checkpoint or without; a hook of `load_state_dict`."""
    size_empty_buffers(module, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
