import math

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor

from anomseg.functional.ranking import (
    ascending,
    aucpr_anchor_loss,
    auroc_anchor_loss,
    class_prior,
    hinge,
    interior_anchors,
    logistic,
    logistic_bound,
    pairwise_auroc_loss,
    sigmoid,
    sigmoid_margin,
)

SURROGATES = [hinge, logistic, logistic_bound, sigmoid, sigmoid_margin]
BOUNDS = [hinge, logistic_bound]
ANCHOR_LOSSES = [auroc_anchor_loss, aucpr_anchor_loss]
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES)
every_bound = pytest.mark.parametrize("surrogate", BOUNDS)
both_anchor_losses = pytest.mark.parametrize("anchor_loss", ANCHOR_LOSSES)
ALL_PAIRS = 10**9


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(seed: int = 0, size: int = 12, void: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, mask with void pixels and weights, each (2, size, size); float64."""
    g = seeded(seed)
    mask = (torch.rand(2, size, size, generator=g) < 0.15).long()
    logits = torch.randn(2, size, size, generator=g, dtype=torch.float64) + 0.8 * mask
    mask[torch.rand(mask.shape, generator=g) < void] = 255
    return logits, mask, torch.rand(mask.shape, generator=g, dtype=torch.float64) + 0.1


def state(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Biases, multipliers and anchors, each (count,)."""
    return torch.linspace(-0.5, 0.7, count).double(), torch.linspace(0.0, 2.0, count).double(), interior_anchors(0.0, 1.0, count)


def anchored(anchor_loss, **options):
    return lambda logits, mask, weight=None: anchor_loss(logits, mask, *state(), weight=weight, **options).loss


def pairwise(**options):
    return lambda logits, mask, weight=None: pairwise_auroc_loss(logits, mask, generator=seeded(), weight=weight, **options)


EXACT = {
    "all-pairs": pairwise(n_pairs=ALL_PAIRS),
    "auroc": anchored(auroc_anchor_loss),
    "aucpr": anchored(aucpr_anchor_loss),
    "aucpr-prior": anchored(aucpr_anchor_loss, prior=0.1),
}
LOSSES = {"sampled": pairwise(n_pairs=64), **EXACT}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gradient(loss, logits: Tensor, *rest) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, *rest)
    value.backward()
    return value.detach(), leaf.grad


def threshold_at(rate: float, logits: Tensor, mask: Tensor, surrogate) -> Tensor:
    """Bisect the bias at which the mean surrogate of the normal pixels is `rate`."""
    low, high = torch.tensor(-50.0).double(), torch.tensor(50.0).double()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if surrogate(middle, logits[mask == 0]).mean() > rate else (low, middle)
    return high


# ---- ignored pixels, weights, empty classes


@EVERY_LOSS
@pytest.mark.parametrize("junk", [1e30, -7.0, math.nan, math.inf])
def test_loss_and_gradient__are_bit_equal_whatever_lies_under_void(loss, junk):
    logits, mask, weight = scene()
    void = mask == 255
    other, other_weight = logits.masked_fill(void, junk), weight.masked_fill(void, junk)
    value, grad = gradient(loss, logits, mask, weight)
    value_junk, grad_junk = gradient(loss, other, mask, other_weight)
    value_without, grad_without = gradient(loss, logits[~void], mask[~void], weight[~void])
    assert torch.equal(value, value_junk)
    assert torch.equal(value, value_without)
    assert torch.equal(grad, grad_junk)
    assert torch.equal(grad[~void], grad_without)
    assert bool((grad[void] == 0).all())
    assert float(grad.abs().sum()) > 0


@EVERY_LOSS
def test_loss__leaves_out_pixels_of_weight_zero(loss):
    logits, mask, weight = scene()
    dropped = torch.rand(mask.shape, generator=seeded(3)) < 0.3
    value, grad = gradient(loss, logits.masked_fill(dropped, math.nan), mask, weight.masked_fill(dropped, 0.0))
    expected, expected_grad = gradient(loss, logits, mask.masked_fill(dropped, 255), weight)
    assert torch.equal(value, expected)
    assert torch.equal(grad, expected_grad)


@EVERY_LOSS
@pytest.mark.parametrize("kept", [(), (0,), (1,)], ids=["none", "normal", "anomaly"])
def test_loss__is_zero_with_zero_gradient_where_a_class_is_empty(loss, kept):
    logits, mask, _ = scene()
    for label in {0, 1} - set(kept):
        mask[mask == label] = 255
    value, grad = gradient(loss, logits.masked_fill(mask == 255, math.nan), mask)
    assert float(value) == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


@both_anchor_losses
def test_anchor_loss__gives_biases_and_multipliers_zero_gradients_where_a_class_is_empty(anchor_loss):
    logits, mask, _ = scene()
    biases, multipliers, anchors = state()
    biases.requires_grad_(), multipliers.requires_grad_()
    result = anchor_loss(logits, mask.masked_fill(mask == 1, 0), biases, ascending(multipliers), anchors)
    result.loss.backward()
    for value in (result.objective, result.violation, biases.grad, multipliers.grad):
        assert torch.equal(value, torch.zeros(4).double())


@EVERY_LOSS
def test_loss__of_a_weighted_pixel_is_that_of_a_repeated_one(loss):
    logits, mask, _ = scene(void=0.0)
    copies = torch.randint(1, 4, mask.shape, generator=seeded(5))
    repeated = [x.flatten().repeat_interleave(copies.flatten()) for x in (logits, mask)]
    # the sampler's strata lie in the same places of the weight's sum, so that even a sample of pairs is the same
    torch.testing.assert_close(loss(logits, mask, copies.double()), loss(*repeated))


# ---- mathematics


@pytest.mark.parametrize("loss", EXACT.values(), ids=EXACT)
def test_loss__does_not_depend_on_the_order_of_pixels(loss):
    logits, mask, weight = (x.flatten() for x in scene())
    order = torch.randperm(len(mask), generator=seeded(1))
    torch.testing.assert_close(loss(logits[order], mask[order], weight[order]), loss(logits, mask, weight))


@pytest.mark.parametrize("surrogate", [hinge, logistic, logistic_bound, sigmoid])
def test_pairwise_loss__ignores_a_shift_of_all_logits(surrogate):
    logits, mask, weight = scene()
    for n_pairs in (64, ALL_PAIRS):
        loss = pairwise(n_pairs=n_pairs, surrogate=surrogate)
        torch.testing.assert_close(loss(logits + 3.7, mask, weight), loss(logits, mask, weight))


@both_anchor_losses
def test_anchor_loss__ignores_a_shift_of_logits_and_biases_together(anchor_loss):
    logits, mask, _ = scene()
    biases, multipliers, anchors = state()
    shifted = anchor_loss(logits + 3.7, mask, biases + 3.7, multipliers, anchors).loss
    torch.testing.assert_close(shifted, anchor_loss(logits, mask, biases, multipliers, anchors).loss)


@every_surrogate
def test_gradients__equal_finite_differences(surrogate):
    logits, mask, weight = scene(size=4)
    logits = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: pairwise(n_pairs=50, surrogate=surrogate)(f, mask, weight), logits)
    biases, multipliers, anchors = state()
    inputs = (logits, biases.requires_grad_(), (multipliers + 0.1).requires_grad_())
    options = {"surrogate": surrogate, "weight": weight}
    for anchor_loss in ANCHOR_LOSSES:
        assert torch.autograd.gradcheck(lambda f, b, m, g=anchor_loss: g(f, mask, b, m, anchors, **options).loss, inputs)


@every_bound
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_pairwise_loss__bounds_one_minus_auroc_from_above(surrogate, seed, scale):
    logits, mask, weight = scene(seed)
    keep = mask != 255
    auroc = roc_auc_score(mask[keep], logits[keep], sample_weight=weight[keep])
    assert pairwise(n_pairs=ALL_PAIRS, surrogate=surrogate)(scale * logits, mask, weight) >= 1 - auroc


def test_pairwise_loss__of_a_steep_sigmoid_is_one_minus_auroc():
    logits, mask, weight = scene()
    keep = mask != 255
    auroc = roc_auc_score(mask[keep], logits[keep], sample_weight=weight[keep])
    assert pairwise(n_pairs=ALL_PAIRS, surrogate=sigmoid)(1e6 * logits, mask, weight).item() == pytest.approx(1 - auroc, abs=1e-6)


def test_pairwise_loss__of_sampled_pairs_is_unbiased_and_steadier_than_independent_pairs():
    logits, mask, weight = (x.flatten() for x in scene(size=24))
    exact = float(pairwise(n_pairs=ALL_PAIRS)(logits, mask, weight))
    g = seeded()
    sampled = torch.stack([pairwise_auroc_loss(logits, mask, generator=g, n_pairs=100, weight=weight) for _ in range(400)])
    assert float(sampled.mean()) == pytest.approx(exact, abs=4 * float(sampled.std()) / 20)
    pixels = [((mask == label).nonzero()[:, 0]) for label in (1, 0)]
    i, j = (p[torch.multinomial(weight[p], 40_000, replacement=True, generator=g)] for p in pixels)
    assert float(sampled.std()) < 0.9 * float(hinge(logits[i], logits[j]).view(400, 100).mean(1).std())


@every_bound
@pytest.mark.parametrize("seed", range(3))
def test_auroc_anchor_loss__at_its_saddle_point_bounds_one_minus_auroc(surrogate, seed):
    logits, mask, _ = scene(seed, void=0.0)
    anchors = interior_anchors(0.0, 1.0, 9)
    biases = torch.stack([threshold_at(float(r), logits, mask, surrogate) for r in anchors])
    result = auroc_anchor_loss(logits, mask, biases, torch.ones(9), anchors, surrogate=surrogate)
    torch.testing.assert_close(result.violation, torch.zeros(9).double(), atol=1e-6, rtol=0)
    rates, hits, _ = roc_curve(mask.flatten(), logits.flatten(), drop_intermediate=False)
    best = torch.tensor([hits[rates <= float(r) + 1e-9].max() for r in anchors])
    assert bool((result.objective >= 1 - best).all())
    assert (1 + 9 * float(result.loss)) / 10 >= 1 - roc_auc_score(mask.flatten(), logits.flatten())


@every_bound
def test_aucpr_anchor_loss__bounds_the_missed_recall_where_the_precision_is_met(surrogate):
    logits, mask, _ = scene(void=0.0)
    logits = logits + 3 * mask
    anchors = interior_anchors(0.0, 1.0, 9)
    grid = torch.linspace(-3, 8, 400).double()
    precision, recall, _ = precision_recall_curve(mask.flatten(), logits.flatten())
    met = 0
    for alpha in anchors:
        result = aucpr_anchor_loss(logits, mask, grid, torch.zeros(400), alpha.expand(400), surrogate=surrogate)
        feasible = result.objective[result.violation <= 0]
        met += len(feasible)
        assert bool((feasible >= 1 - recall[precision >= float(alpha) - 1e-9].max()).all())
    assert met > 300


def test_aucpr_anchor_loss__equals_the_published_lagrangian_over_all_pixels_divided_by_the_prior():
    logits, mask, weight = scene()
    biases, multipliers, anchors = state()
    prior = class_prior(mask, weight).double()
    loss = aucpr_anchor_loss(logits, mask, biases, multipliers, anchors, surrogate=logistic, weight=weight, prior=prior).loss
    keep = mask != 255
    f, y, w = logits[keep], mask[keep], weight[keep]
    expected = 0.0
    for b, m, a in zip(biases, multipliers, anchors, strict=True):
        positive = (w * y * torch.log1p(torch.exp(b - f))).sum() / w.sum()
        negative = (w * (1 - y) * torch.log1p(torch.exp(f - b))).sum() / w.sum()
        expected += (1 + m * (1 - a)) * positive + m * a * negative * 1.0 - m * (1 - a) * prior
    torch.testing.assert_close(loss, expected / prior / 4)


def test_class_prior__adds_pseudo_counts():
    mask = torch.tensor([1, 0, 0, 0, 255])
    assert class_prior(mask).item() == pytest.approx(2 / 6)
    assert class_prior(mask, torch.tensor([3.0, 1, 1, 0, 9])).item() == pytest.approx(4 / 7)
    assert class_prior(torch.full((4,), 255)).item() == 0.5


# ---- the multipliers


@both_anchor_losses
def test_multipliers__rise_where_a_constraint_is_violated_and_fall_to_zero_where_it_holds(anchor_loss):
    logits, mask, _ = scene()
    logits = logits + 3 * mask
    multipliers = torch.ones(2).double().requires_grad_()
    biases = torch.tensor([-9.0, 3.0]).double()  # all pixels above, and hardly a normal one
    optimiser = torch.optim.SGD([multipliers], lr=0.1)
    anchors = torch.tensor([0.9, 0.9]) if anchor_loss is auroc_anchor_loss else torch.tensor([0.9, 0.1])
    values = []
    for _ in range(200):
        optimiser.zero_grad()
        result = anchor_loss(logits, mask, biases, ascending(multipliers), anchors)
        result.loss.backward()
        optimiser.step()
        values.append(ascending(multipliers).detach().clone())
    assert result.violation[0] > 0 > result.violation[1]
    path = torch.stack(values)
    assert bool((path[:, 0].diff() > 0).all())
    assert bool((path[:, 1].diff() <= 0).all())
    assert float(path[-1, 1]) == 0.0
    assert float(multipliers.detach()[1]) > -0.1  # it stops where it crossed 0, ready to rise


def test_ascending__negates_the_gradient_and_holds_at_zero():
    multipliers = torch.tensor([2.0, -0.5, -0.5], requires_grad=True)
    values = ascending(multipliers, rate=0.5)
    assert values.tolist() == [2.0, 0.0, 0.0]
    (values * torch.tensor([3.0, 1.0, -1.0])).sum().backward()
    assert multipliers.grad.tolist() == [-1.5, -0.5, 0.0]


# ---- what it is for: a linear model whose likelihood is misled by outliers


@pytest.fixture
def one_thread():
    """Steps this small only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(centre: tuple[float, float], drift: tuple[float, float], seed: int = 0, normals: int = 2000) -> tuple[Tensor, Tensor]:
    """(N, 2) features and (N,) mask, 1 : 50; 3 % of the normal pixels lie far out along `drift`, with Pareto tails (1.2)."""
    g = seeded(seed)
    x = torch.randn(normals + normals // 50, 2, generator=g)
    outliers = normals * 3 // 100
    tails = torch.rand(outliers, 1, generator=g).clamp_min(1e-3) ** (-1 / 1.2)
    x[:outliers] += tails * torch.tensor(drift)
    x[normals:] += torch.tensor(centre)
    return x, (torch.arange(len(x)) >= normals).long()


def best_of_all_angles(x: Tensor, mask: Tensor, metric) -> float:
    angles = torch.linspace(0, 2 * math.pi, 181)
    return max(metric(mask, x @ torch.stack((a.cos(), a.sin()))) for a in angles)


def train_cross_entropy(x: Tensor, mask: Tensor, odds: float) -> Tensor:
    weights, bias = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights + bias, mask.float(), pos_weight=torch.tensor(odds))
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def train_pairwise(x: Tensor, mask: Tensor, surrogate, steps: int = 250) -> Tensor:
    weights = torch.full((2,), 0.1, requires_grad=True)
    optimiser, g = torch.optim.Adam([weights], lr=0.05), seeded()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        pairwise_auroc_loss(x @ weights, mask, generator=g, n_pairs=512, surrogate=surrogate).backward()
        optimiser.step()
        schedule.step()
    return weights.detach()


def train_lagrangian(x: Tensor, mask: Tensor, anchor_loss, surrogate, rate: float, steps: int = 300, start: float = 0.1) -> Tensor:
    weights, biases, multipliers = torch.full((2,), start), torch.zeros(6), torch.ones(6)
    for parameter in (weights, biases, multipliers):
        parameter.requires_grad_()
    optimiser, dual = torch.optim.Adam([weights, biases], lr=0.05), torch.optim.SGD([multipliers], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    anchors = interior_anchors(0.0, 1.0, 6)
    for _ in range(steps):
        optimiser.zero_grad()
        dual.zero_grad()
        anchor_loss(x @ weights, mask, biases, ascending(multipliers, rate), anchors, surrogate=surrogate).loss.backward()
        optimiser.step()
        dual.step()
        schedule.step()
    return weights.detach()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("surrogate", [sigmoid, sigmoid_margin])
def test_auroc_losses__reach_the_best_linear_ranking_where_cross_entropy_does_not(surrogate):
    x, mask = toy((1.5, 0.8), (4.0, 0.0))
    best = best_of_all_angles(x, mask, roc_auc_score)
    for odds in (1.0, 50.0):
        assert roc_auc_score(mask, x @ train_cross_entropy(x, mask, odds)) < best - 0.02
    assert roc_auc_score(mask, x @ train_pairwise(x, mask, surrogate)) > best - 0.005
    assert roc_auc_score(mask, x @ train_lagrangian(x, mask, auroc_anchor_loss, surrogate, rate=1.0)) > best - 0.005


@pytest.mark.usefixtures("one_thread")
def test_aucpr_loss__reaches_the_best_linear_average_precision_where_the_precisions_are_within_reach():
    x, mask = toy((3.0, 3.0), (4.0, -3.0))
    best = best_of_all_angles(x, mask, average_precision_score)
    weights = train_lagrangian(x, mask, aucpr_anchor_loss, hinge, rate=0.05, start=0.5)
    assert average_precision_score(mask, x @ weights) > best - 0.005


# ---- messages


def test_losses__say_what_is_wrong():
    logits, mask, weight = scene()
    biases, multipliers, anchors = state()
    with pytest.raises(ValueError, match="one shape"):
        pairwise()(logits[:, None], mask)
    with pytest.raises(ValueError, match="mask values"):
        pairwise()(logits, mask + 1)
    with pytest.raises(ValueError, match="weights >= 0"):
        pairwise()(logits, mask, -weight)
    with pytest.raises(ValueError, match="n_pairs >= 1"):
        pairwise(n_pairs=0)(logits, mask)
    with pytest.raises(ValueError, match="of one shape"):
        auroc_anchor_loss(logits, mask, biases[:2], multipliers, anchors)
    with pytest.raises(ValueError, match="anchors in"):
        auroc_anchor_loss(logits, mask, biases, multipliers, anchors * 0)
    with pytest.raises(ValueError, match="multipliers >= 0"):
        auroc_anchor_loss(logits, mask, biases, multipliers - 1, anchors)
    with pytest.raises(ValueError, match="prior in"):
        aucpr_anchor_loss(logits, mask, biases, multipliers, anchors, prior=1.0)
    with pytest.raises(ValueError, match="low < high"):
        interior_anchors(0.3, 0.3, 4)
    with pytest.raises(ValueError, match="rate > 0"):
        ascending(multipliers, 0.0)
    with pytest.raises(ValueError, match="pseudo_count"):
        class_prior(mask, pseudo_count=0.0)
