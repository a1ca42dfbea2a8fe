"""One frame of a driving data set: image in [0, 1], classes to learn, and which pixels are anomalous."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.data.crops import SampleStep
from anomseg.data.driving_layouts import DrivingLayout
from anomseg.data.folder_image import FolderImage
from anomseg.data.picture_io import check_picture
from anomseg.data.raster_align import grid_of
from anomseg.data.scaling import largest_value, scaled_image
from anomseg.data.scene import Scene
from anomseg.data.scene_datamodule import SceneFacts
from anomseg.data.scene_dataset import SceneLoader
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.sample import ANOMALY, IGNORE, NORMAL


@dataclass(frozen=True)
class DrivingTruth:
    """Say what the codes of a label file mean in one stage.

    Attributes:
        layout: see `DrivingLayout`.
        held_out: classes that are never learnt.
        anomalous: whether held-out classes are anomalous, as in tests, or void, as in training.
        void: what void pixels become in the mask: void, or anomalous.
        rim: pixels of void, counted from whatever is not void, that stay void: seams between classes, which are not objects.
    """

    layout: DrivingLayout
    held_out: tuple[str, ...] = ()
    anomalous: bool = False
    void: int = IGNORE
    rim: int = 0

    @property
    def known(self) -> tuple[str, ...]:
        """Name the classes that are learnt, in the order of their labels."""
        return tuple(name for name in self.layout.classes if name not in self.held_out)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Turn codes (H, W) into mask (0, 1, 255) and label (0 to K - 1, 255)."""
        table = self.layout.folders.table
        number = dict(zip(table.names, table.class_ids, strict=True))
        size = max(table.class_ids) + 2
        mask_of, label_of = torch.full((size,), self.void), torch.full((size,), IGNORE)
        for place, name in enumerate(self.known):
            mask_of[number[name]], label_of[number[name]] = NORMAL, place
        for name in self.layout.inliers:
            mask_of[number[name]] = NORMAL
        for name in (*self.held_out, *self.layout.anomalies):
            mask_of[number[name]] = ANOMALY if self.anomalous else IGNORE
        places = torch.where(ids < 0, size - 1, ids)  # a pixel without class is void
        mask = mask_of[places]
        if self.rim and self.void != IGNORE:
            named = torch.zeros(size, dtype=torch.bool)
            named[[number[name] for name in self.layout.named]] = True
            near = F.max_pool2d(named[places][None].float(), 2 * self.rim + 1, 1, self.rim)[0] > 0
            mask = torch.where(near & ~named[places], IGNORE, mask)
        return mask, label_of[places]


@dataclass(frozen=True)
class DrivingFrame:
    """Load a frame when it is called.

    Attributes:
        image: the files.
        truth: see `DrivingTruth`.
        size: (height, width) in pixels that the frame is scaled to; None keeps its own.
        overlay: what is added to the frame, see `DrivingLayout`, or None.
        largest: stored value that becomes 1; None until it is measured.
    """

    image: FolderImage
    truth: DrivingTruth
    size: tuple[int, int] | None = None
    overlay: Path | None = None
    largest: float | None = None

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need, without a look at the pixels."""
        return SceneFacts(self.image.name, self.size or self.image.size, self.image.has_truth)

    def measured(self) -> DrivingFrame:
        """Read the headers; see `FolderImage.measured`.

        Raises:
            SceneFormatError: see `check_picture`.
        """
        for path in self.image.files.bands:
            check_picture(path)
        return replace(self, image=self.image.measured(), largest=self._largest())

    def counts(self, learnt: bool = False) -> bool:
        """Say whether the label file shows a pixel that counts, or one of a class to learn; reads that file alone."""
        ids = self.ids()
        return ids is not None and bool((self.truth.read(ids)[int(learnt)] != IGNORE).any())

    def ids(self) -> Tensor | None:
        """Read the codes of the label file, (H, W) int64 at its own size; None where there is no file."""
        return self.image.ids() if self.image.has_truth else None

    def __call__(self) -> Scene:
        """Read frame, in [0, 1] by the largest value of its integer type, and truth.

        Raises:
            SceneFormatError: a file is unreadable, or holds codes that the table does not know; the message lists them.
        """
        unlabelled = replace(self.image, files=replace(self.image.files, masks=()))()
        image, ids = unlabelled.image / (self.largest or self._largest()), self.ids()
        if self.overlay is not None:
            image = (image + _overlay(self.overlay, (image.shape[-2], image.shape[-1])) / 255).clamp(0, 1)
        if self.size is not None:
            image = scaled_image(image, self.size).clamp(0, 1)
            if ids is not None:
                ids = F.interpolate(ids[None, None].double(), self.size, mode="nearest-exact")[0, 0].long()
        if ids is None:
            return Scene(self.image.name, image)
        mask, label = self.truth.read(ids)
        return Scene(self.image.name, image, mask, label=label)

    def _largest(self) -> float:
        return largest_value(grid_of(self.image.files.bands[0])[1])


def _overlay(path: Path, size: tuple[int, int]) -> Tensor:
    """Read an overlay as (3, H, W) float32."""
    with np.load(path, allow_pickle=False) as archive:
        if "rgb" not in archive or archive["rgb"].shape != (*size, 3):
            held = {name: archive[name].shape for name in archive}
            raise SceneFormatError(f"Expected an array 'rgb' of shape {(*size, 3)} in '{path}', but got {held}.")
        return torch.from_numpy(archive["rgb"].astype(np.float32).transpose(2, 0, 1).copy())


def find_overlays(root: str | Path, template: str) -> dict[str, Path]:
    """Find overlays by the names of their frames.

    Raises:
        SceneNotFoundError: there is none.
    """
    pattern = re.escape(template).replace(r"\*", "[^/]*?").replace(r"\{name\}", "(?P<name>[^/]+)")
    folder = Path(root).expanduser()
    files = sorted(folder.glob(template.replace("{name}", "*")))
    matches = [(re.fullmatch(pattern, path.relative_to(folder).as_posix()), path) for path in files]
    found = {match["name"]: path for match, path in matches if match is not None}
    if not found:
        raise SceneNotFoundError(f"Expected overlays at '{folder}/{template}', but found none. Unpack them there.")
    return found


@dataclass(frozen=True)
class PastedFrame:
    """Load a frame with objects pasted into it, always the same ones.

    Attributes:
        frame: loads the frame.
        paste: such as `OutlierPaste`.
        seed: with the frame's name it draws the objects.
    """

    frame: SceneLoader
    paste: SampleStep
    seed: int = 0

    def facts(self) -> SceneFacts:
        """Give what the checks of a data module need."""
        if isinstance(self.frame, DrivingFrame):
            return self.frame.facts()
        scene = self.frame()
        return SceneFacts(scene.name, scene.size, scene.mask is not None)

    def __call__(self) -> Scene:
        """Load the frame and paste."""
        scene = self.frame()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(scene.name.encode()))
        sample = {"image": scene.image, "mask": scene.mask, "label": scene.label}
        pasted = self.paste({key: value for key, value in sample.items() if value is not None}, generator)
        return replace(scene, **{key: value for key, value in pasted.items() if key in sample})
