"""Which code runs a selective scan: by device, by what is installed, and by what was asked for.

| backend | runs on | gradient | when ``auto`` takes it |
|---|---|---|---|
| ``reference`` | anything | autograd keeps every state | never: it is what the others are tested against |
| ``pure`` | anything, and exports to ONNX | autograd keeps every state several times | for tangents, and in the older ONNX exporter |
| ``chunked`` | anything | own | wherever no kernel exists |
| ``triton`` | NVIDIA, compute capability 7.0 and newer, no compiler to install | own | CUDA tensors, where Triton is installed |
| ``mamba_ssm`` | NVIDIA, AMD: a compiled extension | own, not deterministic | CUDA tensors, where ``selective_scan_cuda`` imports |

A choice is made, from the strongest: the argument ``backend``, `use_scan_backend`, the variable ``ANOMSEG_SCAN_BACKEND``, ``auto``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

ScanBackend = Literal["auto", "reference", "pure", "chunked", "triton", "mamba_ssm"]
"""A name of what runs a scan."""

VARIABLE = "ANOMSEG_SCAN_BACKEND"
_CHOSEN: ContextVar[str] = ContextVar("anomseg_scan_backend", default="")


class BackendReport(NamedTuple):
    """Tell which backend runs on a device, and why."""

    backend: ScanBackend
    reason: str


@contextmanager
def use_scan_backend(backend: ScanBackend) -> Iterator[None]:
    """Run the scans inside of a ``with`` by one backend, unless a call names its own.

    Raises:
        ValueError: Where there is no such backend.
    """
    token = _CHOSEN.set(check_backend(backend))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def requested_backend(backend: ScanBackend = "auto") -> ScanBackend:
    """Return what was asked for: by the argument, the surrounding `use_scan_backend` or the environment; else ``auto``.

    Raises:
        ValueError: Where there is no such backend.
    """
    if backend != "auto":
        return check_backend(backend)
    return check_backend(_CHOSEN.get() or os.environ.get(VARIABLE) or "auto")


def check_backend(backend: str) -> ScanBackend:
    """Return the name, once it is known to be one.

    Raises:
        ValueError: Where there is no such backend.
    """
    if backend not in get_args(ScanBackend):
        raise ValueError(f"Expected a scan backend of {', '.join(get_args(ScanBackend))}, but got {backend!r}. Take 'auto'.")
    return cast(ScanBackend, backend)


def scan_backend(device: torch.device | str | None = None) -> BackendReport:
    """Report which backend runs a scan on ``device`` (default: the GPU where there is one, else the CPU), and why.

    Raises:
        ValueError: Where the backend that was asked for does not exist.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    asked = requested_backend()
    if asked != "auto":
        return BackendReport(asked, "asked for")
    if place.type != "cuda":
        return BackendReport("chunked", f"there is no kernel for {place.type}; pure PyTorch with its own gradient runs on any device")
    if not has_mamba_ssm():
        missing = "selective_scan_cuda does not import"
    elif torch.are_deterministic_algorithms_enabled():
        missing = "selective_scan_cuda is not deterministic, as was asked of PyTorch"
    else:
        return BackendReport("mamba_ssm", "selective_scan_cuda imports")
    if why := _triton_obstacle(place):
        return BackendReport("chunked", f"{missing}; {why}")
    return BackendReport("triton", f"{missing}; Triton compiles for this device")


def kernel_for(u: Tensor, backend: str) -> Literal["chunked", "triton"]:
    """Decide between the two implementations of the operator; warn once where a GPU has to do without a kernel.

    Raises:
        RuntimeError: Where ``triton`` was asked for and cannot run.
    """
    if backend == "triton":
        if obstacle := _triton_obstacle(u.device) or ("it computes in float32 only" if u.dtype == torch.float64 else ""):
            raise RuntimeError(f"Expected Triton to run on {u.dtype} on {u.device}, but {obstacle}. Take backend='auto'.")
        return "triton"
    if backend == "chunked" or u.device.type != "cuda":
        return "chunked"
    if u.dtype == torch.float64:
        return "chunked"
    if obstacle := _triton_obstacle(u.device):
        _warn_slow(obstacle)
        return "chunked"
    return "triton"


@functools.cache
def has_mamba_ssm() -> bool:
    """Tell whether the compiled scan of mamba-ssm imports; the package alone may come without it."""
    try:
        importlib.import_module("selective_scan_cuda")
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def interpreted() -> bool:
    """Tell whether Triton interprets its kernels on the CPU, which is for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y")


LONG = 1024
"""Tokens from which training by the token loop is worth a warning."""


def warn_of_loop(length: int) -> None:
    """Warn once that autograd over the token loop is slow, where a gradient is wanted and there are `LONG` tokens or more."""
    if length >= LONG and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _warn_loop()


@functools.cache
def _warn_loop() -> None:
    warnings.warn(
        "The selective scan runs token by token under autograd, as was asked for: 4,096 tokens of 384 channels with one state took "
        "over 100 times the time of backend='chunked' and four times its memory. Use it for comparison only.",
        stacklevel=4,
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_obstacle(device: torch.device) -> str:
    """Say what keeps Triton from running on a device; empty where nothing does."""
    if not _has_triton():
        return "Triton is not installed"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device here"
    if device.type != "cuda":
        return "" if device.type == "cpu" and interpreted() else f"Triton has no code for {device.type}"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs compute capability 7.0"
    return ""


@functools.cache
def _warn_slow(obstacle: str) -> None:
    warnings.warn(
        f"The selective scan runs in pure PyTorch on this GPU, because {obstacle}: hundreds of small launches instead of one. "
        "Install Triton, or choose with ANOMSEG_SCAN_BACKEND=chunked to accept it silently.",
        stacklevel=2,
    )
