import pytest
import torch

from anomseg.nets.change_fusion import AttentionalFusion, SkipUnit, fuse_gated

GATES = ["one_sided", "soft", "dai", "tanh"]


def maps():
    g = torch.Generator().manual_seed(0)
    return (torch.randn(2, 4, 5, 6, generator=g) for _ in range(3))


def test_fuse_gated__follows_its_identities():
    main, side, w = maps()
    soft = fuse_gated(main, side, w, "soft")
    torch.testing.assert_close(fuse_gated(main, side, w, "dai"), 2 * soft)
    torch.testing.assert_close(fuse_gated(main, side, w, "tanh"), fuse_gated(main, side, 2 * w, "dai"))
    torch.testing.assert_close(fuse_gated(main, side, w, "one_sided") - soft, (1 - torch.sigmoid(w)) * main)
    torch.testing.assert_close(fuse_gated(main, main, w, "soft"), main)


@pytest.mark.parametrize(("gate", "of_main", "of_side"), [("one_sided", 1, 0), ("soft", 1, 0), ("dai", 2, 0), ("tanh", 2, 0)])
def test_fuse_gated__closes_the_side_where_attention_is_high(gate, of_main, of_side):
    main, side, _ = maps()
    torch.testing.assert_close(fuse_gated(main, side, torch.full_like(main, 50.0), gate), of_main * main + of_side * side)


def test_fuse_gated__one_sided_leaves_the_main_line_alone():
    main, side, w = maps()
    main.requires_grad_()
    fuse_gated(main, side, w, "one_sided").sum().backward()
    assert torch.equal(main.grad, torch.ones_like(main))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_attentional_fusion__trains_on_one_image(gate, norm):
    fusion = AttentionalFusion(4, gate, norm)
    main, side, _ = maps()
    y = fusion(main[:1], side[:1])
    y.square().sum().backward()
    assert y.shape == (1, 4, 5, 6)
    assert all(p.grad is not None for p in fusion.parameters())


def test_attentional_fusion__weighs_by_local_and_global_branch():
    fusion = AttentionalFusion(4, "soft").eval()
    main, side, _ = maps()
    attention = fusion.local(main + side) + fusion.whole(main + side)
    torch.testing.assert_close(fusion(main, side), fuse_gated(main, side, attention, "soft"))


@pytest.mark.parametrize("skip", ["cat", "se", "none"])
def test_skip_unit__joins_the_dates_with_a_smaller_map(skip):
    a, b, _ = maps()
    unit = SkipUnit(4, 8, skip, "group")
    below = torch.randn(2, 8, 3, 3)
    y = unit(a, b, below)
    assert y.shape == (2, 4, 5, 6)
    assert torch.equal(y, unit(2 * a, b, below)) is (skip == "none")


@pytest.mark.parametrize("skip", ["cat", "se", "none"])
def test_skip_unit__takes_the_dates_at_the_deepest_level(skip):
    a, b, _ = maps()
    unit = SkipUnit(4, 0, skip, "group")
    assert not torch.equal(unit(a, b, None), unit(2 * a, b, None))


def test_fusion__refuses_unknown_names():
    main, side, w = maps()
    for call in (lambda: fuse_gated(main, side, w, "gelu"), lambda: AttentionalFusion(4, "gelu"), lambda: SkipUnit(4, 0, "add")):
        with pytest.raises(ValueError, match="Expected"):
            call()
