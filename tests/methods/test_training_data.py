from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.training_data import (
    RefitClock,
    counted_pixels,
    gathered_objects,
    normal_pixels,
    own_rank,
    step_generator,
    training_batches,
)
from anomseg.sample import collate


def method(rank, world, loader, limit=1.0, batches=0):
    trainer = SimpleNamespace(
        train_dataloader=loader,
        world_size=world,
        strategy=SimpleNamespace(batch_to_device=lambda batch, device: batch),
        precision_plugin=SimpleNamespace(convert_input=lambda batch: batch),
        limit_train_batches=limit,
        num_training_batches=batches,
    )
    return SimpleNamespace(trainer=trainer, global_rank=rank, device="cpu")


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


@pytest.mark.parametrize(("limit", "batches", "found"), [(2, 2, 4), (0.25, 1, 2), (1.0, 4, 8), (1, 1, 2), (None, 4, 8)])
def test_training_batches__end_where_the_trainer_ends_an_epoch(limit, batches, found):
    loader = DataLoader(list(range(8)), batch_size=2)
    assert sum(len(batch) for batch in training_batches(method(0, 1, loader, limit, batches))) == found
    assert sum(len(batch) for batch in training_batches(method(0, 1, loader, limit, batches), whole=True)) == 8


class Passes(AnomalySegmenter):
    """Note what two passes over the training data hold, and what each step draws."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.drawn = [], []

    def on_train_start(self):
        self.seen = [[batch["image"] for batch in training_batches(self)] for _ in range(2)]

    def training_step(self, batch, batch_idx):
        generator = step_generator(self, 3, batch_idx)
        self.drawn.append(float(torch.rand((), generator=generator)))
        return (self.weight * batch["image"].mean()).sum()

    def score(self, image):
        return image.mean(1)


def fitted(folder, **options):
    samples = [{"image": torch.rand(2, 5, 6), "mask": torch.zeros(5, 6, dtype=torch.long)} for _ in range(6)]
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
        "enable_checkpointing": False,
    }
    passes = Passes()
    pl.Trainer(default_root_dir=folder, **{"max_epochs": 1} | options, **quiet).fit(passes, DataLoader(samples, collate_fn=collate))
    return passes


@pytest.mark.parametrize(
    ("options", "count"), [({}, 6), ({"fast_dev_run": True}, 1), ({"limit_train_batches": 0.5}, 3), ({"overfit_batches": 2}, 2)]
)
def test_training_batches__read_no_more_of_the_data_than_an_epoch(tmp_path, options, count):
    assert [len(one) for one in fitted(tmp_path, **options).seen] == [count, count]


@pytest.mark.parametrize(("precision", "kind"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), ("32-true", torch.float32)])
def test_training_batches__have_the_precision_of_the_trainer(tmp_path, precision, kind):
    assert {image.dtype for one in fitted(tmp_path, precision=precision).seen for image in one} == {kind}


def test_step_generator__draws_anew_for_every_batch_also_of_one_step(tmp_path):
    alone, joined = (fitted(tmp_path, max_epochs=2, accumulate_grad_batches=count).drawn for count in (1, 3))
    assert len(set(alone)) == len(set(joined)) == 12
    assert alone == fitted(tmp_path, max_epochs=2).drawn


def test_step_generator__of_a_method_without_a_trainer_draws_by_seed():
    draws = [float(torch.rand((), generator=step_generator(Passes(), seed, 5))) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_refit_clock__is_due_once_between_two_steps_and_again_in_the_next_training():
    clock, now = RefitClock(), SimpleNamespace(global_step=0)
    assert [clock.at_end(now), clock.at_end(now)] == [True, False]
    now.global_step = 1
    assert [clock.at_end(now), clock.at_end(now)] == [True, False]
    clock.begin()
    assert clock.at_end(now)


@pytest.mark.parametrize(
    ("trainer", "due"),
    [
        ({}, False),
        ({"enable_validation": False}, True),
        ({"current_epoch": 9}, True),
        ({"max_steps": 7}, True),
        ({"should_stop": True}, True),
        ({"max_epochs": -1}, False),
    ],
)
def test_refit_clock__is_due_after_an_epoch_without_validation_and_after_the_last(trainer, due):
    usual = {"enable_validation": True, "max_epochs": 10, "max_steps": -1, "current_epoch": 3, "global_step": 7, "should_stop": False}
    now = SimpleNamespace(global_step=7, trainer=SimpleNamespace(**usual | trainer))
    assert RefitClock().after_epoch(now) is due
    assert RefitClock().after_epoch(now, always=True)


@pytest.mark.parametrize(("fn", "checking", "due"), [("fit", False, True), ("fit", True, False), ("validate", False, False)])
def test_refit_clock__is_due_before_a_validation_of_a_training(fn, checking, due):
    trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), sanity_checking=checking)
    assert RefitClock().before_validation(SimpleNamespace(global_step=7, trainer=trainer)) is due


def test_own_rank__is_0_without_others():
    assert own_rank() == 0
