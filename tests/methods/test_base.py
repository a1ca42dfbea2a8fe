import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from anomseg.calibration.quantile import RankCalibration
from anomseg.checkpoint import load
from anomseg.config import arguments_of
from anomseg.errors import NotFittedError
from anomseg.functional.score_histogram import count_scores
from anomseg.methods.base import AnomalySegmenter
from anomseg.sample import IGNORE, collate, fill_nodata, finite_pixels


class Contrast(AnomalySegmenter):
    """Score by the distance from a learnt grey value, in steps of four pixels."""

    size_multiple = 4

    def __init__(self, start=0.0, calibration=None, optimisation=None):
        super().__init__(calibration, optimisation)
        self.start = start
        self.level = nn.Parameter(torch.tensor(start))

    def training_step(self, batch, batch_idx):
        return (fill_nodata(batch["image"])[0] - self.level).square().mean()

    def score(self, image):
        assert image.shape[-1] % 4 == 0
        return (fill_nodata(image)[0] - self.level).abs().flatten(1, -3).mean(1)


def dataset(count=4, size=(9, 10), seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        image = torch.rand(2, *size, generator=generator)
        mask = torch.zeros(size, dtype=torch.long)
        mask[2:4, 3:5] = 1
        image[:, 2:4, 3:5] += 3
        image[:, 8, 0] = torch.nan
        samples.append({"image": image, "mask": mask, "name": f"scene-{index}"})
    return torch.utils.data.DataLoader(samples, batch_size=2, collate_fn=collate)


def trainer(tmp_path, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, log_every_n_steps=1, **quiet, **arguments)


@pytest.fixture
def fitted(tmp_path):
    pl.seed_everything(0, verbose=False)
    method, loop = Contrast(0.25, calibration=RankCalibration(64)), trainer(tmp_path)
    loop.fit(method, dataset(), dataset(seed=1))
    return method, loop


def test_fit__calibrates_and_logs_pooled_and_scene_figures(fitted):
    method, loop = fitted
    assert method.calibration.is_fitted
    assert loop.callback_metrics["val_auroc"] == 1.0
    assert {f"val_auroc/scene-{i}" for i in range(4)} <= set(loop.callback_metrics)
    assert "val_auroc_mean" in loop.callback_metrics


def test_fit__calibrates_on_normal_pixels_with_data_only(fitted):
    assert fitted[0].calibration.normal_pixels == 4 * (90 - 4 - 1)


def test_test__logs_the_whole_family(fitted):
    method, loop = fitted
    loop.test(method, dataset(seed=2), verbose=False)
    for figure in (
        "auroc",
        "ap",
        "fpr95",
        "f1_max",
        "f1_max_threshold",
        "aupro",
        "auc_dt",
        "snpr",
        "threshold_at_fpr01",
        "oracle_miou",
        "heat_bce",
        "heat_ece",
    ):
        assert torch.isfinite(loop.callback_metrics[f"test_{figure}"]), figure


def test_predict__gives_score_and_heat_map_of_the_image_size(fitted):
    method, loop = fitted
    predictions = loop.predict(method, dataset(seed=3))
    assert [tuple(p["heatmap"].shape) for p in predictions] == [(2, 9, 10)] * 2
    heat = torch.cat([p["heatmap"] for p in predictions])
    assert (heat >= 0).all()
    assert (heat <= 1).all()
    assert heat[:, 2:4, 3:5].min() > heat[:, :2].max()


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (4, 4), (5, 64)])
def test_score_map__takes_images_of_any_size(size):
    method = Contrast(0.5)
    image = torch.rand(2, 3, *size)
    assert torch.allclose(method.score_map(image), (image - 0.5).abs().mean(1))
    pair = torch.rand(2, 2, 3, *size)
    assert method.score_map(pair).shape == (2, *size)


def test_score_map__is_finite_and_lowest_where_there_is_no_data():
    image = torch.rand(1, 1, 8, 8)
    image[..., 0, 0] = torch.nan
    score = Contrast().score_map(image)
    assert torch.isfinite(score).all()
    assert score[0, 0, 0] == score[0].flatten()[1:].min()
    assert (Contrast().score_map(torch.full((1, 1, 4, 4), torch.nan)) == 0).all()


def test_score_map__refuses_a_score_of_another_shape():
    class Wrong(Contrast):
        def score(self, image):
            return image

    with pytest.raises(ValueError, match=r"shape \(B, H, W\) from Wrong.score"):
        Wrong().score_map(torch.rand(1, 1, 4, 4))


def test_predict__refuses_before_any_work_without_calibration(tmp_path):
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        trainer(tmp_path).predict(Contrast(), dataset())


def test_validation__names_the_scene_of_a_score_that_is_not_finite(tmp_path):
    class Broken(Contrast):
        def score(self, image):
            return image.flatten(1, -3).sum(1) / 0

    with pytest.raises(ValueError, match="scene-0"):
        trainer(tmp_path, num_sanity_val_steps=0).validate(Broken(), dataset(), verbose=False)


def test_validation__says_when_no_pixel_is_normal(tmp_path):
    loader = dataset()
    for sample in loader.dataset:
        sample["mask"] = torch.where(sample["mask"] == 0, IGNORE, sample["mask"])
    with pytest.raises(ValueError, match="mask 0"):
        trainer(tmp_path).validate(Contrast(), loader, verbose=False)


def test_checkpoint__reloads_with_plain_data_alone(fitted, tmp_path):
    method, loop = fitted
    path = tmp_path / "method.ckpt"
    loop.save_checkpoint(path)
    held = torch.load(path, weights_only=True)
    assert held["hyper_parameters"]["start"] == 0.25
    again = load(path)
    assert arguments_of(again) == arguments_of(method)
    image = torch.rand(1, 2, 9, 9)
    with torch.no_grad():
        assert torch.equal(again(image), method.cpu().eval()(image))
    assert torch.equal(Contrast.load_from_checkpoint(path).level, method.level)


def test_checkpoint__resumes_training(fitted, tmp_path):
    _, loop = fitted
    path = tmp_path / "method.ckpt"
    loop.save_checkpoint(path)
    loop = trainer(tmp_path)
    loop.fit_loop.max_epochs = 2
    again = Contrast(0.25, calibration=RankCalibration(64))
    loop.fit(again, dataset(), dataset(seed=1), ckpt_path=path)
    assert loop.current_epoch == 2
    assert loop.global_step == 4


class Fitted(Contrast):
    """Hold a buffer that is empty before fitting."""

    def __init__(self):
        super().__init__()
        self.register_buffer("levels", torch.empty(0))


def test_state__of_a_fitted_method_loads_into_a_new_one_also_inside_of_another_module():
    fitted, new, outer = Fitted(), Fitted(), nn.Sequential(Fitted())
    fitted.levels = torch.arange(3.0)
    new.load_state_dict(fitted.state_dict())
    outer.load_state_dict({f"0.{name}": value for name, value in fitted.state_dict().items()})
    assert new.levels.tolist() == outer[0].levels.tolist() == [0, 1, 2]


def test_fit__says_that_no_validation_falls_into_its_epochs(tmp_path):
    with pytest.warns(UserWarning, match="No validation falls into 1 epochs with one every 2"):
        trainer(tmp_path, check_val_every_n_epoch=2).fit(Contrast(), dataset(), dataset())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(tmp_path, check_val_every_n_epoch=1).fit(Contrast(), dataset(), dataset())
        trainer(tmp_path, check_val_every_n_epoch=2).fit(Contrast(), dataset())
    assert not [one for one in said if "No validation" in str(one.message)]


class Pairs(AnomalySegmenter):
    """Need two pixels with data, and tell how often it was asked."""

    learns = False
    least_pixels = 2

    def score(self, image):
        assert bool((finite_pixels(image).flatten(1).sum(1) >= 2).all())
        self.further_maps = {"classes": torch.ones(len(image), *image.shape[-2:], dtype=torch.int64)}
        return image.nan_to_num().sum(1)


def test_score_map__of_images_without_enough_data_is_0_and_leaves_the_others_alone():
    image = torch.rand(4, 2, 6, 7)
    image[1], image[3, :, 1:] = torch.nan, torch.nan
    image[3, :, 0, 1:] = torch.nan  # a single pixel
    method = Pairs()
    score = method.score_map(image)
    assert bool((score[[1, 3]] == 0).all())
    assert method.further_maps["classes"].flatten(1).float().mean(1).tolist() == [1, 0, 1, 0]
    assert torch.equal(score[[0, 2]], method.score_map(image[[0, 2]]))
    assert bool((method.score_map(image[[1]]) == 0).all())
    assert not method.further_maps


def test_predict__refuses_scores_that_would_look_like_missing_data(tmp_path):
    class Careless(AnomalySegmenter):
        learns = False

        def score(self, image):
            return torch.nn.functional.avg_pool2d(image.sum(1), 3, 1, 1)

    method = Careless()
    method.calibration.fit(count_scores([torch.rand(100)], []))
    image = torch.rand(1, 2, 6, 7)
    loader = torch.utils.data.DataLoader([{"image": image[0], "name": "whole"}], collate_fn=collate)
    trainer(tmp_path).predict(method, loader)
    image[0, :, 3, 3] = torch.nan
    loader = torch.utils.data.DataLoader([{"image": image[0], "name": "holed"}], collate_fn=collate)
    with pytest.raises(ValueError, match=r"finite scores, but got 8 NaN .*holed.*fill_nodata"):
        trainer(tmp_path).predict(method, loader)


def test_validation__says_that_the_mask_is_missing(tmp_path):
    loader = torch.utils.data.DataLoader([{"image": torch.rand(3, 8, 8)}], collate_fn=collate)
    with pytest.raises(ValueError, match=r"'mask' in batches that validate or test, but got \['image'\]"):
        trainer(tmp_path, num_sanity_val_steps=0).fit(Contrast(0.25), dataset(), loader)


def test_fit__without_an_end_needs_no_schedule_where_nothing_is_learnt(tmp_path):
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=-1, logger=False, enable_progress_bar=False)
    loop.fit(Pairs(), dataset(), dataset(seed=1))
    assert loop.current_epoch == 1


def test_test__counts_nothing_of_a_run_that_was_broken_off(fitted, tmp_path):
    method, _ = fitted
    expected = trainer(tmp_path).test(method, dataset(seed=1), verbose=False)[0]

    class Stop(pl.Callback):
        def on_test_batch_end(self, *_):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, callbacks=[Stop()]).test(method, dataset(), verbose=False)
    again = trainer(tmp_path).test(method, dataset(seed=1), verbose=False)[0]
    assert {k: v for k, v in again.items() if v == v} == {k: v for k, v in expected.items() if v == v}  # what is undefined is NaN


class Foreign:
    """No component of the library."""


class Careless(Contrast):
    def __init__(self, part=None):
        super().__init__()
        self.part = part


def test_fit__leaves_the_trainer_as_it_was_for_a_method_that_learns(tmp_path):
    loop, method = trainer(tmp_path, enable_checkpointing=False), Contrast(0.25)
    loop.fit_loop.max_epochs = 3
    loop.fit(Pairs(), dataset(), dataset(seed=1))
    assert loop.current_epoch == 1
    assert loop.max_epochs == 3
    loop.fit(method, dataset(), dataset(seed=1))
    assert loop.current_epoch == 3


def test_fit__refuses_arguments_that_its_checkpoint_could_not_hold_before_any_step(tmp_path):
    method = Careless(Foreign())
    with pytest.raises(TypeError, match=r"Careless\.part to be plain data.*Foreign"):
        trainer(tmp_path).fit(method, dataset(), dataset(seed=1))
    assert float(method.level) == 0.0
    trainer(tmp_path, enable_checkpointing=False).fit(method, dataset(), dataset(seed=1))
