import pickle

import pytest
import torch

import anomseg.data.synthetic
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.sample import check_sample


def test_synthetic_data_module__serves_batches_that_keep_the_contract():
    data = SyntheticDataModule("multispectral", count=2, size=(40, 36), bands=6, batch_size=2)
    batch = next(iter(data.test_dataloader()))
    check_sample(batch)
    assert tuple(batch["image"].shape) == (2, 6, 40, 36)
    assert batch["name"] == ["synthetic-multispectral-0", "synthetic-multispectral-1"]
    assert len(batch["wavelength"][0]) == 6
    assert batch["crs"][0].startswith("PROJCS")


def test_synthetic_data_module__draws_no_scene_before_it_is_read(monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("drawn too early")

    monkeypatch.setattr(anomseg.data.synthetic, "synthetic_scene", forbidden)
    loaders = SyntheticDataModule("rgb", count=3).scenes()
    assert len(loaders) == 3
    with pytest.raises(AssertionError, match="drawn too early"):
        loaders[0]()


def test_synthetic_data_module__hands_out_picklable_loaders():
    loader = SyntheticDataModule("rgb", count=1, size=(32, 32)).scenes()[0]
    copy = pickle.loads(pickle.dumps(loader))
    assert torch.equal(copy().mask, loader().mask)


def test_synthetic_data_module__shares_no_scene_between_seeds():
    first, second = (SyntheticDataModule("rgb", count=3, size=(32, 32), seed=seed) for seed in (0, 1))
    names = [loader().name for data in (first, second) for loader in data.scenes()]
    assert len(set(names)) == 6


def test_synthetic_data_module__stores_its_arguments():
    arguments = {"kind": "rgb", "count": 2, "size": (48, 40), "bands": 3, "tile": 16, "overlap": 4, "test_on": "held_out", "seed": 5}
    data = SyntheticDataModule(**arguments)
    assert {name: getattr(data, name) for name in arguments} == arguments


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1001}, {"seed": -1}])
def test_synthetic_data_module__refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"Expected .*but got"):
        SyntheticDataModule(**arguments)


def test_synthetic_data_module__tells_training_nothing_of_the_anomalies_that_it_tests():
    data = SyntheticDataModule("rgb", count=2, size=(32, 32))
    assert not any(bool((batch["mask"] == 1).any()) for batch in data.train_dataloader())
    assert all(bool((batch["mask"] == 1).any()) for batch in data.test_dataloader())
    told = SyntheticDataModule("rgb", count=2, size=(32, 32), train_on="normal")
    assert all(bool((batch["mask"] == 1).any()) for batch in told.train_dataloader())
