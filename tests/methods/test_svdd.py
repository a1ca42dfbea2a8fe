import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import NotFittedError
from anomseg.functional.virtual_anomalies import GaussianNoise
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_inputs import Texture
from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD, SVDDTraining
from anomseg.nets.descriptor import PixelDescriptor
from anomseg.nets.patch_descriptor import PatchDescriptor

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
    return SyntheticDataModule("multispectral", count=2, size=(40, 44), seed=seed)


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
        trainer(tmp_path, num_sanity_val_steps=0).fit(method, kind("multispectral", count=2, size=(40, 44)))
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
