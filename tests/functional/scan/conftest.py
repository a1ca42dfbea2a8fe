import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """A loop over tokens is thousands of tiny operations, which a second thread only slows down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
