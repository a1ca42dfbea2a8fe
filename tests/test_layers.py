"""The floors of the house: a file imports only from lower floors or its own folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "anomseg"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "registry": 0,
    "sample": 0,
    "errors": 0,
    "exporting": 0,
    "version": 0,
    "config": 0,
    "checkpoint_file": 0,
    "functional": 1,
    "nets": 2,
    "optimisation": 2,
    "metrics": 2,
    "calibration": 2,
    "data": 2,
    "methods": 3,
    "callbacks": 4,
    "report": 4,
    "scene": 4,
    "checkpoint": 4,
    "cli": 5,
    "cli_errors": 5,
    "demo": 5,
    "__main__": 5,
    "__init__": 5,
}
# modules of one floor may use one another, except that data and methods never meet, and these need no other of theirs
STRANGERS = {("data", "methods"), ("methods", "data"), ("data", "metrics"), ("data", "calibration"), ("metrics", "data"), ("nets", "data")}
HEAVY = {  # third party -> where it may be imported
    "timm": ("nets/",),
    "albumentations": ("data/augment.py",),
    "rasterio": ("data/raster_io.py", "data/picture_io.py", "data/raster_align.py", "scene.py"),
    "lightning": ("data/", "methods/", "callbacks/", "cli.py", "demo.py"),
    "torchmetrics": ("metrics/", "calibration/"),
    "scipy": ("data/", "functional/"),
    "h5py": ("data/",),
    "matplotlib": ("report/",),
    "triton": ("functional/scan/triton_kernels.py",),
    "mamba_ssm": ("functional/scan/selective.py",),
    "sklearn": (),
    "spectral": (),
}
LAZY = {"albumentations", "rasterio", "scipy", "h5py", "matplotlib"}  # imported inside functions only


def room(path: Path) -> str:
    """Name the folder, or the file at the top, that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Yield (module, line, at_top) for every import that runs; those for type checkers alone do not."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno, id(node) not in inside


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source__imports_from_lower_floors_only(path):
    here = room(path)
    for module, line, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "anomseg" or len(parts) == 1:
            continue
        there = parts[1]
        assert FLOORS[there] <= FLOORS[here], f"{path}:{line} imports upwards from {module}"
        assert (here, there) not in STRANGERS, f"{path}:{line}: {here} and {there} meet only in sample.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source__imports_third_parties_where_they_belong(path):
    relative = path.relative_to(PACKAGE).as_posix()
    for module, line, at_top in imports(path):
        name = module.split(".")[0]
        if name in HEAVY:
            assert any(relative.startswith(place) for place in HEAVY[name]), f"{path}:{line} imports {name}, which belongs to {HEAVY[name]}"
        assert not (name in LAZY and at_top), f"{path}:{line} imports {name} at the top; import it where it is used"


def holds_code(path: Path) -> bool:
    return path.name != "__init__.py" and any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))


WITH_CODE = [path for path in SOURCES if holds_code(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source__has_a_test_beside_it(path):
    relative = path.relative_to(PACKAGE)
    twin = ROOT / "tests" / relative.parent / f"test_{relative.stem.strip('_')}.py"
    assert twin.is_file(), f"{relative} has no {twin.relative_to(ROOT)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source__stays_within_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


def test_base_class__stays_within_150_lines():
    assert len((PACKAGE / "methods" / "base.py").read_text().splitlines()) <= 150


def test_import__loads_no_torch_and_is_quick():
    code = "import sys, time; t = time.perf_counter(); import anomseg; print(time.perf_counter() - t); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) < 1.0  # a tenth of it on an idle machine; the bound only catches a heavy import


@pytest.mark.parametrize("word", ["--help", "--version", "list"])
def test_console__answers_without_torch(word):
    code = f"import sys; from anomseg.__main__ import main; main(['{word}']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
