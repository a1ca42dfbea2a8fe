"""One scene in memory: what every reader returns and every dataset cuts samples from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg.sample import ANOMALY, IGNORE, NORMAL, check_mask


@dataclass(frozen=True)
class Scene:
    """Hold one scene with its truth and its place on earth.

    Attributes:
        name: unique within a data module; names the outputs.
        image: (C, H, W) float32, NaN in every band of a pixel without data; (2, C, H, W) for two dates, NaN at both.
        mask: (H, W) int64 of 0 normal, 1 anomaly, 255 void or no data; None where there is no truth.
        wavelength: C band centres in nanometres, or None.
        transform: affine pixel-to-map coefficients (a, b, c, d, e, f), or None.
        crs: coordinate reference system as WKT, or None.
        label: (H, W) integer class ids below 255, 255 where there is none; None where classes do not matter.
        image_label: truth of the whole image: 0 normal, 1 anomalous, 255 unknown; None where single pixels are what counts.
        category: the kind of object or surface it shows; None where there is but one.
    """

    name: str
    image: Tensor
    mask: Tensor | None = None
    wavelength: tuple[float, ...] | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    crs: str | None = None
    label: Tensor | None = None
    image_label: int | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 and (self.image.ndim != 4 or len(self.image) != 2):
            raise ValueError(
                f"Expected an image of shape (C, H, W), or (2, C, H, W) for two dates, in scene '{self.name}', but got "
                f"{tuple(self.image.shape)}. Add a band axis to a 2-D array, or pick two dates of a stack."
            )
        if self.mask is not None:
            if self.mask.shape != self.image.shape[-2:]:
                raise ValueError(
                    f"Expected a mask of shape {self.size} to fit the image of scene '{self.name}', "
                    f"but got {tuple(self.mask.shape)}. Is it the truth of another scene, or of an uncropped one?"
                )
            check_mask(self.mask[None], [self.name])
        if self.label is not None and (self.label.shape != self.image.shape[-2:] or self.label.is_floating_point()):
            raise ValueError(
                f"Expected integer labels of shape {self.size} to fit the image of scene '{self.name}', "
                f"but got {tuple(self.label.shape)} {self.label.dtype}."
            )
        if self.label is not None and self.label.numel() and not 0 <= int(self.label.min()) <= int(self.label.max()) <= IGNORE:
            wrong = torch.unique(self.label[(self.label < 0) | (self.label > IGNORE)])[:8].tolist()
            raise ValueError(
                f"Expected class ids of 0 to 254 in the labels of scene '{self.name}', and 255 where there is none, but got {wrong}. "
                "Number the classes anew."
            )
        if self.image_label not in (None, NORMAL, ANOMALY, IGNORE):
            raise ValueError(
                f"Expected an image label of 0 (normal), 1 (anomalous) or 255 (unknown) in scene '{self.name}', but got {self.image_label}."
            )
        if self.wavelength is not None and len(self.wavelength) != self.image.shape[-3]:
            raise ValueError(
                f"Expected {self.image.shape[-3]} wavelengths in scene '{self.name}', one a band, but got {len(self.wavelength)}. "
                "Drop the wavelengths of removed bands."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Give (height, width) in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])
