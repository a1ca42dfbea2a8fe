import random
import warnings
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from anomseg.callbacks.collapse_monitor_probe import untouched
from anomseg.callbacks.defect_validator import DefectFigures, DefectValidator, _values
from anomseg.data.defect_base import Defect
from anomseg.data.defects import CutPaste
from anomseg.functional.bootstrap import Interval
from anomseg.methods.base import AnomalySegmenter
from anomseg.sample import collate

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*exists and is not empty.*")


@dataclass(frozen=True)
class Bright(Defect):
    """Add to a square: 40 at strength 1, far above the noise."""

    def paint(self, surface, generator, others):
        row, column = torch.randint(10, (2,), generator=generator).tolist()
        cover = torch.zeros(surface.size)
        cover[row : row + 4, column : column + 4] = 1
        return surface.image + 40 * self.strength, cover


@dataclass(frozen=True)
class Unseen(Defect):
    """Change the second band alone, which the method below does not look at."""

    def paint(self, surface, generator, others):
        cover = torch.zeros(surface.size)
        row = int(torch.randint(10, (), generator=generator))
        cover[row : row + 4, 3:7] = self.strength
        return torch.stack([surface.image[0], surface.image[1] + 50]), cover


@dataclass(frozen=True)
class FixedBright:
    """Add to one place whatever the image holds, and to rows below."""

    strength: float = 1.0

    def apply(self, image, generator, others):
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        mask[4:8, 4:8] = mask[13:15] = True
        return torch.where(mask, image + 40 * self.strength, image), mask


class FirstBand(AnomalySegmenter):
    """Score by the first band; draws random numbers, and has a part in evaluation mode, to see what is left of both."""

    def __init__(self, calibration=None, optimisation=None):
        super().__init__(calibration, optimisation)
        self.level = nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm2d(2)

    def training_step(self, batch, batch_idx):
        return (batch["image"].nan_to_num() - self.level).square().mean()

    def score(self, image):
        torch.rand(3), random.random(), np.random.rand()
        self.norm(image.nan_to_num())
        return image.nan_to_num()[:, 0] - self.level


def sample(index, anomalous=False):
    generator = torch.Generator().manual_seed(index)
    image, mask = torch.randn(2, 16, 16, generator=generator), torch.zeros(16, 16, dtype=torch.long)
    if anomalous:
        mask[4, 4] = 1
        image += 1000
    image[:, 0] = torch.nan
    return {"image": image, "mask": mask, "name": f"a/good/{index}"}


def loader(samples):
    return torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate)


def images(count=24):
    return loader([sample(i, i % 4 == 3) for i in range(count * 4 // 3)])


def fit(tmp_path, callbacks, epochs=1, data=None, **arguments):
    quiet = {**QUIET, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=epochs, callbacks=callbacks, limit_train_batches=1, **{**quiet, **arguments})
    method = FirstBand()
    loop.fit(method, images(8), data or images())
    return method, loop


def test_validator__logs_each_defect_at_each_strength_and_the_worst(tmp_path):
    validator = DefectValidator([Bright(), Unseen()], strengths=(0.01, 1.0))
    _, loop = fit(tmp_path, [validator])
    logged = {k: float(v) for k, v in loop.callback_metrics.items() if k.startswith("defects/")}
    names = {f"{kind}@{strength}" for kind in ("Bright", "Unseen") for strength in ("0.01", "1")}
    assert set(validator.figures) == names
    assert {f"defects/{name}/{figure}" for name in names for figure in ("auroc", "image_auroc")} <= set(logged)
    assert logged["defects/Bright@1/image_auroc"] == logged["defects/Bright@1/auroc"] == 1.0
    assert logged["defects/Unseen@1/image_auroc"] == 0.5  # what it changes does not reach the score
    assert logged["defects/Bright@0.01/image_auroc"] < 1
    assert logged["defects/worst_image_auroc"] == min(logged[f"defects/{name}/image_auroc"] for name in names)
    assert logged["defects/worst_auroc"] == min(logged[f"defects/{name}/auroc"] for name in names)
    assert logged["defects/worst_image_auroc_low"] <= logged["defects/worst_image_auroc"] <= logged["defects/worst_image_auroc_high"]
    assert logged["defects/images"] == 24  # the anomalous ones are left out
    cut = [min(logged[f"defects/{name}/{figure}"], 0.999) for name in names for figure in ("auroc", "image_auroc")]
    assert logged["defects/select"] == pytest.approx(sum(cut) / 8, abs=1e-6)
    assert validator.table().splitlines()[2].startswith("| Unseen@") or validator.table().splitlines()[2].startswith("| Bright@0.01")
    assert len(validator.table().splitlines()) == 2 + 4


def test_validator__measures_the_same_again_and_another_seed_differently(tmp_path):
    first, again, other = (DefectValidator([Bright()], strengths=(0.03,), images=20, seed=seed) for seed in (0, 0, 1))
    for validator in (first, again, other):
        fit(tmp_path, [validator])
    assert first.figures == again.figures != other.figures


def test_validator__draws_its_images_from_all_that_come(tmp_path):
    chosen = []

    class Seen(DefectValidator):
        def _spoilt(self, defect, case, index, rank):
            chosen.append(float(self._held[index].image[0, 5, 5]))
            return DefectValidator._spoilt(self, defect, case, index, rank)

    validator = Seen([Bright()], strengths=None, images=10, minimum=5)
    fit(tmp_path, [validator], data=loader([sample(i) for i in range(40)]))
    places = [i for i in range(40) if float(sample(i)["image"][0, 5, 5]) in chosen]
    assert len(chosen) == len(places) == 10
    assert min(places) < 20 <= max(places)


def state():
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_validator__leaves_random_states_modes_gradients_and_weights_alone(tmp_path):
    method, loop = fit(tmp_path, [validator := DefectValidator([Bright(), CutPaste()], images=20)])
    method.train()
    method.norm.eval()
    method.level.grad = torch.tensor(3.0)
    weights = {k: v.clone() for k, v in method.state_dict().items()}
    validator.on_validation_epoch_start(loop, method)
    before = state()
    for batch in images():
        after_batch = state()
        validator.on_validation_batch_end(loop, method, None, batch, 0)
        assert state() == after_batch
        before = after_batch
    with untouched(method):
        found, images_used = validator._measured(loop, method)
    assert state() == before
    assert images_used == 20
    assert set(found) == set(validator.cases)
    assert method.training
    assert not method.norm.training
    assert float(method.level.grad) == 3.0
    assert all(torch.equal(v, weights[k]) for k, v in method.state_dict().items())


def test_training__is_the_same_with_and_without_the_validator(tmp_path):
    def trained(callbacks):
        pl.seed_everything(0, verbose=False)
        method, _ = fit(tmp_path, callbacks, epochs=2)
        return [p.clone() for p in method.parameters()], state()

    plain, watched = trained([]), trained([DefectValidator([CutPaste()], strengths=(0.5,), images=20)])
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert plain[1] == watched[1]


def test_saturated_figure__is_said_and_may_not_choose_a_checkpoint(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "kept", monitor="defects/Bright@1/auroc", mode="max", filename="{epoch}")
    validator = DefectValidator([Bright(), Unseen()], strengths=(1.0,))
    with (
        pytest.warns(UserWarning, match=r"'defects/Bright@1/auroc' is saturated: at least 0.999 at 2 validations"),
        pytest.raises(RuntimeError, match=r"(?s)'defects/Bright@1/auroc' has been at least 0.999.*Monitor 'defects/select'"),
    ):
        fit(tmp_path, [validator, checkpoint], epochs=4)
    assert validator.saturated == ["defects/Bright@1/auroc", "defects/Bright@1/image_auroc"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["epoch=0.ckpt"]  # none was chosen by it since


@pytest.mark.filterwarnings("ignore:.*is saturated:UserWarning")
def test_what_can_still_tell_checkpoints_apart__may_choose_and_saturation_may_only_be_said(tmp_path):
    for figure, cases in (("defects/select", [Bright(), Unseen()]), ("defects/worst_auroc", [Bright(), Unseen()])):
        checkpoint = ModelCheckpoint(tmp_path / figure, monitor=figure, mode="max")
        _, loop = fit(tmp_path, [DefectValidator(cases, strengths=(1.0,)), checkpoint], epochs=3)
        assert loop.current_epoch == 3
    checkpoint = ModelCheckpoint(tmp_path, monitor="defects/select", mode="max")
    with pytest.raises(RuntimeError, match="'defects/select' has been"):  # every figure is saturated
        fit(tmp_path, [DefectValidator([Bright()], strengths=(1.0,)), checkpoint], epochs=3)
    with pytest.warns(UserWarning, match="Expected a monitored figure that tells checkpoints apart"):
        fit(tmp_path, [DefectValidator([Bright()], strengths=(1.0,), on_saturated="warn"), checkpoint], epochs=3)


def test_saturation__needs_two_validations_in_a_row_and_outlives_a_checkpoint():
    validator = DefectValidator([Bright()], strengths=(1.0,))
    loop = pl.Trainer(**QUIET, enable_checkpointing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (1.0, 0.9, 1.0):
            validator._judge(loop, {"defects/Bright@1/auroc": value})
        assert validator.saturated == []
        resumed = DefectValidator([Bright()], strengths=(1.0,))
        resumed.load_state_dict(validator.state_dict())
        resumed._judge(loop, {"defects/Bright@1/auroc": 1.0})
    assert resumed.saturated == ["defects/Bright@1/auroc"]


def test_select__does_not_fall_where_an_easy_figure_saturates():
    def select(easy, hard):
        figures = {"easy": DefectFigures(easy, easy, Interval(0, 1)), "hard": DefectFigures(hard, hard, Interval(0, 1))}
        return _values(figures, 0.999)["defects/select"]

    assert select(0.9995, 0.65) > select(0.99, 0.6)
    assert select(1.0, 0.65) == select(0.9995, 0.65)


def test_few_images__are_said_with_their_interval(tmp_path):
    with pytest.warns(UserWarning, match=r"into few images \(6 < 20\), intervals are wide: Bright@1.*\[0.292, 1.000\] of 6"):
        fit(tmp_path, [DefectValidator([Bright()], strengths=(1.0,))], data=images(6))


def test_constant_score__is_said(tmp_path):
    class Constant(FirstBand):
        def score(self, image):
            return torch.zeros_like(image[:, 0])

    loop = pl.Trainer(default_root_dir=tmp_path, callbacks=[DefectValidator([Bright()])], enable_checkpointing=False, **QUIET)
    with pytest.warns(UserWarning, match="Every image has one constant score"):
        loop.validate(Constant(), images(), verbose=False)


def test_no_normal_image__is_said(tmp_path):
    with pytest.warns(UserWarning, match="Found no normal image"):
        fit(tmp_path, [DefectValidator([Bright()])], data=loader([sample(i, True) for i in range(4)]))


def test_labels__stand_above_the_masks(tmp_path):
    samples = [{**sample(i), "image_label": torch.tensor((0, 1, 255)[i % 3])} for i in range(12)]
    validator = DefectValidator([Bright()], strengths=(1.0,), minimum=1)
    _, loop = fit(tmp_path, [validator], data=loader(samples))
    assert float(loop.callback_metrics["defects/images"]) == 4


def test_pixels_without_truth__have_no_influence(tmp_path):
    clean = [sample(i) for i in range(20)]
    masked = [{**s, "mask": s["mask"].clone(), "image": s["image"].clone()} for s in clean]
    for s in masked:
        s["mask"][12:] = 255
    spoilt = [{**s, "image": s["image"].clone()} for s in masked]
    validators = [DefectValidator([FixedBright()], strengths=(0.05,)) for _ in range(2)]
    for s in spoilt:
        s["image"][0, 12:] += 500
    for validator, data in zip(validators, (masked, spoilt), strict=True):
        fit(tmp_path, [validator], data=loader(data))
    assert validators[0].figures == validators[1].figures


@pytest.mark.parametrize(
    "arguments", [{"images": 0}, {"saturation": 0.4}, {"on_saturated": "stop"}, {"replicates": 0}, {"defects": []}, {"strengths": ()}]
)
def test_bad_arguments__are_named(arguments):
    with pytest.raises(ValueError, match="Expected"):
        DefectValidator(**arguments)


def test_defects__must_have_names_of_their_own():
    with pytest.raises(ValueError, match="but got 'Bright@1' twice"):
        DefectValidator([Bright(), replace(Bright(), size=(0.1, 0.2))], strengths=(1.0,))


def test_pairs_of_dates__are_refused(tmp_path):
    validator = DefectValidator([Bright()])
    batch = {"image": torch.zeros(1, 2, 3, 8, 8), "mask": torch.zeros(1, 8, 8, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"Expected images \(B, C, H, W\) to put defects into"):
        validator.on_validation_batch_end(pl.Trainer(**QUIET, enable_checkpointing=False), FirstBand(), None, batch, 0)


def test_validator__holds_no_generator_that_spawned_processes_cannot_be_sent():
    assert not [name for name, value in vars(DefectValidator()).items() if isinstance(value, torch.Generator)]


def test_validator__takes_boolean_masks_of_images_with_missing_data(tmp_path):
    samples = [sample(i) for i in range(8)]
    for one in samples:
        one["mask"] = one["mask"].bool()
    validator = DefectValidator([Bright()], strengths=None, minimum=1)
    fit(tmp_path, [validator], data=loader(samples))
    assert set(validator.figures) == {"Bright@1"}
