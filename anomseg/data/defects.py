"""Corrupt normal images with synthetic defects, so that a net can learn to remove them; the clean image stays the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anomseg.config import build
from anomseg.data.defect_base import Defect
from anomseg.data.defect_copies import Blend, CutPaste, Scar, StructuralShift
from anomseg.data.defect_lines import Crack
from anomseg.data.defect_paints import Blur, ColourShift, Hole, PerlinTexture
from anomseg.sample import IGNORE

__all__ = [
    "Blend",
    "Blur",
    "ColourShift",
    "Corruption",
    "Crack",
    "CutPaste",
    "Defect",
    "Hole",
    "PerlinTexture",
    "Scar",
    "StructuralShift",
    "default_defects",
]


@dataclass(frozen=True)
class Corruption:
    """Put synthetic defects into samples: `corrupted` beside `image`, and `defect` where they differ.

    Attributes:
        defects: kinds to draw from, each as likely; by default those of `default_defects`.
        probability: share of the samples that are corrupted, above 0 to 1; the others are given back as they are, twice.
        max_defects: most defects of a sample, at least 1; each number from 1 is as likely.

    Example:
        >>> corruption = Corruption((CutPaste(), Scar(strength=0.7)), probability=0.8)
    """

    defects: tuple[Defect, ...] | None = None
    probability: float = 1.0
    max_defects: int = 2

    def __post_init__(self) -> None:
        if self.defects is not None:  # also as `describe` gives them
            object.__setattr__(self, "defects", tuple(build(kind) for kind in self.defects))
        if (self.defects is not None and not self.defects) or not 0 < self.probability <= 1 or self.max_defects < 1:
            raise ValueError(
                "Expected at least one kind of defect, or None for the default ones, a probability above 0 to 1 and max_defects >= 1, but "
                f"got {self.defects}, {self.probability} and {self.max_defects}."
            )

    @property
    def kinds(self) -> tuple[Defect, ...]:
        """Give the kinds of defects that are drawn from."""
        return default_defects() if self.defects is None else tuple(self.defects)

    @property
    def needs_others(self) -> bool:
        """Say whether some kind takes pieces from other images."""
        return any(kind.takes_others for kind in self.kinds)

    def triple(self, image: Tensor, generator: torch.Generator, others: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupt an image.

        Args:
            image: (C, H, W) float32 of any bands, NaN where there is no data.
            generator: the only source of randomness.
            others: further images (C, h, w) to take pieces from.

        Returns:
            The corrupted image in memory of its own, the image itself, and (H, W) bool: True where defects were laid.
        """
        corrupted, mask = image.clone(), torch.zeros(image.shape[-2:], dtype=torch.bool)
        if float(torch.rand((), generator=generator)) < self.probability and bool(torch.isfinite(image).all(0).any()):
            for _ in range(int(torch.randint(1, self.max_defects + 1, (), generator=generator))):
                kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
                corrupted, changed = kind.apply(corrupted, generator, others)
                mask |= changed
            mask &= (corrupted != image).any(0)  # a second defect may undo a part of the first
        return corrupted, image, mask

    def __call__(self, sample: dict[str, Any], generator: torch.Generator, others: Sequence[Tensor] | None = None) -> dict[str, Any]:
        """Corrupt a sample.

        Args:
            sample: `image` (C, H, W) and, if there is one, `mask` (H, W).
            generator: the only source of randomness.
            others: further images to take pieces from.

        Returns:
            The sample with `corrupted` (C, H, W), and `defect` (H, W) int64: 1 on defects, 0 elsewhere, 255 where `mask` is or where there
            is no data.
        """
        corrupted, image, mask = self.triple(sample["image"], generator, others)
        void = ~torch.isfinite(image).all(0)
        if "mask" in sample:
            void |= sample["mask"] == IGNORE
        return {**sample, "corrupted": corrupted, "defect": mask.long().masked_fill(void, IGNORE)}


def default_defects() -> tuple[Defect, ...]:
    """Give one of each kind, at full strength."""
    return CutPaste(), Scar(), PerlinTexture(), Blend(), Blur(), ColourShift(), Hole(), StructuralShift(), Crack()
