"""Read one industrial image, whole or a patch of it: values in [0, 1], its truth, and what kind of object it shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from anomseg.data.class_masks import file_shape, read_class_ids
from anomseg.data.hdf5_io import HDF5_SUFFIXES, read_hdf5
from anomseg.data.industrial_layouts import GOOD, IndustrialFile, IndustrialLayout
from anomseg.data.picture_io import check_picture
from anomseg.data.raster_io import kept_bands, read_raster
from anomseg.data.scaling import largest_value, scaled_image, scaled_mask
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneFacts
from anomseg.errors import SceneFormatError
from anomseg.functional.windows import Window
from anomseg.sample import ANOMALY, IGNORE, NORMAL

ImageSize = tuple[int, int] | float | None


@dataclass(frozen=True)
class IndustrialImage:
    """Load an image when it is called.

    Attributes:
        file: the files.
        layout: what their values mean.
        size: (height, width) in pixels that the image is scaled to, or a factor; None keeps its own.
        bands: indices from 0 of the bands to keep; None keeps all.
        channels: number of bands that grey images, or those of three bands, are brought to; None keeps theirs. Grey is repeated in each
            band, one band is the mean of three.
        window: (row, column, height, width) of a patch in the file; None is the whole image.
        shape: (bands, height, width) of the file; filled in by `measured`.
    """

    file: IndustrialFile
    layout: IndustrialLayout
    size: ImageSize = None
    bands: tuple[int, ...] | None = None
    channels: int | None = None
    window: Window | None = None
    shape: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self) -> str:
        """Name the image; a patch is named after the place of its upper left pixel."""
        return self.file.name if self.window is None else f"{self.file.name}_r{self.window[0]:04d}_c{self.window[1]:04d}"

    @property
    def image_label(self) -> int:
        """Give the truth of the whole image: 0 normal, 1 anomalous, 255 unknown."""
        return IGNORE if self.file.defect is None else NORMAL if self.file.defect == GOOD else ANOMALY

    @property
    def scaled(self) -> tuple[int, int]:
        """Give (height, width) in pixels after scaling."""
        height, width = self.shape[1:] if self.window is None else self.window[2:]
        if isinstance(self.size, int | float):
            return max(1, round(height * self.size)), max(1, round(width * self.size))
        return self.size or (height, width)

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without a look at the pixels."""
        return SceneFacts(self.name, self.scaled, self.file.defect is not None)

    def measured(self) -> IndustrialImage:
        """Read the headers of image and mask.

        Raises:
            ValueError: the mask has another size than the image.
            SceneFormatError: a file is unreadable, or see `check_picture`.
        """
        if self.file.path.suffix.lower() not in HDF5_SUFFIXES:
            check_picture(self.file.path)
        shape = file_shape(self.file.path)
        if self.file.mask is not None and (found := file_shape(self.file.mask)[1:]) != shape[1:]:
            raise ValueError(
                f"Expected a mask of {shape[1]} x {shape[2]} pixels for '{self.file.path}', but '{self.file.mask}' has {found[0]} x "
                f"{found[1]}. Is it the mask of another image, or of an uncropped one?"
            )
        return replace(self, shape=shape)

    def truth(self) -> Tensor:
        """Read the truth at the size of the file.

        Returns:
            (H, W) int64: of a normal image 0, and 255 where its mask says so, if it has one; of another one what its mask says, and 255
            everywhere where no pixel is marked, so that nobody knows where.

        Raises:
            SceneFormatError: the mask is unreadable or holds a class that the layout does not know.
        """
        if self.file.mask is None:
            size = self.shape[1:] if self.window is None else self.window[2:]
            return torch.full(size, NORMAL if self.file.defect == GOOD else IGNORE)
        layout = self.layout
        ids = read_class_ids(self.file.mask, layout.table, layout.encoding, window=self.window)
        mask = layout.classes.mask(ids, layout.table)
        if self.file.defect == GOOD:  # of a patch, the mask itself says what little of it is not
            return mask if self.window is not None else mask.masked_fill(mask == ANOMALY, NORMAL)
        unknown = self.file.defect is not None and not bool((mask == ANOMALY).any())
        return torch.full_like(mask, IGNORE) if unknown else mask

    def __call__(self) -> Scene:
        """Read image and truth.

        Raises:
            SceneFormatError: a file is unreadable, or the image cannot be brought to the bands asked for.
        """
        image = as_channels(self._pixels(), self.channels, str(self.file.path))
        mask = None if self.file.defect is None else self.truth()
        if (image.shape[-2], image.shape[-1]) != self.scaled:
            image, mask = scaled_image(image, self.scaled), None if mask is None else scaled_mask(mask, self.scaled)
        return Scene(self.name, image, mask, image_label=self.image_label, category=self.file.category)

    def _pixels(self) -> Tensor:
        """Read the bands, (C, H, W) float32, in [0, 1] where they are integers."""
        path = self.file.path
        if path.suffix.lower() in HDF5_SUFFIXES:
            stored, valid = read_hdf5(path, None, self.window), None
            stored = stored if self.bands is None else stored[kept_bands(len(stored), self.bands, path)]
        else:
            raster = read_raster(path, self.window, self.bands)
            stored, valid = raster.image, torch.from_numpy(raster.valid)
        if stored.dtype.kind not in "biuf":
            raise SceneFormatError(f"Expected real numbers in '{path}', but got {stored.dtype}. Take the magnitude of complex data.")
        image = torch.from_numpy(np.require(stored, np.float32, ["C", "W"])) / (self.layout.maximum or largest_value(stored.dtype))
        finite = torch.isfinite(image).all(0) if valid is None else torch.isfinite(image).all(0) & valid
        return image if bool(finite.all()) else torch.where(finite, image, torch.nan)


def check_image_size(size: ImageSize) -> None:
    """Check that images can be scaled to a size, or by a factor.

    Raises:
        ValueError: it is not positive.
    """
    sides = [] if size is None else [size] if isinstance(size, int | float) else list(size)
    if size is not None and (len(sides) == 0 or min(sides) <= 0 or (not isinstance(size, int | float) and len(sides) != 2)):
        raise ValueError(f"Expected size to be (height, width) in pixels, or a factor above 0, but got {size}.")


def as_channels(image: Tensor, channels: int | None, source: str = "image") -> Tensor:
    """Bring an image to a number of bands: grey is repeated in each, three bands become their mean.

    Args:
        image: (C, H, W).
        channels: bands that are wanted; None keeps the image.
        source: for the message.

    Returns:
        (channels, H, W).

    Raises:
        SceneFormatError: there is no such rule for the image.
    """
    if channels is None or len(image) == channels:
        return image
    if len(image) == 1:
        return image.repeat(channels, 1, 1)
    if channels == 1 and len(image) == 3:
        return image.mean(0, keepdim=True)
    raise SceneFormatError(
        f"Expected an image of {channels} bands, of one band, or of three to make one of, but '{source}' has {len(image)}. Pick bands with "
        "bands=, or give data sets of different bands a model each."
    )
