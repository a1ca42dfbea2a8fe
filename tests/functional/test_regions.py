import pytest
import torch

from anomseg.functional.regions import label_regions, region_weights


def test_region_weights__join_diagonal_neighbours():
    mask = torch.tensor([[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]])
    assert region_weights(mask).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_region_weights__sum_to_the_number_of_regions_of_each_sample():
    mask = torch.zeros(3, 40, 40, dtype=torch.long)
    mask[0, :7, :7] = mask[0, 20:23, 20:31] = mask[2, 5, 5] = 1
    weights = region_weights(mask).double()
    assert weights.split([49 + 33, 1])[0].sum() == pytest.approx(2, abs=1e-6)
    assert weights[-1] == 1


def test_region_weights__ignored_pixels_connect_nothing():
    mask = torch.tensor([[[1, 255, 1, 1]]])
    assert region_weights(mask).tolist() == [1.0, 0.5, 0.5]


def test_region_weights__sum_to_the_same_bits_in_any_order():
    mask = (torch.rand(2, 200, 200, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    weights = region_weights(mask).double()
    sums = {float(weights[torch.randperm(len(weights))].cumsum(0)[-1]) for _ in range(5)}
    assert len(sums) == 1


def test_region_weights__of_no_region_are_empty():
    assert region_weights(torch.tensor([[[0, 255]]])).shape == (0,)


def test_region_weights__takes_bool_masks():
    assert region_weights(torch.tensor([[[True, True, False, True]]])).tolist() == [0.5, 0.5, 1.0]


def test_region_weights__do_not_depend_on_the_default_type():
    torch.set_default_dtype(torch.bfloat16)  # as half-precision training of Lightning does
    try:
        assert region_weights(torch.tensor([[[1, 1, 0, 1]]])).tolist() == [0.5, 0.5, 1.0]
        assert region_weights(torch.tensor([[[0, 255]]])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_label_regions__numbers_what_touches_at_a_corner_as_one():
    marked = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).bool()
    numbers, count = label_regions(marked)
    assert count == 3
    assert numbers[0, 0] == numbers[1, 1] > 0
    assert torch.equal(numbers > 0, marked)
