import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # two workers on two cores would fight for them


def pytest_collection_modifyitems(items):
    folder = os.environ.get("ANOMSEG_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise pytest.UsageError(
                f"Expected ANOMSEG_DATA to name a folder, but got '{folder}'. Unset it to leave out the tests marked real."
            )
        return
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason="the variable ANOMSEG_DATA names no real scenes"))


@pytest.fixture
def real_data() -> Path:
    """The folder with the real scenes."""
    return Path(os.environ["ANOMSEG_DATA"])
