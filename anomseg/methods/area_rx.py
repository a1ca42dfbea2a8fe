"""Label-free detectors with the size of targets as prior knowledge, as modules."""

from __future__ import annotations

from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.functional.area_filter import area_in_pixels
from anomseg.functional.area_rx import area_filtered_rx, fused_rx
from anomseg.methods.base import AnomalySegmenter


def _pixels(area: float, ground_sampling_distance: float | None) -> int:
    """Give the area in pixels, and refuse one that no filter can work with."""
    if ground_sampling_distance is not None:
        area = area_in_pixels(area, ground_sampling_distance)
    if area != int(area) or area < 2:
        raise ValueError(
            f"Expected an area of at least 2 whole pixels, but got {area}. It must exceed the largest target; "
            "set ground_sampling_distance= to give it in square metres."
        )
    return int(area)


class AreaRX(AnomalySegmenter):
    """Score a pixel by the small bright and dark details of the whitened components: RX that knows the size of its targets.

    Nothing is learnt: fitting only calibrates, and every scene is scored by its own statistics.

    Args:
        components: whitened principal components, at least 1; above the number of bands it is reduced to that.
        area: above the area of the largest target; in pixels, or in m² with ``ground_sampling_distance``. Larger objects are not seen.
        ground_sampling_distance: side of a pixel on the ground in metres; None takes ``area`` as pixels.
        levels: grey levels of the area filter; None keeps all.
        smoothing: standard deviation of the Gaussian over the map in pixels; 0 for none.
        calibration: see `AnomalySegmenter`.

    Source: see `anomseg.functional.area_rx`.
    """

    least_pixels = 2
    learns = False

    def __init__(
        self,
        components: int = 15,
        area: float = 30,
        ground_sampling_distance: float | None = None,
        levels: int | None = None,
        smoothing: float = 0.5,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        _pixels(area, ground_sampling_distance)
        self.components, self.area, self.ground_sampling_distance = components, area, ground_sampling_distance
        self.levels, self.smoothing = levels, smoothing

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by `area_filtered_rx`; see the base class."""
        area = _pixels(self.area, self.ground_sampling_distance)
        return area_filtered_rx(image, self.components, area, self.levels, self.smoothing)


class FusedRX(AnomalySegmenter):
    """Fuse `AreaRX` on a few components with local RX on more: small *and* foreign to its surroundings.

    The two err in different places: the first where a scene is full of small details, the second along edges. Nothing is learnt.

    Args:
        components: whitened components of the area filter.
        area: above the area of the largest target; in pixels, or in m² with ``ground_sampling_distance``. Larger objects are not seen.
        ground_sampling_distance: side of a pixel on the ground in metres; None takes ``area`` as pixels.
        local_components: whitened components of local RX.
        inner: odd width of local RX's guard window in pixels; at least that of the largest target.
        outer: odd width of its background window in pixels, at most the scene's shorter side.
        ridge: >= 0; share of the scene's covariance that is added to every window's.
        calibration: see `AnomalySegmenter`.

    Source: see `anomseg.functional.area_rx`.
    """

    least_pixels = 2
    learns = False

    def __init__(
        self,
        components: int = 5,
        area: float = 30,
        ground_sampling_distance: float | None = None,
        local_components: int = 20,
        inner: int = 9,
        outer: int = 21,
        ridge: float = 1.0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        _pixels(area, ground_sampling_distance)
        self.components, self.area, self.ground_sampling_distance = components, area, ground_sampling_distance
        self.local_components, self.inner, self.outer, self.ridge = local_components, inner, outer, ridge

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by the sum of two standard scores, 0 on average; see the base class."""
        area = _pixels(self.area, self.ground_sampling_distance)
        return fused_rx(image, self.components, area, self.local_components, self.inner, self.outer, self.ridge)
