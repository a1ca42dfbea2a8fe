import pytest
import torch
from torch import nn

from anomseg.functional.scan import use_scan_backend
from anomseg.functional.scan.operator import scan_flops
from anomseg.nets.cost import cost, parameter_count
from anomseg.nets.vss import SelectiveScan2D


def test_cost__counts_a_multiplication_with_its_addition_as_two():
    net = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    found = cost(net, torch.rand(1, 3, 8, 8))
    assert found.parameters == parameter_count(net) == 3 * 5 * 9
    assert found.flops == 2 * 3 * 5 * 9 * 64


def test_cost__counts_the_scan():
    block = SelectiveScan2D(32)
    pixels, inner, rank = 6 * 6, 32, 2
    products = 2 * pixels * (32 * inner + 9 * inner + inner * 4 * (rank + 2) + 4 * rank * inner + inner * 32)
    scans = 2 * scan_flops((1, 2 * inner, pixels), 1)
    assert cost(block, torch.rand(1, 32, 6, 6)).flops == products + scans


@pytest.mark.parametrize("backend", ["pure", "reference"])
def test_cost__does_not_depend_on_the_backend_of_the_scan(backend):
    block, x = SelectiveScan2D(32), torch.rand(1, 32, 6, 6)
    expected = cost(block, x)
    with use_scan_backend(backend):
        assert cost(block, x) == expected


def test_cost__leaves_the_mode_alone_and_counts_trainable_parameters_only():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    net[0].requires_grad_(False)
    assert cost(net, torch.rand(1, 1, 2, 2)).parameters == 4
    assert net.training
