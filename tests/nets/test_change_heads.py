import pytest
import torch
from torch.nn import functional as F

from anomseg.nets.change_heads import DetailHead, LevelHead, ShuffleHead, UpsamplingHead, set_biases, upsampled


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [ShuffleHead, UpsamplingHead])
def test_head__brings_a_map_to_full_resolution(kind, stride):
    assert kind(6, stride, "group")(torch.randn(2, 6, 3, 5)).shape == (2, 1, 3 * stride, 5 * stride)


def test_shuffle_head__lays_a_pixel_s_logits_out_in_its_block():
    head = ShuffleHead(6, 4, "group")
    x = torch.randn(1, 6, 3, 3)
    block = head(x)[0, 0, 4:8, 8:12]
    torch.testing.assert_close(block.flatten(), head.last(head.mix(x))[0, :, 1, 2])


def test_detail_head__gives_a_pixel_what_the_map_says_of_it_and_its_own_bands():
    head = DetailHead(6, 4, 2, "group")
    x, before, after = torch.randn(1, 6, 3, 3), torch.randn(1, 2, 12, 12), torch.randn(1, 2, 12, 12)
    plain = head(x, before, after)
    assert plain.shape == (1, 1, 12, 12)
    changed = after.clone()
    changed[..., 5, 6] += 1.0
    moved = (head(x, before, changed) - plain)[0, 0].abs() > 0
    assert moved.any()
    moved[4:7, 5:8] = False  # features of the bands are 3 x 3, so one pixel reaches no further than its neighbours
    assert not moved.any()


def test_detail_head__can_be_the_and_of_a_difference_and_a_place():
    head = DetailHead(1, 2, 1, "none", detail=1)
    for layer in (head.see, head.last, head.spread):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        head.see.weight[0, 2, 1, 1] = 1.0  # |after - before| of the pixel itself
        head.last.weight.fill_(1.0)
        head.spread.bias[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # the map expects change in one corner of each block
    before, after = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    after[..., :2] = 0.0
    found = head(torch.randn(1, 1, 2, 2), before, after)[0, 0]
    assert found.nonzero().tolist() == [[0, 2], [2, 2]]


def test_set_biases__starts_at_the_share():
    head = LevelHead(4)
    torch.nn.init.zeros_(head[-1].weight)
    set_biases([head[-1]], 0.05)
    torch.testing.assert_close(torch.sigmoid(head(torch.randn(1, 4, 3, 3))), torch.full((1, 1, 3, 3), 0.05))
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        set_biases([head[-1]], 0.0)


def test_upsampled__enlarges_the_padded_map_before_it_crops():
    coarse = torch.randn(1, 2, 3)
    found = upsampled(coarse, 8, (13, 21))
    full = F.interpolate(coarse[:, None], (16, 24), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(found, full[:, :13, :21])
