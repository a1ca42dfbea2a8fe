import pytest
import torch

from anomseg.functional.seeded import seeded


def test_seeded__draws_by_its_seed_as_torch_does_and_leaves_the_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded__puts_generators_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(5):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seeded__leaves_the_generators_of_gpus_as_they_were():
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(5):
        first = torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with seeded(5):
        assert torch.equal(torch.rand(3, device="cuda"), first)
