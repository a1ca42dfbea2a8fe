"""The selective scan in pure PyTorch with its own gradient: any device, bounded memory, no loop over single tokens.

Time is cut into chunks of l tokens, and all chunks of a block take their i-th step together:

1. every chunk runs from an empty state and keeps only where it ends;
2. the ends are chained: entering state of chunk c + 1 = (product of the decays of c) · (entering state of c) + (end of c);
3. every chunk runs again from its entering state.

The product of decays is exp(A Σ Δ), at most 1 for A <= 0: nothing is divided, so nothing overflows. Blocks bound the memory whatever
the length, the batch and the state. For the gradient only the states at every `CHECKPOINT`-th token are kept; the rest is computed anew.

The adjoint of the state, λ_t = C_t ȳ_t + a_{t+1} λ_{t+1}, is swept in the form x_t = a_t λ_t, which obeys x_t = a_t C_t ȳ_t + a_t x_{t+1}:
the same recurrence in the other direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anomseg.functional.scan.blocks import CHECKPOINT, Block, Plan, Scratch


class ScanGradients(NamedTuple):
    """Hold the gradients of a scan, each of the shape of what it belongs to."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial: Tensor


class _Rows(NamedTuple):
    """Hold the operands by rows, a group of one image each: (R, S, L) for u and delta, (R, N, S) for A, (R, N, L) for B and C."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


class _Swept(NamedTuple):
    """Hold a block that was swept: operands (n, l, R, 1, S) or (n, l, R, N, 1), decays and states (n, l, R, N, S)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    product: Tensor  # of each chunk's decays
    states: Tensor
    begin: Tensor  # the state that enters each chunk
    last: Tensor


def chunked_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, *, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan in chunks; arguments are those of `reference_scan`, of one floating dtype.

    Returns:
        Output (B, D, L), the state after the last token read (B, D, N), and the states (⌈L / CHECKPOINT⌉, B, D, N) that enter each
        stretch of `CHECKPOINT` tokens in the direction of reading.
    """
    plan, scratch = Plan.of(u, B), Scratch(u)
    rows = _rows_of(plan, u, delta, A, B, C)
    state = plan.fold_state(initial)
    output = torch.empty_like(rows.u)
    kept = state.new_empty(plan.checkpoints, *state.shape)
    for part in plan.parts():
        carry = state[part]
        for block in plan.blocks(part, reverse):
            swept = _sweep_block(rows, block, carry, scratch, reverse)
            carry = swept.last
            kept[block.checkpoints][:, part[0], :, part[2]] = _at_checkpoints(swept.begin, block, reverse)
            leaving = torch.mul(swept.states, swept.C, out=swept.decay)
            block.store(leaving if A.shape[1] == 1 else leaving.sum(-2, keepdim=True), output, scratch)
        state[part] = carry
    return output.view(u.shape), plan.unfold_state(state), plan.unfold_state(kept)


def chunked_backward(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    *,
    reverse: bool = False,
) -> ScanGradients:
    """Compute the gradients of `chunked_forward` from those of its output (B, D, L) and last state (B, D, N), and the kept states."""
    plan, scratch = Plan.of(u, B), Scratch(u)
    rows = _rows_of(plan, u, delta, A, B, C)
    slope = grad.reshape(rows.u.shape)
    adjoint, kept = plan.fold_state(grad_last), plan.fold_state(kept)
    found = _Rows(torch.empty_like(rows.u), torch.empty_like(rows.u), *(torch.zeros_like(x) for x in rows[2:]))
    for part in plan.parts():
        carry = adjoint[part]
        for block in plan.blocks(part, not reverse):
            at = block.checkpoints
            enters = kept[at.stop - 1 if reverse else at.start][part]
            swept = _sweep_block(rows, block, enters, scratch, reverse)
            carry = _backward_block(rows, found, swept, block.load(slope, "slope", scratch), block, carry, scratch, reverse)
        adjoint[part] = carry
    rates = found.A.view(plan.batch, plan.groups, plan.state, plan.share).sum(0).transpose(1, 2).reshape(A.shape)
    return ScanGradients(
        found.u.view(u.shape), found.delta.view(u.shape), rates, found.B.view(B.shape), found.C.view(C.shape), plan.unfold_state(adjoint)
    )


def _rows_of(plan: Plan, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Rows:
    rates = A.view(plan.groups, plan.share, plan.state).transpose(1, 2)
    rates = rates.expand(plan.batch, -1, -1, -1).reshape(-1, plan.state, plan.share)
    wide, narrow = (-1, plan.share, plan.length), (-1, plan.state, plan.length)
    return _Rows(u.reshape(wide), delta.reshape(wide), rates, B.reshape(narrow), C.reshape(narrow))


def _sweep(decay: Tensor, drive: Tensor, product: Tensor, carry: Tensor, scratch: Scratch, reverse: bool) -> tuple[Tensor, Tensor]:
    """Solve h ← decay h + drive over (n, l, ...) in place of ``drive``; ``product`` (n, ...) of each chunk's decays, ``carry`` enters.

    Returns:
        The state that enters each chunk (n, ...), which the next sweep overwrites, and the last state.
    """
    chunks, steps = decay.shape[:2]
    decays, drives = decay.unbind(1), drive.unbind(1)
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    end, begin = scratch("end", *product.shape), scratch("reverse begin" if reverse else "begin", *product.shape)
    if chunks > 1:
        end.copy_(drives[order[0]])
        for i in order[1:]:  # cost: l operations on all chunks at once
            torch.addcmul(drives[i], decays[i], end, out=end)
    ends, products, begins = end.unbind(), product.unbind(), begin.unbind()
    for c in range(chunks - 1, -1, -1) if reverse else range(chunks):
        begins[c].copy_(carry)
        carry = begins[c] if chunks == 1 else torch.addcmul(ends[c], products[c], carry)
    state = begin
    for i in order:
        state = torch.addcmul(drives[i], decays[i], state, out=drives[i])
    return begin, state[0 if reverse else -1].clone()


def _sweep_block(rows: _Rows, block: Block, carry: Tensor, scratch: Scratch, reverse: bool) -> _Swept:
    """Load a block's operands and compute its states."""
    u, delta = block.load(rows.u, "u", scratch), block.load(rows.delta, "delta", scratch)
    enter, leave = block.load_sides(rows.B, "B", scratch), block.load_sides(rows.C, "C", scratch)
    rates = rows.A[block.part]
    full = (*u.shape[:3], *rates.shape[1:])
    decay = torch.mul(delta, rates, out=scratch("decay", *full)).exp_()
    product = torch.mul(delta.sum(1), rates).exp_()
    states = torch.mul(torch.mul(delta, u, out=scratch("small", *u.shape)), enter, out=scratch("states", *full))
    begin, last = _sweep(decay, states, product, carry, scratch, reverse)
    return _Swept(u, delta, enter, leave, decay, product, states, begin, last)


def _at_checkpoints(begin: Tensor, block: Block, reverse: bool) -> Tensor:
    """Pick the states that enter each stretch of `CHECKPOINT` tokens out of those that enter each chunk."""
    every = CHECKPOINT // block.steps
    if not reverse:
        return begin[::every]
    last = begin.shape[0] - 1
    picked = begin[min(every - 1, last) :: every]
    return picked if begin.shape[0] % every == 0 or last < every else torch.cat([picked, begin[-1:]])


def _backward_block(
    rows: _Rows, found: _Rows, swept: _Swept, slope: Tensor, block: Block, carry: Tensor, scratch: Scratch, reverse: bool
) -> Tensor:
    """Write a block's gradients where they belong, and return the adjoint that leaves it."""
    full, rates = swept.decay.shape, rows.A[block.part]
    work = scratch("work", *full)
    block.add_sides(torch.mul(swept.states, slope, out=work).sum(-1, keepdim=True), found.C, scratch)
    adjoint = torch.mul(slope, swept.C, out=work)
    through = torch.mul(swept.decay, adjoint, out=scratch("through", *full))
    begin, carry = _sweep(swept.decay, through, swept.product, carry, scratch, not reverse)
    now, before = (slice(None, -1), slice(1, None)) if reverse else (slice(1, None), slice(None, -1))
    first, final = (-1, 0) if reverse else (0, -1)
    adjoint[:, before] += through[:, now]
    adjoint[:, final] += begin
    through[:, now] *= swept.states[:, before]  # a_t λ_t h_{t-1} from here on: the gradient of Δ_t A
    through[:, first] *= swept.begin
    spare = swept.states
    found.A[block.part].add_(torch.mul(through, swept.delta, out=spare).sum((0, 1)))
    small = torch.mul(swept.delta, swept.u, out=scratch("small", *swept.u.shape))
    block.add_sides(torch.mul(adjoint, small, out=spare).sum(-1, keepdim=True), found.B, scratch)
    into, decayed = adjoint.mul_(swept.B), through.mul_(rates)
    if full[-2] > 1:
        into, decayed = into.sum(-2, keepdim=True), decayed.sum(-2, keepdim=True)
    block.store(torch.mul(into, swept.delta, out=small), found.u, scratch)
    block.store(torch.addcmul(decayed, into, swept.u, out=small), found.delta, scratch)
    return carry
