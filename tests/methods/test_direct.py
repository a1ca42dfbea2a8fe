import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.data.synthetic_scenes import synthetic_scene
from anomseg.methods.direct import DirectDetection, DirectTraining, checked_map
from anomseg.metrics.pixel import PixelAUROC

QUICK = DirectTraining(nets=1, implants=6, steps=3, crop=24)


def scene(seed=0, kind="multispectral", size=(40, 44)):
    held = synthetic_scene(kind, size, seed)
    return held.image[None], held.mask[None]


def quick(**changes):
    recipe = {**vars(QUICK), **changes.pop("recipe", {})}
    return DirectDetection(components=5, recipe=DirectTraining(**recipe), **changes)


def measured(score, mask):
    metric = PixelAUROC()
    metric.update(score, mask)
    return float(metric.compute())


def test_direct__is_finite_and_depends_on_scene_and_seed_alone():
    image, _ = scene()
    first = quick(seed=1).score(image)
    torch.manual_seed(99)
    torch.rand(3)
    assert torch.isfinite(first).all()
    assert torch.equal(first, quick(seed=1).score(image))
    assert not torch.equal(first, quick(seed=2).score(image))


def test_direct__finds_targets_of_a_synthetic_scene():
    image, mask = scene(size=(56, 56))
    method = DirectDetection(recipe=DirectTraining(nets=1, implants=12))
    assert measured(method.score(image), mask) > 0.8


def test_direct__does_not_touch_the_global_random_state():
    image, _ = scene()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick().score(image)
    assert torch.equal(torch.rand(3), expected)


def test_direct__trains_a_scene_once(monkeypatch):
    from anomseg.methods import direct

    calls = []
    original = direct.teach
    monkeypatch.setattr(direct, "teach", lambda *a, **k: calls.append(1) or original(*a, **k))
    image, _ = scene()
    method = quick()
    first = method.score(image)
    with torch.inference_mode():
        assert torch.equal(method.score(image.clone()), first)
    assert len(calls) == 1
    quick(recipe={"rounds": 2}).score(image)
    assert len(calls) == 4


def test_direct__ignores_what_lies_in_pixels_without_data():
    image, _ = scene()
    poisoned = image.clone()
    void = ~torch.isfinite(image).all(1)[0]
    poisoned[0, 0, void] = 1e9  # one band is still NaN
    poisoned[0, 1, void] = torch.nan
    valid = ~void
    assert torch.equal(quick().score(image)[0, valid], quick().score(poisoned)[0, valid])


@pytest.mark.parametrize(
    "recipe", [{"losses": "cross_entropy"}, {"losses": "ranking"}, {"surrogate": "sigmoid"}, {"norm": "instance"}, {"norm": "batch"}]
)
@pytest.mark.parametrize("teacher", ["fusion", "none"])
def test_direct__runs_with_every_choice(recipe, teacher):
    score = quick(recipe={**recipe, "teacher": teacher}).score(scene()[0])
    assert torch.isfinite(score).all()
    assert score.std() > 0


@pytest.mark.parametrize("net", ["tdd", "uniadrs"])
def test_direct__takes_the_layouts_of_the_papers(net):
    score = quick(recipe={"net": net, "width": 0.05, "implants": 2, "steps": 2, "rounds": 1}).score(scene()[0])
    assert torch.isfinite(score).all()
    assert score.std() > 0


@pytest.mark.parametrize("teacher", ["area", "local", "global"])
def test_direct__takes_other_teachers(teacher):
    assert torch.isfinite(quick(recipe={"teacher": teacher}).score(scene()[0])).all()


@pytest.mark.parametrize("recipe", [{"labels": "threshold"}, {"positive_share": 0.0, "teacher": "area"}])
def test_direct__learns_from_other_labels(recipe):
    image, _ = scene()
    usual, other = quick(), quick(recipe=recipe)
    assert not torch.equal(usual.score(image), other.score(image))
    assert torch.isfinite(other.score(image)).all()


def test_direct__takes_one_band_and_repeated_bands():
    image, _ = scene()
    assert torch.isfinite(quick().score(image[:, :1])).all()
    assert torch.isfinite(quick().score(image[:, [0, 0, 1, 1]])).all()


def test_direct__scores_a_constant_scene_zero():
    assert (quick().score(torch.ones(1, 4, 30, 30)) == 0).all()


def test_direct__takes_scenes_of_the_same_values_in_another_shape():
    method = quick()
    assert method.score(torch.ones(1, 4, 30, 20)).shape == (1, 30, 20)
    assert method.score(torch.ones(1, 4, 20, 30)).shape == (1, 20, 30)


def test_checked_map__turns_an_inverted_map_and_says_so():
    label = torch.zeros(10, 10, dtype=torch.long)
    label[0, :3] = 1
    score = torch.rand(10, 10) - 5.0 * (label == 1)
    with pytest.warns(UserWarning, match="inverted"):
        turned = checked_map(score, label, torch.ones(10, 10, dtype=torch.bool))
    assert torch.equal(turned, -score)


def test_checked_map__refuses_a_collapsed_map():
    with pytest.raises(RuntimeError, match="collapsed"):
        checked_map(torch.full((5, 5), 2.0), torch.zeros(5, 5, dtype=torch.long), torch.ones(5, 5, dtype=torch.bool))


def test_direct__fits_tests_predicts_and_reloads_with_its_recipe(tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    loop = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet)
    data, method = SyntheticDataModule("multispectral", count=2, size=(40, 44)), quick(fused=True)
    loop.fit(method, data)
    loop.test(method, data, verbose=False)
    assert loop.callback_metrics["test_auroc"] > 0.5
    again = load(loop.checkpoint_callback.best_model_path)
    assert again.recipe == method.recipe
    assert again.simulation == method.simulation
    image = next(iter(data.predict_dataloader()))["image"]
    assert torch.equal(again(image), method(image))


@pytest.mark.real
def test_direct__with_the_classical_map_finds_the_targets_of_a_real_scene(real_data):
    from anomseg.data.read_scene import read_scene

    held = read_scene(real_data / "hyperspectral" / "hydice_urban.mat")
    assert measured(DirectDetection(fused=True).score(held.image[None]), held.mask[None]) > 0.99
