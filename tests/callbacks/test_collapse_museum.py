"""The museum of collapses: each failure provoked on purpose gets its verdict within three epochs, and healthy trainings get none."""

import functools
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
from anomseg.methods.change import SiameseUNet
from anomseg.methods.pebal import PEBAL
from anomseg.methods.reconstruction import Reconstruction
from anomseg.methods.reconstruction_training import ReconstructionLoss
from anomseg.methods.segmenter import Segmenter
from anomseg.methods.svdd import SVDD
from anomseg.methods.svdd_training import CONTRAST, DEEP_SVDD
from anomseg.nets.autoencoder import AutoencoderSpec
from anomseg.nets.descriptor import PixelDescriptor
from anomseg.nets.patch_descriptor import PatchDescriptor
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.siamese_unet import SiameseUNetSpec
from anomseg.optimisation import Optimisation
from anomseg.sample import collate
from tests.methods.driving import loader
from tests.methods.test_change import Pairs

SIZE = 32


def texture(index, bands=3, seed=0):
    """A wave of its own direction, phase and colour, with grain, as standard scores around 0."""
    g = torch.Generator().manual_seed(1000 * seed + index)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle, phase, pitch = torch.rand(3, generator=g)
    wave = torch.sin((torch.cos(3 * angle) * x + torch.sin(3 * angle) * y) * (0.25 + 0.35 * pitch) + 6.3 * phase)
    colour = 0.5 + torch.rand(bands, 1, 1, generator=g)
    return colour * wave + 0.3 * torch.randn(bands, 1, 1, generator=g) + 0.1 * torch.randn(bands, SIZE, SIZE, generator=g)


def part(index, bands=3, seed=0):
    """A disc on a ground: every image is nearly the same."""
    g = torch.Generator().manual_seed(77_000 + 1000 * seed + index)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    row, column = 16 + 6 * torch.rand(2, generator=g) - 3
    disc = torch.sigmoid(9 - ((x - column) ** 2 + (y - row) ** 2).sqrt())
    return (2 * disc - 0.7)[None] * (0.8 + 0.4 * torch.rand(bands, 1, 1, generator=g)) + 0.1 * torch.randn(bands, SIZE, SIZE, generator=g)


def holed(image, seed):
    """Replace two squares by noise or by another place of the image."""
    g = torch.Generator().manual_seed(seed)
    given, defect = image.clone(), torch.zeros(image.shape[1:], dtype=torch.int64)
    for kind in range(2):
        row, column = torch.randint(SIZE - 10, (2,), generator=g).tolist()
        square = (slice(None), slice(row, row + 10), slice(column, column + 10))
        given[square] = torch.randn(given[square].shape, generator=g) if kind else image.roll((11, 13), (1, 2))[square]
        defect[square[1:]] = 1
    return given, defect


class Surfaces(torch.utils.data.Dataset):
    """Normal images, and where asked for the same with defects beside them, new ones at every visit."""

    def __init__(self, make=texture, count=64, bands=3, corrupt=False, target_too=False, seed=0):
        self.images = [make(i, bands, seed) for i in range(count)]
        self.corrupt, self.target_too, self.visits = corrupt, target_too, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        sample = {"image": self.images[index], "mask": torch.zeros(SIZE, SIZE, dtype=torch.int64)}
        if self.corrupt:
            self.visits += 1
            given, defect = holed(sample["image"], self.visits)
            sample |= {"corrupted": given, "defect": defect}
            if self.target_too:
                sample["image"] = given
        return sample


def block(inside, outside, act):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), act(), nn.Conv2d(outside, outside, 3, padding=1), act())


class TinyUNet(nn.Module):
    def __init__(self, bands=3, width=12, skips="none", head=nn.Identity, act=nn.LeakyReLU, bottleneck=12):
        super().__init__()
        self.skips = skips
        self.down1, self.down2 = block(bands, width, act), block(width, width, act)
        self.bottleneck = nn.Sequential(nn.Conv2d(width, bottleneck, 3, padding=1), act())
        self.up2, self.up1 = block(bottleneck + width * (skips == "all"), width, act), block(width + width * (skips != "none"), width, act)
        self.head = nn.Sequential(nn.Conv2d(width, bands, 1), head())

    def encode(self, x):
        first = self.down1(x)
        second = self.down2(F.avg_pool2d(first, 2))
        return first, second, self.bottleneck(F.avg_pool2d(second, 2))

    def forward(self, x):
        first, second, deep = self.encode(x)
        up = F.interpolate(deep, scale_factor=2)
        up = F.interpolate(self.up2(torch.cat([up, second], 1) if self.skips == "all" else up), scale_factor=2)
        return self.head(self.up1(torch.cat([up, first], 1) if self.skips != "none" else up))


def mse(output, image):
    return F.mse_loss(output, image)


def similarity(output, image):
    """Mean structural similarity of windows of 7 x 7, 1 for equal images."""
    mean = [F.avg_pool2d(v, 7, 1) for v in (output, image, output * output, image * image, output * image)]
    a, b, aa, bb, ab = mean
    above = (2 * a * b + 0.01) * (2 * (ab - a * b) + 0.03)
    return (above / ((a * a + b * b + 0.01) * (aa - a * a + bb - b * b + 0.03))).mean()


class TinyReconstruction(AnomalySegmenter):
    """A small autoencoder; it learns to rebuild `image` from `corrupted`, or from itself."""

    def __init__(self, net, loss=mse, lr=3e-3, growth=1.0, decay=0.0, masked=False):
        super().__init__()
        self.net, self.loss, self.lr, self.growth, self.decay, self.masked = net, loss, lr, growth, decay, masked

    def training_step(self, batch, batch_idx):
        given = batch.get("corrupted", batch["image"])
        output = self.reconstruct(given)
        loss = self.loss(output, batch["image"])
        self.log("loss_pixels", loss.detach())
        return loss

    def reconstruct(self, image):
        if not self.masked:
            return self.net(image)
        cells = torch.arange(SIZE) // 4
        hidden = ((cells[:, None] + cells) % 2).bool()
        return torch.where(hidden, self.net(image.masked_fill(hidden, 0)), self.net(image.masked_fill(~hidden, 0)))

    def features(self, image):
        return self.net.encode(image)[2]

    def score(self, image):
        return (self.reconstruct(image) - image).square().mean(1)

    def configure_optimizers(self):
        optimiser = torch.optim.AdamW(self.net.parameters(), self.lr, weight_decay=self.decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self.growth**step)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def quiet(folder, monitor, epochs, **options):
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[monitor],
        **{**settings, **options},
    )


def watch(folder, method, data, epochs=3, batch=2, **options):
    few = CollapseLimits(min_steps=1)  # the scenes of the other methods make four steps an epoch
    monitor = CollapseMonitor(limits=None if isinstance(data, Surfaces) else few)
    if isinstance(data, Surfaces):
        data = DataLoader(data, batch_size=batch, shuffle=True, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet(folder, monitor, epochs, **options).fit(method, data)
    return monitor


def words(monitor):
    return [verdict.word for verdict in monitor.verdicts]


# ---- the museum


def grain(index, bands=3, seed=0):
    """Noise without its means over cells: a bottleneck can keep nothing of it, and the mean colour is the best that it can say."""
    noise = torch.randn(bands, SIZE, SIZE, generator=torch.Generator().manual_seed(5000 * seed + index))
    return noise - F.interpolate(F.avg_pool2d(noise, 4)[None], scale_factor=4)[0]


def photograph(index, bands=3, seed=0):
    """A texture in [0, 1], as a camera gives it."""
    return (0.6 + 0.15 * texture(index, bands, seed)).clamp(0, 1)


class Template(nn.Module):
    """Draw one learnt image whatever comes in."""

    def __init__(self):
        super().__init__()
        self.image, self.look = nn.Parameter(0.1 * torch.randn(1, 3, SIZE, SIZE)), nn.Conv2d(3, 3, 1)

    def encode(self, x):
        return (self.look(x),) * 3

    def forward(self, x):
        return self.image + 0.0 * self.look(x)


class ResidualUNet(TinyUNet):
    """Add the input to the output, the widest of all skips."""

    def __init__(self):
        super().__init__(skips="all")

    def forward(self, x):
        return super().forward(x) + x


def silenced(layer, **net):
    """Let the units of one layer never fire."""
    net = TinyUNet(act=nn.ReLU, **net)
    with torch.no_grad():
        [part for part in getattr(net, layer) if isinstance(part, nn.Conv2d)][-1].bias.fill_(-10.0)
    return TinyReconstruction(net)


def scaled_svdd():
    spec = PatchDescriptor(scales=(1.0,), norm="none")
    return SVDD(10, spec, DEEP_SVDD, score_rule="dist", optimisation=Optimisation(1.0, schedule="constant"))


def spectra(count=4, size=(40, 44)):
    return SyntheticDataModule("multispectral", count=count, size=size, train_on="normal")


MUSEUM = {
    "grey": (lambda: TinyReconstruction(TinyUNet(bottleneck=1), lr=1e-2), lambda: Surfaces(grain), "constant output"),
    "black by a ReLU head": (lambda: TinyReconstruction(TinyUNet(head=nn.ReLU), lr=0.3), Surfaces, "constant output"),
    "black photographs": (lambda: TinyReconstruction(TinyUNet(head=nn.ReLU), lr=0.1), lambda: Surfaces(photograph), "constant output"),
    "black by a sigmoid head": (lambda: TinyReconstruction(TinyUNet(head=nn.Sigmoid), lr=0.3), Surfaces, "constant output"),
    "dead ReLU, all layers": (lambda: TinyReconstruction(TinyUNet(act=nn.ReLU), lr=0.3), Surfaces, "dead layer"),
    "dead ReLU, one layer": (lambda: silenced("up2", skips="first"), Surfaces, "dead layer net.up2.3"),
    "weights decayed to 0": (lambda: TinyReconstruction(TinyUNet(), decay=100.0), Surfaces, "dead layer"),
    "the mean part for all": (lambda: TinyReconstruction(Template(), lr=0.03), lambda: Surfaces(part), "same output for every input"),
    "SSIM with a flipped sign": (lambda: TinyReconstruction(TinyUNet(skips="first"), similarity), Surfaces, "worse than the mean image"),
    "identity by skips": (lambda: TinyReconstruction(ResidualUNet()), Surfaces, "identity shortcut"),
    "corruption in the target too": (
        lambda: TinyReconstruction(ResidualUNet()),
        lambda: Surfaces(corrupt=True, target_too=True),
        "identity shortcut",
    ),
    "a bottleneck that skips make idle": (lambda: silenced("bottleneck", skips="all"), Surfaces, "bottleneck collapsed"),
    "no learning rate": (lambda: TinyReconstruction(TinyUNet(), lr=0.0), Surfaces, "not learning"),
}


def library(lr=3e-3, **net):
    """The autoencoder of the library, small."""
    spec = AutoencoderSpec(width=8, depth=2, norm="none", **net)
    return Reconstruction(3, spec, ReconstructionLoss(ssim=0.0), optimisation=Optimisation(lr, schedule="constant"))


MUSEUM["the library's, rate far too high"] = (lambda: library(3.0), Surfaces, "")
MUSEUM["the library's, no rate"] = (lambda: library(0.0), Surfaces, "not learning")


@functools.cache
def exhibit(name):
    """Let one training collapse, once for all tests; nothing of it is written."""
    pl.seed_everything(0, verbose=False)
    make, data, _ = MUSEUM[name]
    return watch(None, make(), data())


@pytest.mark.parametrize("name", MUSEUM)
def test_museum__names_the_collapse_within_three_epochs(name):
    monitor = exhibit(name)
    assert any(one.startswith(MUSEUM[name][2]) for one in words(monitor)), (words(monitor), monitor.figures)
    assert all(verdict.advice and verdict.epoch < 3 for verdict in monitor.verdicts)


def test_museum__names_an_svdd_on_a_point_where_the_method_does_not_refuse_it_itself():
    pl.seed_everything(0, verbose=False)
    try:
        found = words(watch(None, scaled_svdd(), spectra(24, (32, 32))))
    except RuntimeError as refusal:  # at its next fit, before the monitor looks
        found = [str(refusal)]
        assert "collapsed onto the centre" in found[0]
    assert any("collapsed" in one for one in found)


def test_museum__tells_black_from_grey_in_its_advice():
    (grey, *_), (black, *_) = (exhibit(name).verdicts for name in ("grey", "black photographs"))
    assert "mean colour" in grey.advice
    assert "linear output head" in black.advice


def test_museum__names_the_epoch_of_a_divergence(tmp_path):
    pl.seed_everything(0, verbose=False)
    method = TinyReconstruction(TinyUNet(skips="first"), growth=1.06)
    losses = []
    method.on_train_epoch_end = lambda: losses.append(float(method.trainer.callback_metrics["collapse/loss"]))
    found = [v for v in watch(tmp_path, method, Surfaces(count=64), epochs=8).verdicts if v.word.startswith("diverged")]
    assert len(found) == 1
    named = int(found[0].word.removeprefix("diverged at epoch "))
    assert named - 1 <= losses.index(min(losses)) + 1 <= named + 1
    assert found[0].epoch <= named + 2


def test_museum__names_a_loss_that_is_not_a_number_at_once(tmp_path):
    method = TinyReconstruction(TinyUNet(), lambda output, image: mse(output, image) * torch.nan)
    assert words(watch(tmp_path, method, Surfaces(count=8), epochs=1)) == ["diverged at epoch 0"]


# ---- the healthy


def autoencoder(corrupt=True, make=texture, lr=3e-3, loss=mse, masked=False, bands=3, **net):
    return lambda seed: (TinyReconstruction(TinyUNet(bands, **net), loss, lr, masked=masked), Surfaces(make, 64, bands, corrupt, seed=seed))


def svdd(**options):
    return lambda seed: (SVDD(10, **options), SyntheticDataModule("multispectral", count=4, size=(40, 44), seed=seed, train_on="normal"))


def change(seed):
    return SiameseUNet(spec=SiameseUNetSpec(width=4, levels=2, fold=2), optimisation=Optimisation(1e-2)), Pairs()


def segmenter(seed):
    return Segmenter(3, CompactSegmenter(12, 3), optimisation=Optimisation(3e-3)), loader(outliers=False, seed=seed)


def pebal(seed):
    return PEBAL(3, CompactSegmenter(12, 3), optimisation=Optimisation(3e-3)), loader(count=16, seed=seed)


HEALTHY = {
    "denoising": autoencoder(),
    "denoising, one skip": autoencoder(skips="first", loss=F.l1_loss),
    "denoising, all skips": autoencoder(skips="all"),
    "denoising, ten bands": autoencoder(bands=10, skips="first"),
    "denoising with GELU": autoencoder(act=nn.GELU),
    "denoising parts": autoencoder(make=part),
    "masked, all skips": autoencoder(corrupt=False, skips="all", masked=True),
    "plain without skips": autoencoder(corrupt=False),
    "plain, one band": autoencoder(corrupt=False, bands=1, act=nn.ReLU),
    "slow learner": autoencoder(lr=3e-4),
    "SVDD of patches": svdd(descriptor=PatchDescriptor(scales=(1.0,))),
    "SVDD of pixels": svdd(recipe=CONTRAST, descriptor=PixelDescriptor(latent=8, hidden=(16,))),
    "SVDD with a moving radius": svdd(
        descriptor=PixelDescriptor(latent=8, hidden=(16,)), learn_from="all", score_rule="mahalanobis", optimisation=Optimisation(1e-2)
    ),
    "the library's, denoising": lambda seed: (library(skips="first"), Surfaces(count=64, corrupt=True, seed=seed)),
    "change": change,
    "segmenter": segmenter,
    "PEBAL": pebal,
}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for seed, name in enumerate(HEALTHY)], ids=HEALTHY)
def test_healthy_training__gets_no_verdict(tmp_path, name, seed):
    pl.seed_everything(seed, verbose=False)
    method, data = HEALTHY[name](seed)
    monitor = watch(tmp_path, method, data, epochs=3)
    assert words(monitor) == [], monitor.figures
    assert monitor.figures["moved"] > 1e-3
