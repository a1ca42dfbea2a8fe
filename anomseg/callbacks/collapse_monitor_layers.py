"""The layers of a net under watch: units that say nothing, and weights against their own start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anomseg.functional.collapse import dead_share, std_ratio, turned, update_ratio

ROWS = 4096  # places that features and units are judged at
_FEWEST = 64  # places below which a unit that says the same may do so by chance: gates of whole images have as many as images
_WEIGHTS = 65_536  # of a layer, whose record takes every so manieth


class Watched:
    """Watch the units of all trainable layers, and descriptors that a part gives, while a method runs.

    Attributes:
        dead: the share of dead units of each layer, in the order of the run.
        descriptor: (B, D, H, W) of the last part whose output has one, or None.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.dead: dict[str, float] = {}
        self.descriptor: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within this context."""
        handles = [part.register_forward_hook(self._hook(name, part)) for name, part in self.module.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, part: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        parent = self.module.get_submodule(name.rpartition(".")[0])
        trained = _trains(part) if list(part.parameters()) else _trains(parent)
        leaf = not list(part.children())

        def look(_: nn.Module, __: Any, output: Any) -> None:
            found = getattr(output, "descriptor", None)
            if isinstance(found, Tensor) and found.ndim == 4:
                self.descriptor = found
            if leaf and trained and name not in self.dead and isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1:
                units = _units(output, -1 if isinstance(part, nn.Linear | nn.LayerNorm) else 1)
                if len(units) >= _FEWEST:
                    self.dead[name] = float(dead_share(units))

        return look


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _units(output: Tensor, axis: int) -> Tensor:
    """Arrange an output as (N, D), D units at some of their places."""
    if output.ndim == 4 and axis == 1:  # thinned before anything is copied
        step = max(1, math.isqrt(output[:, 0].numel() // ROWS))
        return output[:, :, ::step, ::step].movedim(1, -1).flatten(0, -2)
    return thinned(output.movedim(axis, -1).flatten(0, -2))


def thinned(rows: Tensor) -> Tensor:
    """Take every so manieth of (N, D) rows, about `ROWS` at most."""
    return rows[:: max(1, len(rows) // ROWS) | 1]  # odd, so as not to fall into step with columns


class WeightRecord:
    """Remember the weights of all trainable layers at the start and at the last check; biases, norms and single numbers are left out.

    Args:
        module: a method; large layers are remembered by a part of their weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self.start = _sampled(module)
        self.last, self.steps = self.start, 0

    def figures(self, module: nn.Module, steps: int) -> tuple[dict[str, float], dict[str, str]]:
        """Compare the weights as they are with those remembered.

        Args:
            module: the method.
            steps: optimiser steps done so far.

        Returns:
            Figures, and the name of the layer of the smallest `weight_std`.
        """
        now = _sampled(module)
        names = [name for name in now if name in self.start]
        done = max(steps - self.steps, 1)
        stds = {name: float(std_ratio(now[name], self.start[name])) for name in names}
        moved = torch.stack([turned(now[name], self.start[name]) for name in names] or [torch.tensor(torch.nan)])
        updates = torch.stack([update_ratio(now[name], self.last[name]) for name in names] or [torch.tensor(torch.nan)])
        self.last, self.steps = now, steps
        found = {
            "moved": float(moved[~moved.isnan()].max()) if bool((~moved.isnan()).any()) else math.nan,
            "update_ratio": float(updates.nanmedian() / done),
        }
        known = {name: value for name, value in stds.items() if value == value}
        least = min(known, key=lambda name: known[name], default=None)
        if least is None:
            return found, {}
        return {**found, "weight_std": known[least]}, {"weight_std": least}


@torch.no_grad()
def _sampled(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, weight in module.named_parameters():
        if weight.requires_grad and weight.ndim >= 2 and weight.numel() > 1:
            flat = weight.detach().flatten()
            found[name.removesuffix(".weight")] = flat[:: max(1, len(flat) // _WEIGHTS)].float().cpu().clone()
    return found
