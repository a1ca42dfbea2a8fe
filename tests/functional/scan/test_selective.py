import itertools
import sys
import types

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from anomseg.functional.scan import selective, selective_scan


def operands(length, state=2, groups=2, batch=2, channels=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    sides = (batch, groups, state, length)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    given = draw(batch, channels, length), draw(batch, channels, length), -draw(channels, state).abs(), draw(*sides), draw(*sides)
    return dict(zip(names, (*given, draw(channels), draw(batch, channels, length), draw(channels)), strict=True))


def relative_error(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan__equals_the_reference_in_float32(length, reverse):
    for state, groups in itertools.product((1, 2, 16), (1, 4)):
        given = operands(length, state, groups)
        found = selective_scan(**given, delta_softplus=True, reverse=reverse)
        exact = selective_scan(**{k: x.double() for k, x in given.items()}, delta_softplus=True, reverse=reverse, backend="reference")
        assert relative_error(found.double(), exact) <= 1e-5


@pytest.mark.parametrize("length", [65, 600])
def test_gradients__equal_those_of_the_reference_in_float32(length):
    given = {k: x.requires_grad_() for k, x in operands(length).items()}
    exact = {k: x.detach().double().requires_grad_() for k, x in given.items()}
    slope = torch.randn(2, 8, length)
    found = torch.autograd.grad(selective_scan(**given, delta_softplus=True), given.values(), slope)
    y = selective_scan(**exact, delta_softplus=True, backend="reference")
    for ours, theirs in zip(found, torch.autograd.grad(y, exact.values(), slope.double()), strict=True):
        assert relative_error(ours.double(), theirs) <= 1e-4


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", ["chunked", "pure"])
def test_scan__runs_with_and_without_its_optional_operands(absent, softplus, backend):
    given = {k: x for k, x in operands(20, dtype=torch.float64).items() if k not in absent}
    given["delta"] = given["delta"] * 0.1
    found = selective_scan(**given, delta_softplus=softplus, backend=backend)
    torch.testing.assert_close(found, selective_scan(**given, delta_softplus=softplus, backend="reference"))


def test_gate_and_skip__are_what_their_formulas_say():
    given = operands(30, dtype=torch.float64)
    plain = selective_scan(**{k: x for k, x in given.items() if k not in ("D", "z")})
    expected = (plain + given["D"][:, None] * given["u"]) * F.silu(given["z"])
    torch.testing.assert_close(selective_scan(**given), expected)


def test_sides_without_groups__are_one_group():
    given = operands(30, groups=1)
    flat = {**given, "B": given["B"][:, 0], "C": given["C"][:, 0]}
    assert torch.equal(selective_scan(**flat), selective_scan(**given))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_in_two_parts__equals_one_scan(reverse):
    given = operands(300, dtype=torch.float64)
    whole, last = selective_scan(**given, delta_softplus=True, return_last_state=True, reverse=reverse)
    parts = [{k: x[..., s] if x.shape[-1] == 300 else x for k, x in given.items()} for s in (slice(0, 130), slice(130, None))]
    first, second = parts[::-1] if reverse else parts
    a, state = selective_scan(**first, delta_softplus=True, return_last_state=True, reverse=reverse)
    b, state = selective_scan(**second, delta_softplus=True, return_last_state=True, initial_state=state, reverse=reverse)
    torch.testing.assert_close(torch.cat([b, a] if reverse else [a, b], dim=-1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("backend", ["chunked", "pure"])
def test_scan__is_causal(backend):
    given = operands(600)
    changed = {k: x.clone() for k, x in given.items()}
    for name in ("u", "delta", "B", "C"):
        changed[name][..., 333] += 1.0
    before, after = (selective_scan(**x, delta_softplus=True, backend=backend) for x in (given, changed))
    assert torch.equal(before[..., :333], after[..., :333])
    assert not torch.equal(before[..., 333], after[..., 333])


@pytest.mark.parametrize("delta", [1e-30, 1.0, 100.0])
def test_scan__has_no_nan_for_finite_inputs(delta):
    length = 65536
    rates = torch.tensor([[-1e-6, -1.0, -1e4]]).requires_grad_()
    u = torch.ones(1, 1, length, requires_grad=True)
    steps = torch.full((1, 1, length), delta, requires_grad=True)
    side = torch.ones(1, 3, length)
    y = selective_scan(u, steps, rates, side, side)
    assert bool(y.isfinite().all())
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(y.mean(), (u, steps, rates)))


def test_decay_that_underflows__forgets_everything():
    given = {**operands(300), "delta": torch.full((2, 8, 300), 100.0), "A": torch.full((8, 2), -50.0)}
    del given["delta_bias"], given["D"], given["z"]
    enter, leave = (given[k].repeat_interleave(4, 1) for k in ("B", "C"))
    torch.testing.assert_close(selective_scan(**given), 100 * given["u"] * (enter * leave).sum(2), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_tangents__follow_every_operand(name):
    given = operands(6, dtype=torch.float64)

    def scan(x, backend):
        return selective_scan(**{**given, name: x}, delta_softplus=True, backend=backend)

    tangent = torch.ones_like(given[name])
    expected = torch.func.jvp(lambda x: scan(x, "reference"), (given[name],), (tangent,))
    found = torch.func.jvp(lambda x: scan(x, "auto"), (given[name],), (tangent,))
    torch.testing.assert_close(found, expected)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(scan(forward_ad.make_dual(given[name], tangent), "auto"))
        torch.testing.assert_close(dual.tangent, expected[1])


def test_tangents__are_an_error_where_a_backend_would_lose_them():
    given = operands(6)
    u = given.pop("u")
    with pytest.raises(RuntimeError, match="backend='pure'"):
        torch.func.jvp(lambda x: selective_scan(x, **given, backend="chunked"), (u,), (u,))


@pytest.mark.parametrize("backend", ["pure", "reference"])
def test_gradients_of_gradients__exist_where_the_scan_is_written_out(backend):
    given = operands(5, dtype=torch.float64)
    u = given.pop("u").requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: selective_scan(x, **given, delta_softplus=True, backend=backend), (u,))


def test_vmap__maps_over_scans():
    given = operands(6)
    several = torch.randn(3, *given.pop("u").shape)
    found = torch.vmap(lambda u: selective_scan(u, **given))(several)
    torch.testing.assert_close(found, torch.stack([selective_scan(u, **given) for u in several]))


def test_results__repeat_bit_for_bit():
    given = {k: x.requires_grad_() for k, x in operands(500).items()}
    first, second = (torch.autograd.grad(selective_scan(**given, delta_softplus=True).sum(), given.values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_onnx_export__takes_the_pure_path(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    given = operands(5)
    given["u"].requires_grad_()
    assert "selective_scan" not in str(selective_scan(**{**given, "z": None}).grad_fn).lower()


def test_mamba_ssm__gets_its_layout_and_reverse_is_two_flips(monkeypatch):
    calls = []

    def stand_in(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        calls.append((u.dtype, delta.dtype, B.dtype, A.dtype, D.dtype, delta_bias.dtype))
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference")

    module = types.SimpleNamespace(selective_scan_fn=stand_in)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", module)
    monkeypatch.setattr(selective, "_takes_mamba_ssm", lambda u, name, initial: name == "auto")
    given = {k: x.bfloat16() if k in ("u", "B") else x for k, x in operands(20).items()}
    found = selective_scan(**given, delta_softplus=True, reverse=True)
    assert calls == [(torch.bfloat16,) * 3 + (torch.float32,) * 3]
    expected = selective_scan(
        **{**given, "delta": given["delta"].bfloat16(), "C": given["C"].bfloat16()}, delta_softplus=True, reverse=True
    )
    torch.testing.assert_close(found, expected)


def test_mamba_ssm_asked_for_on_a_cpu__is_an_error():
    with pytest.raises(RuntimeError, match="selective_scan_cuda"):
        selective_scan(**operands(3), backend="mamba_ssm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(8, 20)}, "u of shape"),
        ({"u": torch.zeros(2, 8, 0)}, "L >= 1"),
        ({"u": torch.zeros(2, 0, 20), "A": torch.zeros(0, 2)}, "D, L >= 1"),
        ({"A": torch.zeros(7, 2)}, "A of shape"),
        ({"A": torch.zeros(8, 0), "B": torch.zeros(2, 2, 0, 20), "C": torch.zeros(2, 2, 0, 20)}, "N >= 1"),
        ({"B": torch.zeros(2, 0, 2, 20), "C": torch.zeros(2, 0, 2, 20)}, "divisor of 8"),
        ({"B": torch.zeros(2, 3, 2, 20)}, "divisor of 8"),
        ({"C": torch.zeros(2, 1, 2, 20)}, "B and C of shape"),
        ({"delta": torch.zeros(2, 8, 19)}, "delta of shape"),
        ({"D": torch.zeros(7)}, "D of shape"),
        ({"z": torch.zeros(2, 8)}, "z of shape"),
        ({"initial_state": torch.zeros(2, 8, 3)}, "initial_state of shape"),
    ],
)
def test_shapes_that_do_not_fit__are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**operands(20), **change})


def test_complex_rates__are_an_error():
    given = operands(5)
    with pytest.raises(TypeError, match="complex64"):
        selective_scan(**{**given, "A": given["A"].to(torch.complex64)})
