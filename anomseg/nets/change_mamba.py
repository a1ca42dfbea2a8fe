"""A light U-shaped network of selective scans for change detection, with every axis of its ablations as a field of one description."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from anomseg.functional.edges import FirstOrder, SecondOrder
from anomseg.functional.windows import pad_to_multiple
from anomseg.nets.change_edss import EDSSBranch
from anomseg.nets.change_fine import FineLevel, FineStage
from anomseg.nets.change_fusion import AttentionalFusion, FusionGate, SkipFusion, SkipUnit
from anomseg.nets.change_heads import ChangeOutput, DetailHead, LevelHead, ShuffleHead, UpsamplingHead, set_biases
from anomseg.nets.change_siss import Arrangement, Dates, DifferenceBlock, SISSBlock
from anomseg.nets.change_stem import PairStem, StemKind
from anomseg.nets.convolution import Bottleneck, MapNorm, ResidualUnit, SqueezeExcitation, halves, map_norm
from anomseg.nets.vss import ChannelScan, VSSBlock

EncoderKind = Literal["full", "shared_vss", "separate_vss", "shared_cnn"]
DecoderKind = Literal["both", "none", "channel", "spatial"]
HeadKind = Literal["upsample", "shuffle", "detail"]
EnhancementKind = Literal["full", "none", "first_order", "second_order", "scan"]


@dataclass(frozen=True)
class ChangeMambaSpec:
    """Describe a `ChangeMambaUNet`.

    Attributes:
        width: channels of the first stage; each further stage has twice as many.
        depths: blocks of each stage, finest first.
        fine: channels of stages of plain convolutions before the first stage of scans, finest first, each of twice the resolution of the
            next: small things need them, and scans would be dear there.
        encoder: `full` mixes the dates by SISS blocks; else the dates stay apart, in VSS blocks with `shared` or `separate` weights, or
            in shared residual convolutions.
        decoder: which scans a decoder level has: over pixels, over channels, both or none.
        enhancement: branch of edges: both operators, none of it, one of them, or the scan alone.
        difference: whether difference features come from a `DifferenceBlock`, or are |a - b|.
        signed: see `DifferenceBlock`.
        arrangements: see `SISSBlock`.
        shared_core: see `SISSBlock`.
        gate: see `fuse_gated`.
        skip: see `SkipUnit`.
        norm: see `MapNorm`; `group` for batches of one or two.
        first_order: operator of first order.
        second_order: operator of second order.
        channel_gate: scan or squeeze-and-excitation over channels.
        stem: see `PairStem`.
        stem_stride: pixels of the image along one of the first stage, fine or not.
        stem_shared: one stem for both dates.
        stem_difference: the stems see |after - before|, too.
        head: `upsample` in steps with convolutions, `shuffle` of one logit for each pixel of a block, or `detail`, which weighs the
            raw bands by the map at full resolution.
        scan_ratio: channels inside a scan for each channel of its map.
        state: numbers that a scan's channel remembers.
        mlp_ratio: hidden channels of an MLP for each of its map.
    """

    width: int = 64
    depths: tuple[int, ...] = (2, 2, 10)
    encoder: EncoderKind = "full"
    decoder: DecoderKind = "both"
    enhancement: EnhancementKind = "full"
    difference: bool = True
    signed: bool = False
    arrangements: tuple[Arrangement, ...] = ("split", "interleave")
    shared_core: bool = True
    gate: FusionGate = "one_sided"
    skip: SkipFusion = "cat"
    norm: MapNorm = "batch"
    first_order: FirstOrder = "sobel"
    second_order: SecondOrder = "dog"
    channel_gate: Literal["scan", "squeeze"] = "scan"
    stem: StemKind = "convolution"
    stem_stride: int = 4
    fine: tuple[int, ...] = ()
    stem_shared: bool = False
    stem_difference: bool = False
    head: HeadKind = "upsample"
    scan_ratio: float = 1.0
    state: int = 1
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name, kind in (("encoder", EncoderKind), ("decoder", DecoderKind), ("enhancement", EnhancementKind)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"Expected {name} of {get_args(kind)}, but got {getattr(self, name)!r}.")
        if self.channel_gate not in ("scan", "squeeze") or self.head not in get_args(HeadKind):
            came = f"{self.channel_gate!r}, {self.head!r}"
            raise ValueError(f"Expected channel_gate 'scan' or 'squeeze' and head of {get_args(HeadKind)}, but got {came}.")
        if min(self.width, *self.fine, 2) < 2 or not self.depths or min(self.depths) < 1 or self.scan_ratio <= 0 or self.state < 1:
            raise ValueError(
                "Expected width and fine >= 2, one or more depths >= 1, scan_ratio > 0 and state >= 1, "
                f"but got {self.width}, {self.fine}, {self.depths}, {self.scan_ratio} and {self.state}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Give the channels of every stage, finest first."""
        return tuple(self.width << index for index in range(len(self.depths)))

    @property
    def multiple(self) -> int:
        """Give the pixels along one pixel of the coarsest stage."""
        return self.stem_stride << (len(self.fine) + len(self.depths) - 1)

    def vss(self, channels: int) -> VSSBlock:
        """Build a VSS block of this description."""
        return VSSBlock(channels, self.norm, self.scan_ratio, self.state, self.mlp_ratio)


class _ApartStage(nn.Module):
    """Treat each date alone, by one stack of blocks or by two."""

    def __init__(self, spec: ChangeMambaSpec, channels: int, depth: int) -> None:
        super().__init__()

        def stack() -> nn.Sequential:
            blocks = [ResidualUnit(channels, spec.norm) if spec.encoder == "shared_cnn" else spec.vss(channels) for _ in range(depth)]
            return nn.Sequential(*blocks)

        self.stacks = nn.ModuleList(stack() for _ in range(2 if spec.encoder == "separate_vss" else 1))

    def forward(self, a: Tensor, b: Tensor) -> Dates:
        if len(self.stacks) == 2:
            return self.stacks[0](a), self.stacks[1](b)
        return halves(self.stacks[0](torch.cat([a, b])))


class _JointStage(nn.Module):
    """Prepare each date by a light convolution of its own, then mix both by SISS blocks."""

    def __init__(self, spec: ChangeMambaSpec, channels: int, depth: int) -> None:
        super().__init__()

        def front() -> nn.Sequential:
            across = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            return nn.Sequential(
                across, nn.Conv2d(channels, channels, 1, bias=spec.norm == "none"), map_norm(spec.norm, channels), nn.ReLU()
            )

        self.fronts = nn.ModuleList(front() for _ in range(1 if spec.stem_shared else 2))
        options = (spec.arrangements, spec.shared_core, spec.norm, spec.scan_ratio, spec.state, spec.mlp_ratio)
        self.blocks = nn.ModuleList(SISSBlock(channels, *options) for _ in range(depth))

    def forward(self, a: Tensor, b: Tensor) -> Dates:
        a, b = a + self.fronts[0](a), b + self.fronts[-1](b)
        for block in self.blocks:
            a, b = block(a, b)
        return a, b


class _Level(nn.Module):
    """Decode one level: join the dates and the map from below, scan, add the edges' branch by attention."""

    def __init__(self, spec: ChangeMambaSpec, channels: int, below: int, edges: int) -> None:
        super().__init__()
        self.skip = SkipUnit(channels, below, spec.skip, spec.norm)
        spatial, channel = spec.decoder in ("both", "spatial"), spec.decoder in ("both", "channel")
        weigh = (
            (ChannelScan(channels, state=spec.state) if spec.channel_gate == "scan" else SqueezeExcitation(channels)) if channel else None
        )
        self.line = nn.Sequential(*([spec.vss(channels)] if spatial else []), *([weigh] if weigh is not None else []))
        self.difference = DifferenceBlock(channels, spec.signed, spec.norm) if spec.difference else None
        self.branch: EDSSBranch | None = None
        self.fusion: AttentionalFusion | None = None
        if spec.enhancement != "none":
            first = spec.first_order if spec.enhancement in ("full", "first_order") else None
            second = spec.second_order if spec.enhancement in ("full", "second_order") else None
            self.branch = EDSSBranch(channels, edges, first, second, spec.norm, spec.scan_ratio, spec.state, spec.mlp_ratio)
        self.side = Bottleneck(channels, channels, spec.norm) if self.branch is None and spec.difference else None
        if self.branch is not None or self.side is not None:
            self.fusion = AttentionalFusion(channels, spec.gate, spec.norm)

    def forward(self, a: Tensor, b: Tensor, below: Tensor | None) -> Tensor:
        main: Tensor = self.line(self.skip(a, b, below))
        if self.fusion is None:
            return main
        apart = self.difference(a, b) if self.difference is not None else (a - b).abs()
        if self.branch is not None:
            side = self.branch(a, b, apart)
        else:
            assert self.side is not None
            side = self.side(apart)
        return cast(Tensor, self.fusion(main, side))


class ChangeMambaUNet(nn.Module):
    """Map two dates of a scene to a logit of change for each pixel.

    Args:
        bands: of a date.
        spec: see `ChangeMambaSpec`.

    Source: the plan is ours after published parts: VMamba, ChangeMamba (see `change_siss`), attentional feature fusion (`change_fusion`)
        and supervision of every level as in AERNet (Zhang et al., IEEE TGRS 2023).
    """

    def __init__(self, bands: int = 3, spec: ChangeMambaSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or ChangeMambaSpec()
        widths = spec.widths
        first = (*spec.fine, widths[0])[0]
        self.stem = PairStem(bands, first, spec.stem, spec.stem_stride, spec.stem_shared, spec.stem_difference, spec.norm)
        stage = _JointStage if spec.encoder == "full" else _ApartStage
        self.stages = nn.ModuleList(stage(spec, channels, depth) for channels, depth in zip(widths, spec.depths, strict=True))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 3, 2, 1, bias=spec.norm == "none"), map_norm(spec.norm, coarse))
            for fine, coarse in pairwise(widths)
        )
        below = (*widths[1:], 0)
        # Edges are a supplement at the finest level and need room of their own at the coarser ones.
        edges = [max(8, channels // (16 if index == 0 else 4)) for index, channels in enumerate(widths)]
        self.fine = nn.ModuleList(FineStage(channels, channels, spec.norm) for channels in spec.fine)
        self.narrow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=spec.norm == "none"), map_norm(spec.norm, o), nn.ReLU())
            for i, o in pairwise((*spec.fine, widths[0]))
        )
        self.fine_levels = nn.ModuleList(FineLevel(o, u, spec.norm) for o, u in pairwise((*spec.fine, widths[0])))
        self.levels = nn.ModuleList(_Level(spec, *sizes) for sizes in zip(widths, below, edges, strict=True))
        self.heads = nn.ModuleList(LevelHead(channels, spec.norm) for channels in widths)
        self.head: UpsamplingHead | ShuffleHead | DetailHead
        if spec.head == "detail":
            self.head = DetailHead(first, spec.stem_stride, bands, spec.norm)
        else:
            self.head = (UpsamplingHead if spec.head == "upsample" else ShuffleHead)(first, spec.stem_stride, spec.norm)

    def set_prior(self, share: float) -> None:
        """Start all outputs at the logit of a share of change in (0, 1), so that the first steps are not spent on learning it."""
        set_biases([self.head.last, *(cast(nn.Sequential, head)[-1] for head in self.heads)], share)

    def forward(self, before: Tensor, after: Tensor) -> ChangeOutput:
        """Compute logits of two dates (B, bands, H, W) of any size; see `ChangeOutput`."""
        height, width = before.shape[-2:]
        dates = tuple(pad_to_multiple(date, self.spec.multiple) for date in (before, after))
        a, b = self.stem(*dates)
        details: list[Dates] = []
        for fine, narrow in zip(self.fine, self.narrow, strict=True):
            details.append(fine(a, b))
            a, b = halves(narrow(torch.cat(details[-1])))
        skips: list[Dates] = []
        for index, stage in enumerate(self.stages):
            if index:
                a, b = halves(self.down[index - 1](torch.cat([a, b])))
            a, b = stage(a, b)
            skips.append((a, b))
        x: Tensor | None = None
        auxiliary: list[Tensor] = []
        for index in reversed(range(len(skips))):
            x = self.levels[index](*skips[index], x)
            if self.training:
                auxiliary.insert(0, self.heads[index](x)[:, 0])
        assert x is not None
        for level, detail in zip(reversed(list(self.fine_levels)), reversed(details), strict=True):
            x = level(*detail, x)
        logits = self.head(x, *dates) if isinstance(self.head, DetailHead) else self.head(x)
        return ChangeOutput(logits[:, 0, :height, :width], tuple(auxiliary))


TINY = ChangeMambaSpec(
    width=24,
    depths=(1, 1, 2),
    arrangements=("interleave",),
    norm="group",
    stem="space_to_depth",
    stem_stride=4,
    fine=(32,),
    stem_shared=True,
    stem_difference=True,
    head="shuffle",
    mlp_ratio=2.0,
)
"""Under a million parameters; trains on two cores: blocks of 4 x 4 pixels are convolved, and those of 8 x 8 are the tokens of the scans."""

TINY_DETAIL = replace(TINY, head="detail")
"""The same for change that shows in the raw values, pixel by pixel, where no gate says so."""

SMALL = ChangeMambaSpec(width=48, depths=(2, 2, 4))
"""About 5 million parameters."""

BASE = ChangeMambaSpec()
"""Two, two and ten blocks at width 64: at most 15 million parameters."""
