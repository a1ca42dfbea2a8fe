import numpy as np
import pytest
from PIL import Image

from anomseg.data.industrial_layouts import INDUSTRIAL_LAYOUTS, IndustrialLayout, find_industrial, industrial_layout_of
from anomseg.errors import SceneFormatError, SceneNotFoundError


def save(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / path)


def found(root, layout, categories=None):
    files = find_industrial(root, industrial_layout_of(layout), categories)
    return [(file.name, file.category, file.defect, file.part, None if file.mask is None else file.mask.name) for file in files]


MVTEC = ("train/good/000.png", "test/good/000.png", "test/hole/000.png", "test/cut/001.png", "ground_truth/hole/000_mask.png")


def test_mvtec__names_images_by_category_defect_and_stem(tmp_path):
    save(tmp_path, *(f"nut/{path}" for path in MVTEC), "pill/train/good/000.png")
    assert found(tmp_path, "mvtec") == [
        ("nut/cut/001", "nut", "cut", "test", None),
        ("nut/good/000", "nut", "good", "test", None),
        ("nut/good/train_000", "nut", "good", "train", None),
        ("nut/hole/000", "nut", "hole", "test", "000_mask.png"),
        ("pill/good/train_000", "pill", "good", "train", None),
    ]


def test_mvtec__takes_a_root_that_is_one_category(tmp_path):
    save(tmp_path / "nut", *MVTEC)
    assert found(tmp_path / "nut", "mvtec") == found(tmp_path, "mvtec")


def test_mvtec__takes_the_categories_that_are_asked_for(tmp_path):
    save(tmp_path, *(f"{name}/{path}" for name in ("nut", "pill", "zip") for path in MVTEC))
    assert {row[1] for row in found(tmp_path, "mvtec", ("nut", "zip"))} == {"nut", "zip"}
    with pytest.raises(SceneNotFoundError, match=r"\['nail'\].*\['nut', 'pill', 'zip'\]"):
        found(tmp_path, "mvtec", ("nail", "nut"))


def test_folders__takes_masks_that_lie_beside_for_no_images(tmp_path):
    root = tmp_path / "hazelnut"
    save(root, "good/0.png", "hole/000.png", "hole/000_mask.png", "crack/005.png")
    assert found(root, "folders") == [
        ("hazelnut/crack/005", "hazelnut", "crack", None, None),
        ("hazelnut/good/0", "hazelnut", "good", None, None),
        ("hazelnut/hole/000", "hazelnut", "hole", None, "000_mask.png"),
    ]


def test_magnetic_tile__reads_no_mask_of_normal_images(tmp_path):
    save(tmp_path, *(f"MT_{kind}/Imgs/exp1_num_7.{end}" for kind in ("Free", "Crack") for end in ("jpg", "png")))
    assert found(tmp_path, "magnetic_tile") == [
        ("magnetic_tile/Crack/exp1_num_7", "magnetic_tile", "Crack", None, "exp1_num_7.png"),
        ("magnetic_tile/good/exp1_num_7", "magnetic_tile", "good", None, None),
    ]


def test_deeppcb__takes_templates_as_normal_images_of_the_same_board(tmp_path):
    save(tmp_path, "template/00041000.jpg", "test/00041000.jpg", "mask/00041000.png")
    assert [row[2:] for row in found(tmp_path, "deeppcb")] == [("good", None, None), ("test", None, "00041000.png")]


def test_crackforest__leaves_it_to_the_mask_what_is_normal(tmp_path):
    save(tmp_path, "image/001.jpg", "mask/001.png")
    assert found(tmp_path, "crackforest") == [("crackforest/unknown/001", "crackforest", None, None, "001.png")]


def test_find_industrial__refuses_two_files_of_one_name(tmp_path):
    save(tmp_path / "set", "nut/train/good/000.png", "nut/train/good/000.jpg")
    with pytest.raises(SceneFormatError, match=r"one image of each name.*000\.jpg' and '.*000\.png'"):
        found(tmp_path / "set", "mvtec")
    save(tmp_path / "masks", "nut/test/hole/0.png", "nut/ground_truth/hole/0_mask.png", "nut/ground_truth/hole/0_mask.bmp")
    with pytest.raises(SceneFormatError, match=r"one mask for each image.*0_mask\.bmp' and '.*0_mask\.png'"):
        found(tmp_path / "masks", "mvtec")


def test_find_industrial__skips_hidden_folders_and_folders_named_like_images(tmp_path):
    save(tmp_path, *MVTEC, ".cache/good/1.png", "train/good/._000.png", "train/good/1.png/x.png")
    assert [row[0] for row in found(tmp_path, IndustrialLayout("{part}/{defect}/{name}.*", train="train", test="test"))] == [
        f"{tmp_path.name}/{name}" for name in ("cut/001", "good/000", "good/train_000", "hole/000")
    ]


def test_find_industrial__lists_what_a_wrong_root_holds(tmp_path):
    save(tmp_path, "left/a.png", "right/a.png")
    with pytest.raises(SceneNotFoundError, match=r"holds left, right.*layout=\['crackforest', 'deeppcb'"):
        found(tmp_path, "mvtec")
    with pytest.raises(SceneNotFoundError, match="there is none"):
        found(tmp_path / "nowhere", "mvtec")


def test_layouts__of_the_table_are_found_by_name():
    for name, layout in INDUSTRIAL_LAYOUTS.items():
        assert industrial_layout_of(name) is layout
        assert industrial_layout_of(layout) is layout
    with pytest.raises(ValueError, match=r"\['crackforest', .*'mvtec'\]"):
        industrial_layout_of("visa")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"images": "{part}/{defect}/{name}.*"}, "folders to train"),
        ({"images": "{defect}/0.png"}, r"\{name\}"),
        ({"images": "{name}.png"}, r"\{defect\}"),
        ({"images": "{defect}/{name}.png", "maximum": 0.0}, "maximum"),
        ({"images": "{defect}/{name}.png", "normal": ("water",)}, "classes among"),
    ],
)
def test_layout__refuses_a_description_that_cannot_work(arguments, text):
    with pytest.raises(ValueError, match=text):
        IndustrialLayout(**arguments)
