import pytest
import torch

from anomseg.checkpoint_file import read_checkpoint
from anomseg.errors import CheckpointError


def test_read_checkpoint__gives_what_a_method_wrote(tmp_path):
    torch.save({"anomseg_version": "0.1", "state_dict": {"weight": torch.ones(2)}}, tmp_path / "method.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "method.ckpt")["state_dict"]["weight"], torch.ones(2))


def test_read_checkpoint__refuses_what_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="could not be read") as refused:
        read_checkpoint(tmp_path / "text.ckpt")
    assert "Re-running" not in str(refused.value)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds list"):
        read_checkpoint(tmp_path / "list.ckpt")
