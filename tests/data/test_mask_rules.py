import pickle

import pytest
import torch

from anomseg.data.mask_rules import BlockRule, calibration_mask, full_mask, held_out_mask, unlabelled_mask
from anomseg.functional.windows import random_blocks


def truth(size=(30, 20)):
    mask = torch.zeros(size, dtype=torch.int64)
    mask[5:7, 6:9] = 1
    return mask


def test_calibration_mask__keeps_the_truth_inside_its_blocks_only():
    mask = truth((40, 40))
    blocks = random_blocks((40, 40), 10, 0.25, seed=7)
    kept = calibration_mask(mask, (40, 40), seed=7)
    assert torch.equal(kept[blocks], mask[blocks])
    assert (kept[~blocks] == 255).all()
    assert int((kept != 255).sum()) == 400


def test_held_out_mask__is_the_complement_of_the_calibration_mask():
    mask = truth((45, 33))
    arguments = {"block": 7, "share": 0.4, "seed": 3}
    inside, outside = calibration_mask(mask, (45, 33), **arguments), held_out_mask(mask, (45, 33), **arguments)
    assert torch.equal(inside == 255, outside != 255)
    assert torch.equal(torch.where(inside == 255, outside, inside), mask)


def test_calibration_mask__draws_blocks_without_looking_at_the_truth():
    mask = truth()
    with_truth, without = calibration_mask(mask, (30, 20)), calibration_mask(None, (30, 20))
    assert torch.equal(with_truth == 255, without == 255)
    assert set(without.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("rule", [full_mask, calibration_mask, held_out_mask])
def test_mask_rules__leave_the_scene_untouched(rule):
    mask = truth()
    before = mask.clone()
    rule(mask, (30, 20)).zero_()
    assert torch.equal(mask, before)


def test_unlabelled_mask__keeps_what_is_ignored_and_hides_anomalies():
    mask = torch.tensor([[0, 1, 255]])
    assert unlabelled_mask(mask, (1, 3)).tolist() == [[0, 0, 255]]
    assert mask.tolist() == [[0, 1, 255]]
    assert unlabelled_mask(None, (1, 3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("rule", [calibration_mask, held_out_mask])
def test_block_rule__binds_a_rule_and_marks_what_it_keeps(rule):
    bound = pickle.loads(pickle.dumps(BlockRule(rule, 7, 0.4, 3)))
    mask = truth((45, 33))
    assert torch.equal(bound(mask, (45, 33)), rule(mask, (45, 33), 7, 0.4, 3))
    assert torch.equal(bound.kept((45, 33)), rule(None, (45, 33), 7, 0.4, 3) == 0)
