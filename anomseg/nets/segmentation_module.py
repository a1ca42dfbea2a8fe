"""A segmentation net of your own, trained elsewhere, in the place of those of this library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomseg.nets.segmentation import SegmentationNet, SegmentationSpec


class TrainedModule(SegmentationSpec):
    """Take a finished module as the net of a method, such as a torchvision model with its weights.

    A checkpoint holds the weights, but cannot describe the module itself: load it by
    ``SegmentationReadout.load_from_checkpoint(path, net=TrainedModule(module), weights_only=True)``.

    Args:
        module: gives logits (B, K, h, w) for images (B, C, H, W), or a mapping with them under `out`; they are upsampled where h x w is
            smaller than the image. Each method gets a copy of its own, so that none changes what another one, or you, hold.
        mean: of the bands that it expects, in units of the images; None for 0.
        std: their standard deviations; None for 1.
        head: dotted name of its last layer, a 1 x 1 convolution; methods that add outputs or look at its input need it.

    Raises:
        ValueError: there is no layer of that name, or it is no convolution.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
    ) -> None:
        self._held = module
        self.module = None  # what a checkpoint says of it: a module is no plain data
        self.mean, self.std, self.head = mean, std, head
        if module is not None and head is not None and not isinstance(dict(module.named_modules()).get(head), nn.Conv2d):
            convolutions = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
            raise ValueError(f"Expected head to name a convolution of the module, but got {head!r}. Its last ones are {convolutions[-3:]}.")

    def build(self, in_channels: int, outputs: int) -> ModuleNet:
        """Wrap a copy of the module.

        Raises:
            ValueError: there is no module, as after loading a checkpoint without one, or its head has another number of outputs.
        """
        if self._held is None:
            raise ValueError(
                "Expected a module, but got none: checkpoints hold its weights alone. Give it again, as in "
                "SegmentationReadout.load_from_checkpoint(path, net=TrainedModule(module), weights_only=True)."
            )
        net = ModuleNet(copy.deepcopy(self._held), outputs, self.head)
        if self.head is not None and net.head.out_channels != outputs:
            raise ValueError(
                f"Expected a module of {outputs} classes, but its head '{self.head}' has {net.head.out_channels} outputs. Set classes to "
                "what it was trained for; methods add their own outputs to a copy of it."
            )
        return net

    def ready(self, net: SegmentationNet) -> tuple[Tensor, Tensor] | None:
        """Give mean and deviation of the bands; the weights are there already.

        Raises:
            ValueError: the number of bands is not known.
        """
        if self.mean is None and self.std is None:
            first = next((p for p in net.parameters() if p.ndim == 4), None)
            if first is None:
                raise ValueError("Expected mean and std of the bands for a module whose first layer is no convolution, but got neither.")
            return torch.zeros(first.shape[1]), torch.ones(first.shape[1])
        mean, std = self.mean or [0.0] * len(self.std or ()), self.std or [1.0] * len(self.mean or ())
        return torch.tensor(list(mean)), torch.tensor(list(std))


class ModuleNet(SegmentationNet):
    """Call a module of other origin as a segmentation net.

    Args:
        module: see `TrainedModule`.
        outputs: K.
        head_name: see `TrainedModule`.
    """

    def __init__(self, module: nn.Module, outputs: int, head_name: str | None) -> None:
        super().__init__()
        self.module, self.outputs, self.head_name = module, outputs, head_name

    @property
    def head(self) -> nn.Conv2d:  # type: ignore[override]  # read-only: `replace_head` sets it
        """Give the last layer.

        Raises:
            ValueError: its name was not given.
        """
        if self.head_name is None:
            raise ValueError(
                "Expected the name of the module's last convolution, but got none. Give it: TrainedModule(module, head='...')."
            )
        return cast(nn.Conv2d, self.module.get_submodule(self.head_name))

    def replace_head(self, layer: nn.Conv2d) -> None:
        """Put a layer where the module has its head."""
        owner, _, name = (self.head_name or "").rpartition(".")
        setattr(self.module.get_submodule(owner), name, layer)
        self.outputs = layer.out_channels

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """Give nothing: which parts stand before the head is not known."""
        return []

    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute what the head reads."""
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            self.module(image)
        finally:
            handle.remove()
        return caught[:1]

    def revise(self, image: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Run the module twice, because what it does after its head is not known; see the base class."""
        known = self(image)
        handle = self.head.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))
        try:
            return known, self(image)
        finally:
            handle.remove()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W).

        Raises:
            ValueError: the module gives another number of classes, or no map of them.
        """
        found = self.module(image)
        logits = found["out"] if isinstance(found, Mapping) else found
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != self.outputs:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Expected logits (B, {self.outputs}, h, w) from the module, but got {came}. Set classes to what it was trained for; "
                "methods that add outputs need the name of its head."
            )
        same = logits.shape[-2:] == image.shape[-2:]
        return logits if same else F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
