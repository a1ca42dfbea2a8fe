from dataclasses import replace

import pytest
import torch

from anomseg.nets.change_mamba import BASE, SMALL, TINY, TINY_DETAIL, ChangeMambaSpec, ChangeMambaUNet
from anomseg.nets.cost import cost, parameter_count

TOY = ChangeMambaSpec(width=4, depths=(1, 1), norm="group", mlp_ratio=2.0)
AXES = {
    "encoder": ["full", "shared_vss", "separate_vss", "shared_cnn"],
    "decoder": ["both", "none", "channel", "spatial"],
    "enhancement": ["full", "none", "first_order", "second_order", "scan"],
    "difference": [False],
    "signed": [True],
    "arrangements": [("cat",), ("split", "interleave", "cat")],
    "shared_core": [False],
    "gate": ["soft", "dai", "tanh"],
    "skip": ["se", "none"],
    "norm": ["batch", "layer", "none"],
    "first_order": ["scharr"],
    "second_order": ["laplacian", "laplacian8", "pyramid"],
    "channel_gate": ["squeeze"],
    "stem": ["space_to_depth"],
    "stem_stride": [2],
    "fine": [(4,), (4, 6)],
    "stem_shared": [True],
    "stem_difference": [True],
    "head": ["shuffle", "detail"],
    "scan_ratio": [2.0],
    "state": [2],
    "mlp_ratio": [0.5],
    "depths": [(1,), (1, 1, 1)],
}


def dates(bands=2, size=(8, 16), batch=1):
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, bands, *size, generator=g), torch.randn(batch, bands, *size, generator=g)


def step(spec):
    net = ChangeMambaUNet(2, spec).train()
    out = net(*dates())
    torch.stack([one.square().mean() for one in (out.logits, *out.auxiliary)]).sum().backward()
    return net, out


@pytest.mark.parametrize(("axis", "value"), [(axis, value) for axis, values in AXES.items() for value in values])
def test_ablation__builds_and_every_parameter_learns(axis, value):
    spec = replace(TOY, **{axis: value})
    net, out = step(spec)
    assert out.logits.shape == (1, 8, 16)
    assert len(out.auxiliary) == len(spec.depths)
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_ablation__without_enhancement_and_difference_has_no_fusion():
    net, _ = step(replace(TOY, enhancement="none", difference=False))
    assert not any("fusion" in name for name, _ in net.named_parameters())


def test_ablation__removes_parameters_with_a_part():
    def count(**options):
        return parameter_count(ChangeMambaUNet(2, replace(TOY, **options)))

    assert count(enhancement="none") < count(enhancement="first_order") < count()
    assert count(decoder="none") < count(decoder="channel") < count(decoder="both")
    assert count(encoder="shared_vss") < count(encoder="separate_vss")
    assert count(stem_shared=True) < count()


@pytest.mark.parametrize("size", [(16, 24), (17, 9), (5, 31), (1, 1)])
@pytest.mark.parametrize("bands", [1, 5])
def test_net__takes_any_size_and_bands(size, bands):
    out = ChangeMambaUNet(bands, TOY).eval()(*dates(bands, size))
    assert out.logits.shape == (1, *size)
    assert torch.isfinite(out.logits).all()


def test_net__computes_no_head_of_a_level_at_inference():
    net = ChangeMambaUNet(2, TOY)
    calls = []
    for head in net.heads:
        head.register_forward_hook(lambda *_: calls.append(1))
    assert len(net.train()(*dates()).auxiliary) == len(calls) == 2
    assert net.eval()(*dates()).auxiliary == ()
    assert len(calls) == 2


def test_net__with_a_shared_stem_and_one_arrangement_of_channels_nearly_ignores_the_order():
    net = ChangeMambaUNet(2, replace(TOY, encoder="shared_vss", stem_shared=True, skip="none")).eval()
    a, b = dates()
    assert not torch.allclose(net(a, b).logits, net(b, a).logits)  # the deepest skip tells the dates apart; the method averages both orders


def test_net__trains_in_batches_of_one_with_group_norm():
    alone = ChangeMambaUNet(2, TOY).train()
    x, y = dates(batch=2)
    torch.testing.assert_close(alone(x, y).logits[:1], alone(x[:1], y[:1]).logits, rtol=1e-4, atol=1e-5)


def test_net__under_autocast_is_finite_and_near_full_precision():
    net = ChangeMambaUNet(2, TOY).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(*dates())
    out.logits.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    torch.testing.assert_close(out.logits.float(), net(*dates()).logits, rtol=0.1, atol=0.2)


def test_net__starts_at_its_prior():
    net = ChangeMambaUNet(2, TOY)
    for layer in (net.head.last, *(head[-1] for head in net.heads)):
        torch.nn.init.zeros_(layer.weight)
    net.set_prior(0.03)
    out = net.train()(*dates())
    for one in (out.logits, *out.auxiliary):
        torch.testing.assert_close(torch.sigmoid(one), torch.full_like(one, 0.03))


def test_presets__stay_within_their_size():
    sizes = [parameter_count(ChangeMambaUNet(3, spec)) for spec in (TINY, SMALL, BASE, TINY_DETAIL)]
    assert max(sizes[0], sizes[3]) < 1_000_000 < sizes[1] < sizes[2] <= 15_000_000


def test_presets__are_light_to_run():
    found = cost(ChangeMambaUNet(3, TINY), *dates(3, (64, 64)))
    assert found.flops < 1_000 * found.parameters


@pytest.mark.parametrize("options", [{"encoder": "x"}, {"depths": ()}, {"width": 1}, {"scan_ratio": 0.0}, {"head": "x"}])
def test_spec__refuses_what_it_does_not_know(options):
    with pytest.raises(ValueError, match="Expected"):
        ChangeMambaSpec(**options)


@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("training", [False, True])
def test_net__with_group_norm_takes_one_pixel_at_any_width(width, training):
    net = ChangeMambaUNet(2, replace(TOY, width=width)).train(training)
    assert bool(net(*dates(size=(1, 1))).logits.isfinite().all())


def test_net__in_half_precision_is_near_full_precision():
    torch.manual_seed(0)
    net = ChangeMambaUNet(2, TOY).eval()
    expected = net(*dates()).logits
    found = net.bfloat16()(*(one.bfloat16() for one in dates())).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.detach(), rtol=0.1, atol=0.1)


def test_net__takes_an_empty_batch():
    assert ChangeMambaUNet(2, TOY)(*dates(batch=0)).logits.shape == (0, 8, 16)


def test_net__exports_for_batches_of_any_size():
    small = {"depths": (1,), "fine": (2,), "decoder": "channel", "enhancement": "none", "stem_shared": True}
    net = ChangeMambaUNet(2, replace(TOY, **small)).eval()
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},) * 2
    program = torch.export.export(net, dates(batch=3), dynamic_shapes=sizes).module()
    for batch in (1, 5):
        given = dates(batch=batch)
        torch.testing.assert_close(program(*given).logits, net(*given).logits)
