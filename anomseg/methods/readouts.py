"""Read-outs: what turns the logits of any closed-set segmentation net into anomaly scores, without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from anomseg.errors import NotFittedError
from anomseg.functional.energy import free_energy
from anomseg.functional.readouts import largest_logit, largest_probability, softmax_entropy, standardized_max_logit


@dataclass(frozen=True)
class Statistics:
    """Hold what a read-out may know of the training pixels.

    Attributes:
        mean: (K,) mean of the largest logit of pixels that are predicted as a class.
        std: (K,) its standard deviation, > 0.
    """

    mean: Tensor
    std: Tensor


class Readout(ABC):
    """Turn logits of K classes into scores, without any training of its own."""

    @abstractmethod
    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Compute (B, H, W) from logits (B, K, H, W), higher is more anomalous."""


@dataclass(frozen=True)
class MSP(Readout):
    """One minus the largest probability; see `largest_probability`."""

    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """See the base class."""
        return largest_probability(logits)


@dataclass(frozen=True)
class MaxLogit(Readout):
    """The largest logit, negated; see `largest_logit`."""

    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """See the base class."""
        return largest_logit(logits)


@dataclass(frozen=True)
class Entropy(Readout):
    """Entropy of the probabilities; see `softmax_entropy`."""

    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """See the base class."""
        return softmax_entropy(logits)


@dataclass(frozen=True)
class Energy(Readout):
    """Free energy; see `free_energy`.

    Attributes:
        temperature: T > 0.
    """

    temperature: float = 1.0

    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """See the base class."""
        return free_energy(logits, self.temperature)


@dataclass(frozen=True)
class StandardizedMaxLogit(Readout):
    """The largest logit in standard deviations of its class, negated; see `standardized_max_logit`."""

    def __call__(self, logits: Tensor, statistics: Statistics | None = None) -> Tensor:
        """See the base class; statistics are needed."""
        if statistics is None:
            raise NotFittedError("Expected statistics of the training logits, but got none. Train or fit the segmenter first.")
        return standardized_max_logit(logits, statistics.mean, statistics.std)
