"""Change image and mask of a training sample together: flips for any bands, albumentations for pictures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomseg.errors import MissingDependencyError
from anomseg.sample import IGNORE

MOST_BANDS = 4
_WHOLE = 0.99  # of a pixel interpolated from pixels with data alone; its sum of weights is rounded
_LINEAR = 1  # cv2.INTER_LINEAR


class Augmentation(ABC):
    """Change a sample at random: one call, one draw, by the generator alone."""

    @abstractmethod
    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change image and mask.

        Args:
            image: (C, H, W) float32, NaN where there is no data.
            mask: (H, W) int64 of 0, 1, 255.
            generator: the only source of randomness.

        Returns:
            Image and mask of the same size as before, NaN and 255 where there is no data.
        """


class FlipRotate(Augmentation):
    """Turn and mirror by one of the eight symmetries of the square, each as likely; images of any bands.

    An image that is not square takes one of the four that keep its size. Values do not change.
    """

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change image and mask; see the base class."""
        square = image.shape[-1] == image.shape[-2]
        turn = int(torch.randint(4 if square else 2, (), generator=generator)) * (1 if square else 2)
        mirror = bool(torch.randint(2, (), generator=generator))
        turned = [torch.rot90(part, turn, (-2, -1)) for part in (image, mask)]
        image, mask = [part.flip(-1) if mirror else part for part in turned]
        return image.contiguous(), mask.contiguous()


class Albumentations(Augmentation):
    """Run a pipeline of albumentations on images of up to four bands.

    The image enters in [0, 1], its pixels without data as the mean of their band. What lies outside of the frame, or is interpolated from
    such pixels, is NaN and 255 again. A blur mixes that mean into the pixels near them, which stay as they are marked.

    Example:
        >>> augment = Albumentations([{"name": "RandomBrightnessContrast", "p": 0.5}, {"name": "Rotate", "limit": 20}])
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], maximum: float = 255.0) -> None:
        """Store the arguments.

        Args:
            transforms: the pipeline; each step gives the ``name`` of a class of albumentations and its arguments.
            maximum: image value that becomes 1; values outside of 0 to ``maximum`` are clipped.

        Raises:
            ValueError: a step has no name, or the maximum is not positive.
        """
        if maximum <= 0 or not all("name" in step for step in transforms):
            raise ValueError(f"Expected a maximum above 0 and a 'name' in each step, but got {maximum} and {list(transforms)}.")
        self.transforms = transforms
        self.maximum = maximum

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change image and mask; see the base class.

        Raises:
            ValueError: the image has more than four bands, the pipeline changes its size, or albumentations refuses a step.
            MissingDependencyError: albumentations is not installed.
        """
        if len(image) > MOST_BANDS:
            raise ValueError(f"Expected an image of up to {MOST_BANDS} bands, but got {len(image)}. Use FlipRotate for more.")
        valid = torch.isfinite(image).all(dim=0)
        scaled = (image / self.maximum).clamp(0.0, 1.0)
        scaled = torch.where(
            valid, scaled, torch.where(valid, scaled, 0.0).mean((1, 2), keepdim=True) / valid.float().mean().clamp_min(1e-9)
        )
        pixels, seed = np.ascontiguousarray(scaled.permute(1, 2, 0).numpy()), int(torch.randint(2**31 - 1, (), generator=generator))
        # Classes go to the nearest pixel, but data is where nothing without data was mixed in: the same draw again where a step mixes.
        nearest, mixing = self._pipelines
        nearest.set_random_seed(seed)
        changed = nearest(image=pixels, masks=[mask.numpy().astype(np.uint8), valid.numpy().astype(np.float32)])
        new_mask, new_valid = (torch.from_numpy(np.array(plane)) for plane in changed["masks"])
        if mixing is not None:
            mixing.set_random_seed(seed)
            new_valid = torch.from_numpy(np.array(mixing(image=pixels, masks=[valid.numpy().astype(np.float32)])["masks"][0]))
        out = torch.from_numpy(np.array(changed["image"], dtype=np.float32)).reshape(*changed["image"].shape[:2], -1).permute(2, 0, 1)
        if out.shape != image.shape:
            raise ValueError(f"Expected a pipeline that keeps the size {tuple(image.shape)}, but got {tuple(out.shape)}. Crop with tile=.")
        kept = new_valid > _WHOLE
        out = torch.where(kept, out * self.maximum, torch.nan)
        return out.contiguous(), new_mask.long().masked_fill(~kept, IGNORE)

    @cached_property
    def _pipelines(self) -> tuple[Any, Any]:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions while it is imported
        try:
            import albumentations
        except ImportError as error:
            raise MissingDependencyError(
                "Albumentations needs the package of that name, which is not installed. Install it with: "
                "pip install 'albumentations>=2.0.8,<2.1' 'opencv-python-headless<5', or use FlipRotate."
            ) from error
        steps: list[list[Any]] = [[], []]
        for step in self.transforms:
            kind = getattr(albumentations, str(step["name"]), None)
            if kind is None:
                raise ValueError(f"Expected the name of a class of albumentations, but got {step['name']!r}. Correct the pipeline.")
            for each in steps:
                each.append(kind(**{key: value for key, value in step.items() if key != "name"}))
        mixes = any(hasattr(step, "mask_interpolation") for step in steps[0])
        return albumentations.Compose(steps[0]), albumentations.Compose(steps[1], mask_interpolation=_LINEAR) if mixes else None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pipelines"}
