"""Build notebooks from the example scripts: `python examples/build_notebooks.py [--run]`."""

import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent


def notebook_of(script: Path) -> nbformat.NotebookNode:
    """Turn a script with `# %%` cells into a notebook without outputs."""
    cells = []
    for index, part in enumerate(("\n" + script.read_text()).split("\n# %%")[1:]):
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip("\n").split("\n"))
            cell = nbformat.v4.new_markdown_cell(text)
        else:
            cell = nbformat.v4.new_code_cell(body.strip("\n"))
        cell["id"] = f"cell-{index}"
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def main() -> None:
    """Write every notebook; with --run, execute it too."""
    for script in sorted(HERE.glob("*.py")):
        if script.name == Path(__file__).name:
            continue
        notebook = notebook_of(script)
        if "--run" in sys.argv:
            from nbclient import NotebookClient

            NotebookClient(notebook, timeout=600).execute()
        nbformat.write(notebook, HERE / "notebooks" / f"{script.stem}.ipynb")
        print(f"{script.name} -> notebooks/{script.stem}.ipynb")


if __name__ == "__main__":
    main()
