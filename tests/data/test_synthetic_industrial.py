import pickle
from collections import Counter

import pytest
import torch

from anomseg.data.defects import Blend, Corruption, Scar
from anomseg.data.synthetic_industrial import SyntheticIndustrialDataModule
from anomseg.sample import check_sample

SMALL = {"kinds": ("woven", "bracket"), "train": 3, "val": 2, "test": 10, "size": (32, 40), "batch_size": 3}


def batches(data, stage):
    data.setup({"train": "fit", "val": "validate"}.get(stage, stage))
    found = list(getattr(data, f"{stage}_dataloader")())
    for batch in found:
        check_sample(batch)
    return found


def test_synthetic_industrial__trains_and_validates_on_normal_images_and_tests_every_defect():
    data = SyntheticIndustrialDataModule(**SMALL)
    for stage, count in (("train", 6), ("val", 4)):
        found = batches(data, stage)
        assert sum(len(batch["image"]) for batch in found) == count
        assert all(bool((batch["mask"] == 0).all()) and not bool(batch["image_label"].any()) for batch in found)
    tested = batches(data, "test")
    kinds = Counter(tuple(name.split("/")[:2]) for batch in tested for name in batch["name"])
    defects = ("scratch", "pit", "stain", "missing", "colour")
    assert kinds == {(kind, defect): 5 if defect == "good" else 1 for kind in ("woven", "bracket") for defect in ("good", *defects)}
    for batch in tested:
        assert torch.equal((batch["mask"] == 1).flatten(1).any(1).long(), batch["image_label"])
        assert [name.split("/")[0] for name in batch["name"]] == batch["category"]


def test_synthetic_industrial__knows_names_and_sizes_without_drawing():
    for stage in ("train", "test"):
        for image in SyntheticIndustrialDataModule(**SMALL).scenes_of(stage):
            scene = image()
            assert (scene.name, scene.size) == (image.facts().name, image.facts().size)


def test_synthetic_industrial__shares_no_image_between_parts_and_seeds():
    names = []
    for seed in range(2):
        data = SyntheticIndustrialDataModule(**SMALL, seed=seed)
        names += [(image.kind, image.seed) for image in data.scenes()]
    assert len(set(names)) == len(names) == 2 * 2 * 15


def test_synthetic_industrial__corrupts_training_images_anew_in_each_epoch():
    data = SyntheticIndustrialDataModule(**SMALL, corruption=Corruption((Scar(), Blend())))
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        samples = {}
        for batch in loader:
            check_sample(batch)
            assert torch.equal((batch["corrupted"] != batch["image"]).any(1), batch["defect"] == 1)
            samples.update(zip(batch["name"], batch["corrupted"], strict=True))
        found.append(torch.stack([samples[name] for name in sorted(samples)]))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_synthetic_industrial__cuts_crops_and_goes_to_workers():
    data = SyntheticIndustrialDataModule(**SMALL, tile=24, crops=2, bands=2, corruption=Corruption())
    data.setup("fit")
    dataset = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert len(dataset) == 12
    assert dataset[5]["corrupted"].shape == (2, 24, 24)


@pytest.mark.parametrize(
    "changes", [{"kinds": ()}, {"kinds": ("woven", "woven")}, {"kinds": ("wool",)}, {"train": 0}, {"test": 1}, {"crops": 0}, {"seed": -1}]
)
def test_synthetic_industrial__refuses_arguments_out_of_range(changes):
    with pytest.raises(ValueError, match="Expected"):
        SyntheticIndustrialDataModule(**{**SMALL, **changes})
