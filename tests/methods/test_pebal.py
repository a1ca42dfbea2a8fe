import copy

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from anomseg.checkpoint import load
from anomseg.functional.energy import free_energy
from anomseg.methods.pebal import PEBAL
from anomseg.methods.pebal_training import MAX_ENTROPY, PUBLISHED_MARGINS, PEBALLoss
from anomseg.methods.segmenter import SegmentationReadout, Segmenter
from anomseg.nets.segmentation import CompactSegmenter
from anomseg.nets.segmentation_module import TrainedModule
from anomseg.nets.wide_resnet import WideResNet38
from anomseg.optimisation import Optimisation
from anomseg.sample import collate
from tests.methods.driving import Stripes, loader, trainer

NET = CompactSegmenter(width=12, levels=3)
STEPS = Optimisation(3e-3, schedule="constant")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segmenter")
    method, loop = Segmenter(3, NET, optimisation=STEPS), trainer(folder, 6)
    loop.fit(method, loader(outliers=False, count=16), loader(seed=1))
    loop.save_checkpoint(folder / "segmenter.ckpt")
    return str(folder / "segmenter.ckpt"), loop.test(method, loader(seed=2), verbose=False)[0]


@pytest.mark.parametrize("score_rule", ["energy", "entropy", "abstain", "fusion", "ensemble"])
def test_pebal__finds_outliers_and_keeps_the_classes(segmenter, tmp_path, score_rule):
    torch.manual_seed(0)
    path, before = segmenter
    apart = score_rule == "ensemble"
    method = PEBAL(3, NET, segmenter=path, score_rule=score_rule, class_decoder=apart, optimisation=STEPS)
    loop = trainer(tmp_path, 6)
    loop.fit(method, loader(count=16), loader(seed=1))
    after = loop.test(method, loader(seed=2), verbose=False)[0]
    assert after["test_ap"] > max(before["test_ap"], 0.7)
    assert after["test_miou"] > before["test_miou"] - 0.05
    loop.save_checkpoint(tmp_path / "own.ckpt")
    image = next(iter(loader(seed=2)))["image"]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "own.ckpt").score_map(image), method.eval().score_map(image))


def test_fusion__adds_energy_and_entropy_in_deviations_of_the_inliers_and_leaves_the_abstention_out():
    torch.manual_seed(0)
    method, logits = PEBAL(3, NET, score_rule="fusion"), torch.randn(2, 4, 5, 6)
    method.inliers = torch.tensor([[1.0, 1.0], [-2.0, 0.5], [8.0, 0.5]])  # means -2 and 0.5, deviations 2 and 0.5
    entropy = -(logits[:, :3].softmax(1) * logits[:, :3].log_softmax(1)).sum(1) / torch.tensor(3.0).log()
    expected = (-logits[:, :3].logsumexp(1) + 2) / 2 + (entropy - 0.5) / 0.5
    torch.testing.assert_close(method.read(logits), expected)
    logits[:, 3] = 9.0
    torch.testing.assert_close(method.read(logits), expected)


def test_ensemble__adds_the_entropy_of_the_class_decoder_which_alone_votes():
    torch.manual_seed(0)
    method, logits = PEBAL(3, NET, score_rule="ensemble", class_decoder=True), torch.randn(2, 7, 5, 6)
    method.inliers = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 0.5, 0.2], [8.0, 0.5, 0.05]])  # the last deviation is 0.1
    fused = PEBAL(3, NET, score_rule="fusion")
    fused.inliers = method.inliers[:, :2]
    apart = -(logits[:, 4:].softmax(1) * logits[:, 4:].log_softmax(1)).sum(1) / torch.tensor(3.0).log()
    torch.testing.assert_close(method.read(logits), fused.read(logits) + (apart - 0.2) / 0.1)
    method.score_rule = "fusion"
    torch.testing.assert_close(method.read(logits), fused.read(logits))
    assert torch.equal(method.votes(logits), logits[:, 4:])


def test_class_decoder__starts_as_the_trained_one_and_goes_its_own_way(segmenter, tmp_path):
    torch.manual_seed(0)
    path, _ = segmenter
    image = next(iter(loader(seed=2)))["image"]
    method = PEBAL(3, NET, segmenter=path, class_decoder=True, optimisation=STEPS)
    method.setup("fit")
    with torch.no_grad():
        logits = method.eval().logits(image)
    torch.testing.assert_close(logits[:, 4:], logits[:, :3])
    loop = trainer(tmp_path, 2)
    loop.fit(method.train(), loader(count=16), loader(seed=1))
    loop.save_checkpoint(tmp_path / "first.ckpt")
    with torch.no_grad():
        logits = method.eval().logits(image)
        assert not torch.allclose(logits[:, 4:], logits[:, :3])
        assert torch.equal(load(tmp_path / "first.ckpt").logits(image), logits)
    resumed = PEBAL(3, NET, segmenter="not there any more", class_decoder=True, optimisation=STEPS)
    trainer(tmp_path, 2).fit(resumed, loader(count=16), loader(seed=1), ckpt_path=tmp_path / "first.ckpt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(resumed.eval().logits(image), logits)


def test_class_decoder__learns_nothing_from_outliers():
    torch.manual_seed(0)
    method, batch = PEBAL(3, NET, class_decoder=True), next(iter(loader()))
    method.log_dict = lambda *_, **__: None
    method.setup("fit")
    method.std.fill_(1.0)
    gradients = []
    for weight in (0.1, 0.9):
        method.recipe = PEBALLoss(outlier=weight)
        method.zero_grad()
        method.training_step(batch, 0).backward()
        gradients.append([p.grad.clone() for net in method._nets() for p in (*net.decoder[1].parameters(), *net.head.parameters())])
    half = len(gradients[0]) // 2
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in list(zip(*gradients, strict=True))[:half])
    for one, other in list(zip(*gradients, strict=True))[half:]:
        assert torch.equal(one, other)


def test_class_decoder__is_frozen_as_the_other(tmp_path):
    method = PEBAL(3, CompactSegmenter(6, 2, "batch"), trainable="head", class_decoder=True, optimisation=STEPS)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer(tmp_path).fit(method, loader(), loader(seed=1))
    changed = {
        name for name, value in method.state_dict().items() if name.startswith("classifier.") and not torch.equal(value, before[name])
    }
    assert changed == {"classifier.head.weight", "classifier.head.bias"}


def collapse(segmenter, folder, **options):
    """Train without the hinge on energies, and give the mean inlier energy before and after."""
    torch.manual_seed(0)
    recipe = PEBALLoss(energy=0.0, outlier=1.0)
    method = PEBAL(3, NET, segmenter=segmenter[0], recipe=recipe, optimisation=Optimisation(1e-2, schedule="constant"), **options)
    batch = next(iter(loader(seed=3)))

    def inlier_energy():
        with torch.no_grad():
            return float(free_energy(method.eval().logits(batch["image"])[:, :3])[batch["mask"] == 0].mean())

    method.setup("fit")
    before = inlier_energy()
    trainer(folder, 15).fit(method.train(), loader(count=16), loader(seed=1))
    return before, inlier_energy()


def test_published_penalty__collapses_on_a_net_of_low_confidence_and_the_bounded_one_does_not(segmenter, tmp_path):
    before, published = collapse(segmenter, tmp_path, paper_faithful=True)
    _, bounded = collapse(segmenter, tmp_path)
    assert abs(published) < 0.5 * abs(before)
    assert bounded < 0.8 * before


@pytest.mark.parametrize(("trainable", "moved"), [("head", {"head"}), ("decoder", {"head", "context", "lateral", "refine"})])
def test_frozen_parts__stay_as_they_are(segmenter, tmp_path, trainable, moved):
    method = PEBAL(3, CompactSegmenter(12, 3, "group"), segmenter=segmenter[0], trainable=trainable, optimisation=STEPS)
    method.setup("fit")
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    trainer(tmp_path).fit(method, loader(), loader(seed=1))
    changed = {name.split(".")[0] for name, value in method.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == moved


@pytest.mark.parametrize("faithful", [False, True])
def test_frozen_batch_norms__drift_only_as_published(tmp_path, faithful):
    method = PEBAL(3, CompactSegmenter(6, 2, "batch"), trainable="head", paper_faithful=faithful, optimisation=STEPS)
    before = {name: value.clone() for name, value in method.network.named_buffers()}
    trainer(tmp_path).fit(method, loader(), loader(seed=1))
    drifted = any(not torch.equal(value, before[name]) for name, value in method.network.named_buffers())
    assert drifted == faithful


def test_margins__are_measured_given_or_published(segmenter, tmp_path):
    found = {}
    for name, options in (("measured", {}), ("given", {"margins": (-3.0, -1.0)}), ("published", {"paper_faithful": True})):
        method = PEBAL(3, NET, segmenter=segmenter[0], optimisation=STEPS, **options)
        trainer(tmp_path, limit_train_batches=1).fit(method, loader(), loader(seed=1))
        found[name] = tuple(method.margin.tolist())
    assert found["given"] == (-3.0, -1.0)
    assert found["published"] == PUBLISHED_MARGINS
    assert -30 < found["measured"][0] < found["measured"][1] < 5


def test_fresh_weights__warn_and_put_the_margins_off_by_an_epoch(tmp_path):
    found = []
    for epochs in (1, 2):
        torch.manual_seed(0)
        method = PEBAL(3, NET, optimisation=STEPS)
        with pytest.warns(UserWarning, match="starts from fresh weights"):
            trainer(tmp_path / str(epochs), epochs).fit(method, loader(), loader(seed=1))
        found.append(method.margin)
    assert found[0].isnan().all()
    assert found[1][0] < -1.5  # the energy of fresh logits is about -ln 3


def test_pebal__starts_from_ready_weights_of_other_origin(tmp_path):
    published = WideResNet38(16, str(tmp_path / "published.pth"))
    donor = published.build(3, 3).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}}, tmp_path / "published.pth")
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    image = next(iter(loader()))["image"]
    for spec, given in ((published, donor), (TrainedModule(own, head="2"), copy.deepcopy(own))):
        method = PEBAL(3, spec, optimisation=STEPS)
        method.setup("fit")
        bands = (image - method.mean[:, None, None]) / method.std[:, None, None]
        with torch.no_grad():
            logits = method.eval().logits(image)
            torch.testing.assert_close(logits[:, :3], given(bands))
        assert logits.shape[1] == 4
        trainer(tmp_path, enable_checkpointing=False).fit(method.train(), loader(count=4), loader(seed=1, count=4))
        assert not method.margin.isnan().any()


def test_pebal__of_a_module_of_your_own_loads_with_that_module_in_the_same_session(tmp_path):
    torch.manual_seed(0)
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    image, before = next(iter(loader()))["image"], copy.deepcopy(own.state_dict())
    readout = SegmentationReadout(3, net=TrainedModule(own))
    method, loop = PEBAL(3, TrainedModule(own, head="3"), optimisation=STEPS), trainer(tmp_path)
    loop.fit(method, loader(), loader(seed=1))
    loop.save_checkpoint(tmp_path / "own.ckpt")
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name])
    readout.setup("fit")
    assert readout.logits(image).shape[1] == 3
    again = PEBAL.load_from_checkpoint(tmp_path / "own.ckpt", net=TrainedModule(own, head="3"), weights_only=True)
    with torch.no_grad():
        assert torch.equal(again.score_map(image), method.score_map(image))


def test_pebal__refuses_a_module_of_other_classes_or_without_a_decoder():
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1))
    for classes in (2, 4):
        with pytest.raises(ValueError, match=f"a module of {classes} classes, but its head '1' has 3"):
            PEBAL(classes, TrainedModule(own, head="1"))
    with pytest.raises(ValueError, match="TrainedModule names none"):
        PEBAL(3, TrainedModule(own, head="1"), trainable="decoder")
    with pytest.raises(ValueError, match="without a class decoder"):
        PEBAL(3, TrainedModule(own, head="1"), class_decoder=True)


class Watch(pl.Callback):
    """Note what a training is like at each step."""

    def __init__(self):
        self.resting, self.training = [], []

    def on_train_batch_end(self, trainer, method, *_):
        self.resting.append((trainer.current_epoch, method._resting))
        self.training.append(method.network.stages[0].training)


def saving(folder, every):
    return pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_frozen_batch_norms__do_not_drift_wherever_a_training_is_resumed(tmp_path, step):
    torch.manual_seed(0)
    net = CompactSegmenter(6, 2, "batch")
    first = PEBAL(3, net, trainable="head", optimisation=STEPS)
    trainer(tmp_path, 2, callbacks=[saving(tmp_path, 1)]).fit(first, loader(), loader(seed=1))
    again, watch = PEBAL(3, net, trainable="head", optimisation=STEPS), Watch()
    resumed = trainer(tmp_path, 2, callbacks=[watch], num_sanity_val_steps=0)
    resumed.fit(again, loader(), loader(seed=1), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert watch.training == [False] * (4 - step)
    for name, value in first.network.named_buffers():
        assert torch.equal(again.network.get_buffer(name), value)


@pytest.mark.parametrize(("step", "expected"), [(1, [(0, True), (1, False)]), (2, [(1, False)])])
def test_put_off_margins__of_a_resumed_training_are_measured_in_time(tmp_path, step, expected):
    torch.manual_seed(0)
    trainer(tmp_path, 1, callbacks=[saving(tmp_path, 1)]).fit(PEBAL(3, NET, optimisation=STEPS), loader(), loader(seed=1))
    again, watch = PEBAL(3, NET, optimisation=STEPS), Watch()
    resumed = trainer(tmp_path, 2, callbacks=[watch], num_sanity_val_steps=0)
    resumed.fit(again, loader(), loader(seed=1), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert sorted(set(watch.resting)) == expected
    assert not again.margin.isnan().any()


def test_second_training__of_fresh_weights_does_not_rest_again(tmp_path):
    torch.manual_seed(0)
    method = PEBAL(3, NET, optimisation=STEPS)
    trainer(tmp_path, 1).fit(method, loader(), loader(seed=1))
    assert method.margin.isnan().all()
    trainer(tmp_path / "again", 1).fit(method, loader(), loader(seed=1))
    assert not method.margin.isnan().any()


def test_margins__are_measured_where_few_frames_show_outliers(segmenter, tmp_path):
    class Few(Stripes):
        def __getitem__(self, index):
            return Stripes(self.count, index == self.count - 1, self.seed)[index]

    data = DataLoader(Few(24), batch_size=1, collate_fn=collate)
    method = PEBAL(3, NET, segmenter=segmenter[0], optimisation=STEPS)
    trainer(tmp_path, limit_train_batches=1).fit(method, data, loader(seed=1))
    assert not method.margin.isnan().any()


def test_max_entropy__needs_neither_abstention_nor_energy(segmenter, tmp_path):
    torch.manual_seed(0)
    path, before = segmenter
    method = PEBAL(3, NET, segmenter=path, recipe=MAX_ENTROPY, score_rule="entropy", optimisation=STEPS)
    loop = trainer(tmp_path, 6)
    loop.fit(method, loader(count=16), loader(seed=1))
    after = loop.test(method, loader(seed=2), verbose=False)[0]
    assert after["test_ap"] > max(before["test_ap"], 0.7)


def test_pebal__trains_in_half_precision_with_losses_in_full(segmenter, tmp_path):
    method, loop = PEBAL(3, NET, segmenter=segmenter[0], optimisation=STEPS), trainer(tmp_path, 2, precision="bf16-mixed")
    loop.fit(method, loader(count=16), loader(seed=1))
    assert all(torch.isfinite(p).all() for p in method.parameters())
    assert method.inliers.dtype == torch.float32
    batch = next(iter(loader()))
    method.log_dict = lambda *_, **__: None
    with torch.autocast("cpu", torch.bfloat16):
        assert method.logits(batch["image"]).dtype == torch.bfloat16
        assert method.training_step(batch, 0).dtype == torch.float32


def test_training__takes_single_frames_and_ones_without_inliers(tmp_path):
    method = PEBAL(3, NET, optimisation=STEPS)
    trainer(tmp_path).fit(method, loader(batch_size=1, count=2), loader(seed=1, batch_size=1, count=2))
    method.log_dict = lambda *_, **__: None
    batch = next(iter(loader()))
    batch["mask"][:], batch["label"][:] = 1, 255
    assert torch.isfinite(method.training_step(batch, 0))
    batch["mask"][:] = 255
    assert torch.isfinite(method.training_step(batch, 0))


def test_pebal__says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"SyntheticOutliers\(\)"):
        trainer(tmp_path).fit(PEBAL(3, NET), loader(outliers=False), loader(seed=1))
    with pytest.raises(ValueError, match=r"SyntheticOutliers\(\)"):
        trainer(tmp_path).fit(PEBAL(3, NET, margins=(-3.0, -1.0)), loader(outliers=False), loader(seed=1))
    for options in ({"trainable": "x"}, {"score_rule": "x"}, {"margins": (1.0, 0.0)}, {"score_rule": "ensemble"}):
        with pytest.raises(ValueError, match="Expected"):
            PEBAL(3, NET, **options)
