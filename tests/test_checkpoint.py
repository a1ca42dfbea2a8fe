import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from anomseg.calibration.base import Calibration
from anomseg.calibration.quantile import QuantileCalibration
from anomseg.checkpoint import load
from anomseg.checkpoint_file import read_checkpoint
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import CheckpointError
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.rx import RX
from anomseg.optimisation import Optimisation


class Payload:
    """Stands for code in a pickle."""


def test_load__says_when_there_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"root:x:0:0:root:/root:/bin/bash\n"])
def test_load__says_when_the_file_is_broken(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken"):
        load(path)


def test_load__runs_no_code_from_a_file(tmp_path):
    path = tmp_path / "code.ckpt"
    torch.save({"anomseg_version": Payload()}, path)
    with pytest.raises(CheckpointError, match="weights_only"):
        load(path)


def test_load__refuses_checkpoints_from_elsewhere(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"\['epoch', 'state_dict'\]"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["somewhere.Unknown", "anomseg.config.build", "anomseg.calibration.quantile.RankCalibration"])
def test_load__refuses_classes_that_are_no_methods(tmp_path, name):
    path = tmp_path / "class.ckpt"
    torch.save({"anomseg_version": "0", "state_dict": {}, "hyper_parameters": {"_class_path": name}}, path)
    with pytest.raises(ValueError, match=r"anomseg|names"):
        load(path)


class Brightness(AnomalySegmenter):
    learns = False

    def __init__(self, gain=1.0, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def score(self, image):
        return image.mean(1) * self.gain


class Glow(Brightness):
    def __init__(self, shift, **kwargs):
        super().__init__(**kwargs)
        self.shift = shift

    def score(self, image):
        return image.mean(1) * self.gain + self.shift


class FixedGlow(Glow):
    def __init__(self, **kwargs):
        super().__init__(shift=1.0, **kwargs)


def saved(tmp_path, method):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    loop.fit(method, SyntheticDataModule("rgb", count=1, size=(32, 32)))
    loop.save_checkpoint(tmp_path / "method.ckpt")
    return tmp_path / "method.ckpt"


def test_load__gives_back_what_a_constructor_hands_on_to_its_bases(tmp_path):
    method = Glow(0.5, gain=2.0, calibration=QuantileCalibration(0.5, 0.9, "clip"), optimisation=Optimisation(lr=0.25))
    again = load(saved(tmp_path, method))
    assert (type(again), again.shift, again.gain, again.optimisation) == (Glow, 0.5, 2.0, Optimisation(lr=0.25))
    assert (again.calibration.low, again.calibration.high, again.calibration.tails) == (0.5, 0.9, "clip")
    assert not again.training
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(image), method.eval()(image))


def test_load__reads_arguments_that_were_numpy_scalars(tmp_path):
    again = load(saved(tmp_path, RX(calibration=QuantileCalibration(np.linspace(0.5, 0.75, 3)[1], np.float32(0.875)))))
    assert (again.calibration.low, again.calibration.high) == (0.625, 0.875)


def test_load__says_why_a_class_does_not_take_its_arguments(tmp_path):
    with pytest.raises(CheckpointError, match=r"FixedGlow.*multiple values.*'shift'.*must be in its signature"):
        load(saved(tmp_path, FixedGlow()))


class Ceiling(Calibration):
    """A calibration of somebody's own: the share of a fixed score."""

    def __init__(self, top=1.0):
        super().__init__()
        self.top = top

    def _fit(self, counts):
        pass

    def _apply_map(self, score):
        return (score / self.top).clamp(0.0, 1.0)


def test_load__brings_back_components_of_ones_own_from_modules_that_are_imported(tmp_path):
    method, path = RX(calibration=Ceiling(40.0)), tmp_path / "own.ckpt"
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    loop.fit(method, SyntheticDataModule("multispectral", count=2, size=(40, 44)))
    loop.save_checkpoint(path)
    again = load(path)
    image = torch.rand(1, 10, 30, 32)
    assert again.calibration.top == 40.0
    assert torch.equal(again(image), method.eval()(image))


@pytest.mark.parametrize("found", ["subprocess.Popen", "pathlib.Path", "somewhere.Unknown", "torch.nn.Linear"])
def test_load__builds_no_component_that_derives_from_nothing_of_the_library(tmp_path, found):
    path, arguments = tmp_path / "foreign.ckpt", {"class_path": found, "init_args": {}}
    torch.save(
        {"anomseg_version": "0", "state_dict": {}, "hyper_parameters": {"_class_path": "anomseg.methods.rx.RX", "calibration": arguments}},
        path,
    )
    with pytest.raises(ValueError, match="class of anomseg"):
        load(path)
