"""Batch normalisation whose statistics come from chosen pixels alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedBatchNorm(nn.BatchNorm2d):
    """Normalise (B, C, H, W) as `torch.nn.BatchNorm2d` does, with mean and variance of the valid pixels in training."""

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input: (B, C, H, W), finite.
            valid: (B, H, W) bool; None for all pixels. With fewer than 2 valid pixels the running statistics serve, and stay.

        Returns:
            (B, C, H, W), normalised at every pixel, valid or not.
        """
        if not self.training or valid is None:
            return super().forward(input)
        chosen = input.movedim(1, -1)[valid].to(torch.promote_types(input.dtype, torch.float32))
        if len(chosen) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        mean, variance = chosen.mean(0), chosen.var(0, correction=0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked + 1)
            unbiased = variance.detach() * len(chosen) / (len(chosen) - 1)
            self.running_mean = torch.lerp(self.running_mean, mean.detach().to(self.running_mean), rate)
            self.running_var = torch.lerp(self.running_var, unbiased.to(self.running_var), rate)
            self.num_batches_tracked = self.num_batches_tracked + 1
        normed = (input - mean[:, None, None]) * (variance + self.eps).rsqrt()[:, None, None]
        if self.weight is None:
            return normed
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(self.weight.dtype)  # for nets of true half precision
