"""The recurrence of the selective scan written out: one loop that is the truth, and one that exports.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t,    y_t = Σ_n C_t h_t,

for every channel d with its state of n = 1 .. N numbers. Glossary: u input, Δ step (``delta``), A decay rates, B and C how input enters
and state leaves at each token, h state, y output.

Both functions are plain PyTorch: autograd differentiates them, and keeps every state for it, which is what the other backends avoid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reference_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token, in the words of its definition; cost: L steps of several small operations.

    Args:
        u: Input (B, D, L).
        delta: Steps (B, D, L), after bias and softplus.
        A: Rates of decay (D, N).
        B: How the input enters the state (B, G, N, L); group g serves the channels g D/G to (g + 1) D/G - 1.
        C: How the state becomes output (B, G, N, L).
        initial: State before the first token that is read (B, D, N).
        reverse: Read from the last token to the first.

    Returns:
        Output (B, D, L) and the state after the last token read (B, D, N).
    """
    length, share = u.shape[-1], u.shape[1] // B.shape[1]
    enters, leaves = (x.repeat_interleave(share, dim=1) for x in (B, C))
    state, outputs = initial, [u.new_empty(0)] * length
    for t in reversed(range(length)) if reverse else range(length):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * u[:, :, t, None] * enters[..., t]
        outputs[t] = (state * leaves[..., t]).sum(-1)
    return torch.stack(outputs, dim=-1), state


def doubling_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in ⌈log₂ L⌉ rounds of whole-sequence operations: a small graph without loops over tokens, for export.

    A token's pair (a, b) means h ← a h + b. Round k composes the pairs of tokens t - 2^k and t: (a a', a b' + b). Products of decays
    only, never their quotients, so that nothing overflows. Holds the states of all tokens several times: for inference.

    Arguments and results are those of `reference_scan`.
    """
    share = u.shape[1] // B.shape[1]
    enters, leaves = (x.repeat_interleave(share, dim=1) for x in (B, C))
    decay = torch.exp(delta.unsqueeze(2) * A.unsqueeze(-1))  # (B, D, N, L)
    drive = (delta * u).unsqueeze(2) * enters
    length, span = u.shape[-1], 1
    first = length - 1 if reverse else 0
    entering = F.pad((decay[..., first] * initial).unsqueeze(-1), (first, length - 1 - first))
    drive = drive + entering
    while span < length:
        shift = (0, span) if reverse else (span, 0)
        keep = slice(span, None) if reverse else slice(None, length - span)
        drive = drive + decay * F.pad(drive[..., keep], shift)
        decay = decay * F.pad(decay[..., keep], shift, value=1.0)
        span *= 2
    return (drive * leaves).sum(2), drive[..., 0 if reverse else -1]
