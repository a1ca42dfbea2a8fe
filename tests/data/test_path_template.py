from pathlib import Path

import pytest

from anomseg.data.path_template import is_hidden, matching_files


@pytest.fixture
def folder(tmp_path):
    for path in ("a/x_1.png", "a/x_1.txt", "a/y.PNG", "b/b.png", "b/.y.png", ".c/x_1.png", "a/deep/x_1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a" / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{kind}/{name}.*", {"a/x_1.png": ("a", "x_1"), "a/y.PNG": ("a", "y"), "b/b.png": ("b", "b")}),
        ("{kind}/{name}_1.png", {"a/x_1.png": ("a", "x")}),
        ("*/{name}.png", {"a/x_1.png": ("x_1",), "b/b.png": ("b",)}),
        ("{kind}/{kind}.png", {"b/b.png": ("b",)}),
        (".c/{name}.png", {".c/x_1.png": ("x_1",)}),
        ("{kind}/.{name}.png", {"b/.y.png": ("b", "y")}),
        ("z/{name}.png", {}),
    ],
)
def test_matching_files__says_what_the_words_stand_for(folder, template, expected):
    found = matching_files(folder, template, (".png",))
    assert {path.relative_to(folder).as_posix(): tuple(fields.values()) for path, fields in found} == expected


def test_is_hidden__asks_what_the_template_names():
    assert is_hidden(Path(".cache/x.npy"), "**/*.npy")
    assert is_hidden(Path("a/.x.npy"), "**/*.npy")
    assert not is_hidden(Path("a/x.npy"), "**/*.npy")
    assert not is_hidden(Path(".cache/x.npy"), ".cache/*.npy")
