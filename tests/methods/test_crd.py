import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.functional.crd import pca_collaborative_representation
from anomseg.methods.crd import CRD


def scene(bands: int = 6, size: int = 16) -> torch.Tensor:
    return torch.randn(1, bands, size, size, generator=torch.Generator().manual_seed(0)).cumsum(1)


def trainer(folder) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False
    )


def test_crd__fits_tests_predicts_and_loads(tmp_path):
    data = SyntheticDataModule("hyperspectral", count=1, size=(32, 36), bands=16)
    model = CRD()
    runner = trainer(tmp_path)
    runner.fit(model, datamodule=data)
    figures = runner.test(model, datamodule=data, verbose=False)[0]
    assert figures["test_auroc"] > 0.6
    predicted = runner.predict(model, datamodule=data)[0]
    assert predicted["score"].shape == predicted["heatmap"].shape == (1, 32, 36)
    assert torch.isfinite(predicted["score"]).all()
    runner.save_checkpoint(tmp_path / "crd.ckpt")
    again = trainer(tmp_path).predict(load(tmp_path / "crd.ckpt"), datamodule=data)[0]
    assert torch.equal(again["heatmap"], predicted["heatmap"])


def test_crd__scores_as_its_function():
    image = scene()
    assert torch.equal(CRD(3, 3, 7, 0.5).score(image), pca_collaborative_representation(image, 3, 3, 7, 0.5))


@pytest.mark.parametrize("bands", [1, 3])
def test_crd__takes_few_bands_and_void_pixels(bands):
    image = scene(bands)
    image[0, 0, :3] = torch.nan
    poisoned = image.clone()
    poisoned[0, 0, :3] = torch.inf
    score = CRD().score_map(image)
    assert torch.isfinite(score).all()
    assert torch.equal(score, CRD().score_map(poisoned))
