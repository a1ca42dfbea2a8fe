"""Collaborative representation as a module."""

from __future__ import annotations

from torch import Tensor

from anomseg.calibration.base import Calibration
from anomseg.functional.crd import pca_collaborative_representation
from anomseg.methods.base import AnomalySegmenter


class CRD(AnomalySegmenter):
    """Score a pixel by what remains of it when its neighbours rebuild it, in whitened principal components.

    Nothing is learnt: fitting only calibrates, and every scene is scored by its own statistics.

    Args:
        components: whitened principal components, at least 1; above the number of bands it is reduced to that.
        inner: odd width of the guard window in pixels; at least that of the largest target.
        outer: odd width of the background window in pixels, above ``inner``.
        ridge: λ > 0; the smaller, the more neighbours may combine to rebuild a foreign pixel.
        calibration: see `AnomalySegmenter`.

    Source: Li and Du, IEEE TGRS 53(3), 2015; see `anomseg.functional.crd` for what differs.
    """

    least_pixels = 2
    learns = False

    def __init__(
        self,
        components: int = 20,
        inner: int = 9,
        outer: int = 15,
        ridge: float = 10.0,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(calibration)
        self.components, self.inner, self.outer, self.ridge = components, inner, outer, ridge

    def score(self, image: Tensor) -> Tensor:
        """Score (B, C, H, W) by the length of the residual; see the base class."""
        return pca_collaborative_representation(image, self.components, self.inner, self.outer, self.ridge)
