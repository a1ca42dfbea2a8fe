import inspect
import pickle

import pytest
import torch

from anomseg.data.augment import FlipRotate
from anomseg.data.pair_augment import PairAugmentation
from anomseg.data.synthetic_change import SyntheticChangeDataModule
from anomseg.data.synthetic_pairs import synthetic_pair
from anomseg.sample import check_sample


def module(**arguments):
    return SyntheticChangeDataModule(**{"train": 3, "val": 2, "test": 2, "size": (64, 64), **arguments})


def names(loader):
    return sorted(name for batch in loader for name in batch["name"])


def test_synthetic_change__has_other_pairs_in_each_part():
    data = module(seed=2)
    parts = [names(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(name for part in parts for name in part) == [f"synthetic-pair-{2000 + number}" for number in range(7)]
    assert names(data.predict_dataloader()) == parts[2]


def test_synthetic_change__serves_the_pairs_of_their_seeds():
    for batch in module(batch_size=2).test_dataloader():
        check_sample(batch)
        for index, name in enumerate(batch["name"]):
            scene = synthetic_pair((64, 64), int(name.split("-")[-1]))
            assert torch.equal(batch["image"][index], scene.image)
            assert torch.equal(batch["mask"][index], scene.mask)


def test_synthetic_change__trains_on_augmented_crops_aimed_at_change():
    data = module(tile=32, crops=4, batch_size=6, anomaly_share=1.0, augment=PairAugmentation(FlipRotate(), swap=0.5))
    batches = list(data.train_dataloader())
    assert [batch["image"].shape for batch in batches] == [(6, 2, 3, 32, 32)] * 2
    assert all(bool((batch["mask"] == 1).flatten(1).any(1).all()) for batch in batches)


def test_synthetic_change__keeps_its_arguments_and_pickles():
    data = pickle.loads(pickle.dumps(module()))
    assert all(hasattr(data, name) for name in inspect.signature(SyntheticChangeDataModule).parameters)
    assert len(data.scenes()) == 7


@pytest.mark.parametrize("arguments", [{"train": 0}, {"test": 1000}, {"seed": -1}, {"crops": 0}])
def test_synthetic_change__says_what_is_wrong(arguments):
    with pytest.raises(ValueError, match="at least one pair"):
        module(**arguments)
