import json
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.data.industrial import IndustrialDataModule
from anomseg.errors import CheckpointError, NotFittedError
from anomseg.methods.class_router import ClassRouting
from anomseg.methods.feature_library import FeatureLibrary
from anomseg.methods.feature_library_parts import PatchPosition
from anomseg.methods.reconstruction import Reconstruction
from anomseg.nets.feature_encoder import FilterBankFeatures, RandomPyramid, TimmFeatures, TrainedFeatures
from anomseg.sample import collate

PYRAMID = RandomPyramid(8, (1, 2))
BANK = FilterBankFeatures((1.0, 2.0), step=4)


def stripes(index, generator, period=4, bands=2, size=(48, 64)):
    """A texture of stripes with noise, at a random phase."""
    phase = torch.rand(1, generator=generator) * 6.3
    wave = torch.sin(torch.arange(size[1]) * 6.28 / period + phase) * (1 + 0.2 * index % 3)
    return wave.expand(bands, *size) + 0.3 * torch.randn(bands, *size, generator=generator)


def samples(count=8, defects=False, seed=0, bands=2, periods=(4,)):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        period = periods[index % len(periods)]
        image = stripes(index, generator, period, bands)
        mask = torch.zeros(48, 64, dtype=torch.int64)
        if defects:
            image[:, 16:32, 24:44] = image[:, 16:32, 24:44].mean() + 0.3 * torch.randn(bands, 16, 20, generator=generator)
            mask[16:32, 24:44] = 1
        category = f"period {period}"
        found.append({"image": image, "mask": mask, "name": f"{category}/{index}", "category": category})
    return found


def loader(data, batch_size=2):
    return DataLoader(data, batch_size=batch_size, collate_fn=collate)


def trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=3, num_sanity_val_steps=0, enable_checkpointing=False, **quiet)


def fitted(folder, data=None, bands=2, **options):
    settings = {"encoder": PYRAMID, "smoothing": 2.0, "coreset": 0.3, **options}
    method = FeatureLibrary(bands, **settings)
    loop = trainer(folder)
    loop.fit(method, loader(data or samples(bands=bands)), loader(samples(4, seed=5, bands=bands)))
    return method.eval(), loop


def auroc(score, mask):
    return float((score[mask == 1][:, None] > score[mask == 0][None]).float().mean())


@pytest.mark.parametrize("encoder", [PYRAMID, BANK], ids=["pyramid", "bank"])
@pytest.mark.parametrize("normalise", ["l2", "whiten", "standardise", "none"])
def test_feature_library__finds_what_is_not_in_it(tmp_path, encoder, normalise):
    method, _ = fitted(tmp_path, encoder=encoder, normalise=normalise)
    batch = collate(samples(3, defects=True, seed=9))
    score = method.score_map(batch["image"])
    assert score.shape == (3, 48, 64)
    assert auroc(score, batch["mask"]) > 0.85


def test_feature_library__takes_a_timm_encoder(tmp_path):
    method, _ = fitted(tmp_path, encoder=TimmFeatures(levels=(1,)))
    batch = collate(samples(3, defects=True, seed=9))
    assert auroc(method.score_map(batch["image"]), batch["mask"]) > 0.85


def test_feature_library__stands_on_a_trained_reconstruction_and_reloads_without_it(tmp_path):
    loop = trainer(tmp_path)
    loop.fit(Reconstruction(in_channels=2), loader(samples(2)), loader(samples(2, seed=5)))
    loop.save_checkpoint(tmp_path / "reconstruction.ckpt")
    method, loop = fitted(tmp_path, encoder=TrainedFeatures(str(tmp_path / "reconstruction.ckpt")))
    loop.save_checkpoint(tmp_path / "library.ckpt")
    (tmp_path / "reconstruction.ckpt").unlink()
    image = collate(samples(3, defects=True, seed=9))["image"]
    assert torch.equal(load(tmp_path / "library.ckpt")(image), method(image))


def test_feature_library__knows_where_the_features_of_a_reconstruction_lie(tmp_path):
    loop = trainer(tmp_path)
    loop.fit(Reconstruction(in_channels=2), loader(samples(2)), loader(samples(2, seed=5)))
    loop.save_checkpoint(tmp_path / "reconstruction.ckpt")
    method = FeatureLibrary(2, TrainedFeatures(str(tmp_path / "reconstruction.ckpt")), patch=1)
    keep = torch.ones(1, 60, 100, dtype=torch.bool)
    keep[:, 40:] = False
    patches = method._patches(torch.zeros(1, 2, 60, 100), keep)
    assert patches.padded == (64, 112)
    assert patches.whole[0].int().tolist() == [[1] * 7] * 2 + [[0] * 7] * 2  # cells of 16 pixels, the last of them partly padding


@pytest.mark.parametrize("normalise", ["l2", "whiten", "standardise", "none"])
def test_feature_library__fits_and_scores_under_bfloat16(tmp_path, normalise):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, precision="bf16-mixed", enable_checkpointing=False, **quiet)
    method = FeatureLibrary(2, PYRAMID, coreset=100, normalise=normalise, neighbours=3, routing=ClassRouting())
    loop.fit(method, loader(samples()), loader(samples(4, seed=5)))
    batch = collate(samples(3, defects=True, seed=9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = method.eval().score_map(batch["image"])
    assert score.dtype == torch.float32
    assert auroc(score, batch["mask"]) == pytest.approx(auroc(method.score_map(batch["image"]), batch["mask"]), abs=0.05)


def test_feature_library__of_one_image_keeps_a_usable_part_of_it(tmp_path):
    image = (torch.rand(160, 160, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    for part in ("train", "test"):
        (tmp_path / f"part/{part}/good").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / f"part/{part}/good/0.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        method = FeatureLibrary(3, coreset=0.9)
        trainer(tmp_path).fit(method, IndustrialDataModule(tmp_path))
    assert any("calibrated on blocks" in str(one.message) for one in said)
    assert not any("patches of the training images" in str(one.message) for one in said)
    assert len(method.library) > 180  # of 400


def test_feature_library__says_how_little_void_leaves_of_it(tmp_path):
    data = samples(2)
    for one in data:
        one["mask"][::8] = 255
    with pytest.warns(UserWarning, match=r"Only 448 of the 1536 patches .*calibration_block=.*finer encoder"):
        fitted(tmp_path, data, encoder=RandomPyramid(4, (1,)), patch=3)
    for one in data:
        one["mask"].fill_(0)
        one["mask"][:16] = 255
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*patches of the training images")
        fitted(tmp_path, data)


def test_feature_library__is_the_distance_to_the_nearest_normal_patch(tmp_path):
    data = samples(2)
    options = {"encoder": RandomPyramid(6, (0,)), "patch": 1, "coreset": 0.999, "normalise": "none", "smoothing": 0.0}
    method, _ = fitted(tmp_path, data, **options)
    image = torch.stack([one["image"] for one in samples(2, seed=3)])
    patches = []
    for one in data:
        patches.append(method.net(method._standardised(one["image"][None]), torch.ones(1, 48, 64, dtype=torch.bool))[0][0].flatten(1).T)
    queries = method.net(method._standardised(image), torch.ones(2, 48, 64, dtype=torch.bool))[0].movedim(1, -1).flatten(0, 2)
    expected = torch.cat([torch.cdist(part, torch.cat(patches)).amin(1) for part in queries.split(1024)]).view(2, 48, 64)
    close = (method.score(image) - expected).abs() <= method.radius * 2  # the coreset leaves a thousandth out
    assert bool(close.all())
    assert float((method.score(image) - expected).abs().median()) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder": BANK, "neighbours": 3},
        {"position": PatchPosition(1.0, 1.0), "normalise": "whiten"},
        {"routing": ClassRouting(restrict=True), "neighbours": 4, "data": samples(12, periods=(4, 10))},
    ],
    ids=["plain", "bank", "position", "routing"],
)
def test_feature_library__tests_predicts_and_reloads(tmp_path, options):
    method, loop = fitted(tmp_path, **options)
    loop.test(method, loader(samples(4, defects=True, seed=5)), verbose=False)
    assert loop.callback_metrics["test_auroc"] > 0.7
    loop.save_checkpoint(tmp_path / "library.ckpt")
    image = torch.stack([one["image"] for one in samples(3, defects=True, seed=7)])
    again = load(tmp_path / "library.ckpt")
    assert torch.equal(again(image), method(image))
    prediction = loop.predict(method, loader(samples(4, seed=5)))[0]
    assert prediction["heatmap"].shape == (2, 48, 64)
    assert ("category" in prediction) == (method.router is not None)


def test_feature_library__keeps_a_greedy_coreset_of_the_share_or_number(tmp_path):
    assert len(fitted(tmp_path, coreset=0.25)[0].library) == round(0.25 * 8 * 24 * 32)
    method, loop = fitted(tmp_path, coreset=40)
    assert len(method.library) == 40
    assert float(loop.callback_metrics["library_patches"]) == 40
    assert float(fitted(tmp_path, coreset=400)[0].radius) < float(method.radius)


def test_feature_library__holds_no_more_patches_than_its_memory(tmp_path):
    method, _ = fitted(tmp_path, coreset=0.5, memory=100)
    assert len(method.library) == 50
    batch = collate(samples(3, defects=True, seed=9))
    assert auroc(method.score_map(batch["image"]), batch["mask"]) > 0.8


def poisoned(value, where):
    """Training images with a part that must not count, of any values."""
    data = samples()
    for one in data:
        one["image"][:, 8:24, 8:24] = value
        one["mask"][8:24, 8:24] = where
    return data


@pytest.mark.parametrize("encoder", [RandomPyramid(4, (0,)), FilterBankFeatures((0.5,), step=2)], ids=["pyramid", "bank"])
@pytest.mark.parametrize("where", [1, 255])
def test_feature_library__learns_nothing_from_void_or_anomalous_patches(tmp_path, encoder, where):
    size = 8 * (48 * 64 - 18 * 18) if isinstance(encoder, RandomPyramid) else 8 * (24 * 32 - 10 * 10)
    options = {"encoder": encoder, "coreset": 0.01, "routing": ClassRouting()}
    one, _ = fitted(tmp_path, poisoned(0.0, where), **options)
    assert len(one.library) == round(0.01 * size)
    for data in (poisoned(77.0, where), poisoned(torch.nan, 0)):
        other, _ = fitted(tmp_path, data, **options)
        pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for (name, a), b in pairs if not name.startswith("calibration"))


def test_feature_library__scores_images_of_any_size_with_holes(tmp_path):
    method, _ = fitted(tmp_path)
    image = stripes(0, torch.Generator().manual_seed(3), size=(37, 53))[None].clone()
    whole = method.score_map(image)
    image[:, :, :6, :6] = torch.nan
    score = method.score_map(image)
    assert score.shape == (1, 37, 53)
    assert bool(score.isfinite().all())
    torch.testing.assert_close(score[:, 30:, 34:], whole[:, 30:, 34:])
    assert bool(method.score_map(torch.full((1, 2, 16, 16), torch.nan)).isfinite().all())


def rimmed(count, seed, misplaced=False):
    """Images with a bright rim of 6 pixels; the misplaced ones have a piece of rim in the middle."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        image = 0.2 * torch.randn(1, 48, 64, generator=generator)
        image[:, :, :8] += 3.0
        mask = torch.zeros(48, 64, dtype=torch.int64)
        if misplaced:
            image[:, 12:36, 28:36] += 3.0
            mask[12:36, 28:36] = 1
        found.append({"image": image, "mask": mask, "name": str(index)})
    return found


def test_feature_library__with_position_knows_where_things_belong(tmp_path):
    test = collate(rimmed(4, 7, misplaced=True))
    found = []
    for position in (None, PatchPosition(border=1.0)):
        method = FeatureLibrary(1, FilterBankFeatures((0.5,), step=4), 1, 0.5, position=position, normalise="standardise", smoothing=0.0)
        trainer(tmp_path).fit(method, loader(rimmed(6, 0)), loader(rimmed(2, 1)))
        found.append(auroc(method.score_map(test["image"]), test["mask"]))
    assert found[1] > found[0] + 0.1
    assert found[1] > 0.9


def test_feature_library__routes_images_and_puts_classes_on_one_scale(tmp_path):
    data = samples(16, periods=(4, 12))
    for one in data[1::2]:
        one["image"] += 0.9 * torch.randn(one["image"].shape, generator=torch.Generator().manual_seed(len(one["name"])))  # a rough class
    method, _ = fitted(tmp_path, data, routing=ClassRouting())
    assert method.router.names == ["period 12", "period 4"]
    image = torch.stack([one["image"] for one in data[:4]])
    score = method.score_map(image)
    assert method.route.index.tolist() == [1, 0, 1, 0]
    plain, _ = fitted(tmp_path, data, routing=ClassRouting(per_class=False))
    gap = plain.score_map(image).flatten(1).median(1).values
    level = score.flatten(1).median(1).values
    assert float((gap[0] - gap[1]).abs() / gap.std()) > float((level[0] - level[1]).abs() / level.std()) or float(level.abs().max()) < 1.0
    flat = method.score_map(torch.full((1, 2, 48, 64), 9.0))
    assert method.further_maps["category"].unique().tolist() == [-1]  # of no class that it has seen
    assert bool(flat.isfinite().all())


def test_feature_library__searches_the_part_of_the_class_alone(tmp_path):
    data = samples(12, periods=(4, 12))
    everywhere, _ = fitted(tmp_path, data, routing=ClassRouting(per_class=False))
    within, _ = fitted(tmp_path, data, routing=ClassRouting(per_class=False, restrict=True))
    image = torch.stack([one["image"] for one in samples(4, periods=(4, 12), seed=4)])
    assert bool((within.score(image) >= everywhere.score(image) - 1e-6).all())
    assert torch.equal(within.library_class, everywhere.library_class)
    assert within.library_class.unique().tolist() == [0, 1]


def test_feature_library__wants_categories_to_route_by(tmp_path):
    data = [{k: v for k, v in one.items() if k != "category"} for one in samples()]
    with pytest.raises(ValueError, match=r"`category`.*routing=None"):
        fitted(tmp_path, data, routing=ClassRouting())


def test_feature_library__of_one_image_scores(tmp_path):
    method, _ = fitted(tmp_path, samples(1), routing=ClassRouting(), neighbours=3)
    assert bool(method.score_map(samples(1, seed=4)[0]["image"][None]).isfinite().all())


def test_feature_library__refuses_another_encoder(tmp_path):
    _, loop = fitted(tmp_path)
    path = tmp_path / "library.ckpt"
    loop.save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"encoder that the library was made with.*seed.*: 1"):
        FeatureLibrary.load_from_checkpoint(path, encoder=RandomPyramid(8, (1, 2), seed=1))
    other = FeatureLibrary(2, RandomPyramid(8, (1, 2), seed=1))
    kept = {name: value for name, value in torch.load(path, weights_only=True)["state_dict"].items() if not name.startswith("net.")}
    other.on_load_checkpoint({"state_dict": kept})
    other.load_state_dict(kept, strict=False)
    with pytest.raises(CheckpointError, match="weights have changed"):
        other.score(torch.rand(1, 2, 48, 64))


def test_feature_library__is_the_same_every_time(tmp_path):
    one, _ = fitted(tmp_path, memory=500)
    other, _ = fitted(tmp_path, memory=500)
    assert torch.equal(one.library, other.library)
    assert not torch.equal(one.library, fitted(tmp_path, memory=500, seed=1)[0].library)


def test_feature_library__is_not_used_before_it_is_fitted():
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        FeatureLibrary(3, PYRAMID).score(torch.rand(1, 3, 16, 16))


def test_feature_library__names_both_band_counts(tmp_path):
    method, _ = fitted(tmp_path)
    with pytest.raises(ValueError, match=r"2 bands.*got 3"):
        method.score(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"in_channels=4 bands.*got 2"):
        fitted(tmp_path, samples(), bands=4)


def test_feature_library__says_that_no_patch_is_normal(tmp_path):
    data = samples(2)
    for one in data:
        one["mask"][::4] = 255
    with pytest.raises(ValueError, match="patches of normal pixels"):
        fitted(tmp_path, data)


@pytest.mark.parametrize("wrong", [{"patch": 2}, {"coreset": 0.0}, {"coreset": 2.5}, {"neighbours": 0}, {"memory": 1}, {"smoothing": -1.0}])
def test_feature_library__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        FeatureLibrary(2, PYRAMID, **wrong)


JOB = """
import json, sys
import lightning.pytorch as pl
import torch
sys.path.insert(0, sys.argv[3])
from test_feature_library import BANK, ClassRouting, FeatureLibrary, loader, samples

torch.set_num_threads(1)
devices, folder = int(sys.argv[1]), sys.argv[2]
quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, num_sanity_val_steps=0, enable_checkpointing=False)
trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", default_root_dir=folder, **quiet)
method = FeatureLibrary(2, BANK, coreset=0.2, routing=ClassRouting())
trainer.fit(method, loader(samples(9, periods=(4, 12))), loader(samples(4, seed=5)))
if trainer.is_global_zero:
    with torch.no_grad():
        score = method.eval().score_map(torch.stack([one["image"] for one in samples(2, True, seed=7)]))
    found = {"score": score[:, ::8, ::8].flatten().tolist(), "library": len(method.library), "limit": method.router.limit.tolist()}
    open(folder + "/found.json", "w").write(json.dumps(found))
"""


def job(devices, folder, here):
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    command = [sys.executable, str(folder / "job.py"), str(devices), str(folder), here]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_feature_library__of_two_processes_is_that_of_one(tmp_path, request):
    here = str(request.path.parent)
    one, two = job(1, tmp_path / "one", here), job(2, tmp_path / "two", here)
    assert one["library"] == two["library"] == round(0.2 * 9 * 12 * 16)
    assert one["limit"] == pytest.approx(two["limit"], rel=1e-3)
    assert one["score"] == pytest.approx(two["score"], rel=1e-2, abs=1e-2)


def test_padding__does_not_keep_the_patches_of_its_rim_out_of_the_library(tmp_path):
    def noise(count, seed):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.zeros(46, 46, dtype=torch.int64)  # padded to 48, so that the last cells of 8 pixels hold two of padding
        return [{"image": torch.randn(2, 46, 46, generator=generator), "mask": mask, "name": str(i)} for i in range(count)]

    torch.manual_seed(0)
    method = FeatureLibrary(2, encoder=RandomPyramid(8, (2,)), smoothing=0.0, coreset=24 * 36)
    trainer(tmp_path).fit(method, loader(noise(24, 0)), loader(noise(2, 1)))
    assert method.library.shape[0] == 24 * 36
    with torch.no_grad():
        score = method.eval().score_map(torch.stack([one["image"] for one in noise(16, 2)])).mean(0)
    rim = score.new_zeros(46, 46, dtype=torch.bool)
    rim[-6:], rim[:, -6:] = True, True
    opposite = rim.flip(0, 1)
    assert float(score[rim & ~opposite].mean()) < 1.1 * float(score[opposite & ~rim].mean())


def test_void__that_covers_whole_cells_is_said_to_leave_few_patches(tmp_path):
    data = samples()
    for one in data:
        one["mask"][:, 16:] = 255
    with pytest.warns(UserWarning, match=r"Only \d+ of the 6144 patches"):  # 8 images of 24 x 32 cells
        fitted(tmp_path, data)
