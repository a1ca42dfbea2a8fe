"""The selective scan as one operator of PyTorch: `torch.compile` and `torch.export` keep it whole, autograd knows its gradient.

`torch.ops.anomseg.selective_scan` and `torch.ops.anomseg.selective_scan_backward` share one layout of kept states over all backends,
so that the shapes are known without running. Arithmetic is float32, or float64 where u is; tensors of other types are converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from anomseg.functional.scan.backends import kernel_for
from anomseg.functional.scan.blocks import CHECKPOINT
from anomseg.functional.scan.chunked import chunked_backward, chunked_forward

SOFTPLUS_LIMIT = 20.0
"""Above it softplus(x) is taken as x; the difference is below 3e-9."""


def positive_steps(delta: Tensor, bias: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """Compute the steps Δ = softplus(delta + bias), or without softplus, in ``dtype``, shape (B, D, L)."""
    raw = delta.to(dtype) if bias is None else delta.to(dtype) + bias.to(dtype).unsqueeze(-1)
    return F.softplus(raw, threshold=SOFTPLUS_LIMIT) if softplus else raw


def arithmetic_dtype(u: Tensor) -> torch.dtype:
    """Name the type that a scan over ``u`` computes in: float64 for float64, float32 for all else."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


@torch.library.custom_op("anomseg::selective_scan", mutates_args=())
def scan_operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; B and C are (B, G, N, L). Returns y (B, D, L), the last state (B, D, N) and the kept states (⌈L / CHECKPOINT⌉, B, D, N)."""
    dtype = arithmetic_dtype(u)
    initial = u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    if kernel_for(u, backend) == "triton":
        from anomseg.functional.scan.triton_kernels import triton_forward

        y, last, kept = triton_forward(u, delta, A.to(dtype), B, C, delta_bias, initial, softplus=delta_softplus, reverse=reverse)
    else:
        steps = positive_steps(delta, delta_bias, delta_softplus, dtype)
        y, last, kept = chunked_forward(u.to(dtype), steps, A.to(dtype), B.to(dtype), C.to(dtype), initial, reverse=reverse)
    if D is not None:
        y.addcmul_(D.to(dtype).unsqueeze(-1), u.to(dtype))
    return y.to(u.dtype), last, kept


@scan_operator.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u.shape
    last = u.new_empty(batch, channels, A.shape[1], dtype=arithmetic_dtype(u))
    kept = last.new_empty((length + CHECKPOINT - 1) // CHECKPOINT, batch, channels, A.shape[1])
    return u.new_empty(batch, channels, length), last, kept


@torch.library.custom_op("anomseg::selective_scan_backward", mutates_args=())
def backward_operator(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    kept: Tensor,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of u, delta, A, B, C, D, delta_bias and the initial state; that of an absent operand is empty."""
    dtype = arithmetic_dtype(u)
    slope, wide, last = grad.to(dtype), u.to(dtype), grad_last.to(dtype)
    if kernel_for(u, backend) == "triton":
        from anomseg.functional.scan.triton_kernels import triton_backward

        operands = (grad, last, u, delta, A.to(dtype), B, C, delta_bias, kept)
        found = triton_backward(*operands, softplus=delta_softplus, reverse=reverse)
        into_delta = found.delta
    else:
        steps = positive_steps(delta, delta_bias, delta_softplus, dtype)
        found = chunked_backward(slope, last, wide, steps, A.to(dtype), B.to(dtype), C.to(dtype), kept, reverse=reverse)
        # d softplus(x) / dx = 1 - exp(-softplus(x)), which spares the sum with the bias
        into_delta = found.delta * -torch.expm1(-steps) if delta_softplus else found.delta
    into_u = found.u
    skip = u.new_empty(0) if D is None else (slope * wide).sum((0, 2)).to(D.dtype)
    if D is not None:
        into_u = into_u.addcmul_(D.to(dtype).unsqueeze(-1), slope)
    bias = u.new_empty(0) if delta_bias is None else into_delta.sum((0, 2)).to(delta_bias.dtype)
    return (
        into_u.to(u.dtype),
        into_delta.to(delta.dtype),
        found.A.to(A.dtype),
        found.B.to(B.dtype),
        found.C.to(C.dtype),
        skip,
        bias,
        found.initial,
    )


@backward_operator.register_fake
def _(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    kept: Tensor,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_u, of_delta, of_a, of_b, of_c = (x.new_empty(x.shape) for x in (u, delta, A, B, C))
    skip, bias = (u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (D, delta_bias))
    return of_u, of_delta, of_a, of_b, of_c, skip, bias, grad_last.new_empty(grad_last.shape, dtype=arithmetic_dtype(u))


def _keep(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, initial_state, softplus, reverse, backend = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = softplus, reverse, backend
    ctx.initial = None if initial_state is None else initial_state.dtype


def _differentiate(ctx: Any, grad: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *tensors, kept = ctx.saved_tensors
    u = tensors[0]
    grad = torch.zeros_like(u) if grad is None else grad
    grad_last = kept.new_zeros(kept.shape[1:]) if grad_last is None else grad_last
    *found, skip, bias, initial = backward_operator(grad, grad_last, *tensors, kept, *ctx.options)
    return (
        *found,
        None if tensors[5] is None else skip,
        None if tensors[6] is None else bias,
        None if ctx.initial is None else initial.to(ctx.initial),
        None,
        None,
        None,
    )


scan_operator.register_autograd(_differentiate, setup_context=_keep)


def scan_flops(u: Sequence[int], state: int) -> int:
    """Count a scan's operations: 9 B L D N of the recurrence and B L D of the skip connection, as the field counts them."""
    batch, channels, length = u
    return 9 * batch * length * channels * state + batch * length * channels


@register_flop_formula(torch.ops.anomseg.selective_scan)
def _(u: Sequence[int], delta: Sequence[int], A: Sequence[int], *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return scan_flops(u, A[1])


@register_flop_formula(torch.ops.anomseg.selective_scan_backward)
def _(grad: Any, last: Any, u: Sequence[int], delta: Any, A: Sequence[int], *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * scan_flops(u, A[1])  # a gradient is counted as twice its forward, as for convolutions
