# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN202
"""The selective scan as two Triton kernels, for NVIDIA GPUs and without a compiler to install; imported only where Triton is.

A program takes a few channels of one group and walks over stretches of `CHECKPOINT` tokens, each scanned in parallel by the associative
operator (a, b) ∘ (a', b') = (a a', a' b + b'). Nothing is added by atomics, so results repeat bit for bit. The backward kernel reads
the neighbouring token's operands a second time instead of shifting states: the state before a token is scanned directly, which keeps
small gradients exact.

On a CPU the kernels run where the variable ``TRITON_INTERPRET=1`` was set before they were imported: slowly, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from anomseg.functional.scan.blocks import CHECKPOINT
from anomseg.functional.scan.chunked import ScanGradients

FORWARD_CHANNELS, FORWARD_WARPS = 4, 4
BACKWARD_CHANNELS, BACKWARD_WARPS = 4, 8
"""Channels and warps of a program; partial sums of ∂B and ∂C take ⌈channels of a group / BACKWARD_CHANNELS⌉ times their size."""


@triton.jit
def _compose(decay, drive, later_decay, later_drive):
    """Compose two tokens, in the order of reading."""
    return decay * later_decay, later_decay * drive + later_drive


@triton.jit
def _positive(raw, SOFTPLUS: tl.constexpr):
    """Compute softplus without loss where it is small: log(1 + e) = log(w) e / (w - 1) with the rounded w = 1 + e."""
    if SOFTPLUS:
        e = tl.exp(-tl.abs(raw))
        w = 1.0 + e
        log1p = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
        return tl.maximum(raw, 0.0) + log1p
    else:
        return raw


@triton.jit
def _shift(bias, mask, CHANNELS: tl.constexpr, BIAS: tl.constexpr):
    """Load the bias of the steps, or zeros."""
    if BIAS:
        return tl.load(bias, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.zeros([CHANNELS], tl.float32)


@triton.jit
def _steps(delta, offset, mask, bias, SOFTPLUS: tl.constexpr):
    """Load the steps Δ, 0 outside of the mask."""
    raw = tl.load(delta + offset, mask=mask, other=0.0).to(tl.float32) + bias[:, None]
    return tl.where(mask, _positive(raw, SOFTPLUS), 0.0)


@triton.jit
def _forward_kernel(
    u, delta, A, B, C, bias, initial, y, last, kept,
    rows, groups, share, length,
    N: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
    BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Scan the channels of one program over all stretches, keeping the state that enters each."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < share
    own = row * share + channel
    rate_at = ((row % groups) * share + channel) * N
    column = tl.arange(0, WIDE)
    shift = _shift(bias + (row % groups) * share + channel, inside, CHANNELS, BIAS)
    state_mask = inside[:, None] & (column < N)[None, :]
    state_at = own[:, None] * N + column[None, :]
    state = tl.load(initial + state_at, mask=state_mask, other=0.0)
    stretches = tl.cdiv(length, TOKENS)
    for i in range(stretches):
        k = stretches - 1 - i if REVERSE else i
        tl.store(kept + k * rows * share * N + state_at, state, mask=state_mask)
        token = k * TOKENS + tl.arange(0, TOKENS)
        mask = inside[:, None] & (token < length)[None, :]
        at = own[:, None] * length + token[None, :]
        step = _steps(delta, at, mask, shift, SOFTPLUS)
        scaled = step * tl.load(u + at, mask=mask, other=0.0).to(tl.float32)
        total = tl.zeros([CHANNELS, TOKENS], tl.float32)
        for n in range(N):
            side = (row * N + n) * length + token
            enter = tl.load(B + side, mask=token < length, other=0.0).to(tl.float32)
            leave = tl.load(C + side, mask=token < length, other=0.0).to(tl.float32)
            rate = tl.load(A + rate_at + n, mask=inside, other=0.0)
            before = tl.sum(tl.where(column[None, :] == n, state, 0.0), 1)
            product, h = tl.associative_scan((tl.exp(step * rate[:, None]), scaled * enter[None, :]), 1, _compose, reverse=REVERSE)
            h += product * before[:, None]
            total += h * leave[None, :]
            final = tl.sum(tl.where((token == k * TOKENS + (0 if REVERSE else TOKENS - 1))[None, :], h, 0.0), 1)
            state = tl.where(column[None, :] == n, final[:, None], state)
        tl.store(y + at, total, mask=mask)
    tl.store(last + state_at, state, mask=state_mask)


@triton.jit
def _backward_kernel(
    grad, grad_last, u, delta, A, B, C, bias, kept,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_initial,
    rows, groups, share, length,
    N: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
    BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Walk the stretches against the order of reading: states again from those kept, adjoints scanned the other way."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < share
    own = row * share + channel
    rate_at = ((row % groups) * share + channel) * N
    column = tl.arange(0, WIDE)
    shift = _shift(bias + (row % groups) * share + channel, inside, CHANNELS, BIAS)
    state_mask = inside[:, None] & (column < N)[None, :]
    state_at = own[:, None] * N + column[None, :]
    carry = tl.load(grad_last + state_at, mask=state_mask, other=0.0)
    into_A = tl.zeros([CHANNELS, WIDE], tl.float32)
    stretches = tl.cdiv(length, TOKENS)
    for i in range(stretches):
        k = i if REVERSE else stretches - 1 - i
        first = k * TOKENS + (TOKENS - 1 if REVERSE else 0)  # in the order of reading
        final = k * TOKENS + (0 if REVERSE else TOKENS - 1)
        token = k * TOKENS + tl.arange(0, TOKENS)
        past, coming = (token + 1, token - 1) if REVERSE else (token - 1, token + 1)
        here = token < length
        mask = inside[:, None] & here[None, :]
        at = own[:, None] * length + token[None, :]
        line = own[:, None] * length
        step = _steps(delta, at, mask, shift, SOFTPLUS)
        value = tl.load(u + at, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        past_here = (token != first) & (past < length)
        past_mask = inside[:, None] & past_here[None, :]
        past_step = _steps(delta, line + past[None, :], past_mask, shift, SOFTPLUS)
        past_scaled = past_step * tl.load(u + line + past[None, :], mask=past_mask, other=0.0).to(tl.float32)
        coming_mask = inside[:, None] & ((token != final) & (coming < length))[None, :]
        coming_step = _steps(delta, line + coming[None, :], coming_mask, shift, SOFTPLUS)
        into = tl.zeros([CHANNELS, TOKENS], tl.float32)
        into_step = tl.zeros([CHANNELS, TOKENS], tl.float32)
        for n in range(N):
            side = (row * N + n) * length
            enter = tl.load(B + side + token, mask=here, other=0.0).to(tl.float32)
            leave = tl.load(C + side + token, mask=here, other=0.0).to(tl.float32)
            past_enter = tl.load(B + side + past, mask=past_here, other=0.0).to(tl.float32)
            rate = tl.load(A + rate_at + n, mask=inside, other=0.0)
            entering = tl.load(kept + k * rows * share * N + own * N + n, mask=inside, other=0.0)
            product, before = tl.associative_scan(
                (tl.exp(past_step * rate[:, None]), past_scaled * past_enter[None, :]), 1, _compose, reverse=REVERSE
            )
            before += product * entering[:, None]
            decay = tl.exp(step * rate[:, None])
            decayed = decay * before
            h = decayed + step * value * enter[None, :]
            arriving = tl.sum(tl.where(column[None, :] == n, carry, 0.0), 1)
            product, adjoint = tl.associative_scan(
                (tl.exp(coming_step * rate[:, None]), slope * leave[None, :]), 1, _compose, reverse=not REVERSE
            )
            adjoint += product * arriving[:, None]
            leaving = tl.sum(tl.where((token == first)[None, :], decay * adjoint, 0.0), 1)
            carry = tl.where(column[None, :] == n, leaving[:, None], carry)
            through = adjoint * decayed
            into_step += through * rate[:, None]
            into += adjoint * enter[None, :]
            into_A += tl.where(column[None, :] == n, tl.sum(through * step, 1)[:, None], 0.0)
            partial = (tl.program_id(1).to(tl.int64) * rows * N + row * N + n) * length + token
            tl.store(grad_B + partial, tl.sum(adjoint * step * value, 0), mask=here)
            tl.store(grad_C + partial, tl.sum(slope * h, 0), mask=here)
        into_step += into * value
        if SOFTPLUS:
            raw = tl.load(delta + at, mask=mask, other=0.0).to(tl.float32) + shift[:, None]
            into_step *= tl.sigmoid(raw)
        tl.store(grad_u + at, into * step, mask=mask)
        tl.store(grad_delta + at, into_step, mask=mask)
    tl.store(grad_A + state_at, into_A, mask=state_mask)
    tl.store(grad_initial + state_at, carry, mask=state_mask)


def triton_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    *,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernel; unlike `chunked_forward` it takes delta before bias and softplus, and inputs of any floating type.

    Returns:
        Output (B, D, L), last state (B, D, N) and kept states (⌈L / CHECKPOINT⌉, B, D, N), all float32.
    """
    u, delta, A, B, C, initial = (x.contiguous() for x in (u, delta, A, B, C, initial))
    batch, channels, length = u.shape
    groups, state = B.shape[1:3]
    share = channels // groups
    y, last = torch.empty_like(u, dtype=torch.float32), torch.empty_like(initial)
    kept = initial.new_empty(-(-length // CHECKPOINT), *initial.shape)
    grid = (batch * groups, triton.cdiv(share, FORWARD_CHANNELS))
    _forward_kernel[grid](
        u, delta, A, B, C, u if bias is None else bias.contiguous(), initial, y, last, kept,
        batch * groups, groups, share, length,
        N=state, WIDE=triton.next_power_of_2(state), CHANNELS=FORWARD_CHANNELS, TOKENS=CHECKPOINT,
        BIAS=bias is not None, SOFTPLUS=softplus, REVERSE=reverse, num_warps=FORWARD_WARPS,
    )  # fmt: skip
    return y, last, kept


def triton_backward(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    *,
    softplus: bool,
    reverse: bool,
) -> ScanGradients:
    """Run the backward kernel; the gradient of delta is that before bias and softplus. All float32."""
    grad, grad_last, u, delta, A, B, C, kept = (x.contiguous() for x in (grad, grad_last, u, delta, A, B, C, kept))
    batch, channels, length = u.shape
    groups, state = B.shape[1:3]
    share = channels // groups
    grid = (batch * groups, triton.cdiv(share, BACKWARD_CHANNELS))
    into_u, into_delta = (torch.empty_like(u, dtype=torch.float32) for _ in range(2))
    into_A, initial = (torch.empty_like(grad_last) for _ in range(2))
    into_B, into_C = (grad_last.new_empty(grid[1], *B.shape) for _ in range(2))
    _backward_kernel[grid](
        grad, grad_last, u, delta, A, B, C, u if bias is None else bias.contiguous(), kept,
        into_u, into_delta, into_A, into_B, into_C, initial,
        batch * groups, groups, share, length,
        N=state, WIDE=triton.next_power_of_2(state), CHANNELS=BACKWARD_CHANNELS, TOKENS=CHECKPOINT,
        BIAS=bias is not None, SOFTPLUS=softplus, REVERSE=reverse, num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    return ScanGradients(into_u, into_delta, into_A.sum(0), into_B.sum(0), into_C.sum(0), initial)
