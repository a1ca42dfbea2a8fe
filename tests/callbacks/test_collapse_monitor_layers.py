import math

import torch
from torch import nn
from torch.nn import functional as F

from anomseg.callbacks.collapse_monitor_layers import ROWS, Watched, WeightRecord, thinned
from anomseg.nets.descriptor import Described


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
        self.gate, self.lines = nn.Conv2d(4, 4, 1), nn.Linear(2, 5)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.second(x * (1 + 0 * self.gate(F.adaptive_avg_pool2d(x, 1))))
        return self.lines(x.movedim(1, -1))


class Describing(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = DescribingPart()

    def forward(self, x):
        return self.part(x)[0].sum(1)


class DescribingPart(nn.Module):
    def forward(self, x):
        return Described(2 * x, x)


def watched(net, x):
    found = Watched(net)
    with found.watching(), torch.no_grad():
        net(x)
    return found


def images():
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_watched__finds_dead_units_of_convolutions_activations_and_linear_layers():
    torch.manual_seed(0)
    net = Net()
    assert max(watched(net, images()).dead.values()) < 0.5
    with torch.no_grad():
        net.first.bias[:3] = -100.0
    found = watched(net, images()).dead
    assert found["first"] == 0
    assert found["act"] == 0.75
    assert list(found) == ["first", "act", "second", "lines"]  # the gate has eight places alone
    with torch.no_grad():
        net.first.bias.fill_(-100.0)
    assert watched(net, images()).dead == {"first": 0, "act": 1, "second": 1, "lines": 1}


def test_watched__leaves_frozen_layers_out_and_no_hook_behind():
    net = Net()
    net.first.requires_grad_(False)
    assert "first" not in watched(net, images()).dead
    assert not any(part._forward_hooks for part in net.modules())
    frozen = Net().requires_grad_(False)
    assert watched(frozen, images()).dead == {}


def test_watched__takes_the_descriptor_that_a_part_gives():
    x = images()
    assert torch.equal(watched(Describing(), x).descriptor, 2 * x)
    assert watched(Net(), x).descriptor is None


def test_thinned__keeps_about_as_many_rows_as_are_wanted():
    assert len(thinned(torch.zeros(ROWS, 2))) == ROWS
    assert ROWS // 4 < len(thinned(torch.zeros(7 * ROWS, 2))) <= 2 * ROWS


def test_weight_record__compares_each_layer_with_its_own_start():
    torch.manual_seed(0)
    net = Net()
    record = WeightRecord(net)
    figures, layers = record.figures(net, 10)
    assert figures["moved"] == figures["update_ratio"] == 0
    assert figures["weight_std"] == 1
    with torch.no_grad():
        net.second.weight.mul_(0.01)
        net.first.weight.add_(torch.randn_like(net.first.weight) * 0.1)
    figures, layers = record.figures(net, 20)
    assert abs(figures["weight_std"] - 0.01) < 1e-6
    assert layers == {"weight_std": "second"}
    assert figures["moved"] > 0.1
    assert record.figures(net, 30)[0]["update_ratio"] == 0


def test_weight_record__does_not_take_a_decay_for_learning():
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3)
    record = WeightRecord(net)
    with torch.no_grad():
        for _ in range(100):
            net.weight.mul_(0.999)
    assert record.figures(net, 100)[0]["moved"] < 1e-6


def test_weight_record__of_a_net_without_trained_layers_gives_nothing_that_counts():
    frozen = Net().requires_grad_(False)
    figures, layers = WeightRecord(frozen).figures(frozen, 1)
    assert layers == {}
    assert "weight_std" not in figures
    assert math.isnan(figures["moved"])
