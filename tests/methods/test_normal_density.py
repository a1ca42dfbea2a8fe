import lightning.pytorch as pl
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from anomseg.checkpoint import load
from anomseg.data.class_rule import ClassAsNormal
from anomseg.data.image_split import NameSplit
from anomseg.data.remote_sensing import RemoteSensingDataModule
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import NotFittedError
from anomseg.methods.normal_density import NormalDensity
from anomseg.methods.svdd_inputs import Texture

MODELS = pytest.mark.parametrize("model", ["gaussian", "mixture", "ratio"])


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False, **quiet, **options)


def data(kind=SyntheticDataModule, seed=0):
    return kind("multispectral", count=3, size=(40, 44), seed=seed, train_on="normal")


def fitted(folder, kind=SyntheticDataModule, **options):
    method = NormalDensity(in_channels=10, components=3, **options)
    loop = trainer(folder)
    loop.fit(method, data(kind))
    return method, loop


@MODELS
def test_normal_density__fits_tests_predicts_and_reloads(tmp_path, model):
    method, loop = fitted(tmp_path, model=model, texture=Texture((1.0, 2.0)), smoothing=1.0)
    loop.test(method, data(seed=5), verbose=False)
    assert loop.callback_metrics["test_auroc"] > 0.7
    loop.save_checkpoint(tmp_path / "density.ckpt")
    image = next(iter(data(seed=5).predict_dataloader()))["image"]
    assert torch.equal(load(tmp_path / "density.ckpt")(image), method.eval()(image))


def test_normal_density__of_bands_is_shrunk_rx_against_the_normal_training_pixels(tmp_path):
    method, _ = fitted(tmp_path, model="gaussian", smoothing=0.0)
    pixels = []
    for batch in data().train_dataloader():
        pixels.append(batch["image"].movedim(1, -1)[torch.isfinite(batch["image"]).all(1) & (batch["mask"] == 0)])
    scaler = StandardScaler().fit(torch.cat(pixels).double().numpy())
    reference = LedoitWolf().fit(scaler.transform(torch.cat(pixels).double().numpy()))
    image = torch.rand(1, 10, 6, 6)
    expected = reference.mahalanobis(scaler.transform(image[0].flatten(1).T.double().numpy()))
    torch.testing.assert_close(method.score(image).flatten().double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


def test_normal_density__ratio_finds_what_is_plainer_than_the_normal_class(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 40, 40, generator=generator)
    mask = torch.zeros(2, 40, 40, dtype=torch.int64)
    mask[:, 10:20] = 1
    image[:, :, 10:20] *= 0.1  # the other class lies in the middle of the normal one
    loader = torch.utils.data.DataLoader([{"image": i, "mask": m} for i, m in zip(image, mask, strict=True)], batch_size=2)
    found = {}
    for model in ("gaussian", "ratio"):
        method = NormalDensity(3, model, smoothing=0.0)
        trainer(tmp_path).fit(method, loader, loader)
        score = method.score(image)
        found[model] = float((score[mask == 1][:, None] > score[mask == 0][None]).float().mean())
    assert found["gaussian"] < 0.1
    assert found["ratio"] > 0.9


class PoisonedAnomalies(SyntheticDataModule):
    """Serve training scenes whose anomalous pixels hold other values."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        chosen = (batch["mask"] == 1)[:, None] & torch.isfinite(batch["image"]).all(1, keepdim=True)
        return {**batch, "image": torch.where(chosen, 77.0, batch["image"])} if self.trainer.training else batch


class Voided(SyntheticDataModule):
    """Make a part of every training scene void, so that there are void pixels with data."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        mask = batch["mask"].clone()
        mask[:, :9] = 255
        image = batch["image"].clone()
        if self.trainer.training and self.poison:
            image[:, :, :9] = torch.where(torch.isfinite(image[:, :, :9]), 77.0, torch.nan)
        return {**batch, "image": image, "mask": mask} if self.trainer.training else batch

    poison = False


class PoisonedVoid(Voided):
    poison = True


def state(method):
    return [value for name, value in sorted(method.state_dict().items()) if not name.startswith(("calibration", "validation", "test"))]


@MODELS
def test_normal_density__learns_nothing_from_void_pixels(tmp_path, model):
    one, _ = fitted(tmp_path, Voided, model=model)
    other, _ = fitted(tmp_path, PoisonedVoid, model=model)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


@pytest.mark.parametrize("model", ["gaussian", "mixture"])
def test_normal_density__without_ratio_learns_nothing_from_other_classes(tmp_path, model):
    one, _ = fitted(tmp_path, model=model)
    other, _ = fitted(tmp_path, PoisonedAnomalies, model=model)
    image = torch.rand(1, 10, 6, 6)
    assert torch.equal(one.score(image), other.score(image))


@MODELS
def test_normal_density__is_not_used_before_it_is_fitted(model):
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        NormalDensity(3, model).score(torch.rand(1, 3, 8, 8))


def test_normal_density__names_both_band_counts(tmp_path):
    method, _ = fitted(tmp_path, model="gaussian")
    with pytest.raises(ValueError, match=r"10 bands.*got 3"):
        method.score(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"in_channels=4 bands.*got 10"):
        trainer(tmp_path).fit(NormalDensity(4), data())


@pytest.mark.parametrize("wrong", [{"model": "rx"}, {"components": 0}, {"smoothing": -1.0}, {"standardise": "never"}])
def test_normal_density__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        NormalDensity(**wrong)


@pytest.mark.real
def test_normal_density__ratio_finds_both_sides_of_real_roads_and_rx_one(tmp_path, real_data):
    folder = real_data / "remote_sensing" / "aerial_roads"
    stems = sorted(path.stem for path in (folder / "image").glob("*.png"))
    split = NameSplit(tuple(stems[::6]), (), tuple(stems[2::12]))
    found = {}
    for normal in (0, 1):
        for model in ("gaussian", "ratio"):
            method = NormalDensity(3, model, Texture((1.0, 4.0)) if model == "ratio" else None, smoothing=4.0)
            data = RemoteSensingDataModule(folder, "image_label", ClassAsNormal((normal,)), split, tile=200, crops=1, batch_size=1)
            loop = trainer(tmp_path)
            loop.fit(method, data)
            loop.test(method, data, verbose=False)
            found[normal, model] = float(loop.callback_metrics["test_auroc"])
    assert found[0, "gaussian"] < 0.4  # roads are the grey middle of everything else
    assert found[1, "gaussian"] > 0.65
    assert min(found[0, "ratio"], found[1, "ratio"]) > 0.72
