"""Tell a traced call from one with values."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Say whether `torch.export` traces this call: what the values decide then has to take the way that is right for all of them."""
    compiler = torch.compiler  # torch 2.6 does not tell an export from other tracing
    return bool(compiler.is_exporting() if hasattr(compiler, "is_exporting") else compiler.is_compiling())
