"""The method of docs/add_a_method.md: forty lines, and every verb of the library works on it."""

import re
import sys
import types
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule

PAGE = Path(__file__).parents[1] / "docs" / "add_a_method.md"


@pytest.fixture
def method_class():
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert len(source.splitlines()) <= 45
    module = types.ModuleType("band_regression")
    sys.modules["band_regression"] = module
    exec(compile(source, str(PAGE), "exec"), module.__dict__)  # the page's own code is what is tested
    yield module.BandRegression
    del sys.modules["band_regression"]


def test_a_new_method__fits_tests_predicts_and_reloads(method_class, tmp_path):
    pl.seed_everything(0, verbose=False)
    data = SyntheticDataModule("multispectral", count=2, size=(50, 46))
    writer = SceneWriter(tmp_path / "maps")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    loop = pl.Trainer(max_epochs=30, accelerator="cpu", default_root_dir=tmp_path, callbacks=[writer], check_val_every_n_epoch=30, **quiet)
    method = method_class(bands=10)
    loop.fit(method, data)
    loop.test(method, data, verbose=False)
    assert loop.callback_metrics["test_auroc"] > 0.6
    loop.predict(method, data, return_predictions=False)
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    again = load(loop.checkpoint_callback.best_model_path)
    image = next(iter(data.predict_dataloader()))["image"]
    with torch.no_grad():
        assert torch.equal(again(image), method.cpu().eval()(image))


def test_a_new_method__learns_nothing_from_pixels_that_do_not_count(method_class):
    method = method_class(bands=10).eval()
    method.log = lambda *_: None
    image, mask = torch.rand(1, 10, 12, 12), torch.zeros(1, 12, 12, dtype=torch.int64)
    mask[0, :2], mask[0, 2] = 255, 1
    before = method.training_step({"image": image, "mask": mask}, 0)
    image[:, :, :3] = 100.0
    assert torch.equal(method.training_step({"image": image, "mask": mask}, 0), before)
