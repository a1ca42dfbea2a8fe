import pytest

from anomseg.cli_errors import explain, told

REFUSED = """Parser key "{key}":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'anomseg.data.scene_datamodule.SceneDataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path '{path}':
        {what}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='mask_rot', val='x')"""


@pytest.mark.parametrize(
    ("message", "command", "text"),
    [
        ("the following arguments are required: test.model", "test", "Expected --ckpt_path with the file"),
        ("the following arguments are required: fit.model", "fit", "such as --model RX"),
        ("the following arguments are required: predict.data", "predict", "such as --data Hyperspectral"),
        ("unrecognized arguments: --modle RX", "fit", "got --modle. Did you mean --model? `anomseg fit --help`"),
        ("Subcommand 'fit' does not accept option 'trainer.max_epoch'", "fit", "Did you mean --trainer.max_epochs?"),
        ("Parser key \"config\": File does not exist: 'no.yaml'", "fit", "File does not exist: 'no.yaml'"),
    ],
)
def test_explain__says_what_to_give_instead(message, command, text):
    told = explain(message, command, ["--model", "--data", "--trainer.max_epochs"])
    assert text in told
    assert told.startswith("Expected ")


def test_explain__names_what_a_class_takes_and_what_is_nearest():
    text = REFUSED.format(key="data", path="anomseg.HyperspectralDataModule", what="Option 'mask_rot' is not accepted")
    told = explain(text, "fit", [])
    assert "an option of HyperspectralDataModule, but got --data.mask_rot. Did you mean --data.mask_root? There are bands, " in told
    assert "NestedArg" not in told


def test_explain__keeps_what_says_something_about_a_value():
    text = REFUSED.format(
        key="data", path="anomseg.SyntheticDataModule", what="Parser key \"count\": Expected a <class 'int'>. Got value: x"
    )
    told = explain(text, "fit", [])
    assert told.endswith("Parser key \"count\": Expected a <class 'int'>. Got value: x")
    assert "\n" not in told
    assert "NestedArg" not in told


def test_told__finds_what_a_constructor_said_beneath_the_error_of_the_parser():
    def wrapped(inner):
        try:
            try:
                raise inner
            except ValueError as error:
                raise ValueError(
                    "Does not validate against any of the Union subtypes\nErrors:\n  - Expected a <class 'NoneType'>"
                ) from error
        except ValueError as outer:
            return outer

    assert told(wrapped(ValueError("Expected a tile of 8 pixels, but got 0."))) == "Expected a tile of 8 pixels, but got 0."
    assert told(ValueError("Expected two dates, but got one.")) == "Expected two dates, but got one."
    assert told(wrapped(ValueError("shapes do not match"))) is None
    assert told(ValueError("Expected a <class 'NoneType'>")) is None
    assert told(None) is None
