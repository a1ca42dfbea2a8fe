import warnings

import pytest
import torch

from anomseg.functional.scan import backends, scan_backend, selective_scan, use_scan_backend
from anomseg.functional.scan.backends import (
    LONG,
    VARIABLE,
    check_backend,
    has_mamba_ssm,
    interpreted,
    kernel_for,
    requested_backend,
    warn_of_loop,
)


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is there in name: kernels are chosen for it and never run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(backends, "has_mamba_ssm", lambda: False)


def test_choice__prefers_the_argument_then_the_context_then_the_environment(monkeypatch):
    assert requested_backend() == "auto"
    monkeypatch.setenv(VARIABLE, "chunked")
    assert requested_backend() == "chunked"
    with use_scan_backend("pure"):
        assert requested_backend() == "pure"
        assert requested_backend("reference") == "reference"
        with use_scan_backend("reference"):
            assert requested_backend() == "reference"
        assert requested_backend() == "pure"
    assert requested_backend() == "chunked"


def test_choice__reaches_the_scan():
    given = torch.randn(1, 2, 3), torch.rand(1, 2, 3), -torch.rand(2, 1), torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    given[0].requires_grad_()
    assert "selective_scan" in type(selective_scan(*given).grad_fn).__name__.lower()
    with use_scan_backend("reference"):
        assert "selective_scan" not in type(selective_scan(*given).grad_fn).__name__.lower()


@pytest.mark.parametrize("name", ["cuda", ""])
def test_unknown_backend__is_an_error_that_lists_them(name, monkeypatch):
    with pytest.raises(ValueError, match="mamba_ssm, but got") as error:
        check_backend(name)
    assert "triton" in str(error.value)
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="fastest"):
        scan_backend("cpu")


def test_report__names_the_backend_and_the_reason(monkeypatch):
    assert scan_backend("cpu").backend == "chunked"
    assert "cpu" in scan_backend("cpu").reason
    monkeypatch.setenv(VARIABLE, "reference")
    assert scan_backend("cpu") == ("reference", "asked for")


def test_report__of_a_gpu_that_is_not_there_says_so(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = scan_backend("cuda")
    assert report.backend == "chunked"
    assert "no CUDA device" in report.reason


def test_report__on_a_gpu_prefers_mamba_ssm_unless_results_must_repeat(gpu, monkeypatch):
    assert scan_backend("cuda").backend == "triton"
    monkeypatch.setattr(backends, "has_mamba_ssm", lambda: True)
    assert scan_backend("cuda").backend == "mamba_ssm"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert scan_backend("cuda").backend == "triton"
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    assert scan_backend("cuda").backend == "chunked"


def tensor_on_gpu(dtype=torch.float32):
    """Stand in for a CUDA tensor, of which the choice reads the device and the type."""
    return type("Tensor", (), {"device": torch.device("cuda"), "dtype": dtype})()


def test_kernel__on_a_gpu_is_triton_except_for_float64(gpu):
    assert kernel_for(tensor_on_gpu(), "auto") == "triton"
    assert kernel_for(tensor_on_gpu(torch.float64), "auto") == "chunked"
    assert kernel_for(tensor_on_gpu(), "chunked") == "chunked"
    assert kernel_for(torch.empty(0), "auto") == "chunked"


def test_slow_path__warns_once_and_says_what_to_do(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    backends._warn_slow.cache_clear()
    with pytest.warns(UserWarning, match=r"capability 7\.0.*ANOMSEG_SCAN_BACKEND=chunked"):
        assert kernel_for(tensor_on_gpu(), "auto") == "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel_for(tensor_on_gpu(), "auto")
        kernel_for(tensor_on_gpu(), "chunked")
    backends._warn_slow.cache_clear()


def test_token_loop__warns_once_of_what_it_costs_in_training():
    backends._warn_loop.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_loop(LONG - 1)
        with torch.no_grad():
            warn_of_loop(LONG)
        with pytest.raises(UserWarning, match="100 times"):
            warn_of_loop(LONG)
    backends._warn_loop.cache_clear()
    with pytest.warns(UserWarning, match="100 times"):
        warn_of_loop(LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_loop(LONG)


def test_triton_asked_for_where_it_cannot_run__is_an_error():
    with pytest.raises(RuntimeError, match=r"Triton .*backend='auto'"):
        kernel_for(torch.empty(0), "triton")


def test_interpretation__is_read_from_the_environment(monkeypatch):
    assert not interpreted()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert interpreted()


def test_mamba_ssm__counts_only_where_its_compiled_scan_imports(monkeypatch):
    has_mamba_ssm.cache_clear()
    asked = []

    def fail(name):
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    assert not has_mamba_ssm()
    assert asked == ["selective_scan_cuda"]
    has_mamba_ssm.cache_clear()
