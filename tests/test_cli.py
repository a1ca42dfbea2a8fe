import json

import numpy as np
import pytest
import scipy.io

from anomseg.__main__ import main
from anomseg.cli import expand_short_names, model_from_checkpoint
from anomseg.errors import CheckpointError

SMALL = ["--data.count", "2", "--data.size", "[40,40]", "--data.kind", "multispectral"]
QUIET = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.max_epochs",
    "1",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.num_sanity_val_steps",
    "0",
]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = main(["fit", "--model", "RX", "--model.background", "training", "--data", "Synthetic", *SMALL, *QUIET])
    return cli.trainer.checkpoint_callback.best_model_path


def test_expand_short_names__knows_methods_and_data_modules():
    words = expand_short_names(["fit", "--model", "RX", "--data=Hyperspectral", "--data.root", "RX", "--model=my.Own"])
    assert words == [
        "fit",
        "--model",
        "anomseg.methods.rx.RX",
        "--data=anomseg.data.hyperspectral.HyperspectralDataModule",
        "--data.root",
        "RX",
        "--model=my.Own",
    ]


def test_cli__predicts_from_the_checkpoint_alone(checkpoint, tmp_path, capsys):
    main(["predict", "--ckpt_path", checkpoint, "--data", "Synthetic", *SMALL, *QUIET, "--output", "maps"])
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert len(names) == 6
    assert "wrote 6 files to maps" in capsys.readouterr().out


def test_cli__tests_from_the_checkpoint_and_prints_a_table(checkpoint, capsys):
    cli = main(["test", "--ckpt_path", checkpoint, "--data", "Synthetic", *SMALL, *QUIET])
    assert cli.model.background == "training"
    assert cli.trainer.callback_metrics["test_auroc"] > 0.5
    assert "mean of scenes" in capsys.readouterr().out


def test_cli__lets_options_by_hand_win_over_the_checkpoint(checkpoint):
    words = ["test", "--ckpt_path", checkpoint, "--model.inner", "7"]
    found = model_from_checkpoint(words)
    assert json.loads(found[1].partition("=")[2])["init_args"]["background"] == "training"
    assert found[2:] == words[1:]


def test_cli__refuses_a_checkpoint_of_another_class(checkpoint):
    with pytest.raises(CheckpointError, match=r"methods\.rx\.RX"):
        model_from_checkpoint(["test", "--model=anomseg.methods.base.AnomalySegmenter", "--ckpt_path", checkpoint])


def test_cli__overwrites_the_configuration_of_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--model", "RX", "--data", "Synthetic", *SMALL, *QUIET]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", ".", "--trainer.logger.version", "0"]
    main([*words, *logger])
    main([*words, *logger])
    assert len(list(tmp_path.rglob("config.yaml"))) == 1


def test_cli__prints_a_configuration_that_it_accepts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--model", "RX", "--data", "Synthetic", *SMALL, "--print_config"])
    text = capsys.readouterr().out
    (tmp_path / "own.yaml").write_text(text)
    main(["fit", "--config", "own.yaml", *QUIET])


def test_cli__reads_hyperspectral_files_by_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    mask = np.zeros((30, 30), np.uint8)
    mask[4, 4] = 1
    scipy.io.savemat(tmp_path / "one.mat", {"data": rng.random((30, 30, 5)) + 3 * mask[..., None], "map": mask})
    cli = main(["fit", "--model", "RX", "--data", "Hyperspectral", "--data.root", str(tmp_path), *QUIET])
    assert cli.trainer.callback_metrics["val_auroc"] is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fit", "--model", "Nope", "--data", "Synthetic"], "RX, AreaRX"),
        (["predict", "--ckpt_path", "none.ckpt", "--data", "Synthetic"], "none.ckpt"),
        (["fit", "--model", "RX", "--data", "Hyperspectral", "--data.root", "nowhere", *QUIET], "nowhere"),
        (["predict", "--model", "RX", "--data", "Synthetic", *SMALL, *QUIET], "trainer.fit"),
        (["fit", "--model", "RX", "--data", "Synthetic", *SMALL[:2], "--data.size", "[8,8]", *QUIET], "32"),
    ],
)
def test_cli__ends_with_one_line_about_a_mistake(tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert text in str(end.value)
    assert "\n" not in str(end.value)


def test_cli__raises_the_error_itself_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMSEG_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["predict", "--ckpt_path", str(tmp_path / "none.ckpt"), "--data", "Synthetic"])
