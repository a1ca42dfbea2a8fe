"""Examples run, and notebooks are what the scripts say."""

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = [p for p in sorted(FOLDER.glob("*.py")) if p.name != "build_notebooks.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_example__runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("ANOMSEG_SCENES", "ANOMSEG_TILES", "ANOMSEG_PAIRS", "ANOMSEG_PARTS"):
        monkeypatch.delenv(folder, raising=False)
    runpy.run_path(str(script), run_name="__main__")
    assert "auroc" in capsys.readouterr().out
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_notebook__holds_the_code_of_its_script(script):
    cells = json.loads((FOLDER / "notebooks" / f"{script.stem}.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    parts = [part for part in ("\n" + script.read_text()).split("\n# %%")[1:] if "[markdown]" not in part.partition("\n")[0]]
    assert code == [part.partition("\n")[2].strip("\n") for part in parts]
