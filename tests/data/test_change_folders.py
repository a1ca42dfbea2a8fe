from pathlib import Path

import pytest

from anomseg.data.change_folders import CHANGE_LAYOUTS, ChangeLayout, PairFiles, change_layout, find_pairs
from anomseg.errors import SceneFormatError, SceneNotFoundError

DIALECTS = [
    ("a_b_label", ("A", "B", "label")),
    ("a_b_out", ("A", "B", "OUT")),
    ("time1_time2_label", ("time1", "time2", "label")),
    ("t1_t2_mask", ("t1", "t2", "mask")),
    ("t1_t2_label", ("t1", "t2", "label")),
    ("t1_t2_gt", ("T1", "T2", "GT")),
    ("image1_image2_label", ("image1", "image2", "label")),
    ("s2looking", ("Image1", "Image2", "label")),
    ("second", ("im1", "im2", "label1")),
    ("deeppcb", ("template", "test", "mask")),
]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def fill(root, folders, names=("a", "b"), suffixes=(".jpg", ".tif", ".png")):
    return touch(root, *(f"{folder}/{name}{suffix}" for folder, suffix in zip(folders, suffixes, strict=True) for name in names))


def named(pairs):
    return {part: [pair.name for pair in listed] for part, listed in pairs.items()}


@pytest.mark.parametrize(("dialect", "folders"), DIALECTS)
def test_find_pairs__joins_the_files_of_every_dialect_by_their_stems(tmp_path, dialect, folders):
    fill(tmp_path, folders)
    pairs = find_pairs(tmp_path, CHANGE_LAYOUTS[dialect])
    assert named(pairs) == {"": ["a", "b"]}
    first = pairs[""][0]
    places = [path.relative_to(tmp_path).as_posix() for path in (*first.before, *first.after, first.mask)]
    assert places == [f"{folders[0]}/a.jpg", f"{folders[1]}/a.tif", f"{folders[2]}/a.png"]


@pytest.mark.parametrize(("dialect", "folders"), DIALECTS)
def test_change_layout__finds_the_dialect_by_itself(tmp_path, dialect, folders):
    assert change_layout("auto", fill(tmp_path, folders)) == CHANGE_LAYOUTS[dialect]


def test_change_layout__finds_pairs_in_one_folder(tmp_path):
    touch(tmp_path, "city_A_1.bmp", "city_A_2.bmp", "city_A_gt.jpg")
    pairs = find_pairs(tmp_path, change_layout("auto", tmp_path))
    assert named(pairs) == {"": ["city_A"]}
    assert pairs[""][0].mask.name == "city_A_gt.jpg"


def test_find_pairs__follows_folders_of_parts_before_or_after_the_dates(tmp_path):
    for part in ("train", "val", "test"):
        fill(tmp_path / "one" / part, ("A", "B", "label"), (f"{part}1", "same"))
        fill(tmp_path / "two", (f"A/{part}", f"B/{part}", f"label/{part}"), (f"{part}1", "same"))
    expected = {part: ["same", f"{part}1"] for part in ("test", "train", "val")}
    for root in ("one", "two"):
        assert named(find_pairs(tmp_path / root, CHANGE_LAYOUTS["a_b_label"])) == expected


def test_find_pairs__takes_parts_without_masks(tmp_path):
    fill(tmp_path / "train", ("A", "B", "label"))
    fill(tmp_path / "test", ("A", "B"), ("t",), (".png", ".png"))
    pairs = find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])
    assert [pair.has_truth for pair in pairs["train"]] == [True, True]
    assert [pair.has_truth for pair in pairs["test"]] == [False]


def test_find_pairs__follows_list_files(tmp_path):
    fill(tmp_path, ("A", "B", "label"), ("a", "b", "c.d", "e"))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "train.txt").write_text("b.png\nc.d\n\n")
    (tmp_path / "list" / "val.txt").write_text("A/a.jpg B/a.tif label/a.png\n")
    pairs = find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])
    assert named(pairs) == {"train": ["b", "c.d"], "val": ["a"]}
    assert pairs["val"][0] == PairFiles("a", (tmp_path / "A/a.jpg",), (tmp_path / "B/a.tif",), tmp_path / "label/a.png")


def test_find_pairs__reads_lists_of_names_that_hold_blanks_and_umlauts(tmp_path):
    fill(tmp_path, ("A", "B", "label"), ("my image", "Köln", "c", "d"))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "train.txt").write_text("\ufeffKöln.png\nc d\n", encoding="utf-8")
    (tmp_path / "list" / "val.txt").write_text("A/my image.jpg\tB/my image.tif\tlabel/my image.png\n")
    (tmp_path / "list" / "test.txt").write_text("my image.png\nc, d\n")
    pairs = find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])
    assert named(pairs) == {"train": ["Köln", "c", "d"], "val": ["my image"], "test": ["my image", "c", "d"]}
    assert pairs["val"][0].after == (tmp_path / "B/my image.tif",)


def test_find_pairs__takes_the_files_that_a_list_names_for_those_of_the_layout(tmp_path):
    fill(tmp_path, ("A", "B", "label"), ("a", "b"))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "train.txt").write_text("A/a.jpg B/b.tif label/a.png\n")
    pairs = find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])
    assert pairs["train"] == [PairFiles("a", (tmp_path / "A/a.jpg",), (tmp_path / "B/b.tif",), tmp_path / "label/a.png")]


def test_find_pairs__stacks_the_band_files_of_a_date(tmp_path):
    bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    for city in ("paris", "rio"):
        touch(tmp_path, *(f"X - Images/{city}/imgs_{date}_rect/{band}.tif" for date in (1, 2) for band in bands))
        touch(tmp_path, f"X - {'Train' if city == 'rio' else 'Test'} Labels/{city}/cm/cm.png")
    (tmp_path / "X - Images" / "train.txt").write_text("rio\n")
    (tmp_path / "X - Images" / "test.txt").write_text("paris,\n")
    pairs = find_pairs(tmp_path, change_layout("auto", tmp_path))
    assert named(pairs) == {"train": ["rio"], "test": ["paris"]}
    assert [path.stem for path in pairs["train"][0].after] == list(bands)
    assert pairs["test"][0].mask == tmp_path / "X - Test Labels/paris/cm/cm.png"


def test_find_pairs__lists_images_without_a_partner(tmp_path):
    fill(tmp_path, ("A", "B", "label"))
    touch(tmp_path, "A/lonely.png", "B/other.png")
    with pytest.raises(SceneNotFoundError, match=r"2 of 4 have none: lonely \(no .*B.*\), other \(no .*A"):
        find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])


def test_find_pairs__says_what_is_wrong(tmp_path):
    fill(tmp_path, ("A", "B", "label"))
    with pytest.raises(SceneNotFoundError, match="in one of the layouts a_b_label"):
        change_layout("auto", tmp_path / "A")
    with pytest.raises(ValueError, match="'levir'"):
        change_layout("levir", tmp_path)
    with pytest.raises(SceneNotFoundError, match="folder of images"):
        find_pairs(tmp_path / "nowhere", CHANGE_LAYOUTS["a_b_label"])
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "test.txt").write_text("z.png\n")
    with pytest.raises(SceneNotFoundError, match=r"'z\.png' that '.*test\.txt' names"):
        find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])
    touch(tmp_path, "A/a.png")
    with pytest.raises(SceneFormatError, match="share one"):
        find_pairs(tmp_path, CHANGE_LAYOUTS["a_b_label"])


def test_find_pairs__refuses_names_that_do_not_tell_pairs_apart(tmp_path):
    for place in ("x", "y"):
        fill(tmp_path / place, ("A", "B"), ("a",), (".png", ".png"))
    layout = ChangeLayout(("{place}/A/{name}.*",), ("{place}/B/{name}.*",), None)
    with pytest.raises(SceneFormatError, match="share 'a'"):
        find_pairs(tmp_path, layout)


def test_pair_files__refuse_mixtures():
    with pytest.raises(ValueError, match="both dates"):
        PairFiles("a", ("x",), ())
    with pytest.raises(ValueError, match="mixture"):
        PairFiles("a", ("x",), ("y",), changed="z")
    with pytest.raises(ValueError, match="as many templates"):
        ChangeLayout(("{name}.tif",), (), None)


def test_pair_files__lie_below_a_root_unless_they_are_absolute():
    pair = PairFiles("a", ("x.tif",), ("/far/y.tif",), "m.png").below(Path("/root"))
    assert pair == PairFiles("a", (Path("/root/x.tif"),), (Path("/far/y.tif"),), Path("/root/m.png"))
