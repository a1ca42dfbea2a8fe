"""Deep support vector data description (SVDD) of pixels: losses that shrink a sphere around normal descriptors.

A network describes every pixel by a vector z. Normal descriptors shall lie within radius R of a centre c (compact), and far from those of
a virtually anomalous copy of their image (diverse), which keeps the compact ones from collapsing onto the centre:

    d_i = ‖z_i − c‖²
    soft boundary   R² + (1/ν) · mean_i max(0, d_i − R²)        or the maximum, mean or quantile of d in place of each d_i
    one class       mean_i d_i
    diversity       1 / (reduce_i ‖z_i − z'_i‖² + 0.001)        or |reduce_i ‖z_i − z'_i‖² − R²| in place of the reduced distance

Every figure is that of one image, and a loss is its mean over the images that have a valid pixel; the others are skipped. Pixels that are
not valid touch neither a value nor a gradient, whatever their descriptor holds, NaN and infinity included: they are never read. Where no
image has a valid pixel, a loss is 0 with zero (not absent) gradients.

Glossary: z descriptor, z' descriptor of the virtually anomalous copy at the same pixel, c centre, R radius, ν share that may lie outside.

Source: Ruff et al., "Deep One-Class Classification", ICML 2018 (soft boundary, one class); Li et al., AAAI 2023, arXiv 2301.13422
(pixel descriptors, diversity), whose second version is the default of every option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.functional.descriptor_statistics import valid_pixels

BoundaryReduction = Literal["pixel", "max", "mean", "quantile"]
DiversityReduction = Literal["element", "mean", "quantile", "min", "max"]

DIVERSITY_FLOOR = 1e-3  # bounds the diversity loss by 1000


def squared_distance(descriptors: Tensor, centre: Tensor) -> Tensor:
    """Compute d = ‖z − c‖² at every pixel.

    Args:
        descriptors: (B, D, H, W).
        centre: (D,), in the units of the descriptors.

    Returns:
        (B, H, W), >= 0; NaN where a descriptor is.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if descriptors.ndim != 4 or centre.shape != (descriptors.shape[1],):
        came = f"{tuple(descriptors.shape)} and {tuple(centre.shape)}"
        raise ValueError(
            f"Expected descriptors (B, D, H, W) and a centre (D,), but got {came}. Take the mean of the same network's output."
        )
    values = descriptors.to(torch.promote_types(descriptors.dtype, torch.float32))
    return (values - centre.to(values)[:, None, None]).square().sum(1)


def image_distances(descriptors: Tensor, centre: Tensor, valid: Tensor) -> list[Tensor]:
    """Compute the squared distances of the valid pixels, image by image.

    Args:
        descriptors: (B, D, H, W).
        centre: (D,), in the units of the descriptors.
        valid: (B, H, W) bool, True for the normal pixels that count.

    Returns:
        For each image that has any valid pixel (N,) distances >= 0, with gradients.

    Raises:
        ValueError: a shape is not as above.
    """
    pixels = [chosen for chosen in valid_pixels(descriptors, valid) if chosen.numel()]
    return [squared_distance(chosen[None, :, :, None], centre).flatten() for chosen in pixels]


def linear_quantile(values: Tensor, q: float) -> Tensor:
    """Interpolate a quantile between the two nearest values, as torch.quantile, which refuses more than 16 million.

    Args:
        values: (N,), N >= 1.
        q: level in [0, 1].

    Returns:
        () in units of the values, with gradients to the one or two of them that it lies between.

    Raises:
        ValueError: ``q`` lies outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"Expected q in [0, 1], but got {q}. Give a quantile level, not a percentage.")
    place = q * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    ordered = values.sort().values
    return torch.lerp(ordered[low], ordered[high], place - low)


def soft_boundary_loss(
    descriptors: Tensor,
    centre: Tensor,
    radius: Tensor | float,
    valid: Tensor,
    *,
    reduction: BoundaryReduction = "pixel",
    nu: float = 0.1,
    q: float = 0.98,
) -> Tensor:
    """Charge R² and, 1/ν times as much, what sticks out of the sphere.

    At the radius that minimises the `pixel` form a share ν of an image's pixels lies outside. The other forms compare one figure of an
    image with R²: `max` pulls at its outermost pixel alone, `quantile` at one or two, `mean` at none as long as the mean lies inside.

    Args:
        descriptors: (B, D, H, W) z.
        centre: (D,) c.
        radius: () R >= 0; a number or a tensor without gradient leaves R to the rules of `svdd_radius`.
        valid: (B, H, W) bool, True for the normal pixels that count.
        reduction: `pixel` averages max(0, d − R²); `max`, `mean` and `quantile` first reduce d to one figure of the image.
        nu: ν in (0, 1], the share of normal pixels that may lie outside.
        q: level in [0, 1] of the quantile; other reductions ignore it.

    Returns:
        () >= R² (up to rounding), or 0 where nothing is valid.

    Raises:
        ValueError: a shape, ``reduction``, ``nu`` or ``q`` is not as above.

    Source:
        Ruff et al. 2018, eq. 3, without weight decay; the reduced forms are those of the first version of Li et al. 2023.
    """
    if not 0 < nu <= 1:
        raise ValueError(f"Expected nu in (0, 1], but got {nu}. It is the share of normal pixels that may lie outside; 0.1 is usual.")
    reduce = _reduction(reduction, ("pixel", "max", "mean", "quantile"), q)
    losses = []
    for d in image_distances(descriptors, centre, valid):
        square = torch.as_tensor(radius).to(d).square()
        losses.append(square + F.relu(reduce(d) - square).mean() / nu)
    return _mean(losses, descriptors)


def one_class_loss(descriptors: Tensor, centre: Tensor, valid: Tensor) -> Tensor:
    """Average the squared distance from the centre: no sphere, every normal pixel is pulled inwards.

    Args:
        descriptors: (B, D, H, W) z.
        centre: (D,) c.
        valid: (B, H, W) bool, True for the normal pixels that count.

    Returns:
        () >= 0; 0 where nothing is valid.

    Raises:
        ValueError: a shape is not as above.

    Source:
        Ruff et al. 2018, eq. 4, without weight decay.
    """
    return _mean([d.mean() for d in image_distances(descriptors, centre, valid)], descriptors)


def contrast_loss(descriptors: Tensor, centre: Tensor, radius: Tensor, valid: Tensor, data: Tensor) -> Tensor:
    """Tell normal pixels from all pixels by the margin m = d − R²: mean softplus(m) over the normal ones, mean softplus(−m) over all.

    All pixels are a mixture of the normal class and whatever else the scenes hold; which is which is not told. The best margin is
    ln p_all(z) − ln p_normal(z), so anomalies score high also where they are plainer than the normal class, and nothing is gained by a
    collapse.

    Args:
        descriptors: (B, D, H, W).
        centre: (D,).
        radius: () > 0, learnt.
        valid: (B, H, W) bool, the normal pixels that count.
        data: (B, H, W) bool, all pixels with data, normal ones included.

    Returns:
        () > 0, a mean over images that hold normal pixels; about 2 ln 2 where nothing tells both apart; 0 without any normal pixel.

    Source:
        Gutmann and Hyvärinen, "Noise-contrastive estimation", AISTATS 2010, for the logistic loss of a density ratio; learning from
        positive and unlabelled data after Elkan and Noto, KDD 2008. Its use with the margin of a sphere is ours.
    """
    some = valid.flatten(1).any(1)
    pairs = zip(
        image_distances(descriptors[some], centre, valid[some]), image_distances(descriptors[some], centre, data[some]), strict=True
    )
    square = radius.square()
    losses = [F.softplus(near - square).mean() + F.softplus(square - every).mean() for near, every in pairs]
    return _mean(losses, descriptors, radius)


def diversity_loss(
    descriptors: Tensor,
    virtual: Tensor,
    valid: Tensor,
    *,
    reduction: DiversityReduction = "element",
    q: float = 0.5,
    radius: Tensor | float | None = None,
    detach_virtual: bool = False,
) -> Tensor:
    """Push the descriptors of a virtually anomalous copy away from those of the image: 1 / (reduced distance + 0.001).

    Where both are equal the loss is at its maximum of 1000 with a gradient of **zero**: it keeps descriptors apart, but cannot part those
    that have fully collapsed.

    Args:
        descriptors: (B, D, H, W) z.
        virtual: (B, D, H, W) z' of the copy, pixel by pixel.
        valid: (B, H, W) bool, True for the normal pixels that count.
        reduction: `element` averages (z − z')² over pixels **and channels**, so that it does not grow with D; `mean`, `quantile`, `min`
            and `max` reduce ‖z − z'‖², summed over channels, over pixels. Of the last three only few pixels get a gradient.
        q: level in [0, 1] of the quantile; other reductions ignore it.
        radius: () R >= 0; where given, the reduced distance is replaced by its absolute difference from R². That charges pairs about R
            apart and, unless R is near 0, no longer equal ones: it does not keep descriptors from collapsing. Meant for the reductions
            that sum over channels.
        detach_virtual: let no gradient flow through z'; False trains both branches.

    Returns:
        () in (0, 1000]; 0 where nothing is valid.

    Raises:
        ValueError: a shape, ``reduction`` or ``q`` is not as above.

    Source:
        Li et al. 2023 with `element`; the other reductions and the radius are those of its first version.
    """
    if virtual.shape != descriptors.shape:
        came = f"{tuple(descriptors.shape)} and {tuple(virtual.shape)}"
        raise ValueError(f"Expected both descriptors of one shape (B, D, H, W), but got {came}. Describe a copy of the same images.")
    reduce = _reduction(reduction, ("element", "mean", "quantile", "min", "max"), q)
    copies = valid_pixels(virtual.detach() if detach_virtual else virtual, valid)
    losses = []
    for pixels, copy in zip(valid_pixels(descriptors, valid), copies, strict=True):
        if pixels.numel():
            squares = (pixels - copy).square()
            distance = reduce(squares if reduction == "element" else squares.sum(0))
            gap = distance if radius is None else (distance - torch.as_tensor(radius).to(distance).square()).abs()
            losses.append(1 / (gap + DIVERSITY_FLOOR))
    return _mean(losses, descriptors, virtual)


def _reduction(name: str, allowed: tuple[str, ...], q: float) -> Callable[[Tensor], Tensor]:
    """Find how (N,) figures of the pixels of an image become one; `pixel` leaves them as they are."""
    if name not in allowed:
        raise ValueError(f"Expected a reduction of {allowed}, but got {name!r}.")
    table: Mapping[str, Callable[[Tensor], Tensor]] = {
        "pixel": lambda values: values,
        "element": lambda values: values.mean(),
        "mean": lambda values: values.mean(),
        "max": lambda values: values.max(),
        "min": lambda values: values.min(),
        "quantile": lambda values: linear_quantile(values, q),
    }
    return table[name]


def _mean(losses: list[Tensor], *inputs: Tensor) -> Tensor:
    """Average over images, or make a 0 that has zero gradients."""
    if losses:
        return torch.stack(losses).mean()
    return torch.stack([x.flatten()[:0].sum() for x in inputs]).sum()
