"""Lay rasters of one place onto one grid: the extent that they share, and a warped view of what lies on another grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from anomseg.data.raster_alpha import is_alpha_mistaken
from anomseg.data.raster_io import Raster, Transform, opened_raster, raster_of, six
from anomseg.functional.windows import Window

_NEAR = 1e-3  # pixels by which grids may differ and still count as one


@dataclass(frozen=True)
class Grid:
    """Describe the pixels of a raster: how many, and where on earth.

    Attributes:
        size: (height, width) in pixels.
        transform: affine pixel-to-map coefficients (a, b, c, d, e, f), or None.
        crs: coordinate reference system as WKT, or None.
    """

    size: tuple[int, int]
    transform: Transform | None = None
    crs: str | None = None

    @property
    def is_georeferenced(self) -> bool:
        """Say whether the pixels have a place on earth."""
        return self.transform is not None and self.crs is not None

    def part(self, window: Window) -> Grid:
        """Give the grid of a window of this one."""
        row, column, height, width = window
        if self.transform is None:
            return Grid((height, width), None, self.crs)
        a, b, c, d, e, f = self.transform
        return Grid((height, width), (a, b, c + a * column + b * row, d, e, f + d * column + e * row), self.crs)

    def matches(self, other: Grid) -> bool:
        """Say whether both have the same pixels: one size, and one place where both have one."""
        if self.size != other.size:
            return False
        if not (self.is_georeferenced and other.is_georeferenced):
            return True
        return _same_crs(self.crs, other.crs) and _near(self, other)

    def check_place(self, other: Grid, path: str | Path, first: str | Path) -> None:
        """Refuse another grid of this one's size that lies elsewhere, where a coordinate system is missing that would align them.

        Args:
            other: the grid.
            path: of its file, for the message.
            first: of this one's file.

        Raises:
            ValueError: both have a transform, these differ, and one of them has no coordinate reference system.
        """
        aligned = self.is_georeferenced and other.is_georeferenced
        if aligned or self.size != other.size or self.transform is None or other.transform is None or _near(self, other):
            return
        lacking = " and ".join(f"'{name}'" for name, grid in ((first, self), (path, other)) if grid.crs is None)
        raise ValueError(
            f"Expected '{path}' on the pixels of '{first}', but their transforms differ ({_rounded(other.transform)} and "
            f"{_rounded(self.transform)}), and without a CRS in {lacking} they cannot be aligned. Give each file its CRS, or remove the "
            "transforms if the pixels do correspond."
        )

    def check_same(self, other: Grid, path: str | Path, first: str | Path) -> None:
        """Refuse another grid of this one's size that lies elsewhere, where nothing would align them; other sizes pass.

        Args:
            other: the grid.
            path: of its file, for the message.
            first: of this one's file.

        Raises:
            ValueError: both have a transform, and these or their coordinate reference systems differ.
        """
        self.check_place(other, path, first)
        if self.size == other.size and not self.matches(other):
            ours, theirs = ((_rounded(grid.transform or ()), _named(grid.crs)) for grid in (self, other))
            raise ValueError(
                f"Expected '{path}' on the pixels of '{first}', at {ours[0]} in {ours[1]}, but it lies at {theirs[0]} in {theirs[1]}. "
                "Is it of another image? If not, warp it onto these pixels, such as with gdalwarp."
            )

    def affine(self) -> Any:
        """Give the pixel-to-map transform as rasterio's object.

        Raises:
            ValueError: the grid has no place on earth.
        """
        import rasterio

        if self.transform is None or self.crs is None:
            raise ValueError(
                f"Expected a georeferenced grid, but got transform={self.transform} and crs={self.crs}. Align by size instead."
            )
        return rasterio.Affine(*self.transform)


def _near(grid: Grid, other: Grid) -> bool:
    coefficients, differences = np.array(grid.transform), np.subtract(other.transform or (), grid.transform or ())
    a, b, _, d, e, _ = coefficients
    pixel = min(math.hypot(a, d), math.hypot(b, e))
    height, width = grid.size
    reach = np.array([width, height, 1.0, width, height, 1.0])  # a difference in scale grows towards the far corner
    return bool((np.abs(differences) * reach).max() <= _NEAR * pixel)


def _rounded(transform: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.8g}") for value in transform)


def _named(crs: str | None) -> str:
    return "no CRS" if crs is None else crs.split('"')[1] if '"' in crs else crs


def grid_of(path: Path) -> tuple[Grid, np.dtype[Any]]:
    """Read the grid and the stored type of a raster from its header.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster.
    """
    with opened_raster(path) as dataset:
        return _grid(dataset), np.dtype(dataset.dtypes[0])


def _grid(dataset: Any) -> Grid:
    transform = None if dataset.transform.is_identity else six(dataset.transform)
    return Grid((int(dataset.height), int(dataset.width)), transform, dataset.crs.to_wkt() if dataset.crs else None)


def shared_window(grid: Grid, other: Grid) -> Window | None:
    """Find the pixels of a grid that lie within the extent of another one.

    Args:
        grid: whose pixels are kept; north-up or turned.
        other: of any resolution and coordinate system. Its extent is the box around its borders in the system of ``grid``; what lies in
            the box without data is found by `read_on_grid`.

    Returns:
        (row, column, height, width) in ``grid``; None where they share no whole pixel.

    Raises:
        ValueError: one of them has no place on earth.
    """
    top, left, bottom, right = _box(grid, other)
    spans = []
    for low, high, length in ((top, bottom, grid.size[0]), (left, right, grid.size[1])):
        first, last = max(0, math.ceil(low - _NEAR)), min(length, math.floor(high + _NEAR))
        if last <= first:
            return None
        spans.append((first, last - first))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _box(grid: Grid, other: Grid) -> tuple[float, float, float, float]:
    """Give (top, left, bottom, right) of another grid in pixels of a grid: the box around its borders."""
    from rasterio.warp import transform_bounds

    height, width = other.size
    x, y = zip(*(other.affine() @ corner for corner in ((0, 0), (width, 0), (0, height), (width, height))), strict=True)
    left, bottom, right, top = min(x), min(y), max(x), max(y)
    if not _same_crs(grid.crs, other.crs):
        left, bottom, right, top = transform_bounds(other.crs, grid.crs, left, bottom, right, top)
    to_pixel = ~grid.affine()
    columns, rows = zip(*(to_pixel @ corner for corner in ((left, top), (right, top), (left, bottom), (right, bottom))), strict=True)
    return min(rows), min(columns), max(rows), max(columns)


def read_on_grid(path: Path, grid: Grid, window: Window | None = None, keep: Sequence[int] | None = None) -> Raster:
    """Read a raster as it looks on another grid: bilinear, and without data where it has none.

    Args:
        path: a georeferenced raster.
        grid: the pixels wanted, georeferenced.
        window: (row, column, height, width) in that grid; None reads all of it.
        keep: see `read_raster`.

    Returns:
        What `read_raster` returns, on that grid and as float32; ``valid`` is False outside of the raster's data. Each band has the no-data
        value that the file declares for it.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster.
    """
    with opened_raster(path) as dataset, _warped(dataset, grid, "bilinear", dataset.nodatavals, keep) as view:
        return raster_of(dataset, view, path, window, keep)


def read_mask_on_grid(path: Path, grid: Grid, window: Window | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read a truth map as it looks on another grid, each pixel from its nearest one.

    Args:
        path: a georeferenced raster; its no-data value counts unless it is 0.
        grid: the pixels wanted, georeferenced.
        window: (row, column, height, width) in that grid; None reads all of it.

    Returns:
        (C, H, W) float32 of the stored values, NaN outside, and (H, W) bool, False outside of the raster.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster.
    """
    with opened_raster(path) as dataset, _warped(dataset, grid, "nearest", [dataset.nodata or None] * dataset.count) as view:
        raster = raster_of(dataset, view, path, window)
    return raster.image, raster.valid


@contextmanager
def _warped(dataset: Any, grid: Grid, resampling: str, nodata: Sequence[float | None], keep: Sequence[int] | None = None) -> Iterator[Any]:
    from rasterio.enums import Resampling
    from rasterio.errors import NodataShadowWarning
    from rasterio.vrt import WarpedVRT

    with ExitStack() as opened:
        source, unknown = dataset, nodata[0]
        if is_alpha_mistaken(dataset, keep) or any(value != unknown for value in nodata):  # NaN differs from itself, which is no matter
            source, unknown = opened.enter_context(_plain(dataset, nodata)), np.nan
        view = WarpedVRT(
            source,
            crs=grid.crs,
            transform=grid.affine(),
            height=grid.size[0],
            width=grid.size[1],
            resampling=Resampling[resampling],
            src_nodata=unknown,
            nodata=np.nan,  # also for what lies outside of the source, whose own type may have no value to spare
            dtype="float32",
            UNIFIED_SRC_NODATA="NO",  # a pixel is without data where any of its bands is
            **_scale(grid, _grid(dataset)),
        )
        opened.enter_context(view)
        opened.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NodataShadowWarning)  # the view's no-data value holds what an alpha band hides, too
        yield view


def _plain(dataset: Any, nodata: Sequence[float | None]) -> Any:
    """Open a view of a raster with NaN for the no-data value of each band and without an alpha band, as warping knows one value alone."""
    import rasterio

    name, bands = escape(str(Path(dataset.name).resolve())), []
    for band, value in zip(dataset.indexes, nodata, strict=True):
        lacking = "" if value is None else f"<NODATA>{float(value)!r}</NODATA>"
        bands.append(
            f'<VRTRasterBand dataType="Float32" band="{band}"><NoDataValue>nan</NoDataValue><ComplexSource><SourceFilename '
            f'relativeToVRT="0">{name}</SourceFilename><SourceBand>{band}</SourceBand>{lacking}</ComplexSource></VRTRasterBand>'
        )
    place = f"<SRS>{escape(dataset.crs.to_wkt())}</SRS><GeoTransform>{', '.join(map(repr, dataset.transform.to_gdal()))}</GeoTransform>"
    return rasterio.open(f'<VRTDataset rasterXSize="{dataset.width}" rasterYSize="{dataset.height}">{place}{"".join(bands)}</VRTDataset>')


def _scale(grid: Grid, source: Grid) -> dict[str, float]:
    # GDAL guesses how many pixels a source pixel becomes from the windows that it reads, and guesses wrong where the source ends within one
    # (GDAL 3.10): values then differ by the window. Given here; below 1 it averages, so that finer sources do not alias.
    top, left, bottom, right = _box(grid, source)
    scales = {"YSCALE": (bottom - top) / source.size[0], "XSCALE": (right - left) / source.size[1]}
    return {name: 1.0 if abs(scale - 1) < 0.1 else scale for name, scale in scales.items()}


def _same_crs(one: str | None, other: str | None) -> bool:
    from rasterio.crs import CRS

    return one == other or (one is not None and other is not None and CRS.from_wkt(one) == CRS.from_wkt(other))
