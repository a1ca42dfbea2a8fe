import lightning.pytorch as pl
import pytest
import rasterio
import torch

from anomseg.callbacks.scene_writer import SceneWriter
from anomseg.checkpoint import load
from anomseg.data.change import ChangeDataModule
from anomseg.data.change_pairs import PairFiles
from anomseg.data.group_split import GroupSplit
from anomseg.data.pair_transform import Binarise, GlobalShift
from anomseg.data.synthetic_change import SyntheticChangeDataModule
from anomseg.functional.change_vector import change_magnitude
from anomseg.functional.irmad import irmad
from anomseg.functional.score_curves import f1_max
from anomseg.functional.score_histogram import count_scores
from anomseg.functional.smoothing import gaussian
from anomseg.methods.change_classical import IRMAD, ChangeVector


def trainer_in(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=1, **quiet, **options)


def pairs(bands=3):
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2, bands, 20, 18, generator=g)
    image[:, 1] = image[:, 0] + 0.1 * torch.rand(2, bands, 20, 18, generator=g)
    image[:, 1, :, 5:9, 5:9] += 0.7 * torch.rand(2, bands, 4, 4, generator=g)
    return image


@pytest.mark.parametrize("make", [lambda: ChangeVector("angle", reach=1, smoothing=1.0, sharpen=True), lambda: IRMAD(smoothing=1.0)])
def test_method__calibrates_tests_and_reloads(tmp_path, make):
    method, loop = make(), trainer_in(tmp_path)
    data = SyntheticChangeDataModule(train=1, val=2, test=2, size=(48, 48))
    loop.fit(method, data)
    loop.test(method, data, verbose=False)
    assert 0 < loop.callback_metrics["test_auroc"] <= 1
    image = pairs()
    assert torch.equal(load(loop.checkpoint_callback.best_model_path)(image), method.eval()(image))


def test_change_vector__without_options_is_the_magnitude():
    image = pairs()
    found = ChangeVector("mean", standardise=False).score(image)
    torch.testing.assert_close(found, change_magnitude(image[:, 0], image[:, 1], "mean"))


def test_change_vector__sharpened_is_the_smooth_map_times_the_raw_one():
    image = pairs()
    raw = ChangeVector().score(image)
    smooth = gaussian(raw, 2.0)
    torch.testing.assert_close(ChangeVector(smoothing=2.0).score(image), smooth)
    torch.testing.assert_close(ChangeVector(smoothing=2.0, sharpen=True).score(image), smooth * raw)


@pytest.mark.parametrize("method", [ChangeVector(), IRMAD(rounds=5)])
def test_method__does_not_see_gain_and_offset_of_a_date(method):
    image = pairs()
    moved = image.clone()
    moved[:, 1] = 2 * moved[:, 1] + 1
    torch.testing.assert_close(method.score(moved), method.score(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [ChangeVector(smoothing=1.0), IRMAD(rounds=5)])
def test_method__ignores_pixels_without_data(method):
    holed, poisoned = pairs(), pairs()
    holed[:, 0, 0, :4] = torch.nan
    poisoned[:, 0, 0, :4] = torch.nan
    poisoned[:, 1, :, :4] = 1e6
    found = method.score_map(holed)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(method.score_map(poisoned), found)


def test_irmad__scores_by_its_chi_square_distance():
    image = pairs()
    torch.testing.assert_close(IRMAD(rounds=4).score(image)[1], irmad(image[1, 0], image[1, 1], 4).distance)


@pytest.mark.parametrize("method", [ChangeVector(), IRMAD()])
def test_method__finds_the_change(method):
    score = method.score(pairs())
    assert score[:, 5:9, 5:9].mean() > 3 * score.mean()


def test_methods__refuse_what_does_not_fit():
    calls = (
        lambda: ChangeVector("norm"),
        lambda: ChangeVector(reach=-1),
        lambda: IRMAD(rounds=-1),
        lambda: IRMAD().score(torch.rand(1, 3, 4, 4)),
        lambda: ChangeVector().score(torch.rand(1, 3, 2, 4, 4)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="Expected"):
            call()


@pytest.mark.real
def test_change_vector__sharpened_finds_defects_that_the_difference_buries(real_data):
    split = GroupSplit(r"^\d{5}", test=("12000",))
    data = ChangeDataModule(real_data / "change" / "deeppcb", "deeppcb", split=split, prepare=[Binarise(), GlobalShift()])
    data.setup("test")
    found = {}
    for sharpen in (False, True):
        method = ChangeVector("mean", standardise=False, smoothing=2.0 if sharpen else 0.0, sharpen=sharpen)
        pixels = [(method.score_map(batch["image"]).flatten(), batch["mask"].flatten()) for batch in data.test_dataloader()]
        scores, mask = (torch.cat(parts) for parts in zip(*pixels, strict=True))
        found[sharpen] = float(f1_max(count_scores([scores], [scores[mask == 1]]))[0])
    assert found[False] < 0.3
    assert found[True] > 0.55


@pytest.mark.real
def test_irmad__finds_change_between_two_landsat_scenes_without_training(real_data, tmp_path):
    files = PairFiles("Taizhou", ("2000TM",), ("2003TM",), changed="change.bmp", unchanged="unchanged.bmp")
    data = ChangeDataModule(real_data / "change" / "landsat" / "Taizhou", pairs=[files], split="all_stages")
    figures = {}
    for method in (ChangeVector(), IRMAD()):
        trainer = trainer_in(tmp_path)
        trainer.fit(method, data)
        figures[type(method)] = trainer.test(method, data, verbose=False)[0]["test_auroc"]
    assert figures[IRMAD] >= 0.99
    assert figures[IRMAD] > figures[ChangeVector]


@pytest.mark.real
def test_irmad__maps_two_orthophotos_of_different_extent_into_one_georeferenced_file(real_data, tmp_path):
    files = PairFiles("naip", ("m_4709963_se_14_1_20090818.tif",), ("m_4709963_se_14_1_20120731.tif",))
    data = ChangeDataModule(real_data / "geo" / "naip", pairs=[files], split="all_stages", tile=256, overlap=64)
    trainer = trainer_in(tmp_path, callbacks=[SceneWriter(tmp_path / "maps")])
    method = IRMAD()
    trainer.fit(method, data)
    trainer.predict(method, data, return_predictions=False)
    with rasterio.open(next((tmp_path / "maps").glob("*heat*.tif"))) as heat:
        assert (heat.height, heat.width) == (722, 934)
        assert tuple(heat.transform)[:6] == (5.0, 0.0, 485900.0, 0.0, -5.0, 5209242.0)
        assert heat.crs.to_epsg() == 26914
        values = heat.read(1)
    assert 0 <= values.min() < values.max() <= 1


def test_irmad__scores_a_window_without_common_data_as_nothing():
    image = pairs()
    image[0, 0, :, :, : image.shape[-1] // 2], image[0, 1, :, :, image.shape[-1] // 2 :] = torch.nan, torch.nan
    score = IRMAD().score_map(image)
    assert bool((score[0] == 0).all())
    assert torch.equal(score[1:], IRMAD().score_map(image[1:]))
