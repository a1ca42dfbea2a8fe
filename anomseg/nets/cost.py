"""What a network costs: parameters and floating-point operations, those of selective scans included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomseg.functional.scan import use_scan_backend
from anomseg.nets.evaluation_mode import evaluation_mode


@dataclass(frozen=True)
class NetCost:
    """Hold what one forward pass costs.

    Attributes:
        parameters: all trainable numbers, heads that serve training alone included.
        flops: operations of one pass in evaluation mode; a multiplication with its addition counts as two.
    """

    parameters: int
    flops: int


def parameter_count(net: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@torch.no_grad()
def cost(net: nn.Module, *inputs: Tensor) -> NetCost:
    """Run a network once in evaluation mode and count.

    Convolutions, matrix products and selective scans are counted; norms, activations and sums are not, as is usual. Scans run by the
    backend ``chunked``, whatever was asked for: a figure does not depend on which one is installed.

    Args:
        net: taken as it is; its mode is restored.
        inputs: what it is called with, such as two dates (1, C, 256, 256).
    """
    with evaluation_mode(net), use_scan_backend("chunked"), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return NetCost(parameter_count(net), int(counter.get_total_flops()))
