import pytest
import torch

from anomseg.functional.abstention import abstention_loss, energy_penalty
from anomseg.functional.energy import energy_hinge, energy_smoothness, free_energy
from anomseg.methods.pebal_training import PEBALLoss, energy_sums, first_batches, measured_margins, pebal_losses, require_outliers
from anomseg.methods.segmenter import Segmenter, class_loss
from anomseg.nets.segmentation import CompactSegmenter

MARGINS = (-4.0, -2.0)


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    logits, label = 2 * torch.randn(2, 5, 8, 9, generator=g), torch.randint(4, (2, 8, 9), generator=g)
    outlier = torch.zeros(2, 8, 9, dtype=torch.bool)
    outlier[0, 2:5, 3:6] = True
    label[outlier] = 255
    label[1, :2] = 255
    return logits, label, outlier


def test_losses__are_the_published_terms():
    logits, label, outlier = batch()
    energy = free_energy(logits[:, :4])
    mask = torch.where(outlier, 1, torch.where(label == 255, 255, 0))
    recipe = PEBALLoss(sparsity=0.0, uniform=0.5)
    found = pebal_losses(logits, label, outlier, MARGINS, recipe)
    torch.testing.assert_close(found["classes"], abstention_loss(logits, energy_penalty(energy), label, outlier))
    expected = 0.1 * (energy_hinge(energy, mask, *MARGINS) + 19.44 * energy_smoothness(energy))
    torch.testing.assert_close(found["energy"], expected)
    torch.testing.assert_close(found["uniform"], -0.5 * logits[:, :4].log_softmax(1).mean(1)[outlier].mean())


def test_losses__without_a_term_do_without_it():
    logits, label, outlier = batch()
    plain = pebal_losses(logits, label, outlier, MARGINS, PEBALLoss(abstention=0.0, energy=0.0))
    assert set(plain) == {"classes"}
    torch.testing.assert_close(plain["classes"], class_loss(logits[:, :4], label))
    with pytest.raises(ValueError, match="at least 0"):
        PEBALLoss(energy=-1.0)


@pytest.mark.parametrize("case", ["no outlier", "outliers alone", "void"])
def test_losses__of_any_batch_are_finite_with_a_gradient(case):
    logits, label, outlier = batch()
    if case == "no outlier":
        outlier[:] = False
    elif case == "outliers alone":
        outlier[:], label[:] = True, 255
    else:
        outlier[:], label[:] = False, 255
    logits = logits.bfloat16().requires_grad_()
    losses = pebal_losses(logits, label, outlier, MARGINS, PEBALLoss(uniform=0.1))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_bounded_penalty__lets_no_gradient_lower_the_energies():
    logits, label, outlier = batch()
    recipe = PEBALLoss(energy=0.0)
    grads = {}
    for bounded in (True, False):
        z = logits.clone().requires_grad_()
        pebal_losses(z, label, outlier, MARGINS, recipe, bounded=bounded)["classes"].backward()
        grads[bounded] = z.grad[:, :4].sum(1)[label != 255].mean()
    assert grads[False] > grads[True] + 1e-5  # descent lowers the known logits, and so drives the energies towards 0


def test_measured_margins__lie_outside_of_the_means():
    g = torch.Generator().manual_seed(0)
    outlier = torch.rand(3, 2, 20, 20, generator=g) < 0.2
    energy = torch.where(outlier, -3.0, -6.0) + torch.randn(3, 2, 20, 20, generator=g)
    sums = energy_sums((e, ~o, o) for e, o in zip(energy, outlier, strict=True))
    parts = [energy_sums([(e, ~o, o)]) for e, o in zip(energy, outlier, strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(0), sums)
    low, high = measured_margins(sums)
    assert low == pytest.approx(float(energy[~outlier].mean() - 0.5 * energy[~outlier].std(correction=0)), abs=1e-5)
    assert high == pytest.approx(float(energy[outlier].mean() + 0.5 * energy[~outlier].std(correction=0)), abs=1e-5)
    with pytest.raises(ValueError, match=r"SyntheticOutliers\(\)"):
        measured_margins(energy_sums([(energy[0], ~outlier[0], torch.zeros_like(outlier[0]))]))


def frames(monkeypatch, count, shown, size=1):
    """Serve frames of which those numbered in `shown` hold an outlier, and count how many are read."""
    read = []

    def serve(method, whole):
        assert whole
        for number in range(count):
            read.append(number)
            mask = torch.zeros(size, 4, 4, dtype=torch.int64)
            mask[:, 0, 0] = int(number in shown)
            yield {"image": torch.rand(size, 3, 4, 4), "mask": mask, "label": torch.zeros(size, 4, 4, dtype=torch.int64)}

    monkeypatch.setattr("anomseg.methods.pebal_training.training_batches", serve)
    return Segmenter(3, CompactSegmenter(4, 2)), read


@pytest.mark.parametrize(("shown", "expected"), [((3,), 16), ((15,), 16), ((100,), 101), ((400,), 256)])
def test_first_batches__go_on_until_an_outlier_is_seen_or_enough_images_are(monkeypatch, shown, expected):
    method, _ = frames(monkeypatch, 500, shown)
    assert len(list(first_batches(method))) == expected
    assert len(list(first_batches(frames(monkeypatch, 500, shown, 32)[0]))) == 16


def test_require_outliers__takes_sources_that_seldom_paste_and_refuses_none(monkeypatch):
    method, read = frames(monkeypatch, 500, (200,))
    require_outliers(method)
    assert len(read) == 201
    with pytest.raises(ValueError, match="in the first 40 training images"):
        require_outliers(frames(monkeypatch, 40, ())[0])
