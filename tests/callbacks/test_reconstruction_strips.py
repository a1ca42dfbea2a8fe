import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anomseg.callbacks import reconstruction_strips
from anomseg.callbacks.reconstruction_strips import ReconstructionStrips
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.rx import RX
from anomseg.sample import collate

KINDS = {"good": 0, "hole": 1}


class Rebuilder(AnomalySegmenter):
    def __init__(self, bands=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(bands, bands, 3, padding=1), nn.Dropout(0.2))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.reconstruct(batch["image"]), batch["image"])

    def reconstruct(self, image):
        return self.net(image)

    def score(self, image):
        return (self.net(image) - image).square().sum(1)


class Parts(pl.LightningDataModule):
    """Serve normal images to learn and to validate, and defects besides to test."""

    def __init__(self, bands=3, labels=True, defects_in_validation=False):
        super().__init__()
        self.bands, self.labels, self.defects_in_validation = bands, labels, defects_in_validation

    def serve(self, kinds, stage):
        samples = []
        for index, kind in enumerate(kinds):
            image = torch.rand(self.bands, 12, 16, generator=torch.Generator().manual_seed(index))
            mask = torch.zeros(12, 16, dtype=torch.int64)
            mask[4:7, 4:7] = KINDS[kind]
            sample = {"image": image, "mask": mask, "name": f"part/{kind}/{stage}{index}"}
            if self.labels:
                sample["image_label"] = torch.tensor(KINDS[kind])
                sample["mask"] = mask if kind == "good" else torch.full_like(mask, 255)
            samples.append(sample)
        return DataLoader(samples, batch_size=2, collate_fn=collate)

    def train_dataloader(self):
        return self.serve(["good"] * 4, "train")

    def val_dataloader(self):
        return self.serve(["good"] * 3 + ["hole"] * 2 * self.defects_in_validation, "val")

    def test_dataloader(self):
        return self.serve(["hole"] * 3 + ["good"] * 3, "test")


def fit(tmp_path, strips, data=None, method=None, epochs=2, **options):
    pl.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", callbacks=[strips] if strips else [], **{**quiet, **options}
    )
    torch.manual_seed(0)
    data = data or Parts()
    method = method or Rebuilder(data.bands)
    loop.fit(method, data)
    return method


@pytest.fixture
def undrawn(monkeypatch):
    """Name the files without drawing them, and give what they would be drawn from."""
    drawn = {"panels": [], "strips": []}

    def panel(path, image, frame, *_):
        drawn["panels"].append((path, image, frame))
        return path

    monkeypatch.setattr(reconstruction_strips, "save_figure", lambda path, *_: path)
    monkeypatch.setattr(reconstruction_strips, "save_reconstruction_panel", panel)
    monkeypatch.setattr(reconstruction_strips, "reconstruction_strip", lambda *given: drawn["strips"].append(given))
    return drawn


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_strips__write_a_panel_for_each_epoch_and_a_summary_for_each_image(tmp_path):
    strips = ReconstructionStrips(tmp_path / "out", images=2, source="test")
    fit(tmp_path, strips)
    names = ["part-good-test3", "part-hole-test0"]
    assert files(tmp_path / "out") == [f"epoch-{e:03d}/{n}.png" for e in (0, 1) for n in names] + [f"summary_{n}.png" for n in names]
    assert set(strips.written) == {tmp_path / "out" / one for one in files(tmp_path / "out")}


@pytest.mark.usefixtures("undrawn")
def test_strips__draw_every_so_many_epochs_and_the_last(tmp_path):
    strips = ReconstructionStrips(tmp_path / "out", images=1, every_n_epochs=2)
    fit(tmp_path, strips, epochs=5)
    assert [one.parent.name for one in strips.written[::2]] == ["epoch-001", "epoch-003", "epoch-004"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("labels", [True, False])
def test_strips__choose_normal_and_anomalous_images_by_label_or_mask(tmp_path, labels):
    strips = ReconstructionStrips(tmp_path / "out", images=3)
    fit(tmp_path, strips, Parts(labels=labels, defects_in_validation=True), epochs=1)
    assert [one.name for one in strips._shown] == ["part/good/val0", "part/good/val1", "part/hole/val3"]


@pytest.mark.usefixtures("undrawn")
def test_strips__take_what_there_is(tmp_path):
    strips = ReconstructionStrips(tmp_path / "out", images=9, source="test")
    fit(tmp_path, strips, epochs=1)
    assert len(strips._shown) == 6
    strips = ReconstructionStrips(tmp_path / "more", images=3)
    fit(tmp_path, strips, epochs=1)  # no defect to validate on
    assert [one.anomalous for one in strips._shown] == [False] * 3


@pytest.mark.usefixtures("undrawn")
def test_strips__take_images_by_name_and_warn_of_unknown_ones(tmp_path):
    strips = ReconstructionStrips(tmp_path / "out", images=["part/hole/test2", "part/none"], source="test")
    with pytest.warns(UserWarning, match=r"named \['part/none'\], but there are none"):
        fit(tmp_path, strips, epochs=1)
    assert [one.name for one in strips.written] == ["part-hole-test2.png", "summary_part-hole-test2.png"]


@pytest.mark.usefixtures("undrawn")
def test_strips__take_each_category_in_turn(tmp_path):
    class Lots(Parts):
        def serve(self, kinds, stage):
            samples = [*super().serve(kinds, stage).dataset, *super().serve(kinds, stage).dataset]
            for index, sample in enumerate(samples):
                category = "bolt" if index < len(kinds) else "nut"
                sample |= {"category": category, "name": f"{category}{sample['name']}"}
            return DataLoader(samples, batch_size=2, collate_fn=collate)

    strips = ReconstructionStrips(tmp_path / "out", images=4, source="test")
    fit(tmp_path, strips, Lots(), epochs=1)
    assert [one.name.split("/")[0] for one in strips._shown] == ["boltpart", "nutpart"] * 2
    assert [one.anomalous for one in strips._shown] == [False, False, True, True]


@pytest.mark.parametrize("bands", [1, 10])
def test_strips__draw_any_number_of_bands(tmp_path, bands):
    strips = ReconstructionStrips(tmp_path / "out", images=1)
    fit(tmp_path, strips, Parts(bands=bands), epochs=1)
    assert len(strips.written) == 2


@pytest.mark.usefixtures("undrawn")
def test_strips__leave_the_training_as_it_is(tmp_path):
    first = fit(tmp_path, None)
    state = torch.get_rng_state()
    second = fit(tmp_path, ReconstructionStrips(tmp_path / "out", source="test"))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True))
    assert second.net.training


class Named(Parts):
    """Serve images whose level tells them apart."""

    def __init__(self, *named):
        super().__init__()
        self.named = named

    def serve(self, kinds, stage):
        mask = torch.zeros(12, 16, dtype=torch.int64)
        samples = [{"image": torch.full((3, 12, 16), float(i)), "mask": mask, **one} for i, one in enumerate(self.named)]
        return DataLoader(samples, batch_size=2, collate_fn=collate)


class Itself(Rebuilder):
    """Give an image back as it is."""

    def reconstruct(self, image):
        return image + 0 * sum(p.sum() for p in self.net.parameters())


TILES = [{"name": "part", "window": (row, 4, 12, 16), "scene_size": (60, 20)} for row in range(0, 48, 12)]


@pytest.mark.parametrize(
    ("named", "images", "names"),
    [
        (TILES, 3, ["part_0-4", "part_12-4", "part_24-4"]),
        (TILES, ["part"], ["part_0-4"]),
        ([{"name": "a/b"}, {"name": "a/b"}, {"name": "a-b"}], 3, ["a-b", "a-b_1", "a-b_2"]),
        ([{"name": "../a"}], 1, ["..-a"]),
    ],
    ids=["tiles", "a scene of tiles by its name", "one file for several names", "a name that leads out"],
)
def test_strips__keep_images_of_one_name_apart(tmp_path, undrawn, named, images, names):
    strips = ReconstructionStrips(tmp_path / "out", images=images)
    fit(tmp_path, strips, Named(*named), Itself())
    panels = [tmp_path / "out" / f"epoch-{epoch:03d}" / f"{name}.png" for epoch in (0, 1) for name in names]
    assert [path for path, _, _ in undrawn["panels"]] == panels
    assert len(strips.written) == 2 * len(panels)
    assert len(set(strips.written)) == len(panels) + len(names)
    assert all(torch.equal(image, frame.reconstruction) for _, image, frame in undrawn["panels"])
    assert [[one.epoch for one in given[1]] for given in undrawn["strips"][-len(names) :]] == [[0, 1]] * len(names)
    assert all(bool((given[1][-1].residual == 0).all()) for given in undrawn["strips"])


def test_strips__hold_few_small_pictures_of_many_epochs(tmp_path, undrawn):
    strips = ReconstructionStrips(tmp_path / "out", images=1, columns=3)
    fit(tmp_path, strips, epochs=23)
    shown = undrawn["strips"][-1][1]
    assert [one.epoch for one in shown] == [0, 8, 16, 22]
    assert all(tuple(one.rebuilt.shape) == (12, 16, 3) for one in shown)


def test_strips__refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(TypeError, match="`reconstruct`, but got RX"):
        fit(tmp_path, ReconstructionStrips(tmp_path), method=RX())
    for options in ({"images": 0}, {"images": []}, {"every_n_epochs": 0}, {"columns": 1}, {"source": "train"}):
        with pytest.raises(ValueError, match="Expected images"):
            ReconstructionStrips(**options)
