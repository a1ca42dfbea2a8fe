import pytest
import torch
from torch import nn

from anomseg.nets.evaluation_mode import evaluation_mode


def halt(net):
    assert not any(part.training for part in net.modules())
    raise RuntimeError("halt")


def test_evaluation_mode__gives_each_part_its_own_mode_back_whatever_happens():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(2).eval())).train()
    net[1][1].eval()
    before = [part.training for part in net.modules()]
    with pytest.raises(RuntimeError, match="halt"), evaluation_mode(net):
        halt(net)
    assert [part.training for part in net.modules()] == before
    assert before == [True, True, True, True, False]


def test_evaluation_mode__leaves_the_statistics_of_norms_alone():
    net = nn.BatchNorm2d(2)
    image = torch.randn(3, 2, 4, 4) + 5
    with evaluation_mode(net):
        first, second = net(image), net(image)
    assert torch.equal(first, second)
    assert torch.equal(net.running_mean, torch.zeros(2))
    net(image)
    assert bool((net.running_mean > 0).all())
