import pytest
import torch

from anomseg.errors import NotFittedError
from anomseg.functional.energy import free_energy
from anomseg.functional.readouts import largest_logit, largest_probability, softmax_entropy, standardized_max_logit
from anomseg.methods.readouts import MSP, Energy, Entropy, MaxLogit, StandardizedMaxLogit, Statistics

LOGITS = 3 * torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        (MSP(), largest_probability(LOGITS)),
        (MaxLogit(), largest_logit(LOGITS)),
        (Entropy(), softmax_entropy(LOGITS)),
        (Energy(2.0), free_energy(LOGITS, 2.0)),
    ],
)
def test_readout__is_its_function(readout, expected):
    assert torch.equal(readout(LOGITS), expected)


def test_standardized_max_logit__needs_statistics():
    mean, std = torch.rand(4), torch.rand(4) + 0.5
    assert torch.equal(StandardizedMaxLogit()(LOGITS, Statistics(mean, std)), standardized_max_logit(LOGITS, mean, std))
    with pytest.raises(NotFittedError, match="statistics"):
        StandardizedMaxLogit()(LOGITS)
