import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.functional.area_rx import area_filtered_rx, fuse_scores, pca_local_rx
from anomseg.methods.area_rx import AreaRX, FusedRX

BOTH = pytest.mark.parametrize("method", [AreaRX, FusedRX])


def scene(bands: int = 6, size: int = 24) -> torch.Tensor:
    return torch.randn(1, bands, size, size, generator=torch.Generator().manual_seed(0)).cumsum(1)


def trainer(folder) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False
    )


@BOTH
def test_method__fits_tests_predicts_and_loads(method, tmp_path):
    data = SyntheticDataModule("hyperspectral", count=1, size=(32, 36), bands=16)
    model = method()
    runner = trainer(tmp_path)
    runner.fit(model, datamodule=data)
    figures = runner.test(model, datamodule=data, verbose=False)[0]
    assert figures["test_auroc"] > 0.6
    predicted = runner.predict(model, datamodule=data)[0]
    assert predicted["score"].shape == predicted["heatmap"].shape == (1, 32, 36)
    assert torch.isfinite(predicted["score"]).all()
    assert 0 <= predicted["heatmap"].min() <= predicted["heatmap"].max() <= 1
    runner.save_checkpoint(tmp_path / "method.ckpt")
    again = trainer(tmp_path).predict(load(tmp_path / "method.ckpt"), datamodule=data)[0]
    assert torch.equal(again["heatmap"], predicted["heatmap"])


def test_area_rx__scores_as_its_function():
    image = scene()
    assert torch.equal(AreaRX(3, 12, smoothing=0.0).score(image), area_filtered_rx(image, 3, 12, smoothing=0.0))


def test_area_rx__takes_square_metres():
    image = scene()
    assert torch.equal(AreaRX(area=105.0, ground_sampling_distance=3.0).score(image), area_filtered_rx(image, area=12))


def test_fused_rx__scores_as_its_functions():
    image = scene()
    expected = fuse_scores((area_filtered_rx(image, 5), pca_local_rx(image, 4, 5, 11)))
    assert torch.equal(FusedRX(local_components=4, inner=5, outer=11).score(image), expected)


@BOTH
@pytest.mark.parametrize("bands", [1, 3])
def test_method__takes_few_bands_and_void_pixels(method, bands):
    image = scene(bands)
    image[0, 0, :3] = torch.nan
    poisoned = image.clone()
    poisoned[0, 0, :3] = torch.inf
    score = method().score_map(image)
    assert torch.isfinite(score).all()
    assert torch.equal(score, method().score_map(poisoned))


@BOTH
@pytest.mark.parametrize("area", [0, 1, -4, 2.5])
def test_method__says_what_area_it_expected(method, area):
    with pytest.raises(ValueError, match="at least 2 whole pixels"):
        method(area=area)
    with pytest.raises(ValueError, match="at least 2 whole pixels"):
        method(area=5.0, ground_sampling_distance=10.0)


def test_fused_rx__says_that_the_scene_is_smaller_than_the_window():
    with pytest.raises(ValueError, match="outer <= 16"):
        FusedRX().score(scene(size=16))
