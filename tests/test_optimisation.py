import math

import pytest
import torch
from torch import nn

from anomseg.optimisation import Optimisation


def test_factor__rises_in_the_warm_up_and_ends_at_zero():
    cosine = Optimisation(schedule="cosine", warmup=0.1)
    assert cosine.factor(0, 100) == 0
    assert cosine.factor(5, 100) == pytest.approx(0.5)
    assert cosine.factor(10, 100) == pytest.approx(1.0)
    assert cosine.factor(100, 100) == pytest.approx(0.0)
    assert Optimisation(schedule="poly").factor(50, 100) == pytest.approx(0.5**0.9)
    assert Optimisation(schedule="constant").factor(99, 100) == 1.0


def test_build__decays_no_vectors():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    net[0].bias.requires_grad_(False)
    optimiser, schedule = Optimisation(lr=0.1, weight_decay=0.5).build(net, 10)
    decayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(net[0].weight)}
    assert sum(len(g["params"]) for g in optimiser.param_groups) == 3
    assert schedule.get_last_lr()[0] == pytest.approx(0.1)


def test_build__wants_an_end_where_the_schedule_needs_one():
    net = nn.Linear(2, 1)
    for endless in (Optimisation(1e-3), Optimisation(1e-3, schedule="constant", warmup=0.1)):
        with pytest.raises(ValueError, match=r"number of steps for schedule=.*max_epochs or max_steps"):
            endless.build(net, math.inf)
    optimiser, schedule = Optimisation(1e-3, schedule="constant").build(net, math.inf)
    optimiser.step()
    schedule.step()
    assert optimiser.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("wrong", [{"schedule": "step"}, {"lr": -1.0}, {"weight_decay": -0.1}, {"warmup": 1.5}, {"lr": math.nan}])
def test_optimisation__refuses_what_it_cannot_do(wrong):
    with pytest.raises(ValueError, match="Expected"):
        Optimisation(**wrong)
