"""Draw what a method that rebuilds images makes of the same few images, epoch after epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from anomseg.callbacks.collapse_monitor_probe import Rebuilds, untouched
from anomseg.errors import NotFittedError
from anomseg.methods.base import AnomalySegmenter
from anomseg.report.pictures import save_figure
from anomseg.report.reconstruction_panel import (
    Frame,
    StripPictures,
    reconstruction_strip,
    save_reconstruction_panel,
    strip_pictures,
)
from anomseg.sample import ANOMALY, finite_pixels, flat_truth

Source = Literal["validation", "test"]


class _Shown(NamedTuple):
    """Hold an image that is drawn; `mask` is None where there is no truth."""

    place: int  # among those that are served
    name: str
    title: str  # the name, and where a tile begins
    image: Tensor
    mask: Tensor | None
    wavelength: Sequence[float] | None
    anomalous: bool
    category: str | None


class _Drawn:
    """Hold the pictures of drawings at equal steps, the first and the last among them: at most twice as many as a strip shows."""

    def __init__(self, columns: int) -> None:
        self.most = 2 * columns
        self.pictures: list[StripPictures] = []
        self.step, self.count = 1, 0

    def add(self, pictures: StripPictures) -> None:
        if self.count and (self.count - 1) % self.step:
            self.pictures.pop()  # it was there as the last one
        self.pictures.append(pictures)
        self.count += 1
        if len(self.pictures) > self.most:  # and so of an odd number, of which every second one includes the last
            self.pictures, self.step = self.pictures[::2], 2 * self.step


class ReconstructionStrips(pl.Callback):
    """Draw input, reconstruction, residual, score, heat map and truth of a few images, and each of them over the epochs.

    Writes `epoch-007/<name>.png` for each image and drawn epoch, and `summary_<name>.png` with all epochs so far; a `/` in a name becomes
    a `-`. The name of a tile is that of its scene with the row and the column where it begins, `<name>_0-512`; of images whose files would
    have one name, the later ones get their number among those that are served. Each file is there whole or not at all. The images are
    chosen once: half of them normal and half anomalous, as far as there are any, and of each category in turn. Nothing is chosen by these
    pictures, and training goes on as it would without them. Epochs of panels count from 0. Of past epochs small pictures are held, and no
    more of them than `2 * columns`.

    Args:
        folder: where to write; it is made.
        images: how many, >= 1, or their names; of a scene in tiles the first one is drawn.
        every_n_epochs: epochs between two drawings, >= 1; the last epoch is drawn besides.
        source: `validation` images, or those of the `test`, where industrial data has its defects. Who looks at test images while a net
            learns should not choose an epoch by them.
        columns: epochs in a summary at most, >= 2.

    Attributes:
        written: the files, in their order.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: the method does not rebuild images.
    """

    def __init__(
        self,
        folder: str | Path = "anomseg-strips",
        images: int | Sequence[str] = 4,
        every_n_epochs: int = 1,
        source: Source = "validation",
        columns: int = 10,
    ) -> None:
        if every_n_epochs < 1 or columns < 2 or source not in get_args(Source) or (images < 1 if isinstance(images, int) else not images):
            raise ValueError(
                f"Expected images >= 1 or names, every_n_epochs >= 1, columns >= 2 and source of {get_args(Source)}, "
                f"but got {images!r}, {every_n_epochs}, {columns} and {source!r}."
            )
        self.folder, self.images, self.every_n_epochs = Path(folder), images, every_n_epochs
        self.source, self.columns = source, columns
        self.written: list[Path] = []
        self._shown: list[_Shown] | None = None
        self._drawings: list[_Drawn] = []
        self._drawn = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a method without reconstructions before any work is done, and begin anew."""
        if not isinstance(pl_module, Rebuilds):
            raise TypeError(f"Expected a method with `reconstruct`, but got {type(pl_module).__name__}. Take the callback away.")
        self.written, self._shown, self._drawings, self._drawn = [], None, [], -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw where an epoch is due; validation has calibrated the heat map by now."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last epoch where it was not due."""
        last = trainer.current_epoch - 1  # it counts the epochs done by now
        if last > self._drawn:
            self._draw(trainer, pl_module, last)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        if not trainer.is_global_zero:
            return
        if self._shown is None:
            self._shown = self._chosen(trainer)
            self._drawings = [_Drawn(self.columns) for _ in self._shown]
        self._drawn = epoch
        method = cast(AnomalySegmenter, pl_module)
        with suppress(NotFittedError), untouched(pl_module), trainer.precision_plugin.forward_context():
            frames = [_frame(method, one, epoch) for one in self._shown]
            limits = _score_limits(self._shown, frames)
            for one, stem, frame, drawn in zip(self._shown, _stems(self._shown), frames, self._drawings, strict=True):
                panel = self.folder / f"epoch-{epoch:03d}" / f"{stem}.png"
                self.written.append(save_reconstruction_panel(panel, one.image, frame, one.mask, limits, one.title, one.wavelength))
                drawn.add(strip_pictures(one.image, frame, one.wavelength))
                strip = reconstruction_strip(one.image, drawn.pictures, one.mask, one.title, one.wavelength, self.columns)
                self.written.append(save_figure(self.folder / f"summary_{stem}.png", strip))

    def _chosen(self, trainer: pl.Trainer) -> list[_Shown]:
        """Choose the images in the order in which they are served."""
        with isolate_rng():
            return self._by_number(trainer, self.images) if isinstance(self.images, int) else self._by_name(trainer, set(self.images))

    def _by_name(self, trainer: pl.Trainer, names: set[str]) -> list[_Shown]:
        found: dict[str, _Shown] = {}
        for one in self._served(trainer):
            if one.name in names:
                found.setdefault(one.name, one)
            if len(found) == len(names):
                break
        missing = sorted(names - set(found))
        if missing:
            warnings.warn(f"Expected {self.source} images named {missing}, but there are none; they are not drawn.", stacklevel=2)
        return sorted(found.values(), key=lambda one: one.anomalous)

    def _by_number(self, trainer: pl.Trainer, number: int) -> list[_Shown]:
        held: dict[tuple[bool, str | None], list[_Shown]] = {}
        for one in self._served(trainer):
            alike = held.setdefault((one.anomalous, one.category), [])
            if len(alike) < number:
                alike.append(one)
            # Categories may come one after the other: only without them is it known that nothing else will come.
            if one.category is None and all(len(held.get((ill, None), ())) >= (number + 1) // 2 for ill in (False, True)):
                break
        normal, anomalous = (_in_turn([kept for (is_ill, _), kept in held.items() if is_ill == ill]) for ill in (False, True))
        ill = min(len(anomalous), max(number // 2, number - len(normal)))
        return normal[: number - ill] + anomalous[:ill]

    def _served(self, trainer: pl.Trainer) -> Iterator[_Shown]:
        loaders: Any = trainer.val_dataloaders
        if self.source == "test":
            data = cast(Any, trainer).datamodule
            if data is None:
                raise ValueError(
                    "Expected a data module to take test images from, but training has loaders alone. Use source='validation'."
                )
            data.setup("test")
            loaders = data.test_dataloader()
        count = 0
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders] if loaders is not None else []:
            for batch in loader:
                for index in range(len(batch["image"])):
                    yield _sample(flat_truth(batch), index, count)
                    count += 1


def _sample(batch: Mapping[str, Any], index: int, count: int) -> _Shown:
    image = batch["image"][index].detach().float().cpu().clone()
    mask = batch["mask"][index].detach().cpu().clone() if "mask" in batch else None
    label = int(batch["image_label"][index]) if "image_label" in batch else None
    anomalous = label == ANOMALY if label is not None else mask is not None and bool((mask == ANOMALY).any())
    name = batch["name"][index] if "name" in batch else f"image-{count}"
    row, column, *size = batch["window"][index] if "window" in batch else (0, 0, *image.shape[-2:])
    tile = "scene_size" in batch and tuple(size) != tuple(batch["scene_size"][index])
    title = f"{name}_{int(row)}-{int(column)}" if tile else name
    wavelength = batch["wavelength"][index] if "wavelength" in batch else None
    return _Shown(count, name, title, image, mask, wavelength, anomalous, batch["category"][index] if "category" in batch else None)


def _stems(shown: Sequence[_Shown]) -> list[str]:
    """Give each image a file name of its own."""
    stems: list[str] = []
    for one in shown:
        stem = one.title.replace("/", "-")
        while stem in stems:
            stem = f"{stem}_{one.place}"
        stems.append(stem)
    return stems


def _in_turn(kinds: Sequence[Sequence[_Shown]]) -> list[_Shown]:
    """Take the first of each kind, then the second of each, and so on."""
    return [one for row in zip_longest(*kinds) for one in row if one is not None]


def _frame(method: AnomalySegmenter, shown: _Shown, epoch: int) -> Frame:
    image = shown.image[None].to(method.device)
    score = method.score_map(image)
    heat = method.calibration(score)[0].float().cpu() if method.calibration.is_fitted else None
    return Frame(epoch, cast(Rebuilds, method).reconstruct(image)[0].float().cpu(), score[0].float().cpu(), heat)


def _score_limits(shown: Sequence[_Shown], frames: Sequence[Frame]) -> tuple[float, float] | None:
    """Give the ends of the scores of all images of an epoch, so that normal and anomalous ones compare; None where they are equal."""
    parts = [frame.score[finite_pixels(one.image[None])[0]] for one, frame in zip(shown, frames, strict=True)]
    values = torch.cat(parts) if parts else torch.empty(0)
    values = values[torch.isfinite(values)]
    if not values.numel() or not bool(values.max() > values.min()):
        return None
    return float(values.min()), float(values.max())
