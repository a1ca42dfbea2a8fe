import pytest
import torch

from anomseg.checkpoint import load
from anomseg.checkpoint_file import read_checkpoint
from anomseg.errors import CheckpointError


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
