"""Read and write rasters with their place on earth: ENVI, GeoTIFF, and whatever else GDAL opens."""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomseg.data.raster_alpha import colour_bands, is_alpha_mistaken, valid_pixels
from anomseg.data.raster_length import check_end, check_length
from anomseg.errors import SceneFormatError, SceneNotFoundError
from anomseg.functional.windows import Window

ENVI_DATA_SUFFIXES = ("", ".img", ".dat", ".bil", ".bip", ".bsq", ".raw")
Transform = tuple[float, float, float, float, float, float]
# Nanometres in one unit; other units (wavenumber, index, GHz) are no wavelength.
_NANOMETRES = {"nanometers": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1e3, "micrometer": 1e3, "um": 1e3, "μm": 1e3, "microns": 1e3}


@dataclass(frozen=True)
class Raster:
    """Hold a raster as stored, and what its file says about it.

    Attributes:
        image: (C, H, W) in the stored dtype (float32 where a reflectance scale factor applies). Bad bands are left out, and so is alpha:
            see `colour_bands`.
        valid: (H, W) bool, False where a band is without data by the no-data value, the mask or the alpha band.
        wavelength: C band centres in nanometres, or None.
        transform: affine pixel-to-map coefficients (a, b, c, d, e, f), or None.
        crs: coordinate reference system as WKT, or None.
    """

    image: np.ndarray[Any, Any]
    valid: np.ndarray[Any, Any]
    wavelength: tuple[float, ...] | None
    transform: Transform | None
    crs: str | None


def raster_shape(path: Path, keep: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Read (bands, height, width) of what `read_raster` chooses its bands from: of the header, and of a band that may be alpha.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is no raster.
    """
    with opened_raster(path) as dataset:
        return len(_good_bands(dataset, path, keep)), int(dataset.height), int(dataset.width)


def read_raster(path: Path, window: Window | None = None, keep: Sequence[int] | None = None) -> Raster:
    """Read the bands of an ENVI file (header or data), a GeoTIFF or another GDAL raster.

    ENVI headers are honoured: bands marked bad in ``bbl`` are dropped, ``data ignore value`` marks pixels without data, and values are
    divided by ``reflectance scale factor``. Scale and offset tags of a GeoTIFF are not applied.

    Args:
        path: the raster; for ENVI the ``.hdr`` or the data file beside it.
        window: (row, column, height, width) in pixels; None reads the whole raster, a window nothing beyond its blocks.
        keep: indices from 0 of the bands to read, in this order; None reads all, in file order. Others do not touch the validity. An alpha
            band that is named here is a band.

    Returns:
        The bands, with validity, wavelengths and georeference.

    Raises:
        SceneNotFoundError: the file, or the data file of an ENVI header, is missing.
        SceneFormatError: the file is cut short or no raster, or every band of it is marked bad.
        ValueError: a band to keep does not exist.
    """
    with opened_raster(path) as dataset:
        return raster_of(dataset, dataset, path, window, keep)


def kept_bands(count: int, keep: Sequence[int] | None, source: object) -> list[int]:
    """List the indices of the bands to keep, of all where it is None; a `ValueError` names the file that lacks one."""
    if keep is not None and (not keep or min(keep) < 0 or max(keep) >= count):
        strange = next((band for band in keep if not 0 <= band < count), "none")
        raise ValueError(f"Expected band indices of 0 to {count - 1} in '{source}', but got {strange} in bands=. None keeps all.")
    return list(range(count)) if keep is None else list(keep)


def raster_of(dataset: Any, pixels: Any, path: Path, window: Window | None = None, keep: Sequence[int] | None = None) -> Raster:
    """Read what `read_raster` reads from an open raster, its pixels from a view of it on another grid.

    Args:
        dataset: as `opened_raster` gives it.
        pixels: the same, or a warped view with the same bands.
        path: for messages.
        window: as in `read_raster`, in pixels of the view.
        keep: as in `read_raster`.
    """
    good = _good_bands(dataset, path, keep)
    kept = kept_bands(len(good), keep, path)
    bands = [good[index] for index in kept]
    wavelength = _wavelengths(dataset, good)  # of all, whose range tells the unit where the file does not
    part = _part(window)
    image = pixels.read(bands, window=part)
    valid = valid_pixels(pixels, bands, part, is_alpha_mistaken(dataset, keep))
    envi = dataset.tags(ns="ENVI")
    if "reflectance_scale_factor" in envi:
        image = (image / float(envi["reflectance_scale_factor"])).astype(np.float32)
    crs = pixels.crs.to_wkt() if pixels.crs else None
    transform = None if pixels.transform.is_identity else six(pixels.transform, window)
    if transform is None and (dataset.gcps[0] or dataset.rpcs):
        said = "is placed by ground control points or rational functions, which its maps cannot keep. Warp it first, such as by gdalwarp."
        warnings.warn(f"'{path}' {said}", stacklevel=3)
    return Raster(image, valid, wavelength and tuple(wavelength[index] for index in kept), transform, crs)


def read_raster_mask(path: Path) -> np.ndarray[Any, Any]:
    """Read a truth map from a PNG, GeoTIFF, ENVI or another GDAL raster.

    Args:
        path: the raster. Of several bands (a colour image) the largest value counts, alpha left out.

    Returns:
        (H, W) float32 of the stored values, NaN where they equal a no-data value other than 0. A no-data value of 0 is read as 0,
        because masks commonly declare their background so.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is cut short or no raster.
    """
    bands, known = read_mask_bands(path)
    values = bands.max(axis=0)
    if values.dtype.kind == "c":
        raise SceneFormatError(f"Expected a real truth map in '{path}', but got {values.dtype}. Store 0, 1 and 255 as integers.")
    return np.where(known, values, np.nan).astype(np.float32)


def read_mask_bands(path: Path, window: Window | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read the stored values of a truth map: class ids, grey values or colours.

    Args:
        path: the raster; palette images give their indices.
        window: (row, column, height, width) in pixels; None reads all.

    Returns:
        (C, H, W) in the stored dtype, alpha left out, and (H, W) bool: where the map says something. It does not where its no-data value
        stands in all bands (unless that is 0, as which masks commonly declare their background), a value is NaN, or a mask of the data set
        hides it.

    Raises:
        SceneNotFoundError: the file is missing.
        SceneFormatError: the file is cut short or no raster.
    """
    with opened_raster(path) as dataset:
        bands, nodata = dataset.read(colour_bands(dataset), window=_part(window)), dataset.nodata
        known = ~np.isnan(bands).any(axis=0) if bands.dtype.kind in "fc" else np.ones(bands.shape[1:], bool)
        if nodata:  # NaN finds nothing here
            known &= ~(bands == nodata).all(axis=0)
        if _has_mask(dataset):
            known &= dataset.read_masks(1, window=_part(window)) > 0
        return bands, known


def _has_mask(dataset: Any) -> bool:
    from rasterio.enums import MaskFlags

    flags = set(dataset.mask_flag_enums[0])
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _part(window: Window | None) -> Any:
    from rasterio.windows import Window as Part

    return None if window is None else Part(window[1], window[0], window[3], window[2])


def write_geotiff(
    path: str | Path,
    array: Tensor | np.ndarray[Any, Any],
    scene_transform: Transform | None,
    crs: str | None,
    nodata: float | None = float("nan"),
) -> Path:
    """Write a float32 GeoTIFF: tiled, deflate-compressed, and complete or not there at all.

    The file is written under a temporary name in the same folder and then renamed, so that a killed job leaves no half file.

    Args:
        path: the file to write; its folder is created.
        array: (H, W) or (C, H, W) values, NaN where there is no data.
        scene_transform: affine pixel-to-map coefficients (a, b, c, d, e, f) of pixel (0, 0), or None.
        crs: coordinate reference system as WKT, or None.
        nodata: value that marks pixels without data in the file; NaN pixels become it. None declares none.

    Returns:
        The path written.

    Raises:
        ValueError: the array is neither (H, W) nor (C, H, W), or is empty.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    values = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array, dtype=np.float32)
    bands = values[None] if values.ndim == 2 else values
    if bands.ndim != 3 or bands.size == 0:
        raise ValueError(
            f"Expected an array of shape (H, W) or (C, H, W) to write to '{path}', but got {values.shape}. Drop the batch axis."
        )
    if nodata is not None and not np.isnan(nodata):
        bands = np.where(np.isnan(bands), np.float32(nodata), bands)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}.tif")
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": "float32", "count": count, "height": height, "width": width, "nodata": nodata, "crs": crs}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 3, "BIGTIFF": "IF_SAFER"}
    if scene_transform is not None:
        profile["transform"] = rasterio.Affine(*scene_transform)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(temporary, "w", **profile, **layout) as dataset:
                dataset.write(bands)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def envi_header(path: Path) -> Path | None:
    """Find the ENVI header of a data file.

    Args:
        path: a data file, or a header itself.

    Returns:
        ``stem.hdr`` or ``name.hdr`` beside it, in any case of letters, or None.
    """
    if path.suffix.lower() == ".hdr":
        return path
    return file_beside(path.parent, [f"{path.stem}.hdr", f"{path.name}.hdr"])


def envi_data(header: Path) -> Path | None:
    """Find the data file of an ENVI header.

    Args:
        header: a ``.hdr`` file.

    Returns:
        The file of the same stem without a suffix or with .img, .dat, .bil, .bip, .bsq or .raw, in any case of letters, or None.
    """
    return file_beside(header.parent, [header.stem + suffix for suffix in ENVI_DATA_SUFFIXES])


def file_beside(folder: Path, names: Sequence[str]) -> Path | None:
    """Find the first of some files that a folder holds, in any case of letters; None where it holds none."""
    if not folder.is_dir():
        return None
    beside = {entry.name.lower(): entry for entry in sorted(folder.iterdir())}
    for name in names:
        exact, other_case = folder / name, beside.get(name.lower())
        for found in (exact, other_case):
            if found is not None and found.is_file():
                return found
    return None


@contextmanager
def opened_raster(path: Path) -> Iterator[Any]:
    """Open a raster with rasterio; GDAL's errors become those of `read_raster`."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    if not path.is_file():
        raise SceneNotFoundError(f"Expected a raster at '{path}', but there is none. Check the path.")
    data = envi_data(path) if path.suffix.lower() == ".hdr" else path
    if data is None:
        names = ", ".join(path.stem + suffix for suffix in ENVI_DATA_SUFFIXES)
        raise SceneNotFoundError(f"Expected the data file of the ENVI header '{path}' beside it, under one of {names}. Copy it there.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(data) as dataset:
                if dataset.driver == "ENVI":
                    check_length(dataset, data)
                if dataset.driver == "PNG":
                    check_end(data)
                yield dataset
    except RasterioError as error:
        # GDAL recognises raw ENVI data by its header alone, so a missing header reads as an unknown format.
        lost = "" if envi_header(data) else " An ENVI data file needs its .hdr beside it."
        raise SceneFormatError(
            f"Expected a readable raster at '{data}' ({data.stat().st_size} bytes), but reading failed with "
            f"{type(error).__name__}: {error}. Is it cut short?{lost}"
        ) from error


def _good_bands(dataset: Any, path: Path, keep: Sequence[int] | None = None) -> list[int]:
    bands = colour_bands(dataset, keep)
    listed = dataset.tags(ns="ENVI").get("bbl")
    if listed is None:
        return bands
    flags = _numbers(listed)
    if len(flags) != dataset.count:
        raise SceneFormatError(
            f"Expected {dataset.count} flags in the bad-band list 'bbl' of '{path}', but got {len(flags)}. Repair the header."
        )
    good = [band for band in bands if flags[band - 1] > 0]
    if not good:
        raise SceneFormatError(
            f"Expected a usable band in '{path}', but its bad-band list 'bbl' marks all {len(flags)} as bad. Repair the header."
        )
    return good


def _wavelengths(dataset: Any, bands: list[int]) -> tuple[float, ...] | None:
    envi = dataset.tags(ns="ENVI")
    tags = [dataset.tags(band) for band in bands]
    if "wavelength" in envi:
        listed = _numbers(envi["wavelength"])
        values = [listed[band - 1] for band in bands] if len(listed) == dataset.count else []
        unit = envi.get("wavelength_units", "")
    elif all("wavelength" in tag for tag in tags):
        values = [number for tag in tags for number in _numbers(tag["wavelength"])[:1]]
        unit = tags[0].get("wavelength_units", "")
    else:
        return None
    if len(values) != len(bands):
        return None
    if unit.strip().casefold() in ("", "unknown"):
        factor: float | None = 1e3 if max(values) < 100 else 1.0  # no imager works at 100 nm, none of these at 100 µm
    else:
        factor = _NANOMETRES.get(unit.strip().casefold())
    return None if factor is None else tuple(value * factor for value in values)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)]


def six(transform: Any, window: Window | None = None) -> Transform:
    """Give the coefficients of a rasterio transform, those of a window where there is one."""
    a, b, c, d, e, f = (float(value) for value in tuple(transform)[:6])
    row, column = (0, 0) if window is None else window[:2]
    return a, b, c + a * column + b * row, d, e, f + d * column + e * row
