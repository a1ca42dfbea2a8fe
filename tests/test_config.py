import pytest
import torch

from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.config import arguments_of, build, describe, locate, size_empty_buffers
from anomseg.optimisation import Optimisation


def test_describe__and_build_are_inverse():
    described = describe(QuantileCalibration(0.5, 0.75, tails="clip"))
    assert described == {
        "class_path": "anomseg.calibration.quantile.QuantileCalibration",
        "init_args": {"low": 0.5, "high": 0.75, "tails": "clip"},
    }
    assert arguments_of(build(described)) == described["init_args"]


def test_describe__reads_frozen_dataclasses_and_containers():
    described = describe([Optimisation(lr=0.5), {"a": (1, None)}])
    assert described[0]["lr"] == 0.5
    assert build(described[0], Optimisation) == Optimisation(lr=0.5)
    assert described[1] == {"a": [1, None]}


def test_describe__refuses_what_a_checkpoint_cannot_hold():
    with pytest.raises(TypeError, match="torch"):
        describe(torch.nn.Linear(1, 1), "Method.net")


@pytest.mark.parametrize("path", ["os.system", "builtins.eval", "torch.nn.Linear"])
def test_locate__builds_nothing_from_outside(path):
    with pytest.raises(ValueError, match="class of anomseg"):
        locate(path)


@pytest.mark.parametrize("path", ["anomseg.nowhere.Thing", "anomseg.config.build", "anomseg.config.Path"])
def test_locate__builds_only_classes_that_the_library_defines(path):
    with pytest.raises(ValueError, match="anomseg"):
        locate(path)


def test_build__leaves_plain_data_alone():
    assert build(3) == 3
    assert build({"a": 1}) == {"a": 1}
    assert isinstance(build(describe(RankCalibration(16))), RankCalibration)


def test_size_empty_buffers__touches_only_what_is_empty():
    module = torch.nn.Module()
    module.inner = torch.nn.Module()
    module.inner.register_buffer("mean", torch.empty(0, dtype=torch.float64))
    module.register_buffer("count", torch.ones(2))
    size_empty_buffers(module, {"inner.mean": torch.rand(3, 4, dtype=torch.float64), "count": torch.rand(5)})
    assert module.inner.mean.shape == (3, 4)
    assert module.inner.mean.dtype == torch.float64
    assert module.count.tolist() == [1, 1]
