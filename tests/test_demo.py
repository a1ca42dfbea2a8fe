from anomseg.__main__ import main


def test_demo__prints_figures_and_writes_maps_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = main(["demo", "--output", str(tmp_path / "maps")])
    text = capsys.readouterr().out
    assert "auroc" in text
    assert "mean of scenes" in text
    assert len(list(folder.rglob("*.png"))) == 6
    assert len(list(folder.rglob("*_heatmap.*"))) == 6
    assert list(tmp_path.iterdir()) == [folder]
