import sys

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F

from anomseg.config import build, describe
from anomseg.errors import CheckpointError, MissingDependencyError
from anomseg.functional.filter_bank import filter_bank
from anomseg.nets.feature_encoder import (
    FilterBankFeatures,
    RandomPyramid,
    TimmFeatures,
    TrainedFeatures,
    covered_cells,
    fingerprint,
    joined_levels,
)

SPECS = [TimmFeatures(levels=(1, 2)), RandomPyramid(4, (1, 2)), FilterBankFeatures((1.0,), step=4)]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)


def image(bands=5, height=32, width=48, seed=0):
    return torch.randn(2, bands, height, width, generator=torch.Generator().manual_seed(seed))


def valid(height=32, width=48):
    return torch.ones(2, height, width, dtype=torch.bool)


@every_spec
@pytest.mark.parametrize("bands", [1, 3, 7])
def test_encoder__takes_any_bands_and_gives_finite_maps(spec, bands):
    net = spec.build(bands)
    x = image(bands)
    x[:, :, 3:9, 4:5] = torch.nan
    levels = net(x, torch.isfinite(x).all(1))
    assert all(level.isfinite().all() and level.shape[0] == 2 for level in levels)
    assert 32 % net.multiple == 48 % net.multiple == 0


@every_spec
def test_encoder__is_frozen_and_stays_in_evaluation_mode(spec):
    net = spec.build(3)
    net.train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    x = image(3)
    assert all(torch.equal(a, b) for a, b in zip(net(x, valid()), net(x, valid()), strict=True))


@pytest.mark.parametrize("kind", [TimmFeatures, RandomPyramid])
def test_encoder__draws_its_weights_from_its_seed_alone(kind):
    before = torch.get_rng_state()
    one = kind(levels=(1,), seed=3).build(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert torch.equal(fingerprint(one), fingerprint(kind(levels=(1,), seed=3).build(3)))
    assert not torch.equal(fingerprint(one), fingerprint(kind(levels=(1,), seed=4).build(3)))


def test_fingerprint__changes_with_any_weight():
    net = RandomPyramid(4, (0, 1)).build(3)
    before = fingerprint(net)
    with torch.no_grad():
        net.net.stages[1].bias[2] += 1e-7
    assert not torch.equal(before, fingerprint(net))


@every_spec
def test_spec__is_plain_data_for_a_checkpoint(spec):
    described = describe(spec)
    assert "class_path" in described
    assert build(described) == spec


def test_filter_bank_features__average_the_filter_bank_over_valid_pixels_of_cells():
    x, keep = image(2), valid()
    keep[:, :2, :3] = False
    (found,) = FilterBankFeatures((1.0,), 0.1, step=8).build(2)(x, keep)
    bank = filter_bank(torch.where(keep[:, None], x, torch.nan), (1.0,), 0.1)
    expected = bank.unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2).nanmean(-1)
    torch.testing.assert_close(found, expected)


def test_filter_bank_features__do_not_read_the_padding():
    x, keep = image(2), valid()
    keep[:, 28:] = False
    other = x.clone()
    other[:, :, 28:] = 55.0
    net = FilterBankFeatures((1.0,)).build(2)
    assert torch.equal(net(x, keep)[0], net(other, keep)[0])


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A checkpoint of a method that gives features."""
    from anomseg.data.synthetic import SyntheticDataModule
    from anomseg.methods.normal_density import NormalDensity

    monkeypatch.setattr(NormalDensity, "features", lambda self, image: F.avg_pool2d(self.inputs(image), 4), raising=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    loop = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False, num_sanity_val_steps=0, **quiet)
    method = NormalDensity(10, "gaussian")
    loop.fit(method, SyntheticDataModule("multispectral", count=2, size=(32, 36)))
    loop.save_checkpoint(tmp_path / "trained.ckpt")
    return tmp_path / "trained.ckpt", method


def test_trained_features__are_those_of_the_trained_method(trained):
    path, method = trained
    net = TrainedFeatures(str(path)).build(10)
    x = image(10).abs()
    (found,) = net(x, valid())
    torch.testing.assert_close(found, method.features(x))
    assert net.reads_raw


def test_trained_features__are_of_images_padded_as_the_method_pads_them(trained, monkeypatch):
    from anomseg.methods.normal_density import NormalDensity

    monkeypatch.setattr(NormalDensity, "feature_multiple", 12, raising=False)
    monkeypatch.setattr(NormalDensity, "size_multiple", 8)
    assert TrainedFeatures(str(trained[0])).build(10).multiple == 24


def test_trained_features__fill_what_holds_no_data(trained):
    x = image(10).abs()
    x[0, 2, 5:9] = torch.nan
    assert TrainedFeatures(str(trained[0])).build(10)(x, torch.isfinite(x).all(1))[0].isfinite().all()


def test_trained_features__are_rebuilt_without_the_file(trained):
    path, _ = trained
    spec = build(describe(TrainedFeatures(str(path))))
    weights = spec.build(10).state_dict()
    path.unlink()
    rebuilt = build(describe(spec)).build(10)
    assert {name: value.shape for name, value in rebuilt.state_dict().items() if value.numel()}.keys() <= weights.keys()
    with pytest.raises(FileNotFoundError):
        TrainedFeatures(str(path))


def test_trained_features__refuse_a_method_without_features(trained, monkeypatch):
    from anomseg.methods.normal_density import NormalDensity

    monkeypatch.delattr(NormalDensity, "features")
    with pytest.raises(CheckpointError, match=r"features\(image\).*NormalDensity"):
        TrainedFeatures(str(trained[0])).build(10)


def test_joined_levels__average_patches_and_meet_on_the_finest_grid():
    fine, coarse = image(2, 8, 12), image(3, 4, 6, 1)
    joined = joined_levels([coarse, fine], 3)
    assert joined.shape == (2, 5, 8, 12)
    torch.testing.assert_close(joined[0, 4, 3, 5], fine[0, 1, 2:5, 4:7].mean())
    torch.testing.assert_close(joined[0, 4, 0, 0], fine[0, 1, :2, :2].mean())  # no zeros from beyond the border
    assert torch.equal(joined_levels([fine], 1), fine)


def test_joined_levels__keep_a_constant_constant():
    assert torch.equal(joined_levels([torch.ones(1, 2, 6, 6), torch.ones(1, 1, 3, 3)], 5), torch.ones(1, 3, 6, 6))


def test_covered_cells__need_all_pixels_of_the_patch_or_one_of_the_cell():
    keep = valid(16, 16)
    keep[:, 0, 0] = False
    keep[:, 8:, 8:] = False
    whole, some = covered_cells(keep, (4, 4), 1)
    assert whole[0].int().tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert some[0].int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert covered_cells(keep, (4, 4), 3)[0][0].int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "wrong", [lambda: RandomPyramid(levels=()), lambda: TimmFeatures(levels=(-1,)), lambda: FilterBankFeatures(step=0)]
)
def test_spec__refuses_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError, match="Expected"):
        wrong()


def test_timm_features__name_levels_that_are_not_there():
    with pytest.raises(ValueError, match="levels of the pyramid of 'resnet18'"):
        TimmFeatures(levels=(9,)).build(3)


def test_timm_features__say_that_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        TimmFeatures().build(3)


def test_joined_levels__refuse_an_even_patch():
    with pytest.raises(ValueError, match="odd patch"):
        joined_levels([torch.ones(1, 1, 4, 4)], 2)
