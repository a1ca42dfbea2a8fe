"""Synthetic scenes with exact truth: mixed materials, shading and sensor noise, and a few small objects that do not belong.

The observed spectrum of a pixel is a linear mixture of material spectra under a multiplicative illumination, plus noise:
``x = g · ((1 − t) · Σ a_k s_k + t · s_target) + n``, with abundances ``a`` that sum to 1, target abundance ``t`` and illumination ``g``.

Source: the linear mixing model of Keshava and Mustard, "Spectral unmixing", IEEE Signal Processing Magazine 19(1), 2002, eq. 1;
the illumination factor and the noise that varies with wavelength are added here. The spectra are curves drawn after the shape of
field spectra (red edge, water and clay absorption); they are not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anomseg.data.scene import Scene
from anomseg.sample import IGNORE

SceneKind = Literal["rgb", "multispectral", "hyperspectral"]
"""Which sensor a synthetic scene imitates."""

MASK_THRESHOLD = 0.1
"""Target abundance above which a pixel is truth 1; implanted pixels at or below it are void (255)."""

UTM_33N = (
    'PROJCS["WGS 84 / UTM zone 33N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,'
    'AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],'
    'AUTHORITY["EPSG","4326"]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",15],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH],AUTHORITY["EPSG","32633"]]'
)

_BANDS = {"rgb": (3, 3, 3), "multispectral": (10, 4, 13), "hyperspectral": (100, 16, 1000)}  # default, least, most
_PIXEL_METRES = {"rgb": 0.5, "multispectral": 10.0, "hyperspectral": 4.0}
_NOISE = {"rgb": 0.006, "multispectral": 0.005, "hyperspectral": 0.010}  # reflectance outside the absorption bands
# Sentinel-2 band centres in nm: those of 10 m pixels, then 20 m, then 60 m, so that any first n make a sensible sensor.
_SENTINEL_2 = (490.0, 560.0, 665.0, 842.0, 705.0, 740.0, 783.0, 865.0, 1610.0, 2190.0, 443.0, 945.0, 1375.0)


def synthetic_scene(
    kind: SceneKind = "hyperspectral",
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    bands: int | None = None,
    nodata_share: float = 0.03,
    georeferenced: bool = True,
) -> Scene:
    """Draw one scene: fields, water, a road and roofs as background, and 6 to 14 implanted objects as anomalies.

    Args:
        kind: the sensor: "rgb" (650, 550, 450 nm), "multispectral" (Sentinel-2 bands) or "hyperspectral" (400 to 2500 nm, evenly).
        size: (height, width) in pixels, each at least 32.
        seed: decides everything that is random; equal arguments give bit-equal scenes on one machine.
        bands: number of bands; None takes 3, 10 and 100 in the order of the kinds. Multispectral takes 4 to 13, hyperspectral 16 to 1000.
        nodata_share: share of pixels without data, in [0, 0.3], as two wedges at opposite borders, as rotated satellite scenes have them.
        georeferenced: set a north-up transform and UTM zone 33N; False leaves both None.

    Returns:
        A scene of reflectance in about [0, 1.2], NaN without data. The mask is 1 where the target abundance is above
        ``MASK_THRESHOLD``, 255 where something is implanted below it and where there are no data, 0 elsewhere.

    Raises:
        ValueError: an argument is out of its range.
    """
    wavelength = sensor_bands(kind, bands)
    if min(size) < 32:
        raise ValueError(f"Expected a scene of at least 32 x 32 pixels, but got size={tuple(size)}. Smaller ones have no room for targets.")
    if not 0 <= nodata_share <= 0.3:
        raise ValueError(f"Expected nodata_share in [0, 0.3], but got {nodata_share}. Give the share of pixels without data.")
    generator = torch.Generator().manual_seed(seed)
    void = _border_wedges(size, nodata_share, generator)
    nanometres = torch.tensor(wavelength)
    image = _background(size, nanometres, generator)
    abundance, index = target_abundance(size, ~void, generator)
    spectra = torch.stack([curve(nanometres / 1000) for curve in _TARGETS])
    image = torch.lerp(image, spectra[index].permute(2, 0, 1), abundance)
    image = image * _illumination(size, generator)
    image = (image + _sensor_noise(nanometres, size, _NOISE[kind], generator)).clamp_min(0)
    mask = (abundance > MASK_THRESHOLD).long()
    mask[(abundance > 0) & (abundance <= MASK_THRESHOLD)] = IGNORE
    metre = _PIXEL_METRES[kind]
    return Scene(
        name=f"synthetic-{kind}-{seed}",
        image=image.masked_fill(void, torch.nan),
        mask=mask.masked_fill(void, IGNORE),
        wavelength=wavelength,
        transform=(metre, 0.0, 400_000.0, 0.0, -metre, 5_300_000.0) if georeferenced else None,
        crs=UTM_33N if georeferenced else None,
    )


def sensor_bands(kind: SceneKind, bands: int | None = None) -> tuple[float, ...]:
    """Give the band centres of a sensor.

    Args:
        kind: the sensor.
        bands: number of bands, or None for the sensor's usual number.

    Returns:
        Band centres in nanometres: ascending, but (650, 550, 450) for RGB.

    Raises:
        ValueError: the kind is unknown, or the sensor does not come with so many bands.
    """
    if kind not in _BANDS:
        raise ValueError(f"Expected one of {tuple(_BANDS)} as kind, but got {kind!r}. Choose one of them.")
    usual, least, most = _BANDS[kind]
    count = usual if bands is None else bands
    if not least <= count <= most:
        raise ValueError(f"Expected {least} to {most} bands for kind '{kind}', but got {count}. Leave bands=None for {usual}.")
    if kind == "rgb":
        return 650.0, 550.0, 450.0
    if kind == "multispectral":
        return tuple(sorted(_SENTINEL_2[:count]))
    return tuple(torch.linspace(400, 2500, count, dtype=torch.float64).tolist())


def target_abundance(size: tuple[int, int], allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Place small rectangular objects and compute how much of each pixel they cover.

    Every third object is smaller than a pixel; the others cover 1 to about 20 pixels and have mixed pixels at their edges.

    Args:
        size: (height, width) in pixels.
        allowed: (H, W) bool, True where an object may have its centre.
        generator: source of randomness on the CPU.

    Returns:
        (H, W) float32 covered share in [0, 1], and (H, W) int64 index into the target spectra, 0 where nothing is implanted.
    """
    rows, columns = torch.arange(size[0]).float()[:, None], torch.arange(size[1]).float()[None, :]
    abundance, index = torch.zeros(size), torch.zeros(size, dtype=torch.long)
    apart, margin = min(12.0, min(size) / 5), 3
    free = allowed.clone()
    free[:margin], free[-margin:], free[:, :margin], free[:, -margin:] = False, False, False, False
    for number in range(int(torch.randint(6, 15, (1,), generator=generator))):
        places = free.flatten().nonzero()[:, 0]
        draw = torch.rand(6, generator=generator)
        if len(places) == 0:
            break
        place = int(places[int(draw[0] * len(places))])
        row, column = place // size[1] + float(draw[1]) - 0.5, place % size[1] + float(draw[2]) - 0.5
        shortest, longest = (0.2, 0.45) if number % 3 == 2 else (0.5, 1.8)
        half = shortest + (longest - shortest) * draw[3:5]
        u, v = _turned(rows - row, columns - column, math.pi * float(draw[5]))
        covered = _overlap(u, float(half[0])) * _overlap(v, float(half[1]))
        abundance, index = torch.maximum(abundance, covered), torch.where(covered > 0, number % len(_TARGETS), index)
        free &= (rows - row) ** 2 + (columns - column) ** 2 > apart**2
    return abundance, index


def _overlap(distance: Tensor, half: float) -> Tensor:
    """Give the length that a pixel shares with an interval of half-length ``half``, exact along the pixel axes."""
    return (half + 0.5 - distance.abs()).clamp(0, min(1.0, 2 * half))


def _turned(rows: Tensor, columns: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Turn pixel offsets (H, 1) and (1, W) by an angle in radians into two (H, W) coordinates."""
    return rows * math.cos(angle) + columns * math.sin(angle), columns * math.cos(angle) - rows * math.sin(angle)


def _bump(w: Tensor, centre: float, width: float) -> Tensor:
    """Give a Gaussian of height 1 over wavelengths in micrometres."""
    return torch.exp(-0.5 * ((w - centre) / width) ** 2)


def _step(w: Tensor, centre: float, width: float) -> Tensor:
    """Give a smooth step from 0 to 1 over wavelengths in micrometres."""
    return torch.sigmoid((w - centre) / width)


def _vegetation(w: Tensor, dry: float) -> Tensor:
    """Green peak, red edge at 0.71 µm and the absorption of leaf water; ``dry`` in [0, 1] flattens all three."""
    visible = 0.03 + 0.07 * _bump(w, 0.55, 0.035) + dry * (0.05 + 0.12 * _step(w, 0.6, 0.06))
    leaf = visible + (0.46 - 0.22 * dry) * _step(w, 0.716 - 0.014 * dry, 0.012)
    wet = 1.0 - 0.7 * dry
    water = (1 - 0.1 * wet * _bump(w, 0.97, 0.03)) * (1 - 0.2 * wet * _bump(w, 1.2, 0.05))
    water = water * (1 - 0.7 * wet * _bump(w, 1.45, 0.08)) * (1 - 0.85 * wet * _bump(w, 1.94, 0.11))
    return leaf * water * (1 - 0.5 * wet * _step(w, 1.32, 0.05)) * (1 - 0.5 * _step(w, 2.35, 0.08))


def _mineral(w: Tensor, floor: float, rise: float, scale: float, moisture: float, clay: float) -> Tensor:
    """Soil-like curve: a saturating rise, hydroxyl water at 1.41 and 1.92 µm and a clay feature at 2.2 µm."""
    base = floor + rise * (1 - torch.exp(-(w - 0.38) / scale))
    water = (1 - 0.6 * moisture * _bump(w, 1.41, 0.05)) * (1 - moisture * _bump(w, 1.92, 0.06))
    return base * water * (1 - clay * _bump(w, 2.2, 0.035))


def _tile(w: Tensor, red: float) -> Tensor:
    """Roof tile with the iron edge at 0.58 µm and the iron absorption at 0.87 µm."""
    return (0.09 + 0.05 * w + red * 0.24 * _step(w, 0.59, 0.025)) * (1 - 0.22 * red * _bump(w, 0.87, 0.08))


def _paint(w: Tensor, colour: Tensor, infrared: float, binder: float) -> Tensor:
    """Coated surface: a colour in the visible, a rise behind it, and the C-H features of the binder at 1.73 and 2.31 µm."""
    base = colour + infrared * _step(w, 0.78, 0.025)
    return base * (1 - binder * _bump(w, 1.73, 0.035)) * (1 - 1.4 * binder * _bump(w, 2.31, 0.05))


# Two states of each material, between which within-class texture moves: lush and dry, dark and bright, clear and turbid, ...
_MATERIALS: tuple[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    (lambda w: _vegetation(w, 0.0), lambda w: _vegetation(w, 0.75)),
    (lambda w: _mineral(w, 0.04, 0.22, 0.7, 0.45, 0.08), lambda w: _mineral(w, 0.07, 0.40, 0.6, 0.2, 0.18)),
    (lambda w: 0.004 + 0.05 * torch.exp(-(w - 0.4) / 0.12), lambda w: 0.006 + 0.11 * _bump(w, 0.56, 0.12)),
    (lambda w: 0.16 + 0.30 * (1 - torch.exp(-(w - 0.38) / 0.35)), lambda w: _mineral(w, 0.16, 0.45, 0.4, 0.25, 0.04)),
    (lambda w: 0.05 + 0.03 * w, lambda w: 0.11 + 0.035 * w - 0.02 * _bump(w, 2.31, 0.06)),
    (lambda w: _tile(w, 1.0), lambda w: _tile(w, 0.25)),
)
_VEGETATION, _SOIL, _WATER, _SAND, _ASPHALT, _ROOF = range(6)

# Blue sheet, white panel, orange panel; then three that a colour camera takes for background: leaf, soil and asphalt paint.
_TARGETS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda w: _paint(w, 0.07 + 0.30 * _bump(w, 0.46, 0.04), 0.30, 0.30),
    lambda w: _paint(w, 0.03 + 0.045 * _bump(w, 0.55, 0.04), 0.22, 0.20),
    lambda w: _paint(w, 0.62 * _step(w, 0.41, 0.02), 0.05, 0.25),
    lambda w: _paint(w, 0.05 + 0.18 * _step(w, 0.55, 0.06), 0.02, 0.35),
    lambda w: _paint(w, 0.06 + 0.50 * _step(w, 0.58, 0.02), 0.08, 0.25),
    lambda w: _paint(w, 0.07 + 0.03 * w, 0.10, 0.15),
)


@dataclass(frozen=True)
class _Canvas:
    """Draw smooth random fields of one size from one generator."""

    size: tuple[int, int]
    generator: torch.Generator

    def field(self, scale: float) -> Tensor:
        """Draw an (H, W) Gaussian field of mean 0 and standard deviation 1, smooth over ``scale`` pixels."""
        return _standardised(self._filtered(torch.randn(self.size, generator=self.generator), self._response(scale)))

    def texture(self, coarsest: float) -> Tensor:
        """Draw an (H, W) field of mean 0 and standard deviation 1 with five octaves of detail below ``coarsest`` pixels."""
        responses = [self._response(coarsest / 2**k) for k in range(5)]
        response = torch.stack([0.6**k * r / r.square().mean().sqrt() for k, r in enumerate(responses)]).sum(dim=0)
        return _standardised(self._filtered(torch.randn(self.size, generator=self.generator), response))

    def blurred(self, planes: Tensor, scale: float) -> Tensor:
        """Filter (..., H, W) with a Gaussian of ``scale`` pixels, around the borders."""
        return self._filtered(planes, self._response(scale))

    def _response(self, scale: float) -> Tensor:
        square = torch.fft.fftfreq(self.size[0])[:, None] ** 2 + torch.fft.rfftfreq(self.size[1])[None, :] ** 2
        return torch.exp(-2 * (math.pi * scale) ** 2 * square)

    def _filtered(self, planes: Tensor, response: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(planes) * response, s=self.size)
        return filtered

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers evenly from [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Give row (H, 1) and column (1, W) coordinates in units of the shorter side."""
        unit = min(self.size)
        return torch.arange(self.size[0])[:, None] / unit, torch.arange(self.size[1])[None, :] / unit


def _standardised(plane: Tensor) -> Tensor:
    """Shift and scale (H, W) to mean 0 and standard deviation 1."""
    return (plane - plane.mean()) / plane.std().clamp_min(1e-6)


def _parcels(canvas: _Canvas, count: int) -> Tensor:
    """Number the (H, W) cells of a Voronoi diagram around ``count`` points, in a turned, stretched and slightly warped frame."""
    rows, columns = canvas.grid()
    u, v = _turned(rows, columns, float(canvas.uniform(0, math.pi)))
    u, v = u + 0.008 * canvas.texture(12), 1.7 * v + 0.008 * canvas.texture(12)
    at_u = u.min() + (u.max() - u.min()) * canvas.uniform(0, 1, count)
    at_v = v.min() + (v.max() - v.min()) * canvas.uniform(0, 1, count)
    nearest, cell = torch.full(canvas.size, torch.inf), torch.zeros(canvas.size, dtype=torch.long)
    for number in range(count):  # one (H, W) pass a parcel keeps memory flat where a (count, H, W) stack would not
        distance = (u - at_u[number]) ** 2 + (v - at_v[number]) ** 2
        cell = torch.where(distance < nearest, number, cell)
        nearest = torch.minimum(nearest, distance)
    return cell


def _abundances(canvas: _Canvas) -> Tensor:
    """Draw (6, H, W) shares of the materials, which sum to 1: parcels and smooth mixtures, then lake, road and roofs on top."""
    rows, columns = canvas.grid()
    logits = torch.stack([1.2 * canvas.texture(min(canvas.size) / 6) + bias for bias in (1.2, 0.6, -20.0, -1.2, -4.5, -5.5)])
    crop = canvas.uniform(-2.5, 2.5, 40, 2)[_parcels(canvas, 40)]
    logits[_VEGETATION] += crop[..., 0]
    logits[_SOIL] -= crop[..., 0]
    logits[_SAND] += crop[..., 1] - 1.0
    lake = canvas.field(min(canvas.size) / 7)
    logits[_WATER] = 14 * (lake - torch.quantile(lake.flatten()[:: max(1, lake.numel() // 100_000)], 0.9))
    shares = torch.softmax(logits, dim=0)
    angle = float(canvas.uniform(0, math.pi))
    across, along = _turned(rows - 0.5, columns - 0.5, angle)
    bend = across + 0.04 * torch.sin(4 * along + float(canvas.uniform(0, 6)))
    layers = [(_ASPHALT, (bend - float(canvas.uniform(-0.25, 0.25))).abs() - 2.5 / min(canvas.size))]
    for _ in range(4):
        row, column = canvas.uniform(0.1, 0.9, 2).tolist()
        u, v = _turned(rows - row * rows.max(), columns - column * columns.max(), angle)
        tall, wide = (canvas.uniform(3.0, 6.5, 2) / 100).tolist()
        layers.append((_ROOF, torch.maximum(u.abs() - tall, v.abs() - wide)))
    for material, outside in layers:
        cover = (0.5 - outside * min(canvas.size)).clamp(0, 1)
        shares = shares * (1 - cover)
        shares[material] += cover
    return canvas.blurred(shares, 0.6).clamp(0, 1)


def _background(size: tuple[int, int], nanometres: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the materials into a (C, H, W) reflectance in [0, 1], each between its two states by its own texture."""
    canvas = _Canvas(size, generator)
    shares = _abundances(canvas)
    image = torch.zeros(len(nanometres), *size)
    for share, (first, second) in zip(shares, _MATERIALS, strict=True):
        state = torch.sigmoid(1.6 * canvas.texture(10))
        spectra = torch.stack([first(nanometres / 1000), second(nanometres / 1000)])
        image += torch.einsum("shw,sc->chw", torch.stack([share * (1 - state), share * state]), spectra)
    return image


def _illumination(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw an (H, W) factor around 1: relief, and the roughness of the surface within pixels."""
    canvas = _Canvas(size, generator)
    return torch.exp(0.14 * canvas.field(min(size) / 8) + 0.07 * canvas.texture(4)).clamp(0.5, 1.6)


def _sensor_noise(nanometres: Tensor, size: tuple[int, int], level: float, generator: torch.Generator) -> Tensor:
    """Draw (C, H, W) noise, correlated between neighbouring bands, stronger at both ends and where water vapour absorbs."""
    w = nanometres / 1000
    vapour = 5 * _bump(w, 1.38, 0.04) + 8 * _bump(w, 1.88, 0.06) + 0.8 * _bump(w, 1.13, 0.03) + 0.6 * _bump(w, 0.94, 0.02)
    deviation = level * (1 + vapour + 1.5 * _bump(w, 0.38, 0.06) + 2 * _bump(w, 2.52, 0.12))
    correlation = 0.7 * torch.exp(-(w[:, None] - w[None, :]).abs() / 0.03) + 0.3 * torch.eye(len(w))
    factor = torch.linalg.cholesky(correlation.double()).float() * deviation[:, None]
    white = torch.randn(len(w), *size, generator=generator)
    return torch.einsum("cd,dhw->chw", factor, white)


def _border_wedges(size: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Mark (H, W) two opposite wedges that hold ``share`` of the pixels together."""
    canvas = _Canvas(size, generator)
    across, _ = _turned(*canvas.grid(), float(canvas.uniform(0.12, 0.35)))
    order = across.flatten().argsort(stable=True)
    void, each = torch.zeros(across.numel(), dtype=torch.bool), round(share * across.numel() / 2)
    void[order[:each]] = True
    void[order[across.numel() - each :]] = True
    return void.reshape(size)
