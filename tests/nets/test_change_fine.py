import torch

from anomseg.nets.change_fine import FineLevel, FineStage


def test_fine_stage__treats_both_dates_with_the_same_weights():
    stage = FineStage(3, 6, "group")
    a, b = torch.randn(2, 1, 3, 8, 10)
    first, second = stage(a, b)
    swapped = stage(b, a)
    torch.testing.assert_close(first, swapped[1])
    torch.testing.assert_close(second, swapped[0])
    assert first.shape == (1, 6, 8, 10)


def test_fine_level__hears_both_dates_and_the_map_from_below():
    level = FineLevel(6, 4, "group")
    a, b, below = torch.randn(2, 6, 8, 10), torch.randn(2, 6, 8, 10), torch.randn(2, 4, 4, 5)
    plain = level(a, b, below)
    assert plain.shape == (2, 6, 8, 10)
    for other in (level(a + 1, b, below), level(a, b + 1, below), level(a, b, below + torch.randn(2, 4, 4, 5))):
        assert not torch.allclose(other, plain)
