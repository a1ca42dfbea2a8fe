"""Change both dates of a training sample: one geometry for both, the light of each for itself, and their order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.data.augment import Augmentation


@dataclass(frozen=True)
class GainOffset(Augmentation):
    """Change the light of an image of any bands: a gain for all, a gain and an offset for each band.

    Attributes:
        gain: the gain of all bands is e^u, u uniform in [-gain, gain]; at least 0.
        band_gain: likewise a gain of each band for itself.
        offset: an offset of each band, uniform in [-offset, offset], in units of the image.
    """

    gain: float = 0.2
    band_gain: float = 0.05
    offset: float = 0.0

    def __post_init__(self) -> None:
        if min(self.gain, self.band_gain, self.offset) < 0:
            raise ValueError(
                f"Expected ranges of at least 0, but got {self.gain}, {self.band_gain} and {self.offset}. Ranges are symmetric."
            )

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change the image; the mask passes."""
        bands = len(image)
        draws = torch.rand(2 * bands + 1, generator=generator) * 2 - 1
        factor = torch.exp(self.gain * draws[0] + self.band_gain * draws[1 : bands + 1])
        return image * factor[:, None, None] + self.offset * draws[bands + 1 :, None, None], mask


class PairAugmentation(Augmentation):
    """Augment pairs (2, C, H, W): geometry with one draw for both dates, light with a draw for each, and now and then their order.

    Example:
        >>> augment = PairAugmentation(FlipRotate(), GainOffset(0.2), swap=0.5)
    """

    def __init__(self, geometry: Augmentation | None = None, light: Augmentation | None = None, swap: float = 0.0) -> None:
        """Store the arguments.

        Args:
            geometry: moves pixels, such as `FlipRotate`; it runs on each date with the same draw, and its mask is kept.
            light: changes values only, such as `GainOffset` or a photometric pipeline of `Albumentations`.
            swap: chance that the dates change places, in [0, 1]: right where the truth does not depend on their order.

        Raises:
            ValueError: the chance is out of its range.
        """
        if not 0.0 <= swap <= 1.0:
            raise ValueError(f"Expected a chance from 0 to 1, but got swap={swap}. Half of the pairs is 0.5.")
        self.geometry = geometry
        self.light = light
        self.swap = swap

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change a pair.

        Args:
            image: (2, C, H, W) float32, NaN where there is no data.
            mask: (H, W) int64 of 0, 1, 255.
            generator: the only source of randomness.

        Returns:
            Pair and mask of the same size, NaN and 255 where there is no data.

        Raises:
            ValueError: the image is no pair, or ``light`` moves pixels.
        """
        if image.ndim != 4 or len(image) != 2:
            raise ValueError(
                f"Expected a pair of shape (2, C, H, W), but got {tuple(image.shape)}. Use the augmentation itself for one date."
            )
        dates = [image[0], image[1]]
        if self.geometry is not None:
            state = generator.get_state()
            truth = mask
            for index, date in enumerate(dates):
                generator.set_state(state)
                dates[index], mask = self.geometry(date, truth, generator)
        if self.light is not None:
            for index, date in enumerate(dates):
                dates[index], seen = self.light(date, mask, generator)
                if not torch.equal(seen, mask):
                    raise ValueError(f"Expected light= to leave pixels in place, but {self.light} moved the mask. Pass it as geometry=.")
        if self.swap and float(torch.rand((), generator=generator)) < self.swap:
            dates.reverse()
        return torch.stack(dates), mask
