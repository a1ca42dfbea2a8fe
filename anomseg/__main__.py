"""The console entry: answers help, version and list at once, and imports the rest only for real work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from anomseg.registry import TABLE
from anomseg.version import __version__

HELP = """usage: anomseg <command> [options]

Anomaly segmentation: scenes go in, a calibrated map of what does not belong comes out.

commands:
  fit        fit a method, calibrate it on normal validation pixels, save a checkpoint
  validate   calibrate again and print the validation figures
  test       print the figures, pooled and for each scene
  predict    write score, heat map and picture of every scene
  demo       fit, test and predict on synthetic scenes, in under a minute
  list       show methods, data modules, metrics and functions   [list method|data|...]

examples:
  anomseg demo
  anomseg fit --config examples/configs/rx_hyperspectral.yaml --data.root DIR
  anomseg predict --ckpt_path best.ckpt --data Hyperspectral --data.root DIR --output maps
  anomseg fit --model RX --data Synthetic --print_config

`anomseg <command> --help` lists every option. Names from `anomseg list` can stand for class paths.
"""


def list_names(kinds: Sequence[str] = ()) -> str:
    """Format the table of public names, all of it or of some kinds.

    Raises:
        SystemExit: a kind is unknown.
    """
    known = list(dict.fromkeys(entry.kind for entry in TABLE))
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise SystemExit(f"anomseg list: expected kinds among {known}, but got {wrong}")
    width, lines = max(len(entry.short_name) for entry in TABLE) + 2, list[str]()
    for kind in kinds or known:
        lines.append(f"{kind}:")
        lines += [f"  {entry.short_name:<{width}}{entry.summary}" for entry in TABLE if entry.kind == kind]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> object:
    """Run the command line.

    Args:
        args: the words after `anomseg`; those of the process by default.

    Returns:
        The `LightningCLI` of a fit, validate, test or predict (its trainer holds the figures), the folder of a demo, or None.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return None
    if words[0] in ("-V", "--version"):
        print(f"anomseg {__version__}")
        return None
    if words[0] == "list":
        print(list_names(words[1:]))
        return None
    if words[0] == "demo":
        from anomseg.demo import run_demo

        return run_demo(words[1:])
    from anomseg.cli import run

    return run(words)


def console() -> None:
    """Run the command line without turning its result into an exit status."""
    main()


if __name__ == "__main__":
    console()
