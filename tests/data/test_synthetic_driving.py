import pickle

import pytest
import torch

from anomseg.data.outlier_paste import OutlierPaste
from anomseg.data.outlier_sources import SyntheticOutliers
from anomseg.data.synthetic_driving import SyntheticDrivingDataModule
from anomseg.data.synthetic_streets import street_scene
from anomseg.sample import check_sample

SMALL = {"train": 6, "val": 3, "test": 3, "size": (64, 80), "batch_size": 3}
PASTE = OutlierPaste((SyntheticOutliers(),), 1.0, size=(0.3, 0.5))


def batches(data, stage):
    data.setup({"train": "fit", "val": "validate"}.get(stage, stage))
    return list(getattr(data, f"{stage}_dataloader")())


def test_synthetic_driving__shows_unknown_objects_in_the_test_alone():
    data = SyntheticDrivingDataModule(**SMALL)
    for batch in batches(data, "train"):
        check_sample(batch)
        assert bool((batch["mask"] == 0).all())
        assert int(batch["label"].max()) < len(data.classes)
    for batch in batches(data, "test"):
        check_sample(batch)
        assert torch.equal(batch["mask"] == 1, batch["label"] == 255)
        assert bool((batch["mask"] == 1).flatten(1).any(1).all())


def test_synthetic_driving__pastes_outliers_into_training_and_validation():
    data = SyntheticDrivingDataModule(**SMALL, paste=PASTE)
    for stage in ("train", "val"):
        for batch in batches(data, stage):
            outlier = batch["mask"] == 1
            assert bool(outlier.flatten(1).any(1).all())
            assert bool((batch["label"][outlier] == 255).all())


def test_synthetic_driving__pastes_anew_in_each_epoch_but_always_the_same_to_validate():
    data = SyntheticDrivingDataModule(**SMALL, paste=PASTE)
    data.setup("fit")
    loader = data.train_dataloader()
    masks = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        found = {name: mask for batch in loader for name, mask in zip(batch["name"], batch["mask"], strict=True)}
        masks.append(torch.stack([found[name] for name in sorted(found)]))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    first, again = (torch.cat([batch["image"] for batch in data.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)


def test_synthetic_driving__shares_no_street_between_parts_and_seeds():
    names = []
    for seed in range(2):
        data = SyntheticDrivingDataModule(**SMALL, seed=seed)
        names += [load().name for load in data.scenes()]
    assert len(set(names)) == 2 * 12
    assert names[6] == "synthetic-street-6"


def test_synthetic_driving__serves_the_street_that_its_name_tells():
    data = SyntheticDrivingDataModule(**SMALL, unknown=1)
    batch = batches(data, "test")[0]
    expected = street_scene((64, 80), int(batch["name"][0].rsplit("-", 1)[1]), 1)
    assert torch.equal(batch["image"][0], expected.image)
    assert torch.equal(batch["label"][0], expected.label)


def test_synthetic_driving__pickles_for_loader_workers():
    data = SyntheticDrivingDataModule(**SMALL, paste=PASTE)
    data.setup("fit")
    dataset = pickle.loads(pickle.dumps(data.dataset("train")))
    assert torch.equal(dataset[2]["image"], data.dataset("train")[2]["image"])


@pytest.mark.parametrize("wrong", [{"train": 0}, {"unknown": 0}, {"seed": -1}, {"test": 10_000}])
def test_synthetic_driving__refuses_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="at least one street of each part"):
        SyntheticDrivingDataModule(**wrong)
