import shutil
from pathlib import Path

import pytest
import torch

from anomseg.checkpoint import load
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.methods.pebal import PEBAL
from anomseg.methods.segmenter import Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from tests.methods.driving import loader, trainer

NET = CompactSegmenter(width=6, levels=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segmenter")
    method, loop = Segmenter(3, NET), trainer(folder, 8)
    loop.fit(method, loader(outliers=False, count=16), loader(seed=1))
    loop.save_checkpoint(folder / "segmenter.ckpt")
    return str(folder / "segmenter.ckpt"), method


def test_classes__of_predict_are_those_that_test_counts(trained, tmp_path):
    _, method = trained
    loop = trainer(tmp_path)
    figures = loop.test(method, loader(seed=2), verbose=False)[0]
    predictions = loop.predict(method, loader(seed=2))
    hits, union = torch.zeros(3), torch.zeros(3)
    for batch, found in zip(loader(seed=2), predictions, strict=True):
        with torch.no_grad():
            assert torch.equal(found["score"], method.score_map(batch["image"]))
        for k in range(3):
            guess, truth, counted = found["classes"] == k, batch["label"] == k, batch["label"] != 255
            hits[k] += (guess & truth).sum()
            union[k] += ((guess | truth) & counted).sum()
    assert figures["test_miou"] == pytest.approx(float((hits / union).mean()), abs=1e-6)
    assert figures["test_miou"] > 0.9


def test_start_from__another_method_keeps_the_classes(trained):
    path, method = trained
    pebal = PEBAL(3, NET, segmenter=path)
    pebal.setup("fit")
    image = next(iter(loader()))["image"]
    with torch.no_grad():
        torch.testing.assert_close(pebal.eval().logits(image)[:, :3], method.eval().logits(image))


def test_start_from__says_what_does_not_fit(trained, tmp_path):
    path, _ = trained
    with pytest.raises(CheckpointError, match="for 4 classes"):
        PEBAL(4, NET, segmenter=path).setup("fit")
    with pytest.raises(CheckpointError, match="CompactSegmenter"):
        Segmenter(3, CompactSegmenter(width=8, levels=2), segmenter=path).setup("fit")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Segmenter(3, NET, segmenter=str(tmp_path / "none.ckpt")).setup("fit")


def test_checkpoint__needs_no_file_of_the_segmenter(trained, tmp_path):
    path, _ = trained
    gone = Path(shutil.copy(path, tmp_path / "moved.ckpt"))
    method, loop = PEBAL(3, NET, segmenter=str(gone)), trainer(tmp_path)
    loop.fit(method, loader(), loader(seed=1))
    loop.save_checkpoint(tmp_path / "own.ckpt")
    gone.unlink()
    again = load(tmp_path / "own.ckpt")
    image = next(iter(loader()))["image"]
    with torch.no_grad():
        assert torch.equal(again(image), method.eval()(image))


def test_training_truth__counts_neither_void_nor_data_that_is_missing():
    method, batch = Segmenter(3, NET), next(iter(loader(void=3)))
    batch["image"][0, :, 20] = torch.nan
    label, outlier = method.training_truth(batch)
    assert (label[:, :3] == 255).all()
    assert (label[0, 20] == 255).all()
    assert not outlier[0, 20].any()
    assert (label[outlier] == 255).all()


def test_methods__say_what_is_missing(trained):
    batch = next(iter(loader()))
    with pytest.raises(NotFittedError, match="trained net"):
        Segmenter(3, NET).score(batch["image"])
    with pytest.raises(ValueError, match=r"Expected images \(B, 4"):
        Segmenter(3, NET, in_channels=4).score(batch["image"])
    with pytest.raises(ValueError, match="'label'"):
        Segmenter(3, NET).training_truth({"image": batch["image"]})
    with pytest.raises(ValueError, match=r"Expected labels 0 to 1, .* got \[2\]"):
        Segmenter(2, NET).training_truth(batch)
    with pytest.raises(ValueError, match="classes >= 2"):
        Segmenter(1, NET)
