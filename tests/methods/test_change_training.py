import warnings

import pytest
import torch

from anomseg.functional.change_vector import gated_logits
from anomseg.functional.overlap import dice_loss, focal_loss, lovasz_hinge
from anomseg.methods.change_training import ChangeTraining, CollapseWatch, change_loss, deep_loss, open_truth


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 7, generator=g), (torch.rand(2, 6, 7, generator=g) < 0.3).long()


def test_change_loss__is_the_weighted_sum_of_its_parts():
    logits, mask = batch()
    losses = change_loss(logits, mask, ChangeTraining(gamma=1.0, alpha=0.6, weights=(2.0, 0.5)))
    torch.testing.assert_close(losses["pixel"], 2 * focal_loss(logits, mask, 1.0, 0.6))
    torch.testing.assert_close(losses["overlap"], 0.5 * lovasz_hinge(logits, mask, per_image=False))
    plain = change_loss(logits, mask, ChangeTraining(pixel="bce", overlap="dice", per_image=True))
    torch.testing.assert_close(plain["pixel"], focal_loss(logits, mask, 0.0))
    torch.testing.assert_close(plain["overlap"], dice_loss(logits, mask, per_image=True))
    assert set(change_loss(logits, mask, ChangeTraining(overlap="none"))) == {"pixel"}


def test_deep_loss__adds_levels_by_their_weights_and_leaves_others_out():
    maps, mask = [batch(seed)[0] for seed in range(4)], batch()[1]
    recipe = ChangeTraining(auxiliary=(0.5, 0.0))
    level = torch.stack(list(change_loss(maps[1], mask, recipe).values())).sum()
    torch.testing.assert_close(deep_loss(maps, mask, recipe)["auxiliary"], 0.5 * level)
    assert "auxiliary" not in deep_loss(maps[:1], mask, recipe)


@pytest.mark.parametrize("gated", [False, True])
def test_deep_loss__of_gathered_pixels_is_that_of_whole_maps(gated):
    maps, mask = [batch(seed)[0] for seed in range(3)], batch()[1]
    mask[:, 1] = 255
    gate = torch.rand(mask.shape, generator=torch.Generator().manual_seed(5)) if gated else None
    whole = [gated_logits(one, gate) for one in maps] if gated else maps
    truth = open_truth(mask, gate)
    recipe = ChangeTraining(overlap="dice")
    found = deep_loss(maps, mask, recipe, gate=gate)
    for name, value in change_loss(whole[0], truth, recipe).items():
        torch.testing.assert_close(found[name], value)
    levels = [w * sum(change_loss(m, truth, recipe).values()) for m, w in zip(whole[1:], recipe.auxiliary, strict=False)]
    torch.testing.assert_close(found["auxiliary"], sum(levels))
    each = deep_loss(maps, mask, ChangeTraining(overlap="dice", per_image=True), gate=gate)
    torch.testing.assert_close(each["overlap"], dice_loss(whole[0], truth, per_image=True))


def test_deep_loss__of_a_void_batch_is_zero_with_a_gradient():
    maps = [batch()[0].requires_grad_() for _ in range(2)]
    total = torch.stack(list(deep_loss(maps, torch.full((2, 6, 7), 255), ChangeTraining()).values())).sum()
    total.backward()
    assert total == 0
    assert not maps[0].grad.any()


def test_open_truth__leaves_out_what_the_gate_closes():
    mask = torch.tensor([[[0, 1, 0, 1]]])
    assert open_truth(mask, torch.tensor([[[0.0, 0.49, 0.5, 1.0]]])).tolist() == [[[255, 255, 0, 1]]]
    assert open_truth(mask, None) is mask


def run_epoch(watch, logit):
    watch.begin()
    watch.update(torch.full((1, 10, 10), logit), torch.eye(10)[None].long())
    watch.end()


def test_collapse_watch__warns_after_its_patience_and_names_a_cure():
    watch = CollapseWatch(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logit in (-1.0, 1.0, -1.0):
            run_epoch(watch, logit)
    with pytest.warns(UserWarning, match="overlap='dice'"):
        run_epoch(watch, -1.0)


def test_collapse_watch__is_silent_where_nothing_has_changed_and_counts_no_void_pixel():
    watch = CollapseWatch(1)
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[:, :2] = 255
    watch.update(torch.ones(1, 4, 4), mask)
    assert watch.shares() == {"predicted_share": 1.0, "true_share": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.end()


@pytest.mark.parametrize(
    "options",
    [
        {"pixel": "mse"},
        {"overlap": "iou"},
        {"weights": (0.0, 0.0)},
        {"auxiliary": (-1.0,)},
        {"prior": 1.0},
        {"patience": 0},
        {"alpha": 2.0},
        {"gamma": -1.0},
        {"max_pixels": 0},
    ],
)
def test_recipe__refuses_what_is_out_of_range(options):
    with pytest.raises(ValueError, match="Expected"):
        ChangeTraining(**options)
