import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.data.synthetic_driving import SyntheticDrivingDataModule
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.functional.smoothing import gaussian
from anomseg.methods.pebal import PEBAL
from anomseg.methods.residual_pattern import RPL
from anomseg.methods.segmenter import SegmentationReadout, Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.segmentation_module import TrainedModule
from anomseg.nets.wide_resnet import WideResNet38
from anomseg.sample import collate
from tests.methods.driving import Stripes, loader, trainer

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
    with pytest.raises(CheckpointError, match=r"for 2 classes in .*, but it was trained for 3"):
        PEBAL(2, NET, segmenter=path).setup("fit")
    with pytest.raises(CheckpointError, match="CompactSegmenter"):
        Segmenter(3, CompactSegmenter(width=8, levels=2), segmenter=path).setup("fit")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Segmenter(3, NET, segmenter=str(tmp_path / "none.ckpt")).setup("fit")


def test_start_from__takes_no_output_to_abstain_for_a_class(trained, tmp_path):
    path, _ = trained
    loop = trainer(tmp_path)
    loop.fit(PEBAL(3, NET, segmenter=path), loader(), loader(seed=1))
    loop.save_checkpoint(tmp_path / "pebal.ckpt")
    with pytest.raises(CheckpointError, match=r"for 4 classes in .*, but it was trained for 3"):
        SegmentationReadout(4, str(tmp_path / "pebal.ckpt"), NET).setup("fit")


@pytest.mark.parametrize(("classes", "method"), [(4, PEBAL), (4, SegmentationReadout), (6, SegmentationReadout)])
def test_ready_weights__of_other_classes_are_refused(tmp_path, classes, method):
    spec = WideResNet38(16, str(tmp_path / "published.pth"))
    torch.save({"state_dict": spec.build(3, 5).state_dict()}, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match=f"of {classes} classes in .*, but it has 5"):
        method(classes, net=spec).setup("fit")


def test_fit__refuses_a_data_module_of_other_classes(tmp_path):
    data = SyntheticDrivingDataModule(2, 1, 1, size=(48, 48))
    with pytest.raises(ValueError, match=r"data module of 7 classes, but it has 6: \['road'"):
        trainer(tmp_path).fit(Segmenter(7, NET), data)


def test_fit__goes_on_from_a_checkpoint_without_any_other_file(trained, tmp_path):
    path, _ = trained
    for kind in (Segmenter, PEBAL, RPL, SegmentationReadout):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        moved = Path(shutil.copy(path, folder / "segmenter.ckpt"))
        first = trainer(folder, 1)
        first.fit(kind(3, net=NET, segmenter=str(moved)), loader(), loader(seed=1))
        first.save_checkpoint(folder / "own.ckpt")
        moved.unlink()
        for segmenter in (str(moved), None):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*fresh weights")
                again, second = kind(3, net=NET, segmenter=segmenter), trainer(folder, 2, num_sanity_val_steps=0)
                second.fit(again, loader(), loader(seed=1), ckpt_path=folder / "own.ckpt")
            assert second.global_step == first.global_step * 2
        with pytest.raises(FileNotFoundError, match="no such file"):
            trainer(folder).fit(kind(3, net=NET, segmenter=str(moved)), loader(), loader(seed=1))


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


class Stacked(Stripes):
    """Truth with a channel axis, and labels in the type that files are stored in."""

    def __init__(self, dtype, **options):
        super().__init__(**options)
        self.dtype = dtype

    def __getitem__(self, index):
        sample = Stripes.__getitem__(self, index)
        return {**sample, "mask": sample["mask"][None], "label": sample["label"][None].to(self.dtype)}


@pytest.mark.parametrize("kind", [Segmenter, PEBAL])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_truth__may_have_a_channel_axis_and_any_integer_type(tmp_path, kind, dtype):
    found = []
    for stacked in (False, True):
        torch.manual_seed(0)
        method, loop = kind(3, NET), trainer(tmp_path)
        data = [DataLoader(Stacked(dtype, seed=s), batch_size=4, collate_fn=collate) if stacked else loader(seed=s) for s in (0, 1)]
        loop.fit(method, *data)
        found.append((float(loop.callback_metrics["val_miou"]), *(p.detach().clone() for p in method.parameters())))
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain)


def test_smoothing__lets_pixels_without_data_have_no_influence():
    torch.manual_seed(0)
    method = SegmentationReadout(3, net=TrainedModule(torch.nn.Conv2d(3, 3, 1)))
    method.setup("fit")
    image = torch.rand(1, 3, 24, 24)
    image[..., :12] = torch.nan
    with torch.no_grad():
        sharp = method.score_map(image)
        method.smoothing = 2.0
        smoothed = method.score_map(image)
    torch.testing.assert_close(smoothed[..., 12:], gaussian(sharp[..., 12:], 2.0))


@pytest.mark.parametrize("kind", [Segmenter, SegmentationReadout, PEBAL, RPL])
def test_centred__subtracts_the_mean_of_each_frame(kind, trained):
    path, _ = trained
    maps = []
    for centred in (False, True):
        torch.manual_seed(0)
        method = kind(3, net=NET, segmenter=path, centred=centred)
        method.setup("fit")
        image = next(iter(loader()))["image"]
        image[0, :, :5] = torch.nan
        with torch.no_grad():
            maps.append(method.eval().score(image))
    plain, centred = maps[0][..., 5:, :], maps[1][..., 5:, :]
    torch.testing.assert_close(centred[0], plain[0] - plain[0].mean())
    torch.testing.assert_close(maps[1][1:], maps[0][1:] - maps[0][1:].mean((1, 2), keepdim=True))


def test_centred__ranks_frames_in_another_light_as_those_of_training(trained, tmp_path):
    path, _ = trained

    class Light(Stripes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "image": 0.25 * sample["image"] + 0.1} if index % 2 else sample

    figures = []
    for centred in (False, True):
        method = SegmentationReadout(3, path, NET, centred=centred)
        method.setup("fit")
        figures.append(trainer(tmp_path).test(method, DataLoader(Light(seed=3), batch_size=4, collate_fn=collate), verbose=False)[0])
    assert figures[1]["test_ap"] > figures[0]["test_ap"] + 0.02


def test_methods__say_what_is_missing(trained):
    batch = next(iter(loader()))
    with pytest.raises(NotFittedError, match="trained net"):
        Segmenter(3, NET).score(batch["image"])
    with pytest.raises(ValueError, match=r"Expected images \(B, 4"):
        Segmenter(3, NET, in_channels=4).score(batch["image"])
    with pytest.raises(ValueError, match="'label'"):
        Segmenter(3, NET).training_truth({"image": batch["image"]})
    with pytest.raises(TypeError, match=r"integer tensor, but got torch.float32"):
        Segmenter(3, NET).training_truth({**batch, "label": batch["label"].float()})
    with pytest.raises(ValueError, match=r"Expected labels 0 to 1, .* got \[2\]"):
        Segmenter(2, NET).training_truth(batch)
    with pytest.raises(ValueError, match="classes >= 2"):
        Segmenter(1, NET)
