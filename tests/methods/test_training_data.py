from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.methods.training_data import counted_pixels, gathered_objects, normal_pixels, training_batches


def method(rank, world, loader):
    strategy = SimpleNamespace(batch_to_device=lambda batch, device: batch)
    return SimpleNamespace(
        trainer=SimpleNamespace(train_dataloader=loader, world_size=world, strategy=strategy), global_rank=rank, device="cpu"
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 4, 7])
def test_training_batches__of_all_ranks_hold_every_sample_once(world, samples):
    loader = DataLoader(list(range(samples)), batch_size=2)
    found = [int(v) for rank in range(world) for batch in training_batches(method(rank, world, loader)) for v in batch]
    assert sorted(found) == list(range(samples))


def test_training_batches__of_a_rank_begin_with_samples_of_all_kinds():
    loader = DataLoader([index // 32 for index in range(128)], batch_size=32)  # four categories one after the other
    first = [next(iter(training_batches(method(rank, 2, loader)))).unique().tolist() for rank in (0, 1)]
    assert first == [[0, 1, 2, 3]] * 2


def test_training_batches__leave_a_pass_of_persistent_workers_alone():
    loader = DataLoader(list(range(8)), batch_size=2, num_workers=1, persistent_workers=True)
    outer, found = iter(loader), []
    found += next(outer).tolist()
    assert sorted(v for batch in training_batches(method(0, 1, loader)) for v in batch.tolist()) == list(range(8))
    found += [v for batch in outer for v in batch.tolist()]
    assert found == list(range(8))


def test_training_batches__of_no_data_are_none():
    assert list(training_batches(method(0, 1, None))) == []


def test_pixels__that_count_are_told_by_mask_and_data():
    image = torch.zeros(1, 2, 2, 2)
    image[0, 1, 0, 0] = torch.nan
    batch = {"image": image, "mask": torch.tensor([[[0, 0], [1, 255]]])}
    assert normal_pixels(batch).tolist() == [[[False, True], [False, False]]]
    assert counted_pixels(batch).tolist() == [[[False, True], [True, False]]]
    assert normal_pixels({"image": image}).sum() == counted_pixels({"image": image}).sum() == 3


def test_gathered_objects__are_one_without_other_ranks():
    assert gathered_objects("a") == ["a"]
