import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.errors import NotFittedError
from anomseg.functional.symmetries import SYMMETRIES, undo_view, view_of
from anomseg.functional.windows import pad_to_multiple
from anomseg.methods.position_statistics import BorderStatistics
from anomseg.methods.reconstruction import Reconstruction, follow
from anomseg.methods.reconstruction_masking import MaskedPrediction
from anomseg.methods.reconstruction_score import ReconstructionScore
from anomseg.methods.reconstruction_training import ReconstructionLoss
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.feature_reconstruction import FeatureReconstructionSpec
from anomseg.optimisation import Optimisation
from anomseg.sample import collate

TINY = AutoencoderSpec(width=4, depth=2)
FEATURES = FeatureReconstructionSpec(width=16, depth=1, levels=(1, 2))
SIZE = (26, 30)


def texture(generator, bands, size):
    """Waves of one direction with random phases, at another level and contrast in every band; values about 100."""
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])
    phase = 6.28 * torch.rand(2, generator=generator)
    wave = torch.sin(0.9 * row + 0.3 * column + phase[0]) + 0.5 * torch.sin(0.4 * row - 0.7 * column + phase[1])
    bands = torch.arange(1, bands + 1)[:, None, None]
    return 100.0 + 10 * bands * wave + torch.randn(len(bands), *size, generator=generator)


def square(generator, size, side=6):
    row, column = (int(torch.randint(0, length - side, (1,), generator=generator)) for length in size)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[row : row + side, column : column + side] = True
    return mask


def moved(image, mask, generator):
    """Fill a square by another piece of the same image, turned: what differs is texture alone."""
    return torch.where(mask, image.flip(1).roll(int(torch.randint(3, 9, (1,), generator=generator)), 2), image)


class Textures:
    def __init__(self, count, seed, bands=3, size=SIZE, corrupt=False, defects=False, void=None):
        g = torch.Generator().manual_seed(seed)
        self.samples = []
        for index in range(count):
            image, hole = texture(g, bands, size), square(g, size)
            sample = {"image": image, "mask": torch.zeros(size, dtype=torch.int64), "name": f"waves/{index}"}
            if corrupt:
                sample |= {"corrupted": moved(image, hole, g), "defect": hole.long()}
            if defects and index % 2:
                sample |= {"image": moved(image, hole, g), "mask": hole.long()}
            if void is not None:
                sample["mask"][:5, 3:9] = 255
                keys = [key for key in ("image", "corrupted") if key in sample]
                sample |= {key: sample[key].clone() for key in keys}
                for key in keys:
                    sample[key][:, :5, 3:9] = void
            self.samples.append(sample)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def loader(*args, batch_size=2, **kwargs):
    return DataLoader(Textures(*args, **kwargs), batch_size=batch_size, collate_fn=collate)


def trainer(folder, epochs=1, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_epochs=epochs, gradient_clip_val=1.0, num_sanity_val_steps=1, **quiet, **options)


def taught(folder, epochs=1, bands=3, train=None, **options):
    torch.manual_seed(0)
    method = Reconstruction(**{"in_channels": bands, "net": TINY, **options})
    loop = trainer(folder, epochs)
    loop.fit(method, train or loader(4, 0, bands, corrupt=True), loader(2, 1, bands, defects=True))
    return method, loop


class CentredScore(nn.Module):
    """Subtract the mean normal score; what a position module looks like from here."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(()))
        self.fits = 0

    def fit(self, scores):
        found = torch.cat([score[valid] for score, valid in scores])
        self.level, self.fits = found.mean(), self.fits + 1

    def forward(self, score, valid):
        return score - self.level


OPTIONS = {
    "plain": {},
    "batch norm, leaky, first skip": {"net": AutoencoderSpec(width=4, depth=1, skips="first", norm="batch", activation="leaky_relu")},
    "every loss and term": {
        "loss": ReconstructionLoss(l1=1, edges=1, msgms=1, features=1, focus=2),
        "scoring": ReconstructionScore(l2=1, ssim=1, features=1, pooling=(1, 3), smoothing=0),
    },
    "defect head": {"net": AutoencoderSpec(width=4, depth=2, skips="all", defect_head=True)},
    "masked": {"masked": MaskedPrediction(cells=(2, 8))},
    "average": {"ema": 0.9, "loss": ReconstructionLoss(features=1, feature_net="ema"), "reach": 6.0},
    "features": {"net": FEATURES},
    "features of resnet, average, places": {
        "net": FeatureReconstructionSpec("resnet18", width=16, levels=(0, 1), groups=(1, 1), decoder="convolution"),
        "scoring": ReconstructionScore(l1=0, msgms=0, levels=1),
        "ema": 0.9,
        "reach": 6.0,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_reconstruction__fits_tests_predicts_and_reloads_bit_for_bit(tmp_path, name):
    method, loop = taught(tmp_path, **OPTIONS[name])
    loop.test(method, loader(4, 7, defects=True), verbose=False)
    assert 0 < loop.callback_metrics["test_auroc"] <= 1
    image = next(iter(loader(2, 9, size=(19, 23))))["image"]
    image[0, :, 3:6, 4] = torch.nan
    again, method = load(loop.checkpoint_callback.best_model_path), method.eval()
    assert again.net == method.net
    for verb in ("__call__", "score_map", "reconstruct", "features"):
        found = getattr(method, verb)(image)
        assert torch.isfinite(found).all()
        assert torch.equal(getattr(again, verb)(image), found)
    assert method.reconstruct(image).shape == image.shape
    assert method.score_map(image).std() > 0
    torch.testing.assert_close(method.score_map(image[:1]), method.score_map(image)[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bands", [1, 10])
@pytest.mark.parametrize("net", [TINY, FEATURES])
def test_reconstruction__takes_any_bands_and_gives_images_in_their_units(tmp_path, bands, net):
    method, _ = taught(tmp_path, 2, bands, net=net)
    image = next(iter(loader(1, 9, bands, batch_size=1)))["image"]
    rebuilt = method.eval().reconstruct(image)
    assert rebuilt.shape == image.shape
    assert (rebuilt.mean((2, 3)) - 100).abs().max() < 40
    assert method.score_map(image).shape == (1, *SIZE)


@pytest.mark.parametrize("name", ["plain", "every loss and term", "defect head", "masked", "features"])
def test_void_pixels__have_no_influence_on_training(tmp_path, name):
    found = []
    for void in (0.0, 1e4, float("nan")):
        method, _ = taught(tmp_path, train=loader(4, 0, corrupt=True, void=void), **OPTIONS[name])
        found.append([*method.parameters(), *method.inputs.buffers(), method.term_centre, method.term_scale])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_corruption__is_what_the_net_sees_and_never_the_target(tmp_path):
    method, _ = taught(tmp_path)
    batch = next(iter(loader(2, 5, corrupt=True)))
    method.log_dict = lambda *_, **__: None
    seen = []
    method.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    method.training_step(batch, 0)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    assert torch.equal(seen[0][0], method.inputs(batch["corrupted"], valid))
    assert torch.equal(seen[0][2], method.inputs(batch["image"], valid))


def test_reconstruction__keeps_float32_losses_under_bfloat16(tmp_path):
    torch.manual_seed(0)
    method = Reconstruction(net=TINY)
    trainer(tmp_path, precision="bf16-mixed").fit(method, loader(4, 0, corrupt=True), loader(2, 1))
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in method.parameters())
    assert torch.isfinite(method.eval().score_map(next(iter(loader(2, 3)))["image"])).all()


def test_reconstruction__learns_from_one_image(tmp_path):
    method, _ = taught(tmp_path, train=loader(1, 0, batch_size=1))
    assert method.term_scale.numel() == 2


def auroc(score, mask):
    normal, anomalous = score[mask == 0], score[mask == 1]
    below = torch.searchsorted(normal.sort().values, anomalous)
    through = torch.searchsorted(normal.sort().values, anomalous, right=True)
    return ((below + through) / 2).mean().item() / len(normal)


@pytest.mark.parametrize(
    "options",
    [{}, {"masked": MaskedPrediction((2, 8))}],
    ids=["denoising", "masked"],
)
def test_trained_net__beats_an_untrained_one_and_the_mean_image(tmp_path, options):
    batch = next(iter(loader(16, 77, defects=True, batch_size=16)))
    net = AutoencoderSpec(width=8, depth=2, skips="all" if options else "none")
    options = {**options, "net": net, "optimisation": Optimisation(lr=5e-3, warmup=0.05)}
    found = []
    for epochs in (1, 8):
        torch.manual_seed(0)
        method, loop = Reconstruction(**options), trainer(tmp_path, epochs, limit_val_batches=0)
        if epochs == 1:
            method.optimisation = Optimisation(lr=1e-9)  # untrained, but with the spread of its own residuals
        loop.fit(method, loader(16, 0, corrupt=True, batch_size=4))
        found.append(auroc(method.eval().score_map(batch["image"]).detach(), batch["mask"]))
    mean = torch.stack([sample["image"] for sample in Textures(16, 0).samples]).mean(0)
    assert found[1] > 0.8
    assert found[1] > found[0] + 0.05
    assert found[1] > auroc((batch["image"] - mean).abs().mean(1), batch["mask"]) + 0.05


def test_head_of_defects__sees_no_reconstruction_of_void_in_scoring_as_in_training(tmp_path):
    method, _ = taught(tmp_path, net=AutoencoderSpec(width=4, depth=1, skips="all", defect_head=True))
    seen, judge = [], method.network.judge
    method.network.judge = lambda image, rebuilt, place=None: (seen.append(rebuilt), judge(image, rebuilt, place))[1]
    image = loader(1, 3, void=torch.nan).dataset[0]["image"][None]
    method.eval().score_map(image)
    assert bool((seen[0][..., :5, 3:9] == 0).all())
    assert bool((seen[0][..., 5:, :] != 0).any())


def test_position__is_fitted_on_normal_scores_and_used(tmp_path):
    method, _ = taught(tmp_path, 2)
    image = next(iter(loader(2, 9)))["image"]
    method.position = CentredScore()
    trainer(tmp_path, enable_checkpointing=False).fit(method.train(), loader(4, 0, corrupt=True), loader(2, 1, defects=True))
    assert method.position.fits == 1
    normal = torch.cat([method.eval().score(batch["image"]) for batch in loader(4, 0, corrupt=True)])
    assert normal.mean().abs() < 1e-4
    method.position.level = torch.tensor(5.0)
    with_position = method.eval().score(image)
    method.position = None
    torch.testing.assert_close(with_position, method.score(image) - 5)


class RecordedPlaces(BorderStatistics):
    """Remember which maps it was fitted on."""

    def fit(self, maps):
        self.seen = list(maps)
        BorderStatistics.fit(self, self.seen)


def test_position__of_crops_counts_from_the_border_of_the_whole_image(tmp_path):
    def crops(batch):
        found = collate(batch)
        found["image"], found["mask"] = found["image"][..., 4:12, 6:18].contiguous(), found["mask"][..., 4:12, 6:18].contiguous()
        return found | {"window": [(4, 6, 8, 12)] * len(batch), "scene_size": [SIZE] * len(batch)}

    train = DataLoader(Textures(4, 0), batch_size=2, collate_fn=crops)
    method, _ = taught(tmp_path, train=train)
    method.position = RecordedPlaces((2, 5), prior=1.0)
    trainer(tmp_path, enable_checkpointing=False).fit(method.train(), train, loader(2, 1, defects=True))
    assert len(method.position.seen) == 4
    for score, counts in method.position.seen:
        assert tuple(score.shape[1:]) == SIZE
        assert int(counts.sum()) == int(counts[0, 4:12, 6:18].sum()) == 96
    outer = method.position.mean.view(3, 3)[0]  # no crop reaches the outer rows: they take the mean of all places
    torch.testing.assert_close(outer, outer[:1].expand(3))


@pytest.mark.parametrize("net", [AutoencoderSpec(width=4, depth=3), FEATURES], ids=["autoencoder", "features"])
def test_features__cover_the_image_padded_to_the_multiple_that_is_told(tmp_path, net):
    method, _ = taught(tmp_path, net=net)
    image = torch.rand(1, 3, 21, 35)
    multiple = method.feature_multiple
    height, width = (-(-side // multiple) * multiple for side in (21, 35))
    described = method.features(image)
    stride = height // described.shape[2]
    assert described.shape[2:] == (height // stride, width // stride)
    torch.testing.assert_close(method.features(pad_to_multiple(image, multiple)), described)


@pytest.mark.parametrize("views", [4, 8])
def test_views__make_the_score_move_with_the_image(tmp_path, views):
    method, _ = taught(tmp_path, 2, views=views, net=AutoencoderSpec(width=4, depth=2, skips="all", defect_head=True))
    image = torch.cat([batch["image"] for batch in loader(4, 9, defects=True, size=(24, 32))])
    image[0, :, 3:6, 4:9] = torch.nan
    score = method.eval().score(image)
    for symmetry in SYMMETRIES[:views]:
        torch.testing.assert_close(method.score(view_of(image, *symmetry)), view_of(score, *symmetry), rtol=1e-4, atol=1e-4)
    method.views = 1
    one_view = [undo_view(method.score(view_of(image, *symmetry)), *symmetry) for symmetry in SYMMETRIES[:views]]
    assert not torch.allclose(one_view[0], one_view[1], atol=1e-2)
    torch.testing.assert_close(torch.stack(one_view).mean(0), score, rtol=1e-4, atol=1e-4)


def test_views__turn_masked_prediction_and_features_too(tmp_path):
    for index, chosen in enumerate(({"masked": MaskedPrediction(cells=(2, 4))}, {"net": FEATURES})):
        method, _ = taught(tmp_path / str(index), **{"net": TINY, "views": 8} | chosen)
        score = method.eval().score(torch.rand(1, 3, 19, 33))
        assert score.shape == (1, 19, 33)
        assert bool(score.isfinite().all())


def test_places__of_crops_are_those_of_their_windows():
    method = Reconstruction(net=TINY, reach=8.0)
    whole = method._places(torch.zeros(1, 3, 20, 30), {})
    batch = {"window": [(10, 21, 5, 7)], "scene_size": [(20, 30)]}
    torch.testing.assert_close(method._places(torch.zeros(1, 3, 5, 7), batch), whole[:, :, 10:15, 21:28])
    resized = {"window": [(0, 0, 40, 60)], "scene_size": [(40, 60)]}
    torch.testing.assert_close(method._places(torch.zeros(1, 3, 20, 30), resized), whole)


def test_follow__moves_by_its_decay_and_leaves_what_is_shared():
    net = AutoencoderSpec(width=4, depth=1, norm="batch").build(1)
    net.net.code.requires_grad_(False)
    twin = net.follower()
    start = net.net.last.weight.detach().clone()
    with torch.no_grad():
        net.net.last.weight += 1
        net.net.decoder[0][1].running_mean += 3
    follow(twin, net, 0.75)
    torch.testing.assert_close(twin.net.last.weight, start + 0.25)
    assert torch.equal(twin.net.decoder[0][1].running_mean, net.net.decoder[0][1].running_mean)
    assert twin.net.code.weight is net.net.code.weight


def test_plain_autoencoder_with_open_skips__is_warned_of_copying(tmp_path):
    net = AutoencoderSpec(width=4, depth=1, skips="all")
    with pytest.warns(UserWarning, match="copy its input"):
        taught(tmp_path, train=loader(2, 0), net=net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taught(tmp_path / "corrupted", net=net)
        taught(tmp_path / "masked", train=loader(2, 0), net=net, masked=MaskedPrediction())
    assert not [one for one in caught if "copy its input" in str(one.message)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 0},
        {"fit_batches": 0},
        {"reach": 0.0},
        {"reach": 8.0, "views": 4},
        {"views": 2},
        {"ema": 1.0},
        {"loss": ReconstructionLoss(features=1, feature_net="ema")},
        {"net": FEATURES, "masked": MaskedPrediction()},
        {"scoring": ReconstructionScore(defect=1)},
        {"scoring": ReconstructionScore(levels=1)},
        {"scoring": ReconstructionScore(level_error=1)},
        {"net": AutoencoderSpec(width=4, defect_head=True), "loss": ReconstructionLoss(focal=0)},
    ],
)
def test_reconstruction__refuses_arguments_that_do_not_fit(arguments):
    with pytest.raises(ValueError, match="Expected"):
        Reconstruction(**arguments)


def test_reconstruction__says_what_is_missing_or_wrong(tmp_path):
    method = Reconstruction(net=TINY)
    for verb in (method.score, method.reconstruct, method.features):
        with pytest.raises(NotFittedError, match=r"trainer\.fit"):
            verb(torch.rand(1, 3, 9, 9))
    with pytest.raises(ValueError, match=r"Expected images \(B, 4, H, W\)"):
        trainer(tmp_path).fit(Reconstruction(4, net=TINY), loader(2, 0))
    with pytest.raises(ValueError, match="'corrupted' and 'defect'"):
        taught(tmp_path, train=loader(2, 0), net=AutoencoderSpec(width=4, defect_head=True))
    train = Textures(2, 0, corrupt=True)
    for sample in train.samples:
        sample["corrupted"] = sample["corrupted"][:, 1:]
    with pytest.raises(ValueError, match="of one shape"):
        taught(tmp_path, train=DataLoader(train, collate_fn=collate))


def late(method, batches):
    """Say by how much the held medians of the terms differ from those of the present weights."""
    with torch.no_grad():
        terms = [method.eval()._terms(b["image"], b["mask"] == 0).movedim(1, -1).flatten(0, 2) for b in batches]
    return float((torch.cat(terms).median(0).values - method.term_centre).abs().max())


class Stop(pl.Callback):
    """Stop a training at the end of its first epoch, when the method has had its turn."""

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)


@pytest.mark.parametrize(
    ("epochs", "options"),
    [
        (3, {"check_val_every_n_epoch": 2}),
        (2, {"check_val_every_n_epoch": 5}),
        (9, {"max_steps": 4}),
        (9, {"check_val_every_n_epoch": 9, "callbacks": [Stop()]}),
    ],
)
def test_reconstruction__ends_with_the_statistics_of_its_last_weights(tmp_path, epochs, options):
    method, train = Reconstruction(net=TINY, scoring=ReconstructionScore(smoothing=0.0)), loader(4, 0)
    trainer(tmp_path, epochs, **options).fit(method, train, loader(2, 1))
    assert late(method, train) < 1e-6
    assert torch.isfinite(method.score_map(torch.rand(1, 3, *SIZE))).all()
