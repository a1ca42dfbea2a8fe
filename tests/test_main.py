import pytest

from anomseg.__main__ import list_names, main
from anomseg.registry import TABLE
from anomseg.version import __version__


def test_main__shows_help_without_words(capsys):
    main([])
    first = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == first
    assert "anomseg fit --config" in first


def test_main__prints_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"anomseg {__version__}\n"


def test_list__shows_every_name_with_a_summary():
    text = list_names()
    for entry in TABLE:
        assert any(line.split(maxsplit=1) == [entry.short_name, entry.summary] for line in text.splitlines())
    assert "RX" not in list_names(["data"])


def test_list__says_which_kinds_there_are():
    with pytest.raises(SystemExit, match="method"):
        list_names(["nets"])


def test_main__says_which_commands_there_are():
    with pytest.raises(SystemExit, match="fit, validate, test, predict, demo, list"):
        main(["train"])
