"""The selective scan, the state space recurrence at the heart of Mamba, with the arguments of mamba-ssm.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t,    y_t = Σ_n C_t h_t + D u_t,    optionally y SiLU(z)

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752, Algorithm 2.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from anomseg.functional.scan.backends import ScanBackend, has_mamba_ssm, requested_backend, warn_of_loop
from anomseg.functional.scan.operator import arithmetic_dtype, positive_steps, scan_operator
from anomseg.functional.scan.recurrence import doubling_scan, reference_scan


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
    initial_state: Tensor | None = ...,
    backend: ScanBackend = ...,
    *,
    reverse: bool = ...,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
    initial_state: Tensor | None = ...,
    backend: ScanBackend = ...,
    reverse: bool = ...,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    backend: ScanBackend = "auto",
    *,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan along the last axis.

    The state is float32 whatever the type of the inputs (float64 where u is). Rates A <= 0 keep it bounded; there is no division, so
    that decays that underflow become zeros and never NaN.

    Args:
        u: Input (B, D, L).
        delta: Steps (B, D, L), before ``delta_bias`` and softplus.
        A: Rates of decay (D, N), real.
        B: How the input enters the state, (B, N, L) or in G groups of channels (B, G, N, L).
        C: How the state becomes output, of the shape of ``B``.
        D: Skip connection (D,): D u is added to the output.
        z: Gate (B, D, L): the output is multiplied by SiLU(z).
        delta_bias: Added to ``delta`` (D,).
        delta_softplus: Whether the step is softplus(delta + bias).
        return_last_state: Whether to return the state after the last token read, too.
        initial_state: State before the first token read (B, D, N); default zeros.
        backend: What runs it, see `scan_backend`.
        reverse: Read from the last token to the first: equal to flipping time before and after, without copies.

    Returns:
        Output (B, D, L) of the type of u; with ``return_last_state`` the state (B, D, N), too.

    Raises:
        ValueError: Where shapes do not fit or there is no such backend.
        TypeError: Where a tensor is not of real floating numbers.
        RuntimeError: Where a backend was asked for that cannot run here, or that has no forward-mode derivative where an operand
            carries a tangent (`torch.func.jvp`, `torch.func.jacfwd`, dual numbers); ``auto`` takes ``pure`` there.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    enter, leave = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    name = _chosen(backend, (u, delta, A, B, C, D, delta_bias, initial_state))
    if name in ("reference", "pure"):
        y, last = _written_out(u, delta, A, enter, leave, D, delta_bias, delta_softplus, initial_state, reverse, name == "pure")
    elif _takes_mamba_ssm(u, name, initial_state):
        y, last = _by_mamba_ssm(u, delta, A, enter, leave, D, delta_bias, delta_softplus, reverse)
    else:
        y, last, _ = scan_operator(u, delta, A, enter, leave, D, delta_bias, initial_state, delta_softplus, reverse, name)
    y = y if z is None else y * F.silu(z)
    return (y, last) if return_last_state else y


def _chosen(backend: ScanBackend, operands: tuple[Tensor | None, ...]) -> ScanBackend:
    """Name what was asked for, or ``pure`` where an exporter or a tangent needs every operation."""
    if torch.onnx.is_in_onnx_export() and backend == "auto":
        return "pure"
    name = requested_backend(backend)
    if name in ("reference", "pure") or not any(_has_tangent(x) for x in operands if x is not None):
        return name
    if name != "auto":
        raise RuntimeError(f"Expected operands without tangents, but got some with backend={name!r}. Take backend='pure'.")
    return "pure"


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]  # torch has no types here


def _written_out(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    initial: Tensor | None,
    reverse: bool,
    doubling: bool,
) -> tuple[Tensor, Tensor]:
    """Run the scan by operations that autograd and exporters see one by one."""
    dtype = arithmetic_dtype(u)
    wide = u.to(dtype)
    state = wide.new_zeros(u.shape[0], *A.shape) if initial is None else initial.to(dtype)
    scan = doubling_scan if doubling else reference_scan
    if not doubling:
        warn_of_loop(u.shape[-1])
    steps = positive_steps(delta, bias, softplus, dtype)
    y, last = scan(wide, steps, A.to(dtype), B.to(dtype), C.to(dtype), state, reverse=reverse)
    y = y if D is None else y + D.to(dtype).unsqueeze(-1) * wide
    return y.to(u.dtype), last


def _takes_mamba_ssm(u: Tensor, name: str, initial: Tensor | None) -> bool:
    """Decide whether the compiled kernel runs; it knows no initial state, no float64, and a compiler cannot look through it."""
    if name == "mamba_ssm":
        if not has_mamba_ssm() or not u.is_cuda:
            raise RuntimeError(f"Expected selective_scan_cuda and a CUDA tensor, but got {u.device}; is it built? Take backend='auto'.")
        if initial is not None:
            raise ValueError("Expected no initial state for backend='mamba_ssm', but got one. Take backend='auto'.")
        return True
    possible = name == "auto" and u.is_cuda and initial is None and u.dtype != torch.float64
    return possible and not torch.compiler.is_compiling() and not torch.are_deterministic_algorithms_enabled() and has_mamba_ssm()


def _by_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Run the compiled kernel of mamba-ssm, which wants one type for u, delta, B and C, float32 for the rest, and time in order."""
    # No dependency: type checkers find the package on some machines and not on others.
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found,unused-ignore]

    turned = [x.flip(-1) if reverse else x for x in (u, delta.to(u.dtype), B.to(u.dtype), C.to(u.dtype))]
    skip, offset = (None if x is None else x.float() for x in (D, bias))
    y, last = selective_scan_fn(
        turned[0], turned[1], A.float(), turned[2], turned[3], skip, None, offset, delta_softplus=softplus, return_last_state=True
    )
    return y.flip(-1) if reverse else y, last


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
) -> None:
    if u.ndim != 3 or not u.shape[1] or not u.shape[2]:
        raise ValueError(f"Expected u of shape (B, D, L) with D, L >= 1, but got {tuple(u.shape)}. Flatten the pixels into one axis.")
    if A.ndim != 2 or A.shape[0] != u.shape[1] or not A.shape[1]:
        raise ValueError(
            f"Expected A of shape (D, N) with D = {u.shape[1]} and N >= 1, but got {tuple(A.shape)}. Give every channel its rates."
        )
    batch, channels, length = u.shape
    state = A.shape[1]
    grouped = (batch, B.shape[1], state, length) if B.ndim == 4 else (batch, state, length)
    if (
        B.ndim not in (3, 4)
        or tuple(B.shape) != grouped
        or B.shape != C.shape
        or (B.ndim == 4 and (not B.shape[1] or channels % B.shape[1]))
    ):
        raise ValueError(
            f"Expected B and C of shape (B, N, L) or (B, G, N, L) with B = {batch}, N = {state}, L = {length}, G a divisor of {channels}, "
            f"but got {tuple(B.shape)} and {tuple(C.shape)}. Put the state before the tokens."
        )
    wanted = {"delta": (delta, u.shape), "z": (z, u.shape), "D": (D, (channels,)), "delta_bias": (bias, (channels,))}
    for name, (x, shape) in {**wanted, "initial_state": (initial, (batch, channels, state))}.items():
        if x is not None and tuple(x.shape) != tuple(shape):
            raise ValueError(f"Expected {name} of shape {tuple(shape)}, but got {tuple(x.shape)}. It goes with u {tuple(u.shape)}.")
    for x in (u, delta, A, B, C, D, z, bias, initial):
        if x is not None and not x.dtype.is_floating_point:
            raise TypeError(f"Expected real floating tensors, but got {x.dtype}. Convert them; complex rates are not supported.")
