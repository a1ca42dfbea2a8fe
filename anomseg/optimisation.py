"""How the parameters of a method are stepped: one frozen description, one place that builds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from anomseg.config import check_choices


@dataclass(frozen=True)
class Optimisation:
    """Describe AdamW with a schedule.

    Attributes:
        lr: peak learning rate.
        weight_decay: decay of weights with two or more axes; biases, norms and other vectors are never decayed.
        schedule: `constant`, `cosine` to 0, or `poly` with power 0.9, over the estimated number of steps.
        warmup: share of the steps in which the rate rises linearly from 0.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not (self.lr >= 0 and self.weight_decay >= 0 and 0 <= self.warmup <= 1):
            came = f"{self.lr}, {self.weight_decay} and {self.warmup}"
            raise ValueError(f"Expected lr and weight_decay >= 0 and warmup in [0, 1], but got {came}.")

    def factor(self, step: int, steps: float) -> float:
        """Give the share of the peak rate at a step, in [0, 1]."""
        done = min(step / max(steps, 1), 1.0)
        if done < self.warmup:
            return done / self.warmup
        left = (1 - done) / max(1 - self.warmup, 1e-12)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return left**0.9 if self.schedule == "poly" else 1.0

    def build(self, module: nn.Module, steps: float) -> tuple[AdamW, LambdaLR]:
        """Build the optimiser of a module's trainable parameters and its schedule over a number of steps.

        Raises:
            ValueError: the steps have no end, and the schedule needs one.
        """
        if steps == math.inf:
            if self.schedule != "constant" or self.warmup:
                raise ValueError(
                    f"Expected a number of steps for schedule='{self.schedule}' and warmup={self.warmup}, but this training has no end. "
                    "Set max_epochs or max_steps of the trainer, or take Optimisation(schedule='constant', warmup=0)."
                )
            steps = 1
        trainable = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimiser = AdamW([g for g in groups if g["params"]], lr=self.lr)
        return optimiser, LambdaLR(optimiser, lambda step: self.factor(step, steps))
