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
from anomseg.report.pictures import save_panel
from anomseg.sample import ANOMALY, finite_pixels


@dataclass
class _OpenScene:
    """Gather the tiles of one scene: weighted sums on the CPU, in scene coordinates."""

    name: str
    image: Tensor
    mask: Tensor
    total: Tensor
    weight: Tensor
    place: Mapping[str, Any]
    windows: set[tuple[int, ...]] = field(default_factory=set)


class SceneWriter(BasePredictionWriter):
    """Write what `predict` gives, one scene after the other.

    A scene becomes `<name>_score` and `<name>_heatmap`, float32 with NaN where there is no data: GeoTIFF where the input has a transform or
    a coordinate reference system, `.npy` otherwise; and `<name>.png`, a picture. Overlapping tiles are blended as raw scores, and the blend
    is calibrated. A file of an earlier run is replaced only once the new one is complete.

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
            ValueError: a name leads out of the folder, or a part of a scene comes a second time.
        """
        self._check_names(batch)
        for index in range(len(prediction["score"])):
            name = batch["name"][index] if "name" in batch else f"sample-{trainer.global_rank}-{batch_idx}-{index}"
            if self._open is None or self._open.name != name:
                self._close(pl_module)
                if name in self._begun:
                    raise ValueError(_twice(name))
                self._begun.add(name)
                self._open = _begin(name, batch, index)
            _add(self._open, batch, index, prediction["score"][index].float().cpu())

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last scene."""
        self._close(pl_module)

    def _check_names(self, batch: Mapping[str, Any]) -> None:
        root = self.folder.resolve()
        for name in batch.get("name", ()):
            place = (self.folder / f"{name}.png").parent.resolve()
            if not place.is_relative_to(root):
                raise ValueError(
                    f"Expected scene names that stay below the folder '{self.folder}', but '{name}' would write into '{place}'. "
                    f"Give the sample a relative name without '..', such as '{Path(str(name)).name}'."
                )

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
        nodata = ~finite_pixels(scene.image[None])[0]
        for what, plane in (("score", score), ("heatmap", heatmap)):
            self.written.append(self._write(f"{scene.name}_{what}", plane.masked_fill(nodata, torch.nan), scene.place))
        if self.pictures:
            truth = scene.mask if bool((scene.mask == ANOMALY).any()) else None
            path = self.folder / f"{scene.name}.png"
            self.written.append(save_panel(path, scene.image, score, heatmap, truth, scene.name, scene.place.get("wavelength")))

    def _write(self, stem: str, plane: Tensor, place: Mapping[str, Any]) -> Path:
        if place.get("transform") is not None or place.get("crs") is not None:
            return write_geotiff(self.folder / f"{stem}.tif", plane, place.get("transform"), place.get("crs"))
        return _write_array(self.folder / f"{stem}.npy", plane)


def _begin(name: str, batch: Mapping[str, Any], index: int) -> _OpenScene:
    image = batch["image"][index]
    size = tuple(batch["scene_size"][index]) if "scene_size" in batch else tuple(image.shape[-2:])
    place = {key: batch[key][index] for key in ("transform", "crs", "wavelength") if key in batch}
    blank = torch.zeros(size)
    return _OpenScene(name, torch.full((*image.shape[:-2], *size), torch.nan), blank.long(), blank, blank.clone(), place)


def _add(scene: _OpenScene, batch: Mapping[str, Any], index: int, score: Tensor) -> None:
    row, column, height, width = window = tuple(map(int, batch["window"][index])) if "window" in batch else (0, 0, *score.shape)
    everything = (0, 0, *scene.total.shape)
    if {window, everything} & scene.windows or (scene.windows and window == everything):
        raise ValueError(_twice(scene.name))
    scene.windows.add(window)
    part = (..., slice(row, row + height), slice(column, column + width))
    whole = score.shape == scene.total.shape
    weight = torch.ones_like(score) if whole else taper(height, width, max(1, min(height, width) // 2))
    scene.total[part] += score * weight
    scene.weight[part] += weight
    scene.image[part] = batch["image"][index].float().cpu()
    if "mask" in batch:
        scene.mask[part] = batch["mask"][index].cpu()


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
