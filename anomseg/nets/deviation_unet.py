"""A segmentation network for direct detection: one pass from a hyperspectral image to a map of the pixels that deviate.

`DeviationUNet` builds the networks of two papers, which share one plan and differ in a `DeviationUNetLayout`: a VGG-like encoder of six
stages at 1, 1/2, 1/4 and three times 1/8 of the resolution, and six decoder cells, each of which joins its encoder map with the map
from below, lets every pixel look at others (attention) and gives a side output. Nothing here knows of a loss or of simulated anomalies.

Source: Li et al., "One-Step Detection Paradigm for Hyperspectral Anomaly Detection via Spectral Deviation Relationship Learning", IEEE
TGRS 2024, arXiv 2303.12342 (TDD). Li et al., IEEE TIP 2024, arXiv 2310.07511 (UniADRS). The attention cells follow Liu et al.,
"PiCANet", CVPR 2018. What differs from them stands with the part that differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Norm = Literal["instance", "batch", "none"]

_DEPTHS = (2, 2, 3, 3, 3)  # convolutions of the stem and of the next four stages; the sixth stage is of another make
_STRIDE = 8  # pixels of the image along one pixel of the coarsest map
_REACH = 7  # pixels along one side of a local neighbourhood
_DILATION = 2  # pixels from one of these to the next
_LOCAL_HIDDEN = 128  # channels between a map and its neighbourhood weights, at width 1


@dataclass(frozen=True)
class DeviationUNetLayout:
    """What tells one network of the family from another; see `tdd_layout` and `uniadrs_layout`.

    Attributes:
        stem_kernel: odd width in pixels of the first convolution; 1 reads spectra alone.
        stem_channels: channels of the first stage, at full resolution.
        encoder_channels: channels of the other five stages, from fine to coarse.
        encoder_norm: norm after the convolutions of the first five encoder stages.
        decoder_norm: norm in the decoder cells. ``"instance"`` is without parameters and takes each image on its own.
        attention: a letter for each cell from coarse to fine: L local, G global (cost grows with the square of the pixels), last C none.
        upsampling: how a coarse map is brought to the next finer one; ``"bilinear"`` aligns the corner pixels.
        xavier: start from Xavier-uniform weights and zero biases, else from PyTorch's defaults.
        dropout: share in [0, 1) of the channels of each joined map set to 0 in training.
        stochastic_depth: probability in [0, 1) of an image to skip the attention of a cell in training.
    """

    stem_kernel: int = 3
    stem_channels: int = 64
    encoder_channels: tuple[int, ...] = (128, 256, 512, 512, 1024)
    encoder_norm: Norm = "instance"
    decoder_norm: Norm = "instance"
    attention: str = "LLLLLC"
    upsampling: Literal["bilinear", "nearest"] = "nearest"
    xavier: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0


def tdd_layout() -> DeviationUNetLayout:
    """Describe the network of TDD: no norm in the encoder, batch norm in the decoder, local and global attention in turn."""
    return DeviationUNetLayout(encoder_norm="none", decoder_norm="batch", attention="LGLGLC", upsampling="bilinear", xavier=False)


def uniadrs_layout() -> DeviationUNetLayout:
    """Describe the network of UniADRS: instance norm throughout, local attention alone.

    Source:
        Its published code trains the finest output alone, with a loss on the last joined map besides; here every cell has a side output.
    """
    return DeviationUNetLayout()


def global_attention(query: Tensor, key: Tensor, features: Tensor, chunk: int = 1024) -> Tensor:
    """Average the features over all pixels of an image, weighted by softmax(q kᵀ / √D): one head, nothing projected.

    At most B x ``chunk`` x H x W weights exist at once: queries are taken in turns, and with several turns a backward pass computes the
    weights of each turn again. Time still grows with the square of the pixels.

    Args:
        query: (B, D, H, W).
        key: (B, D, H, W).
        features: (B, C, H, W).
        chunk: pixels that ask at once, at least 1.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: ``chunk`` below 1.

    Source:
        The published networks project once more inside ``nn.MultiheadAttention``; the 1x1 convolution before it does that already.
    """
    if chunk < 1:
        raise ValueError(f"Expected a chunk of at least 1 pixel, but got {chunk}. Use for example 1024.")
    asking, keys, values = (x.flatten(2).transpose(1, 2) for x in (query, key, features))
    turns = torch.split(asking, chunk, dim=1)
    if len(turns) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(F.scaled_dot_product_attention, turn, keys, values, use_reentrant=False) for turn in turns]
    else:
        parts = [F.scaled_dot_product_attention(turn, keys, values) for turn in turns]
    return torch.cat(parts, dim=1).transpose(1, 2).reshape(features.shape)


def local_attention(features: Tensor, weights: Tensor, dilation: int = _DILATION) -> Tensor:
    """Average the features over a square neighbourhood with weights of each pixel's own; beyond the border they are 0.

    Args:
        features: (B, C, H, W).
        weights: (B, K², H, W), K odd, sum 1 over the second axis: one weight per neighbour, row by row from the upper left.
        dilation: pixels from one neighbour to the next.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: the number of weights is not the square of an odd number.

    Source:
        The weighted sum of PiCANet. The published code of TDD and UniADRS reshapes the unfolded map with channels, pixels and
        neighbours interleaved, so that a pixel is given values of others than its neighbours; that is not followed here.
    """
    side = round(weights.shape[1] ** 0.5)
    if side * side != weights.shape[1] or side % 2 == 0:
        raise ValueError(f"Expected K² weights of a K x K neighbourhood, K odd, but got {weights.shape[1]}. Use for example 49.")
    height, width = features.shape[2:]
    padded = F.pad(features, [dilation * (side // 2)] * 4)
    total = torch.zeros_like(features)
    for index in range(side * side):  # 49 views of one map: an unfolded map would take 49 times its memory
        row, column = dilation * (index // side), dilation * (index % side)
        total = total + weights[:, index, None] * padded[:, :, row : row + height, column : column + width]
    return total


class DeviationUNet(nn.Module):
    """Map an image to side outputs at six depths; see the module for the plan.

    Args:
        bands: number of bands C of the images; `resample_bands` brings others to it.
        layout: which network of the family; None for `uniadrs_layout`.
        width: factor on all channel counts, > 0: 1.0 gives those of the papers, 0.125 a network for tests and single cores.
        query_chunk: pixels that ask at once in global attention; smaller needs less memory and changes no result.

    Raises:
        ValueError: an argument or a field of ``layout`` is out of its range.

    Source:
        The channel counts, kernels and dilations are those of the papers. A convolution before a norm has no bias here, which the norm
        would take off again. Dropout and stochastic depth are ours, as noise for training on the network's own labels.
    """

    def __init__(self, bands: int, layout: DeviationUNetLayout | None = None, width: float = 1.0, query_chunk: int = 1024) -> None:
        super().__init__()
        layout = uniadrs_layout() if layout is None else layout
        _check(bands, layout, width, query_chunk)
        self.bands = bands
        channels = [_scaled(count, width) for count in (layout.stem_channels, *layout.encoder_channels)]
        hidden = _scaled(_LOCAL_HIDDEN, width)
        self.encoder = nn.ModuleList()
        for index, depth in enumerate(_DEPTHS):
            before = bands if index == 0 else channels[index - 1]
            kernel = layout.stem_kernel if index == 0 else 3
            self.encoder.append(_stage(before, channels[index], depth, layout.encoder_norm, kernel, dilation=2 if index == 4 else 1))
        # The coarsest stage has neither norm nor activation in the papers, between its convolutions or after.
        wide = nn.Conv2d(channels[4], channels[5], 3, padding=12, dilation=12)
        self.encoder.append(nn.Sequential(wide, nn.Conv2d(channels[5], channels[5], 3, padding=1)))
        self.decoder = nn.ModuleList(
            _Cell(channels[5 - index], channels[max(4 - index, 0)], _attention(letter, channels[5 - index], hidden, query_chunk), layout)
            for index, letter in enumerate(layout.attention)
        )
        if layout.xavier:
            self.apply(_start_from_xavier)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the side outputs as **logits**: no sigmoid is applied.

        The image is extended to the right and below by its border pixels, to a multiple of 8 and at least 16 pixels; norms and
        attention see these pixels, the outputs leave them out.

        Args:
            image: (B, C, H, W), any H and W >= 1, finite: one NaN spreads over the whole map. The unit is that of training.

        Returns:
            Six logits (B, 1, h, w), unbounded, higher is more anomalous, finest first: (H, W), then 1/2, 1/4 and three times 1/8 of it,
            rounded up. Pixel (i, j) of an output at 1/s covers the s x s pixels from (s i, s j) on.

        Raises:
            ValueError: another number of bands, a missing axis or an image without pixels.
        """
        if image.ndim != 4 or image.shape[1] != self.bands or 0 in image.shape[2:]:
            raise ValueError(
                f"Expected an image of shape (B, {self.bands}, H, W), but got {tuple(image.shape)}. Use resample_bands for other bands."
            )
        height, width = image.shape[2:]
        right, below = (max(-(-side // _STRIDE), 2) * _STRIDE - side for side in (width, height))
        maps = [F.pad(image, (0, right, 0, below), mode="replicate")]
        for index, stage in enumerate(self.encoder):
            maps.append(stage(F.max_pool2d(maps[-1], 2) if index in (1, 2, 3) else maps[-1]))
        outputs: list[Tensor] = []
        decoded = maps[-1]  # the first cell has nothing below it and joins its map with itself
        for cell, encoded in zip(self.decoder, reversed(maps[1:]), strict=True):
            decoded, logits = cell(encoded, decoded)
            outputs.insert(0, logits)
        steps = [min(2**index, _STRIDE) for index in range(len(outputs))]
        return [logits[:, :, : -(-height // step), : -(-width // step)] for logits, step in zip(outputs, steps, strict=True)]


class _Cell(nn.Module):
    """Join two maps, attend, and give a side output; the finest cell has no attention and hands nothing on."""

    def __init__(self, channels: int, following: int, attention: nn.Module | None, layout: DeviationUNetLayout) -> None:
        super().__init__()
        self.upsampling = layout.upsampling
        self.skip_rate = layout.stochastic_depth
        self.norm = _norm(channels, layout.decoder_norm)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.dropout = nn.Dropout2d(layout.dropout)
        self.attention = attention
        if attention is not None:
            self.mix = nn.Sequential(
                nn.Conv2d(2 * channels, following, 1, bias=layout.decoder_norm == "none"),
                _norm(following, layout.decoder_norm),
                nn.ReLU(),
            )
        self.head = nn.Conv2d(channels if attention is None else following, 1, 1)

    def forward(self, encoded: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Take (B, C, H, W) and (B, C, h, w); return the next (B, C', H, W) and logits (B, 1, H, W)."""
        if decoded.shape[2:] != encoded.shape[2:]:
            corners = True if self.upsampling == "bilinear" else None
            decoded = F.interpolate(decoded, size=encoded.shape[2:], mode=self.upsampling, align_corners=corners)
        joined = self.dropout(F.relu(self.join(torch.cat([F.relu(self.norm(encoded)), decoded], dim=1))))
        if self.attention is not None:
            attended = _skip_some(self.attention(joined), self.skip_rate if self.training else 0.0)
            joined = self.mix(torch.cat([joined, attended], dim=1))
        return joined, self.head(joined)


class _GlobalAttention(nn.Module):
    """Let every pixel look at all pixels; see `global_attention`."""

    def __init__(self, channels: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.query_key = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Take and return (B, C, H, W)."""
        query, key = self.query_key(features).chunk(2, dim=1)
        return global_attention(query, key, features, self.chunk)


class _LocalAttention(nn.Module):
    """Let every pixel look at 7 x 7 neighbours, 2 pixels apart; see `local_attention`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, hidden, _REACH, padding=_DILATION * (_REACH // 2), dilation=_DILATION),
            nn.Conv2d(hidden, _REACH * _REACH, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Take and return (B, C, H, W)."""
        return local_attention(features, self.weigh(features).softmax(dim=1), _DILATION)


def _attention(letter: str, channels: int, hidden: int, chunk: int) -> nn.Module | None:
    if letter == "C":
        return None
    return _GlobalAttention(channels, chunk) if letter == "G" else _LocalAttention(channels, hidden)


def _stage(before: int, channels: int, depth: int, norm: Norm, kernel: int, dilation: int) -> nn.Sequential:
    """Stack convolutions, norms and ReLUs; ``kernel`` is that of the first convolution, the others take 3."""
    layers: list[nn.Module] = []
    for index in range(depth):
        size = kernel if index == 0 else 3
        convolution = nn.Conv2d(
            before if index == 0 else channels, channels, size, padding=dilation * (size // 2), dilation=dilation, bias=norm == "none"
        )
        layers += [convolution, _norm(channels, norm), nn.ReLU()]
    return nn.Sequential(*layers)


def _norm(channels: int, norm: Norm) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    return nn.InstanceNorm2d(channels) if norm == "instance" else nn.BatchNorm2d(channels)


def _skip_some(branch: Tensor, rate: float) -> Tensor:
    """Set the branch (B, C, H, W) of each image to 0 with probability ``rate``, and scale up the others to the same mean."""
    if rate == 0:
        return branch
    kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= rate
    return branch * kept / (1 - rate)


def _start_from_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _scaled(channels: int, width: float) -> int:
    return max(round(channels * width), 1)


def _check(bands: int, layout: DeviationUNetLayout, width: float, query_chunk: int) -> None:
    if bands < 1 or not width > 0 or query_chunk < 1:
        came = f"bands={bands}, width={width} and query_chunk={query_chunk}"
        raise ValueError(f"Expected bands >= 1, width > 0 and query_chunk >= 1, but got {came}. Use for example 162, 1.0 and 1024.")
    if len(layout.attention) != 6 or set(layout.attention[:5]) - {"L", "G"} or layout.attention[5] != "C":
        raise ValueError(f"Expected attention of five letters L or G and then C, but got {layout.attention!r}. Use for example 'LGLGLC'.")
    if len(layout.encoder_channels) != 5 or min(layout.stem_channels, *layout.encoder_channels) < 1:
        came = f"{layout.stem_channels} and {layout.encoder_channels}"
        raise ValueError(f"Expected stem_channels and five encoder_channels, all >= 1, but got {came}. Use width for a slimmer network.")
    if layout.stem_kernel < 1 or layout.stem_kernel % 2 == 0:
        raise ValueError(f"Expected an odd stem_kernel, but got {layout.stem_kernel}. Use 1 to read spectra alone, or 3.")
    if not {layout.encoder_norm, layout.decoder_norm} <= {"instance", "batch", "none"} or layout.upsampling not in ("bilinear", "nearest"):
        came = f"{layout.encoder_norm!r}, {layout.decoder_norm!r} and {layout.upsampling!r}"
        raise ValueError(f"Expected norms 'instance', 'batch' or 'none' and upsampling 'bilinear' or 'nearest', but got {came}.")
    if not (0 <= layout.dropout < 1 and 0 <= layout.stochastic_depth < 1):
        came = f"{layout.dropout} and {layout.stochastic_depth}"
        raise ValueError(f"Expected dropout and stochastic_depth in [0, 1), but got {came}. Use for example 0.1.")
