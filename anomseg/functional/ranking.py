"""Ranking losses: train the order of the pixels' scores (AUROC, AUCPR) instead of their probabilities.

Two families, both for **zero-centred logits, higher is more anomalous**, not for the outputs of a sigmoid:

- `pairwise_auroc_loss` compares sampled (anomalous, normal) pairs of pixels;
- `auroc_anchor_loss` and `aucpr_anchor_loss` bound a curve at K anchors by a Lagrangian, minimised over the network and K
  thresholds (biases), maximised over K multipliers. It may be negative and may rise while training goes well: log
  `AnchorLoss.objective` and `AnchorLoss.violation` instead.

Pixels of mask 255 (`IGNORE`) and pixels of weight 0 touch neither a loss nor a gradient, whatever their logit, NaN included. A batch
is pooled: pixels of one image are ranked against those of another. Where the anomalous or the normal class is empty, there is
nothing to rank: every loss is then 0 with zero (not absent) gradients.

Glossary: f logit, b bias (threshold on f), ℓ surrogate of the 0/1 loss, L⁺ and L⁻ mean surrogate over anomalous and normal pixels
(bounds on the miss rate and the false-positive rate, FPR), π prior of the anomalous class, r and α anchors, λ multiplier.

Source: Eban et al., "Scalable Learning of Non-Decomposable Objectives", AISTATS 2017, arXiv 1608.04802. Its losses are divided by π
here, and its sums by their class, so that the objective is a miss rate and a multiplier of 1 is a fair start at any imbalance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anomseg.sample import ANOMALY, IGNORE, NORMAL, check_mask

Surrogate = Callable[[Tensor, Tensor], Tensor]
"""ℓ(upper, lower): what it costs that ``upper``, which belongs above ``lower``, is not far enough above it; >= 0, broadcasting."""


def hinge(upper: Tensor, lower: Tensor) -> Tensor:
    """Compute max(0, 1 - z), z = upper - lower: convex, an upper bound on the 0/1 loss, pulled by outliers, in [0, ∞)."""
    return F.relu(1 - (upper - lower))


def logistic(upper: Tensor, lower: Tensor) -> Tensor:
    """Compute log(1 + exp(-z)), z = upper - lower: convex and smooth, in (0, ∞), **no** bound (ln 2 at z = 0)."""
    return F.softplus(lower - upper)


def logistic_bound(upper: Tensor, lower: Tensor) -> Tensor:
    """Compute `logistic` / ln 2, which is an upper bound on the 0/1 loss, in (0, ∞)."""
    return logistic(upper, lower) / math.log(2)


def sigmoid(upper: Tensor, lower: Tensor) -> Tensor:
    """Compute σ(-z), z = upper - lower: follows the 0/1 loss and shrugs off outliers; neither convex nor a bound, in (0, 1)."""
    return torch.sigmoid(lower - upper)


def sigmoid_margin(upper: Tensor, lower: Tensor, margin: float = 0.5) -> Tensor:
    """Compute max(0, m - (σ(upper) - σ(lower))): separates the outputs of a sigmoid by a margin, in [0, 1 + m).

    The margin m lies in (0, 1]. Only 1 bounds the 0/1 loss, and beyond 0.5 an anchor cannot be satisfied: at bias 0 it asks anomalous
    pixels for σ(f) >= 0.5 + m, normal ones for σ(f) <= 0.5 - m. Unlike the others it is not invariant to a shift of all logits.
    """
    return F.relu(margin - (torch.sigmoid(upper) - torch.sigmoid(lower)))


@dataclass(frozen=True)
class AnchorLoss:
    """A Lagrangian and the parts that say how training goes.

    Attributes:
        loss: (), mean over anchors of objective + multiplier x violation; unbounded to both sides. The one with a gradient.
        objective: (K,) detached, L⁺ at every anchor: how much of the anomalies is missed, >= 0.
        violation: (K,) detached, how far every constraint is exceeded; <= 0 where it holds. The ascent direction of its multiplier.
    """

    loss: Tensor
    objective: Tensor
    violation: Tensor


class _Classes(NamedTuple):
    """Logits and weights (> 0) of the (P,) anomalous and the (N,) normal pixels that count, in their order in the image."""

    anomalous: Tensor
    anomalous_weight: Tensor
    normal: Tensor
    normal_weight: Tensor


class GradientReversal(torch.autograd.Function):
    """Clamp to >= 0 on the way forward and negate the gradient on the way back; see `ascending`."""

    @staticmethod
    def forward(ctx: Any, multipliers: Tensor, rate: float) -> Tensor:
        """Return the multipliers clamped to >= 0."""
        ctx.save_for_backward(multipliers)
        ctx.rate = rate
        return multipliers.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient times -rate, or 0 where it would push a multiplier that is at 0 further down."""
        (multipliers,) = ctx.saved_tensors
        reverse = -ctx.rate * gradients[0]
        return torch.where((multipliers <= 0) & (reverse > 0), torch.zeros_like(reverse), reverse), None


def ascending(multipliers: Tensor, rate: float = 1.0) -> Tensor:
    """Let an optimiser that descends on everything else ascend on the multipliers, projected to >= 0.

    Args:
        multipliers: raw parameters, any shape; start at 1. A step may carry them slightly below 0, which counts as 0.
        rate: factor on the gradient, > 0. Adam does not see it: there, give the multipliers a learning rate of their own.

    Returns:
        Multipliers >= 0 to hand to a loss of this module, same shape. An own optimiser with ``maximize=True`` needs no reversal, but
        has to clamp its parameters after every step.

    Raises:
        ValueError: the rate is not > 0.

    Source:
        The AUCPR loss of PyText, which lets multipliers sink below 0 without end; here the gradient stops at 0.
    """
    if not rate > 0:
        raise ValueError(f"Expected rate > 0, but got {rate}. Use 1.0, or about 0.1 where the multipliers oscillate.")
    ascended: Tensor = GradientReversal.apply(multipliers, rate)
    return ascended


def interior_anchors(low: float, high: float, count: int) -> Tensor:
    """Spread anchors evenly between two ends, without these: low + k (high - low) / (count + 1), k = 1..count.

    Args:
        low: lower end, in [0, high).
        high: upper end, in (low, 1]. A range of FPR up to 0.3 spends the anchors on the part of the curve that is used.
        count: K >= 1.

    Returns:
        (K,) float32 in (low, high), rising.

    Raises:
        ValueError: the range or the count is outside its limits.
    """
    if not 0 <= low < high <= 1 or count < 1:
        raise ValueError(f"Expected 0 <= low < high <= 1 and count >= 1, but got {low}, {high} and {count}. Use for example 0.0, 1.0, 20.")
    return torch.linspace(low, high, count + 2)[1:-1]


def class_prior(mask: Tensor, weight: Tensor | None = None, pseudo_count: float = 1.0) -> Tensor:
    """Estimate the share of the anomalous class, drawn towards 1/2 so that it is never 0 or 1: π = (P + c) / (P + N + 2 c).

    Args:
        mask: (B, H, W) or (N,) integers, 0 normal, 1 anomaly, 255 ignored.
        weight: pixel weights >= 0, same shape; None counts every pixel once.
        pseudo_count: c > 0, in pixels, added to each class.

    Returns:
        () float32 in (0, 1). Average it over batches and hand it to a loss, where single batches hold too few anomalies.

    Raises:
        ValueError: shapes or ranges are not as above.
    """
    if not pseudo_count > 0:
        raise ValueError(f"Expected pseudo_count > 0, but got {pseudo_count}. Use 1.0.")
    classes = _split(torch.zeros(mask.shape, device=mask.device), mask, weight)  # counts alone are wanted
    anomalous = classes.anomalous_weight.sum() + pseudo_count
    return anomalous / (anomalous + classes.normal_weight.sum() + pseudo_count)


def pairwise_auroc_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    generator: torch.Generator,
    n_pairs: int = 4096,
    surrogate: Surrogate = hinge,
    weight: Tensor | None = None,
) -> Tensor:
    """Average a surrogate over (anomalous, normal) pairs of pixels; without sampling it bounds 1 - AUROC where ℓ bounds the 0/1 loss.

    Pairs are drawn without bias in proportion to the product of their weights, and stratified, so that few anomalous pixels all take
    part. Costs O(n_pairs) beyond reading the mask. All pairs are taken where there are no more than that.

    Args:
        logits: (B, H, W) or (N,), higher is more anomalous. `hinge`, `logistic` and `sigmoid` ignore a shift of all logits.
        mask: same shape, integers, 0 normal, 1 anomaly, 255 ignored.
        generator: source of the pairs; on the device of the logits it spares a copy of the weights.
        n_pairs: number of pairs, >= 1.
        surrogate: ℓ(upper, lower), one of this module or any of that signature.
        weight: pixel weights >= 0, same shape; None counts every pixel once. Only ratios within a class matter.

    Returns:
        () loss, in the range of the surrogate; 0 with zero gradient where a class is empty.

    Raises:
        ValueError: shapes or ranges are not as above.

    Source:
        ``roc_auc_loss`` of TensorFlow's global objectives, which takes all pairs of a batch and divides by those of like class too.
    """
    if n_pairs < 1:
        raise ValueError(f"Expected n_pairs >= 1, but got {n_pairs}. Use about 1000 to 10000.")
    classes = _split(logits, mask, weight)
    if not (len(classes.anomalous) and len(classes.normal)):
        return _zero(logits)
    if len(classes.anomalous) * len(classes.normal) <= n_pairs:
        share = torch.outer(classes.anomalous_weight, classes.normal_weight)
        return (share * surrogate(classes.anomalous[:, None], classes.normal[None])).sum() / share.sum()
    upper = _stratified_sample(classes.anomalous_weight, n_pairs, generator)
    lower = _stratified_sample(classes.normal_weight, n_pairs, generator)
    order = torch.randperm(n_pairs, generator=generator, device=generator.device).to(lower.device)
    return surrogate(classes.anomalous[upper], classes.normal[lower[order]]).mean()


def auroc_anchor_loss(
    logits: Tensor,
    mask: Tensor,
    biases: Tensor,
    multipliers: Tensor,
    anchors: Tensor,
    *,
    surrogate: Surrogate = hinge,
    weight: Tensor | None = None,
    prior: Tensor | float | None = None,
) -> AnchorLoss:
    """Compute the Lagrangian of "most anomalies found at a false-positive rate of at most r_k": mean of L⁺ + λ (L⁻ - r) over k.

    Convex in biases and a linear model's weights with `hinge` or `logistic`, linear in λ. At its saddle point over biases and
    multipliers, and there only, term k is >= 1 - TPR at FPR r_k if ℓ bounds the 0/1 loss, hence 1 - AUROC <= (1 + K loss) / (1 + K)
    for ``interior_anchors(0, 1, K)``. Costs O(K (P + N)).

    Args:
        logits: (B, H, W) or (N,), zero-centred, higher is more anomalous.
        mask: same shape, integers, 0 normal, 1 anomaly, 255 ignored.
        biases: (K,) thresholds in units of the logits, to be minimised over; start at 0.
        multipliers: (K,) >= 0, to be maximised over: pass ``ascending(parameters)``.
        anchors: (K,) false-positive rates r in (0, 1]; see `interior_anchors`.
        surrogate: ℓ(upper, lower), one of this module or any of that signature.
        weight: pixel weights >= 0, same shape; None counts every pixel once. Only ratios within a class matter if ``prior`` is None.
        prior: π in (0, 1) by which the sums over a batch are divided, such as a running mean of `class_prior`, so that batches rich
            in anomalies count more. None takes the batch's own share: plain means over each class, which the bounds above assume.

    Returns:
        Loss, objective L⁺ and violation L⁻ - r (-1 to ∞); all 0 with zero gradients where a class is empty.

    Raises:
        ValueError: shapes or ranges are not as above.

    Source:
        Eban et al. 2017, TPR at FPR, summed over anchors as their AUCPR is; divided by π, with λ scaled to fit.
    """
    _check_anchors(biases, multipliers, anchors, prior)
    classes = _split(logits, mask, weight)
    if not (len(classes.anomalous) and len(classes.normal)):
        return AnchorLoss(_zero(logits, biases, multipliers), torch.zeros_like(biases), torch.zeros_like(biases))
    missed, false, _ = _rates(classes, biases, surrogate, prior)
    return _lagrangian(missed, false - anchors.to(false), multipliers)


def aucpr_anchor_loss(
    logits: Tensor,
    mask: Tensor,
    biases: Tensor,
    multipliers: Tensor,
    anchors: Tensor,
    *,
    surrogate: Surrogate = hinge,
    weight: Tensor | None = None,
    prior: Tensor | float | None = None,
) -> AnchorLoss:
    """Compute the Lagrangian of "highest recall at a precision of at least α_k", which weighs the top of few anomalies most.

    Mean over k of L⁺ + λ v with the violation v = α (1 - π) / π L⁻ - (1 - α) (1 - L⁺). Where v <= 0 and ℓ bounds the 0/1 loss, the
    threshold's precision is >= α and L⁺ >= 1 - recall. The multiplier of a precision that the data cannot reach rises without end
    and drowns L⁺: keep to anchors within reach, to a convex surrogate, and to rates below 0.1 in `ascending`.

    Arguments, shapes and errors are those of `auroc_anchor_loss`, except that ``anchors`` (K,) are precisions α in (0, 1], that
    ``prior`` also sets the odds (1 - π) / π of the precision, and that weights of one class against the other change them too.

    Returns:
        Loss, objective L⁺ and violation v (-1 to ∞); all 0 with zero gradients where a class is empty.

    Source:
        Eban et al. 2017, recall at precision and its sum over anchors. In their sums over all pixels, before the division by π:
        (1 + λ (1 - α)) L⁺ + λ α L⁻ - λ (1 - α) π. A prior with pseudo-counts makes it the form of TensorFlow's global objectives.
    """
    _check_anchors(biases, multipliers, anchors, prior)
    classes = _split(logits, mask, weight)
    if not (len(classes.anomalous) and len(classes.normal)):
        return AnchorLoss(_zero(logits, biases, multipliers), torch.zeros_like(biases), torch.zeros_like(biases))
    missed, false, share = _rates(classes, biases, surrogate, prior)
    alpha = anchors.to(false)
    return _lagrangian(missed, alpha * (1 - share) / share * false - (1 - alpha) * (1 - missed), multipliers)


def _lagrangian(objective: Tensor, violation: Tensor, multipliers: Tensor) -> AnchorLoss:
    return AnchorLoss((objective + multipliers * violation).mean(), objective.detach(), violation.detach())


def _zero(*inputs: Tensor) -> Tensor:
    """Make a 0 whose gradient is 0 for every input, also where an input holds NaN."""
    return torch.stack([x.flatten()[:0].sum() for x in inputs]).sum()


def _rates(classes: _Classes, biases: Tensor, surrogate: Surrogate, prior: Tensor | float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Average the surrogate over each class at every bias: (K,) L⁺, (K,) L⁻ and the () prior used; holds K (P + N) values."""
    missed = (surrogate(classes.anomalous[None], biases[:, None]) * classes.anomalous_weight).sum(1)
    false = (surrogate(biases[:, None], classes.normal[None]) * classes.normal_weight).sum(1)
    anomalous, normal = classes.anomalous_weight.sum(), classes.normal_weight.sum()
    total = anomalous + normal
    share = anomalous / total if prior is None else torch.as_tensor(prior).detach().to(total)
    return missed / (total * share), false / (total * (1 - share)), share


def _stratified_sample(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw (count,) int64 indices in proportion to (N,) weights, one from each of ``count`` equal parts of their sum."""
    device = generator.device
    edges = weight.to(device, torch.float64).cumsum(0)  # float32 cannot tell more than 2^24 pixels apart
    place = torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    index = torch.searchsorted(edges, place * (edges[-1] / count), right=True)
    return index.clamp_max(len(weight) - 1).to(weight.device)


def _split(logits: Tensor, mask: Tensor, weight: Tensor | None) -> _Classes:
    """Check the inputs and gather the pixels of each class, without those to be ignored."""
    if logits.shape != mask.shape or (weight is not None and weight.shape != mask.shape):
        came = f"{tuple(logits.shape)}, {tuple(mask.shape)}" + ("" if weight is None else f" and {tuple(weight.shape)}")
        raise ValueError(f"Expected logits, mask and weight of one shape, but got {came}. Drop a channel axis, as in logits[:, 0].")
    check_mask(mask if mask.ndim > 1 else mask[None])
    values = logits if logits.dtype == torch.float64 else logits.float()
    weights = torch.ones_like(values) if weight is None else weight.detach().to(values)
    wrong = weights[(mask != IGNORE) & ~(weights >= 0)]
    if len(wrong):
        raise ValueError(f"Expected weights >= 0, but got {wrong[:4].tolist()}. Clamp them; a weight of 0 leaves a pixel out.")
    anomalous, normal = (mask == ANOMALY) & (weights > 0), (mask == NORMAL) & (weights > 0)
    return _Classes(values[anomalous], weights[anomalous], values[normal], weights[normal])


def _check_anchors(biases: Tensor, multipliers: Tensor, anchors: Tensor, prior: Tensor | float | None) -> None:
    if anchors.ndim != 1 or not len(anchors) or biases.shape != anchors.shape or multipliers.shape != anchors.shape:
        came = f"{tuple(biases.shape)}, {tuple(multipliers.shape)} and {tuple(anchors.shape)}"
        raise ValueError(f"Expected biases, multipliers and anchors of one shape (K,), but got {came}. Make one of each per anchor.")
    if not bool(((anchors > 0) & (anchors <= 1)).all()):
        raise ValueError(f"Expected anchors in (0, 1], but got {anchors.tolist()}. Make them with interior_anchors(0.0, 1.0, 20).")
    if bool((multipliers < 0).any()):
        raise ValueError(f"Expected multipliers >= 0, but got {multipliers.tolist()}. Pass ascending(multipliers), or clamp after a step.")
    if prior is not None and not 0 < float(prior) < 1:
        raise ValueError(f"Expected a prior in (0, 1), but got {float(prior)}. Take class_prior(mask), which is never 0 or 1.")
