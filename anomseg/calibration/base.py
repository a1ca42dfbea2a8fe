"""What a calibration is: a monotone map from raw scores to [0, 1], fitted on normal pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anomseg.errors import NotFittedError
from anomseg.exporting import is_exporting
from anomseg.functional.kept_dtype import keeping_dtype
from anomseg.functional.score_histogram import ScoreCounts


class Calibration(nn.Module, ABC):
    """Map raw scores to heat maps in [0, 1], higher being more anomalous.

    Subclasses register their fitted state as float32 buffers filled with NaN, and implement `_fit` and `_apply_map`. Both must be monotone,
    so that AUROC of the heat map equals AUROC of the score up to ties. The state stays float32 where the rest of a method is cast to half
    precision: anchors that lie close together would become one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("normal_pixels", torch.zeros((), dtype=torch.int64))
        self.normal_pixels: Tensor

    @property
    def is_fitted(self) -> bool:
        """Say whether `fit` was called, or fitted state was loaded."""
        return bool(self.normal_pixels > 0)

    def fit(self, counts: ScoreCounts) -> None:
        """Fit on the normal pixels of counted validation scores; anomalous and ignored pixels play no part.

        Args:
            counts: counted raw scores.

        Raises:
            ValueError: there is no normal pixel.
        """
        total = counts.normal.sum()
        if not total > 0:
            raise ValueError(
                "Expected normal pixels (mask 0) to calibrate on, but got none. "
                "Is every pixel of the validation masks void (255) or anomalous?"
            )
        self._fit(counts)
        self.normal_pixels.copy_(total)

    def forward(self, score: Tensor) -> Tensor:
        """Map raw scores of any shape to float32 heat maps in [0, 1] of the same shape.

        Raises:
            NotFittedError: before `fit`.
        """
        if not is_exporting() and not self.is_fitted:
            raise NotFittedError(
                f"Expected a fitted {type(self).__name__}, but it has seen no normal pixels. Call `trainer.fit` or `trainer.validate` with "
                "validation data, or `calibration.fit(counts)`, or load a checkpoint of a fitted model."
            )
        return self._apply_map(score.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to another device as any module does, but keep the types."""
        return nn.Module._apply(self, keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]  # torch has no types here

    @abstractmethod
    def _fit(self, counts: ScoreCounts) -> None: ...

    @abstractmethod
    def _apply_map(self, score: Tensor) -> Tensor: ...
