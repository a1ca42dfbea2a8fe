import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.data.synthetic_scenes import synthetic_scene
from anomseg.methods.direct_training import DirectTraining
from anomseg.methods.direct_transfer import TransferDetection
from anomseg.metrics.pixel import PixelAUROC

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}


def quick(**changes):
    return TransferDetection(components=6, recipe=DirectTraining(**{"nets": 1, "crop": 24, "steps": 2} | changes))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    loop = pl.Trainer(default_root_dir=tmp_path_factory.mktemp("run"), max_epochs=30, check_val_every_n_epoch=30, **QUIET)
    method = quick()
    loop.fit(method, SyntheticDataModule("hyperspectral", count=2, size=(64, 64), bands=20, train_on="normal"))
    return method, loop


def mean_auroc(method):
    values = []
    for bands in (31, 24, 16):
        scene = synthetic_scene("hyperspectral", (64, 64), 77 + bands, bands)
        metric = PixelAUROC()
        metric.update(method.score(scene.image[None]), scene.mask[None])
        values.append(float(metric.compute()))
    return sum(values) / 3


def test_transfer__finds_targets_of_scenes_with_another_band_count(taught):
    assert mean_auroc(taught[0]) > max(0.72, mean_auroc(quick()) + 0.1)


def test_transfer__takes_fewer_bands_than_components(taught):
    image = synthetic_scene("multispectral", (40, 44), 3).image[None, :3]
    assert torch.isfinite(taught[0].score(image)).all()
    assert (taught[0].score(torch.ones(1, 2, 20, 20)) == 0).all()


def test_transfer__reloads_with_its_weights(taught):
    method, loop = taught
    image = synthetic_scene("hyperspectral", (48, 50), 5, 30).image[None]
    again = load(loop.checkpoint_callback.best_model_path)
    assert torch.equal(again(image), method(image))


def test_transfer__reports_agreement_with_its_teacher(taught):
    method, loop = taught
    assert method.diagnostics()["teacher_agreement"] > 0.9
    assert loop.callback_metrics["teacher_agreement"] > 0.9
    assert quick().diagnostics() == {}


def test_transfer__scores_in_training_as_in_evaluation(taught):
    method, _ = taught
    image = synthetic_scene("hyperspectral", (40, 40), 5, 30).image[None]
    expected = method.eval().score(image)
    assert torch.equal(method.train().score(image), expected)
    assert method.nets[0].training


def test_transfer__ignores_what_lies_in_pixels_without_data(taught):
    image = synthetic_scene("multispectral", (40, 44), 3).image[None]
    image[0, :, 4:9, 6:12] = torch.nan
    poisoned = image.clone()
    poisoned[0, 1, 4:9, 6:12] = 1e9
    assert torch.equal(taught[0].score(image), taught[0].score(poisoned))


def test_transfer__scores_a_scene_in_a_collar_without_data_as_the_scene_alone(taught):
    image = torch.randn(1, 8, 40, 44, generator=torch.Generator().manual_seed(0)).cumsum(1)
    alone = taught[0].score(image)
    within = taught[0].score(torch.nn.functional.pad(image, (0, 40, 0, 30), value=torch.nan))
    torch.testing.assert_close(within[:, :30, :34], alone[:, :30, :34], atol=1e-4, rtol=1e-4)  # beyond lies what the net adds at a border


@pytest.mark.parametrize("named", [{}, {"name": "one", "window": "all"}])
def test_transfer__learns_from_every_image_whatever_its_name(tmp_path, named):
    scenes = [{"image": torch.randn(4, 24, 24) + index} | named for index in range(3)]
    method = quick()
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=2, enable_checkpointing=False, **QUIET)
    loop.fit(method, torch.utils.data.DataLoader(scenes, batch_size=1))
    means = sorted(float(lesson.scene.mean.mean()) for lesson in method._lessons.values())
    assert means == pytest.approx([0.0, 1.0, 2.0], abs=0.2)


def test_transfer__refuses_what_it_cannot_do():
    for unused in ({"rounds": 1}, {"lr": 1e-2}, {"implants": 12}):
        with pytest.raises(ValueError, match=f"others for {next(iter(unused))}: shared weights"):
            quick(**unused)
    with pytest.raises(ValueError, match="components >= 1"):
        TransferDetection(components=0)
