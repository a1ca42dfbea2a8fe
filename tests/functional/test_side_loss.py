import math

import pytest
import torch
from torch.nn import functional as F

from anomseg.functional.side_loss import PAPER_SIDE_WEIGHTS, side_loss


def sides(height, width, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = (1, 2, 4, 8, 8, 8)
    return [torch.randn(batch, 1, -(-height // s), -(-width // s), dtype=torch.float64, generator=generator) for s in steps]


def random_mask(height, width, batch=2):
    return (torch.rand(batch, height, width, generator=torch.Generator().manual_seed(1)) < 0.3).long()


def test_side_loss__equals_the_stock_weighted_bce_on_halved_targets():
    logits, mask = sides(16, 24), random_mask(16, 24)
    target, expected = mask[:, None].double(), 0.0
    for values, weight in zip(logits, PAPER_SIDE_WEIGHTS, strict=True):
        while target.shape[2] > values.shape[2]:
            target = F.interpolate(target, scale_factor=0.5, mode="nearest")
        pixel = torch.where(target == 1, 1.0, 0.1).double()
        expected = expected + weight * F.binary_cross_entropy(values.sigmoid(), target, weight=pixel)
    torch.testing.assert_close(side_loss(logits, mask), expected)


def test_side_loss__of_zero_logits_is_the_share_of_each_class_times_its_weight():
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[0, :2] = 1
    got = side_loss([torch.zeros(1, 1, 4, 4)], mask, positive_weight=2.0, negative_weight=0.5, side_weights=(3.0,))
    assert got.item() == pytest.approx(3 * math.log(2) * (2.0 + 0.5) / 2)


@pytest.mark.parametrize(("height", "width"), [(9, 13), (1, 5), (17, 16)])
def test_side_loss__reads_odd_masks_at_every_second_pixel(height, width):
    logits, mask = sides(height, width), random_mask(height, width)
    coarse = mask[:, ::8, ::8]
    alone = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    torch.testing.assert_close(side_loss(logits, mask, side_weights=alone), side_loss(logits[5:], coarse, side_weights=(1.0,)))


def test_side_loss__ignored_pixels_have_no_influence_whatever_their_logit():
    mask = random_mask(16, 16)
    mask[:, :8] = 255
    first, second = sides(16, 16), sides(16, 16)
    for logits in second:
        logits[:, :, : logits.shape[2] // 2] = float("nan")
    for logits in first + second:
        logits.requires_grad_()
    a, b = side_loss(first, mask), side_loss(second, mask)
    assert a == b
    a.backward()
    b.backward()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.grad, other.grad)
        assert not one.grad[:, :, : one.shape[2] // 2].any()


def test_side_loss__equals_that_of_the_counted_half_alone():
    mask, logits = random_mask(16, 16), sides(16, 16)
    void = mask.clone()
    void[:, :8] = 255
    half = [values[:, :, values.shape[2] // 2 :] for values in logits]
    torch.testing.assert_close(side_loss(logits, void), side_loss(half, mask[:, 8:]))


def test_side_loss__is_zero_with_zero_gradients_where_nothing_counts():
    logits = [values.requires_grad_() for values in sides(8, 8)]
    loss = side_loss(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0
    assert all(values.grad is not None and not values.grad.any() for values in logits)
    assert side_loss([values[:0] for values in logits], torch.zeros(0, 8, 8, dtype=torch.long)).item() == 0


def test_side_loss__a_side_weight_of_zero_leaves_an_output_out():
    logits, mask = sides(8, 8), random_mask(8, 8)
    logits[3] = torch.full_like(logits[3], float("inf"))
    weights = (1.0, 0.8, 0.8, 0.0, 0.5, 0.5)
    kept = [*logits[:3], *logits[4:]]
    torch.testing.assert_close(side_loss(logits, mask, side_weights=weights), side_loss(kept, mask, side_weights=(1, 0.8, 0.8, 0.5, 0.5)))


def test_side_loss__of_half_precision_is_computed_in_single():
    logits, mask = [values.half() for values in sides(8, 8)], random_mask(8, 8)
    assert side_loss(logits, mask).dtype == torch.float32
    torch.testing.assert_close(side_loss(logits, mask), side_loss([values.float() for values in logits], mask))


def test_side_loss__passes_the_gradient_check():
    logits = [values.requires_grad_() for values in sides(4, 4, batch=1)]
    mask = random_mask(4, 4, batch=1)
    assert torch.autograd.gradcheck(lambda *values: side_loss(values, mask), logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side_logits": []}, "one side weight"),
        ({"side_weights": (1.0,)}, "one side weight"),
        ({"negative_weight": -0.1}, "weights >= 0"),
        ({"side_logits": [torch.zeros(2, 1, 3, 8)] * 6}, "halved"),
        ({"side_logits": [torch.zeros(2, 8, 8)] * 6}, "mask \\(B, H, W\\)"),
        ({"mask": torch.full((2, 8, 8), 7)}, "mask values"),
    ],
)
def test_side_loss__refuses_what_it_cannot_read(change, message):
    arguments = {"side_logits": sides(8, 8), "mask": random_mask(8, 8)} | change
    with pytest.raises(ValueError, match=message):
        side_loss(**arguments)
