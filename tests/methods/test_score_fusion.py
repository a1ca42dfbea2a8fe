"""One map from several methods."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.data.defects import Corruption, Hole
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.position_gaussian import PositionGaussian
from anomseg.methods.reconstruction import Reconstruction
from anomseg.methods.reconstruction_score import ReconstructionScore
from anomseg.methods.rx import RX
from anomseg.methods.score_fusion import ScoreFusion
from anomseg.methods.svdd import SVDD
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.sample import collate


def part(seed, defect=None):
    """Draw a noisy part with a pit of one pixel (sharp), a wide patch of fainter texture (smooth), or no defect."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.5 + 0.03 * torch.randn(48, 48, generator=generator)
    mask = torch.zeros(48, 48, dtype=torch.int64)
    if defect == "sharp":
        image[24, 20] -= 0.25
        mask[24, 20] = 1
    if defect == "smooth":
        image[12:36, 12:36] = 0.5 + 0.5 * (image[12:36, 12:36] - 0.5)
        mask[12:36, 12:36] = 1
    return {"image": image[None], "mask": mask, "name": f"{seed}"}


def loader(samples):
    return DataLoader(samples, batch_size=4, collate_fn=collate)


def trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, num_sanity_val_steps=0, enable_checkpointing=False, **quiet)


def methods():
    options = {"cuts": (), "level": "mean"}
    return [
        PositionGaussian(1, ["derivatives"], scales=(1.0,), smoothing=0.5, **options),
        PositionGaussian(1, ["energies"], smoothing=8.0, **options),
    ]


def fitted(folder, **options):
    method, loop = ScoreFusion(methods(), **options), trainer(folder)
    loop.fit(method, loader([part(seed) for seed in range(16)]), loader([part(seed) for seed in range(50, 54)]))
    return method.eval(), loop


@pytest.fixture(scope="module")
def fusion(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("fusion"))


def test_score_fusion__is_the_highest_of_scores_in_units_of_normal_peaks(fusion):
    image = part(7, "sharp")["image"][None]
    normal = torch.stack([part(seed)["image"] for seed in range(16)])
    expected = []
    for method in fusion[0].methods:
        peaks = method.score_map(normal).flatten(1).amax(1)
        expected.append((method.score_map(image) - peaks.mean()) / peaks.std(correction=0))
    torch.testing.assert_close(fusion[0].score(image), torch.stack(expected).amax(0), rtol=1e-3, atol=1e-3)


def test_score_fusion__takes_the_mean_over_pixels_where_that_is_asked_for(tmp_path):
    method, _ = fitted(tmp_path, rule="mean", level="mean")
    normal = torch.stack([part(seed)["image"] for seed in range(16)])
    scores = [one.score_map(normal) for one in method.methods]
    expected = torch.stack([(score - score.mean()) / score.std(correction=0) for score in scores]).mean(0)
    torch.testing.assert_close(method.score(normal), expected, rtol=1e-3, atol=1e-3)


def test_score_fusion__lets_a_method_with_a_limit_rank_pixels_without_raising_an_alarm(tmp_path, fusion):
    images = torch.stack([part(seed, "smooth")["image"] for seed in range(60, 64)])
    free, limited = fusion[0], fitted(tmp_path, limits=[None, 1.0])[0]
    fine, wide = [
        scale(one.score_map(images), torch.ones(4, 48, 48, dtype=torch.bool)) for one, scale in zip(free.methods, free.scales, strict=True)
    ]
    assert float(wide.max()) > 3.0
    score = limited.score(images)
    torch.testing.assert_close(score, torch.maximum(fine, 1.0 - torch.nn.functional.softplus(1.0 - wide)), rtol=1e-3, atol=1e-3)
    assert float(score[wide > fine + 2].max()) < 1.0
    decided = score > fine  # where the limited method decides, its own order stays
    assert torch.equal(score[decided].argsort(stable=True), wide[decided].argsort(stable=True))


def test_score_fusion__fits_its_methods_as_they_are_fitted_alone(tmp_path, fusion):
    image = part(9, "smooth")["image"][None]
    for method, fused in zip(methods(), fusion[0].methods, strict=True):
        trainer(tmp_path).fit(method, loader([part(seed) for seed in range(16)]), loader([part(50)]))
        torch.testing.assert_close(method.score_map(image), fused.score_map(image))
        assert fused._trainer is None


def test_score_fusion__sees_what_one_method_alone_misses(fusion):
    images = {kind: torch.stack([part(seed, kind)["image"] for seed in range(60, 84)]) for kind in (None, "sharp", "smooth")}

    def image_auroc(method, kind):
        normal, defective = (method.score_map(images[which]).flatten(1).amax(1) for which in (None, kind))
        return float((defective[:, None] > normal).float().mean())

    found = {kind: [image_auroc(method, kind) for method in (*fusion[0].methods, fusion[0])] for kind in ("sharp", "smooth")}
    assert found["sharp"][1] < 0.7
    assert found["smooth"][0] < 0.95
    assert min(found["sharp"][0], found["smooth"][1], found["sharp"][2], found["smooth"][2]) > 0.97


def test_score_fusion__reloads_to_the_same_map(tmp_path, fusion):
    method, loop = fusion
    loop.save_checkpoint(tmp_path / "fusion.ckpt")
    image = part(7, "sharp")["image"][None]
    again = load(tmp_path / "fusion.ckpt")
    assert [type(one) for one in again.methods] == [PositionGaussian, PositionGaussian]
    torch.testing.assert_close(again(image), method(image))


def test_score_fusion__leaves_missing_pixels_lowest(fusion):
    image = part(7, "sharp")["image"][None].clone()
    image[..., 5:8, 5:8] = torch.nan
    score = fusion[0].score_map(image)
    assert torch.isfinite(score).all()
    assert float(score[0, 5:8, 5:8].max()) == float(score.min())


def test_score_fusion__joins_detectors_of_one_scene(tmp_path):
    data = SyntheticDataModule(count=1, size=(48, 48))
    method, loop = ScoreFusion([RX(), RX("local")], rule="mean", level="mean"), trainer(tmp_path)
    loop.fit(method, data)
    assert loop.test(method, data, verbose=False)[0]["test_auroc"] > 0.8
    with pytest.raises(ValueError, match=r"two training images or more.*level='mean'"):
        trainer(tmp_path).fit(ScoreFusion([RX()]), data)


def net(**options):
    return Reconstruction(1, AutoencoderSpec(width=4, depth=2, defect_head=True), scoring=ReconstructionScore(defect=1.0), **options)


@pytest.fixture(scope="module")
def net_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    method, loop = net(), trainer(folder)
    corruption = Corruption((Hole(size=(0.01, 0.05)),))
    samples = [corruption(part(seed), torch.Generator().manual_seed(seed)) for seed in range(8)]
    loop.fit_loop.max_epochs = 2
    loop.fit(method, loader(samples), loader([part(50)]))
    loop.save_checkpoint(folder / "net.ckpt")
    return folder / "net.ckpt"


def test_score_fusion__takes_a_trained_net_as_it_is(tmp_path, net_file):
    alone, image = load(net_file), part(7, "sharp")["image"][None]
    method, loop = ScoreFusion([methods()[0], net()], rule="mean", weights=[1.0, 0.25], checkpoints=[None, net_file]), trainer(tmp_path)
    loop.fit(method, loader([part(seed) for seed in range(16)]), loader([part(50)]))
    torch.testing.assert_close(method.methods[1].score_map(image), alone.score_map(image))
    everywhere = torch.ones(1, 48, 48, dtype=torch.bool)
    fine, rebuilt = [scale(one.score_map(image), everywhere) for one, scale in zip(method.methods, method.scales, strict=True)]
    torch.testing.assert_close(method.score_map(image), (fine + 0.25 * rebuilt) / 1.25)
    loop.save_checkpoint(tmp_path / "fusion.ckpt")
    net_file.rename(tmp_path / "gone.ckpt")  # the fusion's own checkpoint holds everything
    try:
        torch.testing.assert_close(load(tmp_path / "fusion.ckpt").score_map(image), method.score_map(image))
    finally:
        (tmp_path / "gone.ckpt").rename(net_file)


def test_score_fusion__may_be_one_of_the_methods(tmp_path, net_file):
    inner = ScoreFusion([methods()[0], net()], rule="mean", checkpoints=[None, net_file])
    method, image = ScoreFusion([inner, methods()[1]], limits=[None, 1.0]), part(7, "sharp")["image"][None]
    loop = trainer(tmp_path)
    loop.fit(method, loader([part(seed) for seed in range(16)]), loader([part(50)]))
    torch.testing.assert_close(inner.methods[1].score_map(image), load(net_file).score_map(image))
    loop.save_checkpoint(tmp_path / "fusion.ckpt")
    torch.testing.assert_close(load(tmp_path / "fusion.ckpt").score_map(image), method.score_map(image))


def test_score_fusion__refuses_a_checkpoint_of_something_else(tmp_path, net_file):
    samples = loader([part(seed) for seed in range(4)])
    for wrong, told in ((net(views=4), "views=1 for 4"), (SVDD(1), "_class_path='anomseg.methods.reconstruction.Reconstruction'")):
        with pytest.raises(CheckpointError, match=f"but it differs: .*{told}"):
            trainer(tmp_path).fit(ScoreFusion([wrong], checkpoints=[net_file]), samples)
    with pytest.raises(FileNotFoundError, match="Expected a checkpoint at"):
        trainer(tmp_path).fit(ScoreFusion([net()], checkpoints=[tmp_path / "none.ckpt"]), samples)


def test_score_fusion__is_not_used_before_it_is_fitted():
    with pytest.raises(NotFittedError):
        ScoreFusion(methods()).score(torch.rand(1, 1, 32, 32))


def test_score_fusion__refuses_what_it_cannot_fuse():
    assert isinstance(ScoreFusion([RX()]), AnomalySegmenter)
    with pytest.raises(ValueError, match=r"learn nothing by descent.*but got \['SVDD'\] without"):
        ScoreFusion([RX(), SVDD(4)])
    with pytest.raises(ValueError, match=r"no checkpoint for methods that are fitted here, but got one for \['RX'\]"):
        ScoreFusion([RX()], checkpoints=["rx.ckpt"])
    with pytest.raises(ValueError, match="a checkpoint or None for each of the 2 methods"):
        ScoreFusion([RX(), SVDD(4)], checkpoints=["svdd.ckpt"])
    for wrong in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="Expected a weight above 0 for each of the 2 methods"):
            ScoreFusion([RX(), RX("local")], rule="mean", weights=wrong)
    with pytest.raises(ValueError, match="and rule='mean', but got weights"):
        ScoreFusion([RX()], weights=[1.0])
    with pytest.raises(ValueError, match="but got none"):
        ScoreFusion([])
    with pytest.raises(ValueError, match="a limit or None for each of the 1 methods"):
        ScoreFusion([RX()], limits=[1.0, None])
    for wrong in ({"rule": "median"}, {"level": "top"}):
        with pytest.raises(ValueError, match="Expected rule of"):
            ScoreFusion([RX()], **wrong)
