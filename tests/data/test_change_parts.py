import numpy as np
import pytest
from PIL import Image

from anomseg.data.change_folders import ChangeLayout, PairFiles
from anomseg.data.change_pairs import PairReading
from anomseg.data.change_parts import PairSource, measured_pairs, served_pairs, shared_pairs, usable_pairs
from anomseg.data.group_split import GroupSplit
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.errors import SceneNotFoundError

NAMES = ("x1", "x2", "y1", "y2", "z1")


def save(root, name, mask="some", bands=3, size=(20, 24)):
    values = np.random.default_rng(len(name)).integers(0, 255, (2, *size, bands)).squeeze().astype(np.uint8)
    truth = np.zeros(size, np.uint8)
    truth[3:5, 3:5] = 255
    planes = {"A": values[0], "B": values[1], "label": {"some": truth, "all": truth * 0 + 255, None: None}[mask]}
    for folder, plane in planes.items():
        if plane is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(root / folder / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        save(tmp_path, name)
    return tmp_path


def names(parts):
    return {part: [pair.name for pair in pairs] for part, pairs in parts.items()}


def test_shared_pairs__follow_groups(root):
    parts = shared_pairs(PairSource(root), GroupSplit("^.", ("y",), ("z",)), 0)
    assert names(parts) == {"train": ["x1", "x2"], "val": ["z1"], "test": ["y1", "y2"]}


def test_shared_pairs__follow_folders_without_a_split(tmp_path):
    for part in ("train", "val", "test"):
        save(tmp_path / part, f"{part}1")
    assert names(shared_pairs(PairSource(tmp_path), None, 0)) == {"train": ["train1"], "val": ["val1"], "test": ["test1"]}


def test_shared_pairs__are_never_split_by_chance_unasked(root):
    with pytest.raises(ValueError, match=r"Expected a split of the 5 pairs .*'x1', 'x2', 'y1', 'y2'"):
        shared_pairs(PairSource(root), None, 0)
    parts = names(shared_pairs(PairSource(root), ShareSplit(0.6, 0.2, 0.2), 0))
    assert [len(listed) for listed in parts.values()] == [3, 1, 1]


def test_shared_pairs__serve_all_to_all_stages_where_asked(root):
    assert names(shared_pairs(PairSource(root), "all_stages", 0)) == {"train": list(NAMES), "val": [], "test": list(NAMES)}


def test_shared_pairs__split_one_pair_by_blocks(root):
    source = PairSource(root, pairs=(PairFiles("one", ("A/x1.png",), ("B/x1.png",), "label/x1.png"),))
    parts = shared_pairs(source, ShareSplit(0.5, 0.0, 0.5, block=10), 0)
    windows = [pair.window for pairs in parts.values() for pair in pairs]
    covered = np.zeros((20, 24), int)
    for row, column, height, width in windows:
        covered[row : row + height, column : column + width] += 1
    assert (covered == 1).all()
    assert len(parts["train"]) == len(parts["test"]) == 2


def test_pair_source__takes_bands_and_threshold_of_the_layout_unless_given(root):
    layout = ChangeLayout(("A/{name}.*",), ("B/{name}.*",), "label/{name}.*", threshold=9.0, bands=(0,))
    own, given = (
        PairSource(root, layout, (), threshold, reading) for threshold, reading in ((None, PairReading()), (5.0, PairReading((1,))))
    )
    assert [(pair.truths.threshold, pair.reading.bands) for pair in (own.found()[""][0], given.found()[""][0])] == [
        (9.0, (0,)),
        (5.0, (1,)),
    ]


def test_usable_pairs__leave_out_what_cannot_train(root):
    save(root, "x1", "all")
    pairs = PairSource(root).found()[""]
    with pytest.warns(UserWarning, match="1 of 5 pairs of 'train' lack an unchanged pixel"):
        assert [pair.name for pair in usable_pairs(pairs, "train")] == list(NAMES[1:])
    assert len(usable_pairs(pairs, "test")) == 5


def test_usable_pairs__need_masks_unless_told(root):
    save(root, "lone", None)
    pairs = PairSource(root).found()[""]
    with pytest.raises(SceneNotFoundError, match=r"1 of 6 lack one, such as \['lone'\]"):
        usable_pairs(pairs, "train")
    assert len(usable_pairs(pairs, "train", needs_truth=False)) == 6


def test_measured_pairs__have_as_many_bands(root):
    save(root, "grey", bands=1)
    pairs = PairSource(root).found()[""]
    with pytest.raises(ValueError, match=r"1 in '.*grey\.png', 3 in"):
        measured_pairs(pairs)
    assert {pair.stored for pair in measured_pairs(PairSource(root, reading=PairReading((0,))).found()[""])} == {1}


def test_parts__say_what_is_wrong(root):
    with pytest.raises(ValueError, match="one pair for 'val'"):
        usable_pairs([], "val")
    with pytest.raises(ValueError, match="'nope'"):
        shared_pairs(PairSource(root), NameSplit(("nope",)), 0)
    save(root, "x1", "all")
    only = [pair for pair in PairSource(root).found()[""] if pair.name == "x1"]
    with pytest.raises(ValueError, match="Expected an unchanged pixel in the 1 pairs of 'train'"):
        usable_pairs(only, "train")


def test_measured_pairs__let_255_mean_one_thing(root):
    for name in NAMES:
        truth = np.zeros((20, 24), np.uint8)
        truth[:3] = 255
        truth[10, 10] = name == "x1"
        Image.fromarray(truth).save(root / "label" / f"{name}.png")
    with pytest.warns(UserWarning, match=r"4 of 5 pairs have masks of 0 and 255 alone.*unknown.*threshold=0"):
        pairs = measured_pairs(PairSource(root).found()[""])
    for pair in pairs:
        assert bool((pair.truth()[:3] == 255).all())
        assert int((pair.truth() == 1).sum()) == int(pair.name == "x1")
    changed = measured_pairs(PairSource(root, threshold=0).found()[""])
    assert {int((pair.truth() == 1).sum()) for pair in changed} == {72, 73}


def test_measured_pairs__read_black_masks_as_unchanged_beside_either_coding(root):
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(root / "label" / "z1.png")
    pairs = {pair.name: pair.truth() for pair in measured_pairs(PairSource(root).found()[""])}
    assert not bool(pairs["z1"].any())
    assert int((pairs["x1"] == 1).sum()) == 4


def test_served_pairs__need_a_pair_but_no_truth(root):
    for path in (root / "label").iterdir():
        path.unlink()
    assert len(served_pairs(PairSource(root, "a_b_label").found()[""])) == 5
    with pytest.raises(ValueError, match=r"Expected pairs to predict.*predict_root="):
        served_pairs([])
