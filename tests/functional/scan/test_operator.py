import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomseg.functional.scan import selective_scan
from anomseg.functional.scan.operator import arithmetic_dtype, backward_operator, positive_steps, scan_flops, scan_operator


def operands(length=5, dtype=torch.float64):

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype)

    torch.manual_seed(0)
    u, delta, rates = draw(2, 4, length), draw(2, 4, length), -draw(4, 2).abs()
    return [u, delta, rates, draw(2, 2, 2, length), draw(2, 2, 2, length), draw(4), draw(4), draw(2, 4, 2)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
def test_operator__passes_gradcheck(softplus, reverse):
    given = [x.requires_grad_() for x in operands()]
    assert torch.autograd.gradcheck(lambda *x: scan_operator(*x, softplus, reverse, "chunked")[:2], given)


@pytest.mark.parametrize("absent", [(), (5, 6, 7)])
def test_operators__keep_the_rules_of_pytorch(absent):
    given = [None if i in absent else x.float().requires_grad_() for i, x in enumerate(operands(300))]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(scan_operator, (*given, True, False, "auto"), test_utils=checks)
    kept = scan_operator(*given, True, False, "auto")[2].detach()
    slope, last = torch.randn(2, 4, 300), torch.randn(2, 4, 2)
    still = [None if x is None else x.detach() for x in given[:7]]
    torch.library.opcheck(backward_operator, (slope, last, *still, kept, True, False, "auto"), test_utils=checks)


def test_compile__keeps_the_graph_whole():
    given = [x.float().requires_grad_() for x in operands(20)]

    def model(u, *rest):
        return selective_scan(torch.sin(u), *rest[:5], None, rest[5], True, initial_state=rest[6]).cos().sum()

    expected = torch.autograd.grad(model(*given), given)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*given), given), expected)


class Net(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, *x):
        return selective_scan(*x[:6], None, x[6], True, initial_state=x[7], backend=self.backend, reverse=True)


def test_compile__serves_lengths_that_change():
    compiled = torch.compile(lambda *x: selective_scan(*x[:5]).sum(), backend="eager", fullgraph=True, dynamic=True)
    for length in (20, 300, 513):
        given = [x.float() for x in operands(length)[:5]]
        given[1] = given[1].abs()
        torch.testing.assert_close(compiled(*given), selective_scan(*given).sum())


@pytest.mark.parametrize("length", [4, 300])
def test_inference_mode__and_empty_batches_run(length):
    given = [x.float() for x in operands(length)]
    empty = [x[:0] if x.ndim > 2 else x for x in given]
    with torch.inference_mode():
        assert bool(selective_scan(*given[:6], None, given[6], True).isfinite().all())
        assert selective_scan(*empty[:6], None, empty[6], True).shape == (0, 4, length)


@pytest.mark.parametrize("backend", ["auto", "pure"])
def test_export__gives_a_program_that_computes_the_same(backend):
    given = tuple(x.float() for x in operands(20))
    program = torch.export.export(Net(backend), given)
    names = " ".join(str(node.target) for node in program.graph.nodes)
    assert ("anomseg.selective_scan" in names) == (backend == "auto")
    torch.testing.assert_close(program.module()(*given), Net("reference")(*given))


def test_onnx__runs_what_was_exported():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = tuple(x.float() for x in operands(20))
    program = torch.onnx.export(Net("pure").eval(), given, dynamo=True)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), given, strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), Net("reference")(*given))


def test_flops__are_counted_as_the_field_counts_them():
    given = [x.float().requires_grad_() for x in operands(20)]
    forward = 9 * 2 * 20 * 4 * 2 + 2 * 20 * 4
    assert scan_flops((2, 4, 20), 2) == forward
    with FlopCounterMode(display=False) as counter:
        selective_scan(*given[:6], None, given[6]).sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_half_precision__keeps_the_state_in_float32():
    given = [x.bfloat16() for x in operands(300)]
    y, last = selective_scan(*given[:6], None, given[6], True, return_last_state=True)
    exact, there = selective_scan(*(x.float() for x in given[:6]), None, given[6].float(), True, return_last_state=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, exact.bfloat16())  # nothing but the output is rounded
    torch.testing.assert_close(last, there)


def test_gradients__come_in_the_types_of_the_operands():
    given = operands(8)
    types = [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float32]
    given = [x.to(t).requires_grad_() for x, t in zip(given, types, strict=True)]
    selective_scan(*given[:6], None, given[6], True, initial_state=given[7]).float().sum().backward()
    assert [x.grad.dtype for x in given] == types
    assert [x.grad.shape for x in given] == [x.shape for x in given]


def test_last_state__alone_has_gradients():
    given = [x.requires_grad_() for x in operands(8)]
    last = selective_scan(*given[:6], None, given[6], True, True, given[7])[1]
    found = torch.autograd.grad(last.square().sum(), [given[0], given[7]])
    other = selective_scan(*given[:6], None, given[6], True, True, given[7], "reference")[1]
    torch.testing.assert_close(found, torch.autograd.grad(other.square().sum(), [given[0], given[7]]))


def test_steps__are_the_softplus_of_the_biased_delta():
    delta, bias = torch.tensor([[[-3.0, 1.0, 30.0]]]), torch.tensor([0.5])
    found = positive_steps(delta, bias, True, torch.float64)
    torch.testing.assert_close(found, (delta.double() + 0.5).exp().log1p())
    assert torch.equal(positive_steps(delta, None, False, torch.float32), delta)


@pytest.mark.parametrize(
    ("given", "used"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_arithmetic__is_at_least_float32(given, used):
    assert arithmetic_dtype(torch.empty(0, dtype=given)) == used
