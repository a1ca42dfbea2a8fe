"""Serve synthetic scenes: a data module that needs no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from anomseg.data.scene_datamodule import SceneDataModule
from anomseg.data.scene_dataset import SceneLoader
from anomseg.data.synthetic_scenes import synthetic_scene

_MOST_SCENES = 1000


class SyntheticDataModule(SceneDataModule):
    """Draw scenes with exact truth, each anew whenever it is read, so that only seeds are stored.

    Scene ``i`` of a module with seed ``s`` is ``synthetic_scene(seed=1000 * s + i)``: modules with different seeds share no scene.

    Example:
        >>> data = SyntheticDataModule("multispectral", count=2, size=(96, 96))
    """

    def __init__(
        self,
        kind: Literal["rgb", "multispectral", "hyperspectral"] = "hyperspectral",
        count: int = 4,
        size: tuple[int, int] = (128, 128),
        bands: int | None = None,
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
            kind: the sensor that the scenes imitate.
            count: number of scenes, 1 to 1000.
            size: (height, width) of each scene in pixels, each at least 32.
            bands: number of bands; None takes 3, 10 and 100 in the order of the kinds.
            batch_size: samples a batch; scenes have one size and stack.
            num_workers: loader processes; 0 loads in the main one.
            tile: side of a tile in pixels; None serves whole scenes.
            overlap: pixels that neighbouring tiles share at least, 0 to ``tile - 1``.
            calibration_share: part of the blocks whose normal pixels calibrate, above 0 and below 1.
            calibration_block: side of such a block in pixels.
            test_on: ``"all"`` pixels, or those ``"held_out"`` from calibration.
            seed: of the scenes, of the calibration blocks and of the order of training samples; at least 0.
            train_on: ``"all"`` pixels, without a word about which of them are anomalous, for the same scenes are tested; ``"normal"`` names
                the anomalies in the masks of training, for methods to leave out: only where scenes of another seed are tested.

        Raises:
            ValueError: an argument is out of its range. Kind, size and bands are checked where the first scene is drawn.
        """
        super().__init__(batch_size, num_workers, tile, overlap, calibration_share, calibration_block, test_on, seed, train_on)
        if not 1 <= count <= _MOST_SCENES:
            raise ValueError(f"Expected 1 to {_MOST_SCENES} scenes, but got count={count}. Draw larger scenes instead of more.")
        if seed < 0:
            raise ValueError(f"Expected a seed of at least 0, but got {seed}. Scene names carry it.")
        self.kind = kind
        self.count = count
        self.size = size
        self.bands = bands

    def scenes(self) -> Sequence[SceneLoader]:
        """List a drawing for each scene; nothing is drawn yet.

        Returns:
            Loaders without arguments, picklable, that return a ``Scene`` each.
        """
        first = _MOST_SCENES * self.seed
        return [partial(synthetic_scene, self.kind, self.size, first + number, self.bands) for number in range(self.count)]
