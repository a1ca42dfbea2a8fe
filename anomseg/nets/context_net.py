"""A small net that sees a whitened pixel, its two rings of neighbours, its small details, and little else."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RINGS = ((7, 13), (11, 23))
Norm = Literal["instance", "batch", "none"]


def ring_mean(z: Tensor, inner: int, outer: int, valid: Tensor | None = None) -> Tensor:
    """Average the pixels of a square ring around each pixel: the outer window without the inner one, cut at the border.

    Args:
        z: (B, k, H, W).
        inner: side of the inner window in pixels, odd.
        outer: side of the outer window in pixels, odd.
        valid: (B, H, W) bool, False for pixels that are no part of a ring; None for none.

    Returns:
        (B, k, H, W); 0, the mean of whitened components, where a ring has no pixel.
    """
    if valid is None:
        counted = torch.ones_like(z[:1, :1])
    else:
        counted, z = valid[:, None].to(z.dtype), torch.where(valid[:, None], z, 0.0)

    def box(x: Tensor, side: int) -> Tensor:
        across = F.avg_pool2d(x, (1, side), stride=1, padding=(0, side // 2), divisor_override=1)
        return F.avg_pool2d(across, (side, 1), stride=1, padding=(side // 2, 0), divisor_override=1)

    return (box(z, outer) - box(z, inner)) / (box(counted, outer) - box(counted, inner)).clamp_min(1.0)


def lift(z: Tensor, details: Tensor, components: int | None = None, valid: Tensor | None = None) -> Tensor:
    """Turn whitened components into features in which "far from the scene", "unlike its surroundings" and "small" are nearly linear.

    Args:
        z: (B, k, H, W) whitened components.
        details: (B, k, H, W) their details below an area (see `anomseg.functional.area_filter.area_details`), of about unit size.
        components: K >= k of the net; the features of missing ones are 0. None is k.
        valid: (B, H, W) bool, False for pixels without data; None for none.

    Returns:
        (B, 6K + 4, H, W): signed roots of z and of the details; roots of |z|, of |z − ring mean| for two rings, of |details|; log mean
        squares of these four. All are 0 where a pixel is not valid, which is about what they are for a typical pixel.
    """
    deviations = [z, *(z - ring_mean(z, inner, outer, valid) for inner, outer in RINGS), details]
    roots = [d.abs().add(1e-6).sqrt() for d in deviations]
    energies = [d.square().mean(1, keepdim=True).add(1e-4).log() for d in deviations]
    groups = [z.sign() * roots[0], details.sign() * roots[-1], *roots]
    if components is not None:
        groups = [F.pad(group, (0, 0, 0, 0, 0, components - z.shape[1])) for group in groups]
    features = torch.cat([*groups, *energies], dim=1)
    return features if valid is None else torch.where(valid[:, None], features, 0.0)


def lifted_channels(components: int) -> int:
    """Count the channels that `lift` makes of k components."""
    return 6 * components + 4


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class _Residual(nn.Module):
    """Add two 3 x 3 convolutions of one dilation, dropped as a whole with a chance in training (stochastic depth)."""

    def __init__(self, width: int, dilation: int, norm: Norm, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            _norm(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            _norm(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.drop > 0:
            kept = (torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop).to(x.dtype) / (1 - self.drop)
            return F.relu(x + kept * self.body(x))
        return F.relu(x + self.body(x))


class ContextNet(nn.Module):
    """Map lifted components to one logit for each pixel.

    A 1 x 1 convolution, two residual blocks (dilation 1 and 2), two 1 x 1 convolutions: about 24,000 parameters by default.

    Args:
        channels: channels of the input; see `lifted_channels`.
        width: channels inside.
        norm: `none` keeps the size of a deviation visible; `instance` and `batch` rescale it, and `instance` needs more than one pixel.
        dropout: chance to drop a channel before the head, in [0, 1).
        depth_drop: chance to skip a residual block in training, in [0, 1).
    """

    def __init__(self, channels: int, width: int = 24, norm: Norm = "none", dropout: float = 0.0, depth_drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 1)
        self.blocks = nn.Sequential(_Residual(width, 1, norm, depth_drop), _Residual(width, 2, norm, depth_drop))
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, H, W) logits of (B, channels, H, W) features."""
        logit: Tensor = self.head(self.blocks(F.relu(self.stem(features))))[:, 0]
        return logit
