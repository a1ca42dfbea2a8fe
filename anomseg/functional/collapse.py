"""Figures that tell a net that learns from one that has collapsed: grey or black output, copies, features on a point, dead units.

Every figure is free of the scale of images, features and weights, so that one limit fits all data. Pixels that are not valid are never
read: whatever they hold, NaN and infinity included, no figure changes. A figure that the data cannot give is NaN, not a guess: a flat
image has no variance to be kept, a single image no distance to another.

Glossary: x image, x̂ output, σ singular values, w weights of a layer, w₀ the same at the start of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def variance_ratio(output: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """Divide the variance within the outputs by that within the images: Σ Var(x̂) / Σ Var(x) over images and bands.

    Args:
        output: (B, C, H, W).
        image: (B, C, H, W), what the output should look like.
        valid: (B, H, W) bool, True for the pixels that count.

    Returns:
        () float64 >= 0: about 1 for a good reconstruction, 0 for one colour an image, be it grey or black. NaN where all images are flat.

    Raises:
        ValueError: the shapes do not fit.
    """
    pairs = zip(_pixels(output, valid, image), _pixels(image, valid), strict=True)
    variances = torch.stack([torch.stack([_variance(a), _variance(b)]) for a, b in pairs]).sum(0)
    return _ratio(variances[0], variances[1])


def distance_ratio(output: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """Divide the mean distance between outputs by that between images: E‖x̂_i − x̂_j‖ / E‖x_i − x_j‖ over pairs i < j.

    Args:
        output: (B, C, H, W).
        image: (B, C, H, W).
        valid: (B, H, W) bool. A distance is a root mean square over the pixels that are valid in both images.

    Returns:
        () float64 >= 0: 0 where every input gives the same output. NaN for a single image, or for equal ones.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(valid, output, image)
    return _ratio(mean_distance(output, valid), mean_distance(image, valid))


def mean_distance(values: Tensor, valid: Tensor) -> Tensor:
    """Average the distance between two of the images, the root mean square over the pixels that are valid in both.

    Args:
        values: (B, C, H, W).
        valid: (B, H, W) bool.

    Returns:
        () float64 in units of the values; NaN without two images that share a valid pixel.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(valid, values)
    distances = []
    for i, j in torch.combinations(torch.arange(len(values)), 2).tolist():  # 28 pairs of 8 images: as many passes over an image
        both = valid[i] & valid[j]
        distances.append((values[i][:, both].double() - values[j][:, both].double()).square().mean().sqrt())
    kept = [one for one in distances if not bool(one.isnan())]
    return torch.stack(kept).mean() if kept else values.new_tensor(math.nan, dtype=torch.float64)


def skill(output: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """Compare the error with that of the simplest prediction, the mean of the other images: 1 − MSE(x̂, x) / MSE(mean image, x).

    Args:
        output: (B, C, H, W).
        image: (B, C, H, W). Each is predicted by the mean of the *others*, pixel by pixel: its own share would flatter the mean.
        valid: (B, H, W) bool; pixels where no other image is valid are left out.

    Returns:
        () float64 <= 1: 1 for perfect, 0 for no better than the mean image, below 0 for worse. NaN for a single image, or for equal ones.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(valid, output, image)
    held = valid[:, None]
    clean = torch.where(held, image.double(), 0.0)
    others = (valid.sum(0) - valid.long())[:, None]
    mean = (clean.sum(0) - clean) / others.clamp_min(1)
    counted = held & (others > 0)
    own, simple = (torch.where(counted, one.double() - clean, 0.0).square().sum() for one in (output, mean))
    return 1 - _ratio(own, simple)


def copied_share(output: Tensor, clean: Tensor, corrupted: Tensor, valid: Tensor) -> Tensor:
    """Project what is left of a defect on the defect: ⟨x̂ − x, c − x⟩ / ‖c − x‖², x̂ being the output for the corrupted image c.

    Args:
        output: (B, C, H, W) for the corrupted images.
        clean: (B, C, H, W).
        corrupted: (B, C, H, W), equal to the clean ones outside of the defects.
        valid: (B, H, W) bool.

    Returns:
        () float64: 1 where the net copies what it is shown, 0 where it repairs it. NaN where nothing is corrupted.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(valid, output, clean, corrupted)
    defect = torch.where(valid[:, None], corrupted.double() - clean.double(), 0.0)
    left = torch.where(defect != 0, output.double() - clean.double(), 0.0)
    return _ratio((left * defect).sum(), defect.square().sum())


def error_contrast(output: Tensor, given: Tensor, defect: Tensor, valid: Tensor) -> Tensor:
    """Divide the squared residual on defects by that elsewhere, which is all that a residual score can see of them.

    Args:
        output: (B, C, H, W).
        given: (B, C, H, W), the input with its defects.
        defect: (B, H, W) bool.
        valid: (B, H, W) bool.

    Returns:
        () float64 >= 0: 1 where defects are rebuilt as well as all else, which is the identity shortcut; large where they stand out. NaN
        without a pixel of either kind, or where nothing has an error.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(valid, output, given)
    error = (output.double() - given.double()).square().mean(1)
    return _ratio(error[valid & defect].mean(), error[valid & ~defect].mean())


def singular_rank(features: Tensor) -> Tensor:
    """Count the directions that features use: exp(H(σ / Σ σ)) with the singular values σ of the centred features.

    Args:
        features: (N, D), one row for each place or image.

    Returns:
        () float64 in [1, min(N − 1, D)]; 0 where all rows are equal.

    Source:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. `descriptor_statistics.effective_rank`
        takes the eigenvalues of the covariance, σ², and so counts weak directions for less.
    """
    centred = features.double() - features.double().mean(0)
    scatter = centred.T @ centred if len(centred) >= centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(scatter).clamp_min(0.0)
    values = torch.where(values > values.max() * 1e-14, values, 0.0).sqrt()  # what rounding leaves of an empty direction
    total = values.sum()
    return torch.special.entr(values / total).sum().exp() if bool(total > 0) else total


def relative_spread(features: Tensor, scale: Tensor | float | None = None) -> Tensor:
    """Divide the standard deviation of features by their scale, so that features at 1e-6 with a spread of 1e-11 are seen as a point.

    Args:
        features: (N, D), one row for each place or image.
        scale: root mean square that counts as theirs, such as that of the start of training; None takes their own.

    Returns:
        () float64 >= 0, at most 1 for their own scale; 0 where all rows are equal, also where all are 0.
    """
    values = features.double()
    own = values.square().mean().sqrt() if scale is None else torch.as_tensor(scale, dtype=torch.float64, device=values.device)
    spread = (values - values.mean(0)).square().mean().sqrt()
    rounding = 4e-16 * values.abs().max()
    return torch.where((own > 0) & (spread > rounding), spread / own, 0.0)


def dead_share(units: Tensor) -> Tensor:
    """Count the units of a layer that say the same whatever is shown.

    Args:
        units: (N, D), the outputs of D units at N places of several images.

    Returns:
        () float64 in [0, 1], the share of units whose range is below a millionth of the largest value of the layer.
    """
    values = units.float()
    spread = values.amax(0) - values.amin(0)
    return (spread <= 1e-6 * values.abs().max()).double().mean()


def update_ratio(weights: Tensor, before: Tensor) -> Tensor:
    """Relate how far weights have moved to their size: ‖w − w_before‖ / ‖w_before‖.

    Args:
        weights: of any shape.
        before: the same at an earlier time.

    Returns:
        () float64 >= 0; 1e-4 to 1e-2 for one healthy step. NaN where the earlier weights are all 0.
    """
    past = before.double()
    return _ratio(torch.linalg.vector_norm(weights.double() - past), torch.linalg.vector_norm(past))


def turned(weights: Tensor, start: Tensor) -> Tensor:
    """Relate how far weights have turned away from their start to their size there: ‖w − (w·w₀ / ‖w₀‖²) w₀‖ / ‖w₀‖.

    A decay without gradient shrinks weights along themselves, and is not counted.

    Args:
        weights: of any shape.
        start: w₀, the same at the start of training.

    Returns:
        () float64 >= 0; NaN where w₀ is 0, or has one entry, which has no direction.
    """
    first, now = start.double().flatten(), weights.double().flatten()
    if first.numel() < 2:
        return first.new_tensor(math.nan)
    along = _ratio(now @ first, first @ first)
    return _ratio(torch.linalg.vector_norm(now - along * first), torch.linalg.vector_norm(first))


def std_ratio(weights: Tensor, start: Tensor) -> Tensor:
    """Relate the standard deviation of weights to their own at the start of training.

    Deviations of different layers do not compare: a layer starts with about √(2 / fan in), 0.015 for 1024 channels and 0.03 for 256.

    Args:
        weights: of any shape.
        start: the same at the start of training.

    Returns:
        () float64 >= 0, near 0 for a layer that has died; NaN where the start has no deviation.
    """
    return _ratio(weights.double().std(correction=0), start.double().std(correction=0))


def lost_progress(losses: Sequence[float]) -> float:
    """Tell which share of the best progress is lost again: (last − best) / (first − best), with 0 for none.

    Args:
        losses: one a check, lower is better; at least one.

    Returns:
        >= 0: 0 at the best loss, 1 back at the start, above 1 worse than ever. Infinite where the last is NaN or infinite, or where the
        loss has risen without having ever fallen.
    """
    last = losses[-1]
    if not math.isfinite(last):
        return math.inf
    best = min(one for one in losses if math.isfinite(one))
    if last <= best:
        return 0.0
    first = losses[0] if math.isfinite(losses[0]) else last
    return (last - best) / (first - best) if first > best else math.inf


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide, and give NaN where there is nothing to divide by."""
    return torch.where(below > 0, above / below, torch.nan)


def _check(valid: Tensor, *images: Tensor) -> None:
    first = images[0]
    fits = first.ndim == 4 and valid.dtype == torch.bool and valid.shape == (len(first), *first.shape[2:])
    if not fits or any(x.shape != first.shape for x in images):
        came = ", ".join(str(tuple(x.shape)) for x in images)
        raise ValueError(
            f"Expected images of one shape (B, C, H, W) and valid (B, H, W) bool, but got {came} and {tuple(valid.shape)} {valid.dtype}. "
            "Crop the output to its input."
        )


def _pixels(images: Tensor, valid: Tensor, other: Tensor | None = None) -> list[Tensor]:
    """Gather the valid pixels of each image: B tensors (C, N) in float64."""
    _check(valid, images, *([] if other is None else [other]))
    return [image[:, keep].double() for image, keep in zip(images, valid, strict=True)]


def _variance(pixels: Tensor) -> Tensor:
    """Sum the variances of the bands of (C, N); 0 without a pixel."""
    if not pixels.shape[1]:
        return pixels.sum()
    return (pixels - pixels.mean(1, keepdim=True)).square().mean(1).sum()
