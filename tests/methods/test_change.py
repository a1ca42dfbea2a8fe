import lightning.pytorch as pl
import pytest
import torch

from anomseg.checkpoint import load
from anomseg.data.synthetic_change import SyntheticChangeDataModule
from anomseg.errors import NotFittedError
from anomseg.functional.symmetries import SYMMETRIES, undo_view, view_of
from anomseg.methods.change import ChangeMamba, SiameseUNet
from anomseg.methods.change_training import ChangeTraining
from anomseg.metrics.change import BoundaryF1
from anomseg.metrics.pixel import FPRAtTPR
from anomseg.nets.change_mamba import ChangeMambaSpec
from anomseg.nets.siamese_unet import SiameseUNetSpec
from anomseg.optimisation import Optimisation

TOY = ChangeMambaSpec(width=4, depths=(1, 1), norm="group", mlp_ratio=2.0, stem="space_to_depth", head="shuffle")
PLAIN = SiameseUNetSpec(width=4, levels=2, fold=2)


def trainer(folder, epochs=1, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=epochs, **quiet, **options)


class Pairs(pl.LightningDataModule):
    """Serve noise in which squares have changed, from memory, four training batches an epoch."""

    def __init__(self, count=8, size=32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        image, mask = torch.rand(count, 1, 3, size, size, generator=g).repeat(1, 2, 1, 1, 1), torch.zeros(count, size, size).long()
        for i in range(count):
            y, x = (int(torch.randint(size - 10, (1,), generator=g)) for _ in range(2))
            image[i, 1, :, y : y + 10, x : x + 10] = torch.rand(3, 10, 10, generator=g)
            mask[i, y : y + 10, x : x + 10] = 1
        image[:, 1] += 0.3 * torch.rand(count, 3, size, size, generator=g)
        self.samples = [{"image": i, "mask": m} for i, m in zip(image, mask, strict=True)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.samples, batch_size=2, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.samples[:4], batch_size=2)

    test_dataloader = predict_dataloader = val_dataloader


def mamba(**options):
    return ChangeMamba(spec=TOY, **options)


def unet(**options):
    return SiameseUNet(spec=PLAIN, **options)


def ready(make, **options):
    """A network with statistics, not trained."""
    torch.manual_seed(0)
    method = make(**options)
    method.mean.fill_(0.3)
    method.std.fill_(0.2)
    return method.eval()


def pairs(size=(24, 20), batch=2, bands=3):
    return torch.rand(batch, 2, bands, *size, generator=torch.Generator().manual_seed(1))


def test_change_map__is_that_of_evaluation_also_right_after_training(tmp_path):
    method, loop, data = SiameseUNet(spec=SiameseUNetSpec(width=4, levels=2, norm="batch")), trainer(tmp_path), Pairs()
    loop.fit(method, data)
    loop.test(method, data, verbose=False)
    assert method.training
    before = {name: value.clone() for name, value in method.state_dict().items()}
    image = torch.stack([sample["image"] for sample in data.samples[:2]])
    score = method.score_map(image)
    found = method.change_map(image)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert method.training
    assert torch.equal(score, method.eval().score_map(image))
    assert torch.equal(found, method.change_map(image))


def test_statistics__leave_out_what_the_mask_ignores(tmp_path):
    found = []
    for offset in (0.0, 5000.0):
        data, method = Pairs(), unet()
        for sample in data.samples:
            sample["mask"][16:] = 255
            sample["image"][..., 16:, :] += offset
        trainer(tmp_path).fit(method, data)
        found.append(torch.cat([method.mean, method.std]))
    assert torch.equal(*found)
    assert bool((found[0] < 1).all())


@pytest.mark.parametrize("make", [mamba, unet])
@pytest.mark.parametrize("gate", [None, 0.5])
def test_method__fits_tests_predicts_and_reloads(tmp_path, make, gate):
    method, loop = make(gate=gate, recipe=ChangeTraining(overlap="dice")), trainer(tmp_path)
    loop.fit(method, Pairs())
    assert {"val_f1", "threshold", "predicted_share", "true_share"} <= set(loop.callback_metrics)
    loop.test(method, Pairs(), verbose=False)
    assert 0 <= loop.callback_metrics["test_change_f1"] <= loop.callback_metrics["test_f1_max"] + 1e-9
    again = load(loop.checkpoint_callback.best_model_path)
    assert again.recipe == method.recipe
    assert again.spec == method.spec
    assert torch.equal(again.threshold, method.threshold)
    image = pairs()
    assert torch.equal(again(image), method.eval()(image))


@pytest.mark.parametrize(("make", "epochs"), [(unet, 30), (mamba, 15)])
def test_method__learns_change_that_is_there(tmp_path, make, epochs):
    pl.seed_everything(0, verbose=False)
    loop = trainer(tmp_path, epochs, check_val_every_n_epoch=epochs, num_sanity_val_steps=0)
    loop.fit(make(optimisation=Optimisation(lr=1e-2)), Pairs())
    assert loop.callback_metrics["val_auroc"] > 0.9


def test_method__takes_the_pairs_of_the_data_modules(tmp_path):
    method, loop = unet(), trainer(tmp_path)
    loop.fit(method, SyntheticChangeDataModule(train=2, val=1, test=1, size=(48, 48)))
    assert torch.isfinite(method.threshold)


@pytest.mark.parametrize("make", [mamba, unet])
def test_score__does_not_see_the_order_of_the_dates(make):
    image = pairs()
    method = ready(make, gate=0.5)
    assert (method.score(image) - method.score(image.flip(1))).abs().max() < 1e-5
    assert not torch.allclose(ready(make, symmetric=False).score(image), ready(make, symmetric=False).score(image.flip(1)))


@pytest.mark.parametrize("views", [4, 8])
@pytest.mark.parametrize("make", [mamba, unet])
def test_views__make_the_score_move_with_the_pair(make, views):
    image, method, single = pairs(), ready(make, views=views, gate=0.5), ready(make)
    found = method.score(image)
    for symmetry in SYMMETRIES[:views]:
        turned = undo_view(method.score(view_of(image, *symmetry)), *symmetry)
        assert (turned - found).abs().max() < 1e-4
    alone = single.score(image)
    assert not torch.allclose(undo_view(single.score(view_of(image, *SYMMETRIES[1])), *SYMMETRIES[1]), alone, atol=1e-3)


def test_views__of_another_number_are_refused():
    with pytest.raises(ValueError, match="1 view, 4"):
        unet(views=2)


@pytest.mark.parametrize("size", [(17, 31), (1, 5)])
@pytest.mark.parametrize("make", [mamba, unet])
def test_score__has_the_size_of_the_pair_and_is_finite_without_data(make, size):
    image = pairs(size)
    image[0, 1, 2, :, :2] = torch.nan
    image[1, 0] = torch.nan
    found = ready(make).score_map(image)
    assert found.shape == (2, *size)
    assert torch.isfinite(found).all()


def test_score__closes_where_the_dates_are_equal():
    image = pairs()
    image[:, 1, :, :10] = image[:, 0, :, :10]
    found = ready(unet, gate=0.5).score(image)
    assert found[:, :10].max() < -10
    assert found[:, 10:].median() > -10


@pytest.mark.parametrize("make", [mamba, unet])
def test_score__closes_by_the_bands_of_the_gate_alone(make):
    image = pairs()
    image[:, 1, :2, :10] = image[:, 0, :2, :10]
    assert ready(make, gate=0.5, gate_bands=2).score(image)[:, :10].max() < -10
    assert ready(make, gate=0.5).score(image)[:, :10].median() > -10


def test_standardise_by_image__takes_out_gain_and_offset_of_a_date():
    image = pairs()
    moved = image.clone()
    moved[:, 1] = 3 * moved[:, 1] + 2
    method = ready(unet, standardise="image")
    torch.testing.assert_close(method.score(moved), method.score(image), rtol=1e-3, atol=1e-3)


def test_training__ignores_pixels_that_are_void_or_without_data_in_the_loss():
    method = ready(unet).train()
    method.log_dict = lambda *_, **__: None
    image, mask = pairs(), torch.zeros(2, 24, 20, dtype=torch.long)
    mask[:, 4:9, 4:9] = 1
    mask[:, :, 15:] = 255
    flipped = mask.clone()
    image[:, 0, :, 20:] = torch.nan
    flipped[:, 20:] = 1
    assert method.training_step({"image": image, "mask": mask}, 0) == method.training_step({"image": image, "mask": flipped}, 0)


@pytest.mark.parametrize("make", [mamba, unet])
def test_training__of_a_void_batch_or_of_one_pair_is_finite(make):
    method = ready(make).train()
    method.log_dict = lambda *_, **__: None
    for image, mask in ((pairs(), torch.full((2, 24, 20), 255)), (pairs(batch=1), torch.zeros(1, 24, 20, dtype=torch.long))):
        loss = method.training_step({"image": image, "mask": mask}, 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.net.parameters())


def test_optimiser__decays_no_rate_skip_norm_or_bias():
    method = mamba()
    optimiser, _ = method.optimisation.build(method, 10)
    free = {id(p) for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]}
    kept = {name for name, p in method.net.named_parameters() if id(p) in free}
    for part in ("log_rate", "skip", "step_bias", "gain_a", "bias"):
        own = {name for name, _ in method.net.named_parameters() if name.endswith(part)}
        assert own, part
        assert own <= kept
    assert not any(name.endswith("reduce.weight") for name in kept)


def test_training__starts_from_the_share_of_change_and_the_statistics_of_the_bands(tmp_path):
    method, module = unet(optimisation=Optimisation(lr=0.0)), Pairs()
    trainer(tmp_path, num_sanity_val_steps=0).fit(method, module)
    batches = list(module.train_dataloader())
    values = torch.cat([b["image"].movedim(2, 0).flatten(1) for b in batches], 1)
    torch.testing.assert_close(method.mean, values.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.std, values.std(1, correction=0), rtol=1e-3, atol=1e-4)
    share = torch.cat([b["mask"].flatten() for b in batches]).float().mean()
    torch.testing.assert_close(torch.sigmoid(method.net.head.last.bias), share.expand(4), rtol=1e-3, atol=1e-4)


def test_training__takes_no_missing_data_of_a_boolean_mask_for_change(tmp_path):
    method, module = unet(optimisation=Optimisation(lr=0.0)), Pairs()
    for one in module.samples:
        one["image"][..., :16] = torch.nan
        one["mask"] = one["mask"].bool()
    trainer(tmp_path, num_sanity_val_steps=0).fit(method, module)
    known = torch.stack([one["mask"][:, 16:] for one in module.samples])
    torch.testing.assert_close(torch.sigmoid(method.net.head.last.bias), known.float().mean().expand(4), rtol=1e-3, atol=1e-4)


def test_change_map__decides_by_the_threshold():
    method, image = ready(unet), pairs()
    image[:, 0, :, :3] = torch.nan
    method.threshold = method.score_map(image).median()
    found = method.change_map(image)
    assert not found[:, :3].any()
    assert torch.equal(found[:, 3:], method.score_map(image)[:, 3:] >= method.threshold)


def test_method__says_what_is_missing_or_wrong(tmp_path):
    with pytest.raises(NotFittedError, match=r"trainer\.fit"):
        unet().score(pairs())
    with pytest.raises(ValueError, match=r"\(B, 2, 3, H, W\)"):
        ready(unet).score(pairs(bands=4))
    with pytest.raises(ValueError, match="tiny, small, base"):
        ChangeMamba(spec="huge")
    for options in ({"in_channels": 0}, {"gate": 0.0}, {"standardise": "scene"}, {"gate_bands": 0}, {"gate_bands": 4}):
        with pytest.raises(ValueError, match="Expected"):
            unet(**options)


def test_test__keeps_the_figures_that_were_added_and_judges_at_the_threshold_of_validation(tmp_path):
    method = ready(unet)
    method.test_metrics.pooled.add_metrics({"own": FPRAtTPR(0.5), "even": BoundaryF1(0.0)})
    module, loop = Pairs(), trainer(tmp_path)
    scores = torch.cat([method.score_map(batch["image"]) for batch in module.test_dataloader()])
    truth = torch.cat([batch["mask"] for batch in module.test_dataloader()]) == 1
    for threshold in (scores.median(), scores.max() + 1, scores.min()):
        method.threshold = threshold
        figures = loop.test(method, module, verbose=False)[0]
        assert {"test_own", "test_even"} <= set(figures)
        assert figures["test_change_accuracy"] == pytest.approx(float(((scores >= threshold) == truth).float().mean()), abs=1e-6)


def test_collapse_watch__begins_anew_with_each_training(tmp_path):
    method = unet(optimisation=Optimisation(lr=0.0), recipe=ChangeTraining(prior=1e-6))
    for _ in range(2):
        trainer(tmp_path, epochs=2).fit(method, Pairs())
        assert method._watch.silent == 2
