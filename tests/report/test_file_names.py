import pytest

from anomseg.report.file_names import file_of_scene


def test_file_of_scene__may_lie_in_subfolders(tmp_path):
    assert file_of_scene(tmp_path, "north/a.1", "_change.png") == tmp_path / "north" / "a.1_change.png"
    assert file_of_scene(tmp_path, "north/../b", ".png").resolve() == tmp_path / "b.png"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../a", "/etc/a", "below/../../a"])
def test_file_of_scene__stays_below_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match=r"would write into .*a relative name without '..', such as 'a'"):
        file_of_scene(tmp_path / "out", name, ".png")
