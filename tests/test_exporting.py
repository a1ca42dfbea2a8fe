import torch
from torch import nn

from anomseg.exporting import is_exporting


class Tells(nn.Module):
    def forward(self, x):
        return x + 1 if is_exporting() else x


def test_is_exporting__is_true_in_an_export_alone():
    x = torch.zeros(3)
    assert not is_exporting()
    assert torch.equal(Tells()(x), x)
    assert torch.equal(torch.export.export(Tells(), (x,)).module()(x), x + 1)


def test_is_exporting__takes_any_tracing_for_an_export_where_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    assert not is_exporting()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert is_exporting()
