"""The kernels, interpreted on the CPU in a process of their own: Triton decides when it is imported whether it interprets."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import json, torch
from anomseg.functional.scan import selective_scan

def errors(length, groups, channels, reverse, softplus, bias):
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape)
    sides = (1, groups, 2, length)
    given = [draw(1, channels, length), draw(1, channels, length).abs(), -draw(channels, 2).abs(), draw(*sides), draw(*sides)]
    given += [draw(channels), draw(channels).abs(), draw(1, channels, 2)]
    given = [x.requires_grad_() for x in given]
    slope, end = draw(1, channels, length), draw(1, channels, 2)
    results = []
    for backend in ("triton", "chunked"):
        y, last = selective_scan(
            *given[:6], None, given[6] if bias else None, softplus, True, given[7], backend, reverse=reverse
        )
        used = given if bias else given[:6] + given[7:]
        results.append([y, last, *torch.autograd.grad([y, last], used, [slope, end])])
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results)]

print(json.dumps([errors(259, 2, 2, False, True, True), errors(259, 1, 5, True, False, False), errors(1, 1, 1, True, True, False)]))
"""


def test_kernels__equal_the_chunked_scan_and_its_gradients():
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for errors in json.loads(done.stdout.splitlines()[-1]):
        assert max(errors) <= 1e-5
