import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anomseg.callbacks.collapse_monitor import CollapseMonitor
from anomseg.callbacks.collapse_monitor_rules import CollapseLimits
from anomseg.data.synthetic import SyntheticDataModule
from anomseg.methods.base import AnomalySegmenter
from anomseg.methods.rx import RX
from anomseg.methods.svdd import SVDD
from anomseg.nets.patch_descriptor import PatchDescriptor
from anomseg.sample import collate

EAGER = CollapseLimits(min_steps=0)


class Small(AnomalySegmenter):
    """An autoencoder with a norm that has running statistics, dropout, and a part that is frozen in evaluation mode."""

    def __init__(self, lr=1e-2, spoil_from=None):
        super().__init__()
        self.lr, self.spoil_from = lr, spoil_from
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.decoder, self.frozen = nn.Conv2d(8, 3, 3, padding=1), nn.Sequential(nn.Dropout(0.5)).eval()
        self.modes = []

    def on_train_epoch_start(self):
        self.frozen.eval()

    def training_step(self, batch, batch_idx):
        self.modes.append((self.training, self.encoder.training, self.frozen.training))
        loss = F.mse_loss(self.reconstruct(batch["image"]), batch["image"])
        self.log("loss_pixels", loss.detach())
        spoilt = self.spoil_from is not None and self.current_epoch >= self.spoil_from
        return (-loss if spoilt else loss) + 0.0 * torch.rand(())

    def reconstruct(self, image):
        return self.decoder(self.frozen(self.encoder(image)))

    def features(self, image):
        return self.encoder(image)

    def score(self, image):
        return (self.reconstruct(image) - image).square().sum(1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def data(count=16, batch=4):
    g = torch.Generator().manual_seed(0)
    waves = torch.arange(16) * (0.3 + torch.rand(count, 3, 1, 1, generator=g))
    samples = [{"image": one.expand(3, 16, 16).sin(), "mask": torch.zeros(16, 16, dtype=torch.int64)} for one in waves]
    return DataLoader(samples, batch_size=batch, shuffle=True, collate_fn=collate)


def fit(folder, monitor=None, method=None, epochs=3, served=None, **options):
    pl.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", callbacks=[monitor] if monitor else [], **{**quiet, **options}
    )
    torch.manual_seed(0)
    method = method or Small()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*")
        loop.fit(method, served or data())
    return method, loop


def same(first, second):
    """Compare states bit by bit, of which some are NaN before calibration."""
    return first.keys() == second.keys() and all(torch.equal(first[k].nan_to_num(-7.0), second[k].nan_to_num(-7.0)) for k in first)


def test_monitor__observes_only(tmp_path):
    torch.manual_seed(1)
    first = Small()
    second = copy.deepcopy(first)
    fit(tmp_path, None, first)
    state = torch.get_rng_state()
    fit(tmp_path, CollapseMonitor(limits=EAGER), second)
    assert torch.equal(state, torch.get_rng_state())
    assert same(first.state_dict(), second.state_dict())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.modes == second.modes == [(True, True, False)] * 12
    assert not any(part._forward_hooks for part in second.modules())


def test_monitor__logs_figures_and_keeps_those_of_the_last_check(tmp_path):
    monitor = CollapseMonitor(every_n_epochs=2, probes=5)
    _, loop = fit(tmp_path, monitor, epochs=4)
    logged = {name.removeprefix("collapse/"): float(v) for name, v in loop.callback_metrics.items() if name.startswith("collapse/")}
    assert logged == pytest.approx(monitor.figures)
    assert {"variance_ratio", "distance_ratio", "skill", "copied", "error_contrast", "feature_rank", "update_ratio", "loss"} <= set(logged)
    assert monitor._probe.image.shape == (5, 3, 16, 16)
    assert monitor.verdicts == []


def test_monitor__checks_every_so_many_epochs(tmp_path):
    checked = []
    monitor = CollapseMonitor(every_n_epochs=2)
    method = Small()
    method.on_train_epoch_end = lambda: checked.append(bool(monitor.figures) and monitor.figures.clear() is None)
    fit(tmp_path, monitor, method, epochs=5)
    assert checked == [False, True, False, True, False]


def test_monitor__warns_once_and_says_what_to_do(tmp_path):
    monitor = CollapseMonitor(limits=EAGER)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=5, accelerator="cpu", callbacks=[monitor], **quiet)
    with pytest.warns(UserWarning, match=r"Collapse: not learning \(epoch 1: moved 0, .* check the learning rate") as caught:
        loop.fit(Small(lr=0.0), data())
    assert sum("Collapse" in str(one.message) for one in caught) == 1
    assert [one.word for one in monitor.verdicts] == ["not learning"]
    assert loop.current_epoch == 5


def test_monitor__stops_where_asked_to(tmp_path):
    _, loop = fit(tmp_path, CollapseMonitor(action="stop", limits=EAGER), Small(lr=0.0), epochs=9)
    assert loop.current_epoch == 2


class Record(pl.Callback):
    def __init__(self):
        self.states, self.skills = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.state_dict()))
        self.skills.append(float(trainer.callback_metrics["collapse/skill"]))


def test_monitor__restores_the_weights_of_the_best_sound_check(tmp_path):
    monitor, record = CollapseMonitor(action="restore_best"), Record()
    pl.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=20, accelerator="cpu", callbacks=[monitor, record], **quiet)
    method = Small(lr=3e-2, spoil_from=6)
    with pytest.warns(UserWarning, match="weights of epoch . are restored"):
        loop.fit(method, data(32))
    assert any(one.word.startswith("diverged at epoch") for one in monitor.verdicts)
    assert loop.current_epoch < 20
    best = max(range(len(record.skills)), key=lambda i: record.skills[i])
    assert best <= 6
    assert same(method.state_dict(), record.states[best])


def test_monitor__restores_nothing_where_all_is_well_or_nothing_was(tmp_path):
    monitor, record = CollapseMonitor(action="restore_best"), Record()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=3, accelerator="cpu", callbacks=[monitor, record], **quiet)
    method = Small()
    loop.fit(method, data())
    assert same(method.state_dict(), record.states[-1])
    loop = pl.Trainer(
        default_root_dir=tmp_path,
        max_epochs=5,
        accelerator="cpu",
        callbacks=[CollapseMonitor(action="restore_best", limits=EAGER)],
        **quiet,
    )
    with pytest.warns(UserWarning, match="No check of this training was sound"):
        loop.fit(Small(lr=0.0), data())


def test_monitor__restores_a_method_with_fitted_buffers(tmp_path):
    limits = CollapseLimits(feature_rank=1e9, patience=3, min_steps=6)  # the third check and those after it are called a collapse
    monitor = CollapseMonitor(action="restore_best", limits=limits)
    spec = PatchDescriptor(scales=(1.0,))
    scenes = SyntheticDataModule("multispectral", count=4, size=(32, 32), train_on="normal")
    method, loop = fit(tmp_path, monitor, SVDD(10, spec), epochs=9, served=scenes, limit_val_batches=0)
    assert [one.word for one in monitor.verdicts] == ["bottleneck collapsed"]
    assert loop.current_epoch < 9
    assert torch.isfinite(method.eval().score_map(torch.rand(1, 10, 20, 20))).all()


def test_monitor__leaves_methods_that_learn_nothing_alone(tmp_path):
    monitor = CollapseMonitor(action="stop", limits=EAGER)
    fit(tmp_path, monitor, RX(background="training"), served=SyntheticDataModule("multispectral", count=2, size=(32, 32)))
    assert monitor.figures == {}
    assert monitor.verdicts == []


def test_monitor__begins_anew_with_a_second_training(tmp_path):
    monitor = CollapseMonitor(limits=EAGER)
    fit(tmp_path, monitor, Small(lr=0.0))
    assert monitor.verdicts
    fit(tmp_path, monitor, Small())
    assert monitor.verdicts == []


def test_monitor__takes_limits_as_plain_fields_and_half_precision(tmp_path):
    monitor = CollapseMonitor(limits={"min_steps": 0, "copied": 0.7}, size=8)
    assert monitor.limits == CollapseLimits(min_steps=0, copied=0.7)
    fit(tmp_path, monitor, precision="bf16-mixed")
    assert monitor._probe.image.shape[-1] == 8
    assert monitor.figures["skill"] > 0


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"probes": 0}, {"action": "restore"}, {"size": 4}])
def test_monitor__refuses_arguments_that_do_not_fit(options):
    with pytest.raises(ValueError, match="Expected every_n_epochs"):
        CollapseMonitor(**options)
