"""Gaussians of texture for each place on a part: what to try before a network where surfaces are inspected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from anomseg.calibration.base import Calibration
from anomseg.errors import NotFittedError
from anomseg.functional.binned_gaussian import BinnedMoments, binned_gaussians, binned_mahalanobis, binned_moments
from anomseg.functional.border import bin_count, border_bins
from anomseg.functional.filter_bank import gaussian_filter
from anomseg.functional.surface_features import (
    LineKind,
    check_windows,
    directional_derivatives,
    image_median,
    line_responses,
    log_energies,
    log_light,
    streak_changes,
    window_contrasts,
)
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.feature_library_parts import score_maps
from anomseg.methods.position_statistics import BorderStatistics, PlaceLevel, fit_together, gathered_moments, peaks_of_places
from anomseg.methods.training_data import normal_pixels, training_batches
from anomseg.sample import finite_pixels

Family = Literal["derivatives", "contrasts", "energies", "streaks", "lines"]
_FLOOR = 1e-3  # of squared distances under the logarithm


class PositionGaussian(AnomalySegmenter):
    """Score a pixel by how badly its texture fits the normal pixels **of its place**, the distances to the border of the image.

    The dark rim of a part dominates every map that does not know where the border is. For each family of features and each bin of the
    distance to the nearer border of both axes there is one Gaussian (`binned_gaussians`); the squared distances' logarithms are smoothed
    and standardised over the normal training pixels of each bin. With ``level="peak"`` they are then standardised over the highest normal
    pixels that each bin has in each image: what says whether an image is defective is its highest pixel, and that of a rim, or of a large
    bin, lies higher above its mean. The score is the mean over the families. Nothing is learnt by descent.

    A family holds few features, because a distance in many of them drowns the one that is wrong.

    - `derivatives`: directional derivatives up to the second order (`directional_derivatives`): small, sharp defects.
    - `contrasts`: energies along rows and columns on the two sides of a pixel (`window_contrasts`): the edge of a patch that looks normal
      inside.
    - `energies`: local power of the derivatives against the image's own median (`log_energies`): another texture.
    - `streaks`: whether streaks go on across a pixel (`streak_changes`): wide defects in a surface with a direction, under a wide
      `smoothing`.
    - `lines`: how strongly thin lines answer (`line_responses`): cracks and scratches in rough texture. More of it is worse and less is
      not, so that no Gaussian is fitted: its logarithm is standardised for each bin, not smoothed, and averaged with the others.

    The images must be whole parts, not tiles of them, and in [0, 1] (light).

    Args:
        in_channels: bands of the images.
        families: of features; their scores are averaged.
        cuts: distances in pixels (after `shrink`) at which a new bin begins; none gives one Gaussian for all places.
        scales: of the derivatives, standard deviations in pixels after `shrink`; all share a Gaussian.
        windows: of contrasts and streaks, (depth, odd width) of each side in pixels after `shrink`; all share a Gaussian.
        pooled: weight of the correlations within all bins in those of each, in (0, 1].
        shrink: the pixels with data of squares of this side are averaged first, and the score is enlarged.
        smoothing: standard deviation of a Gaussian over the score in pixels after `shrink`; 0 for none.
        lines: which of them the family of that name looks for, `dark` or `bright` ones, or `both`.
        level: what the score of a place is measured against, `peak` or the `mean` of its pixels alone. On tiles with a rough rim peaks
            rank images better, and pixels of wide defects at the rim worse.
        calibration: see `AnomalySegmenter`.

    Raises:
        ValueError: an argument is out of its range; the images have another band count, or no pixel is normal.
        NotFittedError: scored before fitting.

    Source: a Gaussian for each place as in Defard et al., "PaDiM", ICPR 2021, here for distances instead of pixels, so that parts of any
    size share their statistics, and for derivatives instead of pretrained features.
    """

    learns = False

    def __init__(
        self,
        in_channels: int = 1,
        families: Sequence[Family] = ("derivatives", "contrasts", "energies"),
        cuts: Sequence[int] = (2, 4, 7, 12, 20, 32),
        scales: Sequence[float] = (2.0,),
        windows: Sequence[Sequence[int]] = ((7, 15),),
        pooled: float = 0.05,
        shrink: int = 1,
        smoothing: float = 2.0,
        lines: LineKind = "both",
        level: PlaceLevel = "peak",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        unknown = [family for family in families if family not in get_args(Family)]
        if unknown or not families or len(set(families)) < len(families):
            raise ValueError(f"Expected some of {get_args(Family)}, each once, but got families={list(families)}.")
        if lines not in get_args(LineKind) or level not in get_args(PlaceLevel):
            raise ValueError(
                f"Expected lines of {get_args(LineKind)} and level of {get_args(PlaceLevel)}, but got {lines!r} and {level!r}."
            )
        if in_channels < 1 or shrink < 1 or (smoothing and smoothing < 0.5):
            raise ValueError(
                f"Expected in_channels and shrink >= 1 and smoothing 0 or >= 0.5, but got {in_channels}, {shrink} and {smoothing}."
            )
        if not scales or min(scales) < 0.5:
            raise ValueError(f"Expected scales of at least 0.5 pixels, but got {list(scales)}.")
        border_bins((1, 1), cuts)  # raises if the cuts are none
        check_windows(windows)
        self.in_channels, self.families, self.cuts, self.pooled = in_channels, list(families), list(cuts), pooled
        self.scales, self.windows = list(scales), [(int(depth), int(width)) for depth, width in windows]
        self.shrink, self.smoothing, self.lines, self.level = shrink, smoothing, lines, level
        self.fitted_families = [family for family in families if family != "lines"]
        for family in self.fitted_families:
            self.register_buffer(f"mean_{family}", torch.empty(0, dtype=torch.float64))
            self.register_buffer(f"precision_{family}", torch.empty(0, dtype=torch.float64))
        self.levels = nn.ModuleDict({family: BorderStatistics(cuts) for family in families})
        self.peaks = nn.ModuleDict({family: BorderStatistics(cuts, prior=10.0) for family in families if level == "peak"})

    def on_train_start(self) -> None:
        """Fit everything: one pass for the Gaussians, one for the levels of all families in each place, and one for the peaks."""
        if self.fitted_families:
            self._fit_gaussians()
        maps = ([(self._distances(f, light, valid), normal) for f in self.families] for light, valid, normal in self._normal_parts())
        fit_together(self._of_places(self.levels), maps)
        if self.level == "peak":
            fit_together(self._of_places(self.peaks), map(self._peaks, self._normal_parts()))

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W); see the base class."""
        if not cast(BorderStatistics, self.levels[self.families[0]]).mean.numel():
            raise NotFittedError("Expected a fitted PositionGaussian, but it holds no statistics. Call `trainer.fit` first.")
        small, valid = self._small(image)
        score = torch.stack([self._standardised(family, small, valid) for family in self.families]).mean(0)
        data = finite_pixels(image)
        if self.shrink > 1:
            return score_maps(score, valid, data, (self.shrink * score.shape[-2], self.shrink * score.shape[-1]), 0.0)
        return torch.where(data, score, 0.0)

    def _small(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shrink the images, and take their exposure out: (B, C, h, w) with NaN where there is no data, and where there is."""
        if image.shape[1] != self.in_channels:
            raise ValueError(f"Expected images of {self.in_channels} bands, as in training, but got {image.shape[1]}.")
        valid = finite_pixels(image)
        if self.shrink > 1:
            both = torch.cat([torch.where(valid[:, None], image, 0.0), valid[:, None].to(image)], 1)
            means = avg_pool2d(both, self.shrink, ceil_mode=True, count_include_pad=False)
            image, valid = means[:, :-1] / means[:, -1:], means[:, -1] > 0  # the mean of the pixels with data
        return log_light(torch.where(valid[:, None], image, torch.nan)), valid

    def _features(self, family: str, light: Tensor, valid: Tensor) -> Tensor:
        if family == "derivatives":
            return directional_derivatives(light, self.scales)
        if family == "contrasts":
            return window_contrasts(log_energies(light, smoothing=2.0, order=1), valid, self.windows)
        if family == "streaks":
            return streak_changes(light, valid, self.windows)
        energies = log_energies(light)
        return torch.where(valid[:, None], energies - image_median(energies, valid), 0.0)

    def _distances(self, family: str, light: Tensor, valid: Tensor) -> Tensor:
        """Compute the smoothed logarithm of the squared distances, or that of the lines: (B, h, w), 0 where there is no data."""
        if family == "lines":
            return torch.where(valid, (line_responses(light, kind=self.lines).mean(1) + _FLOOR).log(), 0.0)
        bins = border_bins((light.shape[-2], light.shape[-1]), self.cuts, light.device)
        mean, precision = (getattr(self, f"{kind}_{family}") for kind in ("mean", "precision"))
        distance = binned_mahalanobis(self._features(family, light, valid), bins, mean, precision)
        scored = torch.where(valid, (distance + _FLOOR).log(), torch.nan)
        return (gaussian_filter(scored[:, None], self.smoothing)[:, 0] if self.smoothing else scored).nan_to_num(0.0)

    def _of_level(self, family: str, light: Tensor, valid: Tensor) -> Tensor:
        """Standardise the distances of a family over the pixels of each place: (B, h, w), 0 where there is no data."""
        return cast(Tensor, self.levels[family](self._distances(family, light, valid), valid))

    def _standardised(self, family: str, light: Tensor, valid: Tensor) -> Tensor:
        """Standardise them over the peaks of each place, too, where that is asked for."""
        score = self._of_level(family, light, valid)
        return score if self.level == "mean" else cast(Tensor, self.peaks[family](score, valid))

    def _peaks(self, part: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        light, valid, normal = part
        scores = (self._of_level(family, light, valid) for family in self.families)
        return [(score, peaks_of_places(score, normal, self.cuts)) for score in scores]

    def _of_places(self, held: nn.ModuleDict) -> list[BorderStatistics]:
        return [cast(BorderStatistics, held[family]) for family in self.families]

    def _normal_parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Serve light, data and normal pixels of the training data."""
        for batch in training_batches(self):
            light, valid = self._small(batch["image"])
            normal = normal_pixels(batch)
            if self.shrink > 1:
                normal = -max_pool2d(-normal.float(), self.shrink, ceil_mode=True) > 0
            yield light, valid, normal & valid

    def _fit_gaussians(self) -> None:
        totals = gathered_moments(self._moments(light, valid, normal) for light, valid, normal in self._normal_parts())
        for family, total in zip(self.fitted_families, totals, strict=True):
            mean, precision = binned_gaussians(total, self.pooled)
            setattr(self, f"mean_{family}", mean.to(self.device))
            setattr(self, f"precision_{family}", precision.to(self.device))

    def _moments(self, light: Tensor, valid: Tensor, normal: Tensor) -> list[BinnedMoments]:
        bins = border_bins((light.shape[-2], light.shape[-1]), self.cuts, light.device)
        return [binned_moments(self._features(f, light, valid), bins, normal, bin_count(self.cuts)) for f in self.fitted_families]
