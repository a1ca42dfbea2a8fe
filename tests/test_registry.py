import inspect

import pytest

import anomseg
from anomseg.registry import TABLE, class_path


def test_table__names_what_can_be_imported():
    for entry in TABLE:
        value = getattr(anomseg, entry.name)
        assert value is not None
        if entry.name != "IGNORE":
            assert value.__doc__, entry.name


def test_table__and_all_name_the_same():
    assert {entry.name for entry in TABLE} | {"__version__"} == set(anomseg.__all__)


def test_class_path__finds_short_and_full_names():
    path = "anomseg.data.hyperspectral.HyperspectralDataModule"
    assert class_path("Hyperspectral", "data") == class_path("HyperspectralDataModule", "data") == path
    assert class_path("RX", "method") == "anomseg.methods.rx.RX"
    assert class_path("RX", "data") is None


def test_package__says_what_to_do_about_an_unknown_name():
    with pytest.raises(AttributeError, match="anomseg list"):
        anomseg.Nothing  # noqa: B018  # the attribute access is the test


def test_table__says_what_things_are_and_holds_the_bases_of_own_components():
    kinds = {entry.name: entry.kind for entry in TABLE}
    assert kinds["CutPaste"] == "defect"
    assert kinds["Entropy"] == "readout"
    assert kinds["CONTRAST"] == kinds["DirectTraining"] == "recipe"
    assert kinds["TimmFeatures"] == "net"
    for name in ("AnomalySegmenter", "Augmentation", "Calibration", "Defect", "SceneDataModule", "VirtualAnomaly"):
        assert kinds[name] == "contract"
        assert inspect.isabstract(getattr(anomseg, name))
