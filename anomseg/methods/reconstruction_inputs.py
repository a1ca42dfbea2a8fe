"""What a reconstruction net sees: bands of mean 0 and deviation 1, void hidden, and the range that similarity counts on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomseg.exporting import is_exporting
from anomseg.methods.training_data import gathered_objects

OUTLYING = 6.0  # deviations beyond which a value widens no range: one hot pixel must not flatten all others
MARGIN = 0.25  # of the range, on both sides, for what light does to images later


class Moments(NamedTuple):
    """Hold statistics of channels over normal pixels, (C,) each, float32."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


def channel_moments(batches: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Compute mean, deviation (1 for constant channels) and extremes over the chosen pixels of all ranks, in one pass.

    Args:
        batches: maps (B, C, H, W) and their chosen pixels (B, H, W) bool.

    Raises:
        ValueError: no pixel is chosen.
    """
    found: tuple[int, Tensor, Tensor, Tensor, Tensor] | None = None
    for maps, chosen in batches:
        values = maps.movedim(1, -1)[chosen].double().cpu()
        if len(values):
            mean = values.mean(0)
            new = (len(values), mean, (values - mean).square().sum(0), values.amin(0), values.amax(0))
            found = new if found is None else _merged(found, new)
    total = None
    for part in gathered_objects(found):
        if part is not None:
            total = part if total is None else _merged(total, part)
    if total is None:
        raise ValueError("Expected normal pixels (mask 0, with data) in the training images, but there are none. Check the masks.")
    std = (total[2] / total[0]).sqrt()
    return Moments(total[1].float(), torch.where(std > 0, std, 1.0).float(), total[3].float(), total[4].float())


def _merged(
    a: tuple[int, Tensor, Tensor, Tensor, Tensor], b: tuple[int, Tensor, Tensor, Tensor, Tensor]
) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """Join counts, means, sums of squared deviations and extremes of two sets (Chan, Golub and LeVeque, 1979)."""
    count, step = a[0] + b[0], b[1] - a[1]
    squares = a[2] + b[2] + step.square() * (a[0] * b[0] / count)
    return count, a[1] + step * (b[0] / count), squares, torch.minimum(a[3], b[3]), torch.maximum(a[4], b[4])


class ReconstructionInputs(nn.Module):
    """Standardise images by the normal training pixels, and back.

    Args:
        bands: of the images.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands
        for name in ("mean", "std", "low", "high"):
            self.register_buffer(name, torch.zeros(bands))

    @property
    def fitted(self) -> bool:
        """Tell whether the statistics are known; an export, which cannot look at values, takes them to be."""
        return is_exporting() or bool(self.std.any())

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the statistics from (image, normal) batches.

        Raises:
            ValueError: no pixel is normal.
        """
        found = channel_moments(batches)
        low, high = (((one - found.mean) / found.std).clamp(-OUTLYING, OUTLYING) for one in (found.low, found.high))
        margin = MARGIN * (high - low).clamp_min(1e-3)
        for name, value in (("mean", found.mean), ("std", found.std), ("low", low - margin), ("high", high + margin)):
            setattr(self, name, value.to(self.mean))

    def forward(self, image: Tensor, shown: Tensor) -> Tensor:
        """Standardise (B, C, H, W); 0, the mean, where a pixel is not `shown`, (B, H, W) bool."""
        return torch.where(shown[:, None], (image - self.mean[:, None, None]) / self.std[:, None, None], 0.0)

    def restored(self, standardised: Tensor) -> Tensor:
        """Bring (B, C, H, W) back to the units of the images."""
        return standardised * self.std[:, None, None] + self.mean[:, None, None]

    def in_unit_range(self, standardised: Tensor) -> Tensor:
        """Bring the range of every band to [0, 1], where SSIM and MSGMS count; what leaves it does so here too."""
        return (standardised - self.low[:, None, None]) / (self.high - self.low)[:, None, None]
