from functools import reduce

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import NotFittedError
from anomseg.functional.descriptor_statistics import descriptor_moments
from anomseg.functional.ledoit_wolf import merge_moments
from anomseg.functional.virtual_anomalies import GaussianNoise
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_inputs import Texture
from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD, SVDDTraining
from anomseg.nets.descriptor import PixelDescriptor
from anomseg.nets.patch_descriptor import PatchDescriptor
from anomseg.optimisation import Optimisation

SMALL = PatchDescriptor(scales=(1.0,))
OURS = {
    "recipe": CONTRAST,
    "texture": Texture((1.0, 4.0)),
    "descriptor": PixelDescriptor(latent=8, hidden=(16,)),
    "score_rule": "margin_ratio",
}


def trainer(folder, epochs=2, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=epochs, **quiet, **options)


def data(seed=0):
    return SyntheticDataModule("multispectral", count=2, size=(40, 44), seed=seed, train_on="normal")


def taught(folder, epochs=2, **options):
    pl.seed_everything(0, verbose=False)
    loop, method = trainer(folder, epochs), SVDD(in_channels=10, **options)
    loop.fit(method, data())
    return method, loop


@pytest.mark.parametrize(
    "options",
    [
        {"descriptor": SMALL},
        {"descriptor": PatchDescriptor(scales=(1.0,), norm="none", bias=False), "recipe": DEEP_SVDD, "score_rule": "dist"},
        {**OURS, "smoothing": 1.0},
        {"descriptor": SMALL, "learn_from": "all", "score_rule": "two_sided"},
        {"descriptor": SMALL, "recipe": SVDDTraining(reduction="quantile", radius="one_minus_nu", diversity="quantile", centre_every=2)},
        {"descriptor": SMALL, "recipe": SVDDTraining(reduction="max", radius="quantile", against_radius=True), "standardise": "image"},
    ],
)
def test_svdd__fits_tests_predicts_and_reloads(tmp_path, options):
    method, loop = taught(tmp_path, **options)
    loop.test(method, data(), verbose=False)
    assert 0 < loop.callback_metrics["test_auroc"] <= 1
    assert {"radius", "descriptor_spread", "descriptor_rank"} <= set(method.diagnostics())
    again = load(loop.checkpoint_callback.best_model_path)
    assert again.recipe == method.recipe
    assert again.virtual == method.virtual
    image = next(iter(data().predict_dataloader()))["image"]
    assert torch.equal(again(image), method.eval()(image))


def test_svdd__contrast_finds_targets_of_other_scenes(tmp_path):
    method, loop = taught(tmp_path, epochs=12, **OURS)
    loop.test(method, data(seed=9), verbose=False)
    assert loop.callback_metrics["test_auroc"] > 0.8


def test_svdd__without_reconstruction_has_nothing_to_warm_up_by(tmp_path):
    method, _ = taught(tmp_path, epochs=1, descriptor=SMALL, recipe=SVDDTraining(weights=(1.0, 1.0, 0.0)))
    assert method.fitted.radius != method.recipe.radius_start


def test_svdd__contrast_learns_its_radius(tmp_path):
    method, _ = taught(tmp_path, **OURS)
    assert method.learnt_radius != CONTRAST.radius_start
    torch.testing.assert_close(method.fitted.radius, method.learnt_radius.detach().abs())


def gap(method, batches):
    """Say by how much the held statistics differ from those of the present weights."""
    held = method.fitted.descriptor_ratio.mean.clone()
    net = method.net.eval()
    with torch.no_grad():
        parts = [descriptor_moments(net(method.inputs(b["image"])).descriptor, b["mask"] == 0) for b in batches]
    return float((held - reduce(merge_moments, parts).mean).abs().max())


SLIM = {"descriptor": PixelDescriptor(latent=4, hidden=(8,)), "optimisation": Optimisation(lr=3e-3)}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (CONTRAST, {"check_val_every_n_epoch": 2}),
        (CONTRAST, {"max_steps": 4}),
        (DEEP_SVDD, {"check_val_every_n_epoch": 4}),
        (SVDDTraining(), {"val_check_interval": 0.5}),
    ],
)
def test_svdd__ends_with_the_statistics_of_its_last_weights(tmp_path, recipe, options):
    pl.seed_everything(0, verbose=False)
    method = SVDD(in_channels=10, recipe=recipe, score_rule="mahalanobis", **SLIM)
    scenes, late = data(), ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)
    trainer(tmp_path, epochs=3, callbacks=[late], **options).fit(method, scenes)
    assert gap(method, scenes.train_dataloader()) < 1e-6
    assert gap(load(late.best_model_path), scenes.train_dataloader()) < 1e-6


class Stop(pl.Callback):
    """Stop a training at the end of its first epoch, when the method has had its turn."""

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)


def test_svdd__ends_with_the_statistics_of_its_last_weights_where_a_callback_stops_it(tmp_path):
    method, scenes = SVDD(in_channels=10, recipe=CONTRAST, **SLIM), data()
    loop = trainer(tmp_path, epochs=9, check_val_every_n_epoch=9, callbacks=[Stop()])
    loop.fit(method, scenes)
    assert loop.current_epoch == 1
    assert gap(method, scenes.train_dataloader()) < 1e-6


class Watch(pl.Callback):
    """Note the statistics and the centre of every validation."""

    def __init__(self):
        self.gaps, self.centres = [], []

    def on_validation_end(self, trainer, pl_module):
        self.gaps.append(gap(pl_module, trainer.datamodule.train_dataloader()))
        self.centres.append(pl_module.fitted.centre.clone())


def test_svdd__validates_with_the_statistics_of_the_present_weights_and_moves_its_centre_once_an_epoch(tmp_path):
    pl.seed_everything(0, verbose=False)
    watch, method = Watch(), SVDD(in_channels=10, score_rule="mahalanobis", **SLIM)
    trainer(tmp_path, val_check_interval=0.5, num_sanity_val_steps=0, callbacks=[watch]).fit(method, data())
    assert max(watch.gaps) < 1e-6
    centres = watch.centres
    assert [torch.equal(a, b) for a, b in zip(centres[1:], centres[:-1], strict=True)] == [False, True, False]


def test_svdd__taught_again_for_as_many_steps_holds_statistics_of_its_new_weights(tmp_path):
    method, _ = taught(tmp_path, epochs=1, recipe=CONTRAST, **SLIM)
    scenes = data()
    trainer(tmp_path, epochs=1, num_sanity_val_steps=0).fit(method, scenes)
    assert gap(method, scenes.train_dataloader()) < 1e-6


def test_svdd__contrast_has_its_radius_in_every_loss(tmp_path):
    recipe = SVDDTraining(objective="contrast", radius_start=3, warmup=0.9)
    method = SVDD(in_channels=10, recipe=recipe, score_rule="mahalanobis", **SLIM)
    seen = []
    watch = LambdaCallback(on_after_backward=lambda _loop, method: seen.append(method.learnt_radius.grad))
    trainer(tmp_path, epochs=1, callbacks=[watch]).fit(method, data())
    assert [float(grad) for grad in seen] == [0.0, 0.0]  # None would stop processes that train together
    assert method.learnt_radius == 3.0


class Poisoned(SyntheticDataModule):
    """Serve scenes whose anomalous and void pixels hold other values."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        outside = (batch["mask"] != 0)[:, None] & torch.isfinite(batch["image"]).all(1, keepdim=True)
        return {**batch, "image": torch.where(outside, 77.0, batch["image"])} if self.trainer.training else batch


def test_svdd__of_pixels_learns_nothing_from_those_that_are_not_normal(tmp_path):
    weights = []
    for kind in (SyntheticDataModule, Poisoned):
        pl.seed_everything(0, verbose=False)
        method = SVDD(in_channels=10, descriptor=PixelDescriptor(latent=3, hidden=(8,), dropout=0.0), score_rule="mahalanobis")
        trainer(tmp_path, num_sanity_val_steps=0).fit(method, kind("multispectral", count=2, size=(40, 44), train_on="normal"))
        weights.append([*method.net.parameters(), method.fitted.centre, method.fitted.radius, method.fitted.covariance, method.inputs.std])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_svdd__passes_the_sanity_check_and_fits_without_validation(tmp_path):
    loop, method = trainer(tmp_path, limit_val_batches=0), SVDD(in_channels=10, descriptor=SMALL)
    loop.fit(method, data())
    assert torch.isfinite(method.score(torch.rand(1, 10, 20, 20))).all()


def test_svdd__says_what_is_missing_or_wrong(tmp_path):
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        SVDD(descriptor=SMALL).score(torch.rand(1, 3, 9, 9))
    with pytest.raises(ValueError, match=r"4 bands, but got 10"):
        trainer(tmp_path).fit(SVDD(in_channels=4, descriptor=SMALL), data())
    method, _ = taught(tmp_path, descriptor=SMALL)
    with pytest.raises(ValueError, match="of 10 bands, as in training, but got 3"):
        method.score(torch.rand(1, 3, 9, 9))


@pytest.mark.parametrize(
    "arguments", [{"score_rule": "other"}, {"smoothing": -1.0}, {"learn_from": "all"}, {"learn_from": "all", "recipe": CONTRAST}]
)
def test_svdd__refuses_arguments_that_do_not_fit(arguments):
    with pytest.raises(ValueError, match="Expected"):
        SVDD(descriptor=SMALL, **arguments)


def test_svdd__keeps_its_virtual_anomalies_as_objects():
    method = SVDD(descriptor=SMALL, virtual=[GaussianNoise(1.0)])
    assert method.virtual == (GaussianNoise(1.0),)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_svdd__fits_and_scores_in_the_precision_of_the_trainer(tmp_path, precision):
    pl.seed_everything(0, verbose=False)
    method, loop = SVDD(in_channels=10, **OURS), trainer(tmp_path, epochs=1, precision=precision)
    loop.fit(method, data())
    loop.test(method, data(), verbose=False)
    assert 0 < loop.callback_metrics["test_auroc"] <= 1
