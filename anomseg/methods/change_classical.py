"""Change detectors that learn nothing: the difference of two dates, and iteratively reweighted multivariate alteration detection."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.functional.change_vector import ChangeNorm, smallest_change, standardise_dates
from anomseg.functional.irmad import irmad
from anomseg.functional.smoothing import gaussian
from anomseg.methods.base import AnomalySegmenter
from anomseg.sample import finite_pixels


def check_pair(image: Tensor) -> None:
    """Check that images are pairs.

    Raises:
        ValueError: they are not.
    """
    if image.ndim != 5 or image.shape[1] != 2:
        raise ValueError(f"Expected pairs of shape (B, 2, C, H, W), but got {tuple(image.shape)}. Stack both dates in one tensor.")


class ChangeVector(AnomalySegmenter):
    """Score a pixel by how far apart its two dates lie.

    Args:
        norm: how band differences become one number, see `ChangeNorm`.
        standardise: give each band of each date mean 0 and deviation 1 over the scene first, which takes out linear changes of light.
        reach: pixels of misregistration that are forgiven along each axis, see `smallest_change`; thin changes vanish with it.
        smoothing: standard deviation in pixels of a Gaussian over the score, 0 for none.
        sharpen: multiply the smoothed score by the raw one: a change must be near others, and keeps its outline.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range.

    Source: see `anomseg.functional.change_vector`.
    """

    learns = False

    def __init__(
        self,
        norm: ChangeNorm = "euclidean",
        standardise: bool = True,
        reach: int = 0,
        smoothing: float = 0.0,
        sharpen: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if norm not in get_args(ChangeNorm) or reach < 0 or smoothing < 0:
            came = f"{norm!r}, {reach} and {smoothing}"
            raise ValueError(f"Expected norm of {get_args(ChangeNorm)}, reach >= 0 and smoothing >= 0 pixels, but got {came}.")
        self.norm, self.standardise, self.reach, self.smoothing, self.sharpen = norm, standardise, reach, smoothing, sharpen

    def score(self, image: Tensor) -> Tensor:
        """Score (B, 2, C, H, W) by the size of the change vector; see the base class."""
        check_pair(image)
        valid = finite_pixels(image)
        image = torch.where(valid[:, None, None], image, torch.nan)
        dates = standardise_dates(image) if self.standardise else image
        raw = torch.where(valid, smallest_change(dates[:, 0], dates[:, 1], self.reach, self.norm), 0.0)
        if not self.smoothing:
            return raw
        smooth = gaussian(raw, self.smoothing, valid)
        return smooth * raw if self.sharpen else smooth


class IRMAD(AnomalySegmenter):
    """Score a pixel by the chi-square distance of its MAD variates: what linear combinations of the bands do not share between the dates.

    No gain, offset or mixing of the bands of either date changes the score, and light or sensor need not be matched. It wants several
    bands: with one, it is a robust regression of one date on the other.

    Args:
        rounds: reweightings at most; 0 is plain MAD.
        tolerance: largest move of a canonical correlation at which it rests.
        ridge: share of variance added to the covariances, see `irmad`.
        smoothing: standard deviation in pixels of a Gaussian over the score, 0 for none.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range.

    Source: see `anomseg.functional.irmad`.
    """

    least_pixels = 2
    learns = False

    def __init__(
        self,
        rounds: int = 50,
        tolerance: float = 1e-6,
        ridge: float = 0.0,
        smoothing: float = 0.0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        if rounds < 0 or tolerance < 0 or ridge < 0 or smoothing < 0:
            raise ValueError(
                f"Expected rounds, tolerance, ridge and smoothing >= 0, but got {rounds}, {tolerance}, {ridge} and {smoothing}."
            )
        self.rounds, self.tolerance, self.ridge, self.smoothing = rounds, tolerance, ridge, smoothing

    def score(self, image: Tensor) -> Tensor:
        """Score (B, 2, C, H, W) by the chi-square distance; see the base class."""
        check_pair(image)
        valid = finite_pixels(image)
        distance = torch.stack([irmad(pair[0], pair[1], self.rounds, self.tolerance, self.ridge).distance for pair in image])
        score = torch.where(valid, distance, 0.0)
        return gaussian(score, self.smoothing, valid) if self.smoothing else score
