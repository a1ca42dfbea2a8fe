"""Serve hyperspectral scenes from MATLAB, ENVI, GeoTIFF and NumPy files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from anomseg.data.read_scene import MASK_SUFFIXES, find_masks, find_scenes, read_scene, scene_name
from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.data.scene_dataset import SceneLoader
from anomseg.errors import SceneNotFoundError


class HyperspectralDataModule(SceneDataModule):
    """Read one file a scene, with its truth inside or in a folder of truths.

    Example:
        >>> data = HyperspectralDataModule("scenes/*.mat", tile=64, overlap=16)
    """

    def __init__(
        self,
        root: str | Path | list[str | Path],
        image_key: str | None = None,
        mask_key: str | None = None,
        mask_root: str | Path | None = None,
        bands: list[int] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        tile: int | None = None,
        overlap: int = 0,
        calibration_share: float = 0.25,
        calibration_block: int = 10,
        test_on: Literal["all", "held_out"] = "all",
        seed: int = 0,
        train_on: Literal["all", "normal"] = "all",
    ) -> None:
        """Store the arguments, each as an attribute of its name.

        Args:
            root: a folder, a glob pattern, a file, or a list of these.
            image_key: variable of the MATLAB files that holds the cube, found by name and shape by default.
            mask_key: variable that holds the truth, found likewise.
            mask_root: folder with truths under the scenes' stems (.png, .tif, .npy, .mat, ENVI); a scene that has none there falls back
                on the truth inside its file.
            bands: indices from 0 of the bands to keep, in this order; None keeps all. Missing data in the others is no matter.
            batch_size: samples a batch; 1 for whole scenes of different sizes or band counts.
            num_workers: loader processes; 0 loads in the main one.
            tile: side of a tile in pixels; None serves whole scenes.
            overlap: pixels that neighbouring tiles share at least, 0 to ``tile - 1``.
            calibration_share: part of the blocks whose normal pixels calibrate, above 0 and below 1.
            calibration_block: side of such a block in pixels.
            test_on: ``"all"`` pixels, or those ``"held_out"`` from calibration.
            seed: of the calibration blocks and of the order of training samples.
            train_on: ``"all"`` pixels, without a word about which of them are anomalous, for the same scenes are tested; ``"normal"`` names
                the anomalies in the masks of training, for methods to leave out: only where the net is tested on other scenes.

        Raises:
            ValueError: an argument is out of its range, or ``bands`` is empty or names a band twice.
        """
        super().__init__(batch_size, num_workers, tile, overlap, calibration_share, calibration_block, test_on, seed, train_on)
        if bands is not None and (not bands or min(bands) < 0 or len(set(bands)) < len(bands)):
            raise ValueError(f"Expected different band indices of at least 0, but got bands={bands}. Use None to keep all bands.")
        self.root = root
        self.image_key = image_key
        self.mask_key = mask_key
        self.mask_root = mask_root
        self.bands = bands

    def scenes(self) -> Sequence[SceneLoader]:
        """List a loader for each file.

        Returns:
            Loaders without arguments that return a ``Scene`` each.

        Raises:
            SceneNotFoundError: ``root`` names no scene, ``mask_root`` is no folder, or it holds the truth of none of the scenes.
        """
        paths = find_scenes(self.root)
        masks: dict[Path, Path | None] = dict.fromkeys(paths)
        if self.mask_root is not None:
            folder = Path(self.mask_root).expanduser()
            if folder.is_dir():
                masks = find_masks(folder, paths)
            if not any(masks.values()):
                expected = f"'{scene_name(paths[0])}' with one of {MASK_SUFFIXES}"
                state = "none of the scenes has one there" if folder.is_dir() else "there is no such folder"
                raise SceneNotFoundError(
                    f"Expected truths in mask_root='{folder}', such as {expected}, but {state}. "
                    "Either correct mask_root=, or rename the truths after their scenes."
                )
        return [partial(read_scene, path, self.image_key, self.mask_key, masks[path], self.bands) for path in paths]
