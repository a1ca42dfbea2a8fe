from dataclasses import replace
from typing import get_args

import pytest

from anomseg.data.class_rule import ClassTable
from anomseg.data.image_folders import LAYOUTS, FolderLayout, LayoutName, find_images, find_unlabelled, layout_of
from anomseg.errors import SceneFormatError, SceneNotFoundError

PLAIN = LAYOUTS["plain"]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def listed(found, root):
    masks = {part: [[path.relative_to(root).as_posix() for _, path in image.masks] for image in images] for part, images in found.items()}
    return {part: [(image.name, *mask) for image, mask in zip(images, masks[part], strict=True)] for part, images in found.items()}


def test_layout_names__are_those_of_the_table():
    assert set(get_args(LayoutName)) == set(LAYOUTS)
    assert layout_of("plain") is layout_of(PLAIN) is PLAIN
    with pytest.raises(ValueError, match=r"plain, .*layout='plane'"):
        layout_of("plane")


def test_find_images__pairs_masks_of_the_same_stem(tmp_path):
    touch(
        tmp_path,
        "images/b.tif",
        "images/a.v2.png",
        "masks/b.png",
        "masks/a.v2.tif",
        "images/b.tif.aux.xml",
        "images/.a.png",
        "images/x.txt",
    )
    assert listed(find_images(tmp_path, PLAIN), tmp_path) == {"": [("a.v2", "masks/a.v2.tif"), ("b", "masks/b.png")]}


@pytest.mark.parametrize("template", ["{split}/{kind}/{name}.png", "{kind}/{split}/{name}.png"])
def test_find_images__finds_split_folders_at_either_place(tmp_path, template):
    for part in ("train", "val", "test"):
        for kind in ("images", "masks"):
            touch(tmp_path, template.format(split=part, kind=kind, name=part[0]))
    found = find_images(tmp_path, PLAIN)
    assert {part: [image.name for image in images] for part, images in found.items()} == {"train": ["t"], "val": ["v"], "test": ["t"]}
    assert found["val"][0].masks == (("", tmp_path / template.format(split="val", kind="masks", name="v")),)


def test_find_images__leaves_images_of_a_training_folder_alone_to_be_split(tmp_path):
    touch(tmp_path, "train/images/a.png", "train/masks/a.png")
    assert listed(find_images(tmp_path, PLAIN), tmp_path) == {"": [("a", "train/masks/a.png")]}


@pytest.mark.parametrize(
    ("layout", "files", "expected"),
    [
        (
            "deepglobe",
            ["train_images/1_sat.jpg", "train_labels/1_mask.png", "test_images/2_sat.jpg", "test_labels/2_mask.png"],
            {"train": [("1", "train_labels/1_mask.png")], "test": [("2", "test_labels/2_mask.png")]},
        ),
        ("deepglobe_colour", ["train/1_sat.jpg", "train/1_mask.png"], {"": [("1", "train/1_mask.png")]}),
        (
            "loveda",
            ["Train/Rural/images_png/0.png", "Train/Rural/masks_png/0.png", "Val/Urban/images_png/9.png", "Val/Urban/masks_png/9.png"],
            {"train": [("0", "Train/Rural/masks_png/0.png")], "test": [("9", "Val/Urban/masks_png/9.png")]},
        ),
        (
            "landslide4sense",
            ["TrainData/img/image_1.h5", "TrainData/mask/mask_1.h5", "TestData/img/image_2.h5", "TestData/mask/mask_2.h5"],
            {"train": [("1", "TrainData/mask/mask_1.h5")], "test": [("2", "TestData/mask/mask_2.h5")]},
        ),
        ("potsdam", ["img_dir/2_10.png", "ann_dir/2_10.png"], {"": [("2_10", "ann_dir/2_10.png")]}),
    ],
)
def test_find_images__knows_the_layouts_of_data_sets(tmp_path, layout, files, expected):
    assert listed(find_images(touch(tmp_path, *files), LAYOUTS[layout]), tmp_path) == expected


def test_find_images__joins_band_files_and_class_folders(tmp_path):
    name = "F1_0-0-512-512"
    touch(tmp_path, f"train/images/rgb/{name}.jpg", f"train/images/nir/{name}.jpg", f"train/boundaries/{name}.png")
    touch(tmp_path, f"train/labels/water/{name}.png", f"train/labels/endrow/{name}.png")
    (image,) = find_images(tmp_path, LAYOUTS["agriculture_vision"])[""]
    assert [path.parent.name for path in image.bands] == ["rgb", "nir"]
    assert sorted(name for name, _ in image.masks) == ["endrow", "water"]
    assert [path.parent.name for path in image.valid] == ["boundaries"]


def test_find_images__knows_the_classes_of_both_releases_of_agriculture_vision(tmp_path):
    touch(tmp_path, "train/images/rgb/a.jpg", "train/images/nir/a.jpg")
    for name in ("cloud_shadow", "double_plant", "planter_skip", "standing_water", "waterway", "weed_cluster"):
        touch(tmp_path, f"train/labels/{name}/a.png")
    touch(tmp_path, "train/labels/notes/read.me", "train/labels/.thumbnails/a.png")
    (image,) = find_images(tmp_path, LAYOUTS["agriculture_vision_2020"])[""]
    assert [name for name, _ in image.masks] == list(LAYOUTS["agriculture_vision_2020"].table.names[1:])
    with pytest.raises(
        SceneFormatError, match=r"also \['train/labels/cloud_shadow', 'train/labels/standing_water'\].*dataclasses\.replace"
    ):
        find_images(tmp_path, LAYOUTS["agriculture_vision"])
    table = ClassTable(("background", *(path.name for path in sorted((tmp_path / "train/labels").iterdir()))))
    (image,) = find_images(tmp_path, replace(LAYOUTS["agriculture_vision"], table=table))[""]
    assert {"cloud_shadow", "standing_water"} < {name for name, _ in image.masks}


@pytest.mark.parametrize(
    ("masks", "names", "strange"),
    [("{class}/{name}.png", ("roof/a", "big_road/a"), "big_road"), ("{name}_{class}.png", ("a_roof", "a_big_road"), "a_big_road.png")],
)
def test_find_images__refuses_masks_of_classes_that_the_table_lacks(tmp_path, masks, names, strange):
    touch(tmp_path, "rgb_1/a.png", "valid_1/a.png", *(f"{name}.png" for name in names))
    layout = FolderLayout(("rgb_1/{name}.png",), masks, ClassTable(("none", "roof")), valid=("valid_1/{name}.png",))
    with pytest.raises(SceneFormatError, match=rf"classes \('none', 'roof'\) at .* but got also \['{strange}'\]"):
        find_images(tmp_path, layout)
    (image,) = find_images(tmp_path, replace(layout, table=ClassTable(("none", "roof", "big_road"))))[""]
    assert [name for name, _ in image.masks] == ["roof", "big_road"]


def test_find_images__takes_the_stem_of_a_single_image_for_its_name(tmp_path):
    touch(tmp_path, "scene.tif", "truth.tif")
    assert listed(find_images(tmp_path, FolderLayout(("scene.tif",), "truth.tif")), tmp_path) == {"": [("scene", "truth.tif")]}


def test_find_images__leaves_missing_masks_out(tmp_path):
    assert listed(find_images(touch(tmp_path, "images/a.png"), PLAIN), tmp_path) == {"": [("a",)]}


def test_find_images__says_what_it_looked_for_and_what_is_there(tmp_path):
    with pytest.raises(SceneNotFoundError, match=r"there is none .*root="):
        find_images(tmp_path / "nowhere", PLAIN)
    touch(tmp_path, "pictures/a.png")
    with pytest.raises(SceneNotFoundError, match=r"holds pictures.*layout="):
        find_images(tmp_path, PLAIN)


def test_find_images__refuses_two_files_of_one_name_and_missing_bands(tmp_path):
    touch(tmp_path, "images/a.png", "images/a.tif")
    with pytest.raises(SceneFormatError, match=r"one file for each name.*a\.(png|tif)"):
        find_images(tmp_path, PLAIN)
    layout = FolderLayout(("rgb/{name}.png", "nir/{name}.png"), "masks/{name}.png")
    touch(tmp_path, "rgb/a.png", "rgb/b.png", "nir/b.png")
    with pytest.raises(SceneNotFoundError, match=r"'nir/\{name\}\.png'.*1 lack it, such as \['a'\]"):
        find_images(tmp_path, layout)


def test_find_unlabelled__takes_images_of_a_layout_or_of_the_folder_itself(tmp_path):
    touch(tmp_path, "b.png", "a.tif", "readme.txt")
    assert [(image.name, image.masks) for image in find_unlabelled(tmp_path, PLAIN)] == [("a", ()), ("b", ())]
    touch(tmp_path, "images/c.png")
    assert [image.name for image in find_unlabelled(tmp_path, PLAIN)] == ["c"]
    with pytest.raises(SceneNotFoundError, match="there is none"):
        find_unlabelled(tmp_path / "nowhere", PLAIN)


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": ()},
        {"images": ("{name}.png",), "encoding": "grey"},
        {"images": ("{split}/{name}.png",), "masks": "{split}/{split}/{name}.png"},
        {"images": ("{name}.png",), "train": "a", "test": "a"},
    ],
)
def test_folder_layout__refuses_what_is_no_layout(arguments):
    with pytest.raises(ValueError, match="Expected"):
        FolderLayout(**{"masks": "m/{name}.png", **arguments})
