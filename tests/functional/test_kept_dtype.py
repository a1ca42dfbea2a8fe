import pytest
import torch

from anomseg.functional.kept_dtype import keeping_dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeping_dtype__leaves_values_and_type_alone(dtype):
    value = torch.tensor([1000.125, -3e-30])
    kept = keeping_dtype(lambda tensor: tensor.to(dtype))(value)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, value)


def test_keeping_dtype__moves_to_another_device():
    assert keeping_dtype(lambda tensor: tensor.to("meta", torch.float64))(torch.zeros(2)).device.type == "meta"
    assert keeping_dtype(lambda tensor: torch.empty_like(tensor, device="cpu"))(torch.zeros(2, device="meta")).device.type == "cpu"
