import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from anomseg.__main__ import main
from anomseg.cli import expand_short_names
from anomseg.errors import CheckpointError
from anomseg.methods.rx import RX

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


def write_config(name, method, **init_args):
    data = {"class_path": "anomseg.SyntheticDataModule", "init_args": {"count": 2, "size": [40, 40], "kind": "multispectral"}}
    model = {"class_path": method, **({"init_args": init_args} if init_args else {})}
    Path(name).write_text(json.dumps({"model": model, "data": data}))
    return name


def test_cli__lets_the_checkpoint_win_over_a_configuration(checkpoint):
    config = write_config("global.json", "anomseg.RX", background="scene", ridge=7.0)
    for words in (["--config", config, "--ckpt_path", checkpoint], [f"--ckpt_path={checkpoint}", f"--config={config}"]):
        cli = main(["test", *words, *QUIET])
        assert (cli.model.background, cli.model.ridge) == ("training", 1.0)


@pytest.mark.parametrize(
    "words",
    [
        ["--model.inner", "7"],
        ["--model.init_args.inner=7"],
        ["--model", '{"class_path": "anomseg.RX", "init_args": {"inner": 7}}'],
        ["--model", "RX", "--model.inner=7"],
    ],
)
def test_cli__lets_options_by_hand_win_over_checkpoint_and_configuration(checkpoint, words):
    config = write_config("other.json", "anomseg.RX", inner=5, background="scene")
    for placed in ([*words, "--config", config], ["-c", config, *words]):
        cli = main(["test", "--ckpt_path", checkpoint, *placed, *QUIET])
        assert (cli.model.inner, cli.model.background) == (7, "training")


def test_cli__takes_the_model_from_a_checkpoint_that_a_configuration_names(checkpoint):
    config = write_config("named.json", "anomseg.RX", background="scene")
    Path("path.json").write_text(json.dumps({"ckpt_path": checkpoint}))
    cli = main(["test", "--config", config, "--config", "path.json", *QUIET])
    assert cli.model.background == "training"


def test_cli__takes_weights_and_model_from_one_checkpoint(checkpoint):
    config = write_config("named.json", "anomseg.RX")
    Path("path.json").write_text(json.dumps({"ckpt_path": "elsewhere.ckpt"}))
    cli = main(["test", "--ckpt_path", checkpoint, "--config", config, "--config=path.json", *QUIET])
    assert cli.config.test.ckpt_path == checkpoint


def test_cli__prints_the_configuration_that_a_checkpoint_is_tested_with(checkpoint, capsys):
    config = write_config("printed.json", "anomseg.RX", background="scene")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["test", "--config", config, "--ckpt_path", checkpoint, "--print_config"])
    assert "background: training" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "test", "predict", "fit"])
def test_cli__refuses_a_configuration_of_another_class(checkpoint, monkeypatch, command):
    monkeypatch.setenv("ANOMSEG_TRACEBACK", "1")
    base, config = write_config("base.json", "anomseg.RX"), write_config("area.json", "anomseg.AreaRX")
    with pytest.raises(CheckpointError, match=r"AreaRX.*methods\.rx\.RX"):
        main([command, "--config", base, f"--config={config}", "--ckpt_path", checkpoint, *QUIET])


def test_cli__refuses_a_nested_configuration_of_another_class(checkpoint, monkeypatch):
    monkeypatch.setenv("ANOMSEG_TRACEBACK", "1")
    Path("model.json").write_text('{"class_path": "anomseg.AreaRX"}')
    Path("outer.json").write_text('{"model": "model.json"}')
    with pytest.raises(CheckpointError, match=r"AreaRX.*methods\.rx\.RX"):
        main(["test", "--config", "outer.json", "--ckpt_path", checkpoint, "--data", "Synthetic"])


@pytest.mark.parametrize("model", ["AreaRX", "anomseg.AreaRX", '{"class_path": "anomseg.AreaRX"}', "area.json"])
def test_cli__refuses_options_of_another_class(checkpoint, monkeypatch, model):
    monkeypatch.setenv("ANOMSEG_TRACEBACK", "1")
    Path("area.json").write_text('{"class_path": "anomseg.AreaRX"}')
    with pytest.raises(CheckpointError, match=r"AreaRX.*methods\.rx\.RX"):
        main(["test", "--model", model, "--ckpt_path", checkpoint, "--data", "Synthetic"])


def test_cli__lets_a_class_by_hand_overrule_a_configuration(checkpoint):
    config = write_config("area.json", "anomseg.AreaRX")
    cli = main(["test", "--config", config, "--model", "RX", "--ckpt_path", checkpoint, *QUIET])
    assert (type(cli.model).__name__, cli.model.background) == ("RX", "training")


def test_cli__resumes_training_with_the_arguments_at_hand(checkpoint):
    config = write_config("again.json", "anomseg.RX", background="training", ridge=3.0)
    cli = main(["fit", "--config", config, "--ckpt_path", checkpoint, *QUIET])
    assert cli.model.ridge == 3.0


@pytest.mark.parametrize(("words", "kept"), [([], False), (["--return_predictions", "true"], True)])
def test_cli__keeps_predictions_in_memory_only_when_asked(checkpoint, words, kept):
    cli = main(["predict", "--ckpt_path", checkpoint, "--data", "Synthetic", *SMALL, *QUIET, *words])
    assert bool(cli.trainer.predict_loop.predictions) == kept


@pytest.mark.parametrize("output", ["taken", "taken/maps"])
def test_cli__refuses_a_file_as_output_before_it_scores(checkpoint, monkeypatch, output):
    Path("taken").write_text("not a folder")
    monkeypatch.setattr(RX, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(SystemExit, match=r"Expected --output to name a folder.*'.*taken' is a file"):
        main(["predict", "--ckpt_path", checkpoint, "--data", "Synthetic", *SMALL, *QUIET, "--output", output])


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
        (["test", "--data", "Synthetic"], "Expected --ckpt_path with the file that `anomseg fit` has written"),
        (["fit", "--model", "RX", "--data", "Hyperspectral", "--data.mask_rot", "x"], "Did you mean --data.mask_root? There are bands, "),
        (["fit", "--model", "RX", "--model.mod", "local", "--data", "Synthetic"], "Did you mean --model.mode? There are background, "),
        (["fit", "--model", "SVDD", "--data", "Synthetic", "--model.optimisation.lrr", "1"], "Did you mean --model.optimisation.lr?"),
        (["fit", "--modle", "RX", "--data", "Synthetic"], "Did you mean --model?"),
        (["fit", "--model", "RX", "--data", "Synthetic", "--data.batch_size", "0", *QUIET], "anomseg: Expected batch_size >= 1"),
        (["fit", "--model", "PositionGaussian", "--model.shrink", "0", "--data", "Synthetic", *QUIET], "anomseg: Expected in_channels and"),
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


def test_cli__tells_an_error_below_the_progress_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--model", "SVDD", "--model.in_channels", "5", "--data", "Synthetic", *SMALL, "--trainer.max_epochs", "1"]
    with pytest.raises(SystemExit, match="in_channels=5"):
        main([*words, "--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0"])
    assert capsys.readouterr().out.endswith("\n")


def test_cli__says_in_one_line_that_cubes_have_no_truth(tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "cube.npy", np.random.default_rng(0).random((30, 30, 5), np.float32))
    main(["fit", "--model", "RX", "--data", "Hyperspectral", "--data.root", "cube.npy", *QUIET])
    assert capsys.readouterr().out.count("Without truth") == 1
    assert not [warning for warning in recwarn if "undefined" in str(warning.message)]
