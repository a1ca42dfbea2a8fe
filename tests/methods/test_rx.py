import inspect

import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.hyperspectral import HyperspectralDataModule
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import NotFittedError
from anomseg.functional.rx import global_rx, local_rx
from anomseg.methods.rx import RX

TABLE = {
    "abu-airport-1": 0.8221,
    "abu-airport-4": 0.9526,
    "abu-beach-1": 0.9807,
    "abu-beach-4": 0.9887,
    "abu-urban-1": 0.9907,
    "abu-urban-3": 0.9513,
    "hydice_urban": 0.9857,
    "sandiego1_189": 0.8885,
}


def trainer(tmp_path, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet, **arguments)


def scenes(**arguments):
    return SyntheticDataModule("multispectral", count=3, size=(40, 44), train_on="normal", **arguments)


def test_rx__scores_as_its_functions():
    image = torch.rand(2, 4, 30, 30)
    assert torch.equal(RX().score(image), global_rx(image))
    assert torch.equal(RX("local", 3, 9, ridge=0.5).score(image), local_rx(image, 3, 9, 0.5))


def test_rx__with_training_background_scores_against_all_training_pixels(tmp_path):
    data, method = scenes(), RX(background="training")
    trainer(tmp_path).fit(method, data)
    pixels = []
    for batch in data.train_dataloader():
        usable = torch.isfinite(batch["image"]).all(1) & (batch["mask"] == 0)
        pixels.append(batch["image"].movedim(1, -1)[usable])
    pixels = torch.cat(pixels).double()
    image = torch.rand(1, pixels.shape[1], 5, 5)
    difference = image.double().movedim(1, -1).flatten(0, 2) - pixels.mean(0)
    expected = (difference @ torch.linalg.pinv(torch.cov(pixels.T)) * difference).sum(1)
    assert method.count == len(pixels)
    torch.testing.assert_close(method.score(image).flatten().double(), expected, rtol=1e-5, atol=1e-5)


def test_rx__keeps_its_background_in_the_checkpoint(tmp_path):
    method, loop = RX(background="training"), trainer(tmp_path)
    loop.fit(method, scenes())
    loop.save_checkpoint(tmp_path / "rx.ckpt")
    image = torch.rand(1, 10, 8, 8)
    assert torch.equal(load(tmp_path / "rx.ckpt")(image), method(image))


def test_rx__leaves_a_checkpoint_after_fitting(tmp_path):
    loop = trainer(tmp_path)
    loop.fit(RX(), scenes())
    assert load(loop.checkpoint_callback.best_model_path).calibration.is_fitted


def test_rx__with_training_background_passes_the_sanity_check(tmp_path):
    method = RX(background="training")
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    loop.fit(method, scenes())
    assert method.count > 0


def test_rx__with_training_background_refuses_another_band_count():
    method = RX(background="training")
    method.count, method.mean, method.scatter = torch.tensor(9.0).double(), torch.zeros(4).double(), torch.eye(4).double()
    with pytest.raises(ValueError, match=r"4.*3|3.*4"):
        method.score(torch.rand(1, 3, 5, 5))


def test_rx__with_training_background_asks_for_fit_before_use():
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        RX(background="training").score(torch.rand(1, 3, 4, 4))


def test_rx__ignores_what_lies_in_void_and_anomalous_training_pixels(tmp_path):
    class Poisoned(SyntheticDataModule):
        def scenes(self):
            return [_poisoned(loader) for loader in super().scenes()]

    plain, poisoned = RX(background="training"), RX(background="training")
    trainer(tmp_path).fit(plain, scenes())
    trainer(tmp_path).fit(poisoned, Poisoned("multispectral", count=3, size=(40, 44), train_on="normal"))
    assert torch.equal(plain.scatter, poisoned.scatter)


def _poisoned(loader):
    def load_scene():
        scene = loader()
        scene.image[:, scene.mask != 0] = torch.where(torch.isfinite(scene.image[:, scene.mask != 0]), 1e6, torch.nan)
        return scene

    return load_scene


@pytest.mark.parametrize("arguments", [{"mode": "other"}, {"background": "elsewhere"}, {"mode": "local", "background": "training"}])
def test_rx__refuses_choices_that_do_not_exist(arguments):
    with pytest.raises(ValueError, match="Expected"):
        RX(**arguments)


@pytest.mark.real
def test_global_rx__reaches_the_published_figures_on_real_scenes(tmp_path, real_data):
    loop = trainer(tmp_path)
    loop.test(RX(), HyperspectralDataModule(real_data / "hyperspectral"), verbose=False)
    found = {name: round(float(loop.callback_metrics[f"test_auroc/{name}"]), 4) for name in TABLE}
    assert found == TABLE
    assert round(float(loop.callback_metrics["test_auroc_mean"]), 4) == 0.9450


@pytest.mark.real
def test_rx__calibrated_on_a_quarter_of_the_blocks_flags_what_it_claims(tmp_path, real_data):
    """Half a per cent of the normal pixels lies above heat 0.5 where the blocks were drawn, and about as many elsewhere."""
    method, data = RX(), HyperspectralDataModule(str(real_data / "hyperspectral" / "abu-urban-*.mat"), test_on="held_out")
    loop = trainer(tmp_path)
    loop.fit(method, data)
    rates = []
    for batch in data.test_dataloader():
        rates.append((method(batch["image"])[batch["mask"] == 0] > 0.5).float().mean())
    assert 0.001 < torch.stack(rates).mean() < 0.02


def test_rx__fits_for_one_epoch_whatever_is_asked(tmp_path):
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=7, enable_progress_bar=False, logger=False)
    loop.fit(RX(), scenes())
    assert loop.current_epoch == 1


def test_windows__are_those_of_the_function_by_default():
    method, named = RX("local"), inspect.signature(local_rx).parameters
    assert (method.inner, method.outer) == (named["inner"].default, named["outer"].default)
