import dataclasses
import enum
import io
from typing import Literal

import numpy as np
import pytest
import torch

from anomseg.calibration.quantile import QuantileCalibration, RankCalibration
from anomseg.config import argument_names, arguments_of, build, check_choices, describe, locate, size_empty_buffers
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


class Tails(str, enum.Enum):
    CLIP = "clip"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("clip"), "clip"),
        (Tails.CLIP, "clip"),
        (Level.HIGH, 3),
        (True, True),
        (None, None),
    ],
)
def test_describe__turns_every_kind_of_number_and_string_into_the_plain_type(value, plain):
    found = describe({"nested": [value]})["nested"][0]
    assert found == plain
    assert type(found) is type(plain)
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


@pytest.mark.parametrize("value", [np.ones(2), np.complex64(1j), np.longdouble(1), np.datetime64("2020-01-01")])
def test_describe__refuses_numpy_values_that_have_no_plain_type(value):
    with pytest.raises(TypeError, match=r"plain data.*but got"):
        describe(value, "Method.level")


class Base:
    def __init__(self, low=0.1, high=0.9, *, hidden=1):
        self.low, self.high = low, high  # `hidden` is not kept


class Between(Base):
    def __init__(self, *args, high=0.8, gain=1.0, **kwargs):
        super().__init__(*args, high=high, **kwargs)
        self.gain = gain


class Heir(Between):
    pass


class Last(Heir):
    def __init__(self, name, **rest):
        super().__init__(**rest)
        self.name = name


def test_argument_names__follow_those_that_are_handed_on():
    assert argument_names(Base) == (["low", "high", "hidden"], [])
    assert argument_names(Heir) == (["high", "gain"], ["low", "hidden"])
    assert argument_names(Last) == (["name"], ["high", "gain", "low", "hidden"])


def test_arguments_of__hold_what_a_base_keeps_of_those_that_are_handed_on():
    assert arguments_of(Last("a", low=0.3, gain=2.0)) == {"name": "a", "high": 0.8, "gain": 2.0, "low": 0.3}
    assert vars(Last(**arguments_of(Last("a", low=0.3, gain=2.0)))) == vars(Last("a", low=0.3, gain=2.0))


def test_arguments_of__demand_what_a_class_takes_under_its_own_name():
    with pytest.raises(AttributeError, match="hidden"):
        arguments_of(Base())


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


class Own(QuantileCalibration):
    """A component of somebody's own."""


@dataclasses.dataclass(frozen=True)
class OwnOptimisation(Optimisation):
    extra: tuple[int, ...] = (1,)


def test_describe__takes_objects_of_your_own_that_derive_from_the_library():
    described = describe(Own(0.25, 0.5))
    assert described == {"class_path": f"{__name__}.Own", "init_args": {"low": 0.25, "high": 0.5, "tails": "soft"}}
    assert isinstance(build(described), Own)
    assert build(describe(OwnOptimisation(lr=0.5, extra=(2, 3))), Optimisation) == OwnOptimisation(lr=0.5, extra=(2, 3))


def test_describe__refuses_a_class_that_could_not_be_found_again():
    class Hidden(QuantileCalibration):
        pass

    with pytest.raises(TypeError, match="top of a module"):
        describe(Hidden(), "RX.calibration")


@dataclasses.dataclass
class Chosen:
    size: Literal["small", "large"] | None = None
    colour: Literal["red"] | Literal["green"] = "red"
    share: float | Literal["all"] = 0.5


def test_check_choices__refuses_values_that_a_literal_does_not_name():
    check_choices(Chosen())
    check_choices(Chosen("large", "green", 0.25))
    for wrong, name in (({"size": "huge"}, "size"), ({"colour": None}, "colour")):
        with pytest.raises(ValueError, match=rf"Expected Chosen\.{name} of .* but got"):
            check_choices(Chosen(**wrong))
