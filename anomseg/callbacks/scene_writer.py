"""Write score, heat map and picture of every predicted scene, each file whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from anomseg.data.raster_io import write_geotiff
from anomseg.functional.windows import taper
from anomseg.methods.base import AnomalySegmenter
from anomseg.report.file_names import file_of_scene
from anomseg.report.pictures import picture_bands, save_panel
from anomseg.sample import ANOMALY, finite_pixels, flat_truth


@dataclass
class _OpenScene:
    """Gather the tiles of one scene: weighted sums on the CPU, in scene coordinates."""

    name: str
    valid: Tensor  # (H, W) bool
    bands: tuple[int, ...]  # those of the picture
    picture: Tensor | None  # (n, H, W) or (2, n, H, W) of these bands
    mask: Tensor | None
    total: Tensor
    weight: Tensor
    place: Mapping[str, Any]
    core: Tensor  # (H, W) weight of the tile that a further map is taken from
    maps: dict[str, Tensor] = field(default_factory=dict)
    windows: set[tuple[int, ...]] = field(default_factory=set)


class SceneWriter(BasePredictionWriter):
    """Write what `predict` gives, one scene after the other.

    A scene becomes `<name>_score` and `<name>_heatmap`, float32 with NaN where there is no data: GeoTIFF where the input has a transform or
    a coordinate reference system, `.npy` otherwise; and `<name>.png`, a picture. Overlapping tiles are blended as raw scores, and the blend
    is calibrated. Whole numbers that a method gives beside the score, such as the `classes` of a segmenter, become `<name>_<map>` of the
    same kind; there, each pixel is that of the tile in whose middle it lies most. A file of an earlier run is replaced only once the new
    one is complete. Of an image no more is held than which pixels have data, and the bands of the picture.

    A name may hold subfolders, but none that lead out of the folder. Every part of a scene comes once, and its tiles one after the other;
    two scenes of one name are an error, as one would overwrite or blend into the other.

    Args:
        folder: where to write; it is made.
        pictures: whether to draw the pictures.

    Attributes:
        written: the files of the latest run.
    """

    def __init__(self, folder: str | Path = "anomseg-output", pictures: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.pictures = pictures
        self.written: list[Path] = []
        self._open: _OpenScene | None = None
        self._begun: set[str] = set()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier run, which may have been broken off in the middle of a scene."""
        self.written, self._open, self._begun = [], None, set()

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse names that lead out of the folder, before the batch is scored."""
        if isinstance(batch, Mapping):  # the method says what is wrong with anything else
            self._check_names(batch)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Mapping[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the tiles of a batch to their scenes.

        Raises:
            ValueError: a name leads out of the folder, a tile comes without `scene_size`, or a part of a scene comes a second time.
        """
        self._check_names(batch)
        for index in range(len(prediction["score"])):
            name = batch["name"][index] if "name" in batch else f"sample-{trainer.global_rank}-{batch_idx}-{index}"
            if self._open is None or self._open.name != name:
                self._close(pl_module)
                if name in self._begun:
                    raise ValueError(_twice(name))
                self._begun.add(name)
                self._open = _begin(name, batch, index, self.pictures)
            maps = {key: value[index].cpu() for key, value in prediction.items() if key != "score" and not value.is_floating_point()}
            _add(self._open, batch, index, prediction["score"][index].float().cpu(), maps)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last scene."""
        self._close(pl_module)

    def _check_names(self, batch: Mapping[str, Any]) -> None:
        for name in batch.get("name", ()):
            file_of_scene(self.folder, name, ".png")

    def _close(self, pl_module: pl.LightningModule) -> None:
        scene, self._open = self._open, None
        if scene is None:
            return
        missing = int((scene.weight == 0).sum())
        if missing:
            raise RuntimeError(
                f"Expected tiles for every pixel of scene '{scene.name}', but {missing} got none, and nothing was written for it. "
                "Serve the tiles of a scene one after the other on one rank: predict with at most as many devices as scenes."
            )
        score = scene.total / scene.weight
        with torch.no_grad():
            heatmap = cast(AnomalySegmenter, pl_module).calibration(score.to(pl_module.device)).cpu()
        for what, plane in {"score": score, "heatmap": heatmap, **scene.maps}.items():
            self.written.append(self._write(f"{scene.name}_{what}", plane.float().masked_fill(~scene.valid, torch.nan), scene.place))
        if scene.picture is not None:
            truth = scene.mask if scene.mask is not None and bool((scene.mask == ANOMALY).any()) else None
            picture = scene.picture.masked_fill_(~scene.valid, torch.nan)
            self.written.append(save_panel(file_of_scene(self.folder, scene.name, ".png"), picture, score, heatmap, truth, scene.name))

    def _write(self, stem: str, plane: Tensor, place: Mapping[str, Any]) -> Path:
        if place.get("transform") is not None or place.get("crs") is not None:
            return write_geotiff(self.folder / f"{stem}.tif", plane, place.get("transform"), place.get("crs"))
        return _write_array(self.folder / f"{stem}.npy", plane)


def _begin(name: str, batch: Mapping[str, Any], index: int, pictures: bool) -> _OpenScene:
    image = batch["image"][index]
    height, width = size = tuple(batch["scene_size"][index]) if "scene_size" in batch else tuple(image.shape[-2:])
    place = {key: batch[key][index] for key in ("transform", "crs", "wavelength") if key in batch}
    blank, bands, picture, mask = torch.zeros(size), tuple[int, ...](), None, None
    if pictures:  # of three bands without wavelengths, as of one, false_colour shows what it is given
        bands = picture_bands(image.shape[-3], place.get("wavelength")) if image.shape[-3] > 2 else (0,)
        picture, mask = torch.full((*image.shape[:-3], len(bands), height, width), torch.nan), blank.byte()
    return _OpenScene(name, blank.bool(), bands, picture, mask, blank, blank.clone(), place, blank.clone())


def _add(scene: _OpenScene, batch: Mapping[str, Any], index: int, score: Tensor, maps: Mapping[str, Tensor]) -> None:
    row, column, height, width = window = tuple(map(int, batch["window"][index])) if "window" in batch else (0, 0, *score.shape)
    everything = (0, 0, *scene.total.shape)
    if "scene_size" not in batch and window != (0, 0, *score.shape):
        raise ValueError(
            f"Expected 'scene_size', (height, width) of the whole scene, beside each 'window' that is a part of it, but the tile of scene "
            f"'{scene.name}' at {window} came without. Add it to the sample."
        )
    if {window, everything} & scene.windows or (scene.windows and window == everything):
        raise ValueError(_twice(scene.name))
    scene.windows.add(window)
    part = (..., slice(row, row + height), slice(column, column + width))
    whole = score.shape == scene.total.shape
    weight = torch.ones_like(score) if whole else taper(height, width, max(1, min(height, width) // 2))
    scene.total[part] += score * weight
    scene.weight[part] += weight
    image = batch["image"][index].detach()
    scene.valid[part] = finite_pixels(image[None])[0].cpu()
    if scene.picture is not None:
        scene.picture[part] = image[..., list(scene.bands), :, :].float().cpu()
    if scene.mask is not None and "mask" in batch:
        scene.mask[part] = flat_truth(batch)["mask"][index].to("cpu", torch.uint8)
    nearest = weight > scene.core[part]
    for name, plane in maps.items():
        held = scene.maps.setdefault(name, torch.zeros(scene.total.shape, dtype=plane.dtype))[part]
        held[nearest] = plane[nearest]
    scene.core[part] = torch.maximum(scene.core[part], weight)


def _twice(name: str) -> str:
    return (
        f"Expected every part of scene '{name}' once, and all of them one after the other, but a part came again: its map would mix two "
        "images, or be overwritten. Give each image a 'name' of its own, and serve each tile once (a sampler that pads repeats some)."
    )


def _write_array(path: Path, plane: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npy")
    try:
        np.save(temporary, plane.numpy())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
