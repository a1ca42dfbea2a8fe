import warnings

import numpy as np
import pytest
from PIL import Image

from anomseg.data.class_rule import ClassAsNormal, ClassTable
from anomseg.data.image_folders import FolderLayout
from anomseg.data.image_parts import measured_images, shared_images, unlabelled_images, usable_images
from anomseg.data.image_split import NameSplit, ShareSplit
from anomseg.errors import SceneNotFoundError

LAYOUT = FolderLayout(
    ("{split}/images/{name}.png",), "{split}/masks/{name}.png", ClassTable(("void", "land", "water"), void=("void",)), "index"
)
LAND, WATER = ClassAsNormal(("land",)), ClassAsNormal(("water",))


def save(root, name, value, size=(8, 10), bands=3, mask_size=None):
    for folder, array in (("images", np.full((*size, bands), 7)), ("masks", np.full(mask_size or size, value))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.squeeze(array).astype(np.uint8)).save(root / folder / f"{name}.png")


def names(parts):
    return {part: [image.name for image in images] for part, images in parts.items()}


@pytest.fixture
def root(tmp_path):
    for index in range(6):
        save(tmp_path, f"i{index}", 1 + index % 2)
    return tmp_path


def test_shared_images__shares_what_has_no_folders(root):
    parts = names(shared_images(root, LAYOUT, LAND, ShareSplit(0.5, 0.0, 0.5), seed=1))
    assert sorted(parts["train"] + parts["test"]) == [f"i{index}" for index in range(6)]
    assert len(parts["train"]) == 3
    assert parts["val"] == []
    assert parts == names(shared_images(root, LAYOUT, WATER, ShareSplit(0.5, 0.0, 0.5), seed=1))


def test_shared_images__follows_folders_unless_told_otherwise(tmp_path):
    for part, name in (("train", "a"), ("test", "b")):
        save(tmp_path / part, name, 1)
    assert names(shared_images(tmp_path, LAYOUT, LAND)) == {"train": ["a"], "val": [], "test": ["b"]}
    assert names(shared_images(tmp_path, LAYOUT, LAND, NameSplit(("b",), test=("a",)))) == {"train": ["b"], "val": [], "test": ["a"]}
    save(tmp_path / "test", "a", 1)
    assert names(shared_images(tmp_path, LAYOUT, LAND))["test"] == ["a", "b"]
    with pytest.raises(ValueError, match=r"\['a'\] occur twice"):
        shared_images(tmp_path, LAYOUT, LAND, ShareSplit())


def test_shared_images__splits_a_single_image_by_blocks(tmp_path):
    save(tmp_path, "big", 1, size=(40, 30))
    with pytest.raises(ValueError, match="block="):
        shared_images(tmp_path, LAYOUT, LAND)
    parts = shared_images(tmp_path, LAYOUT, LAND, ShareSplit(0.5, 0.25, 0.25, block=10))
    counts = np.zeros((40, 30), int)
    for images in parts.values():
        for row, column, height, width in (image.window for image in images):
            counts[row : row + height, column : column + width] += 1
    assert (counts == 1).all()
    assert [len(images) for images in parts.values()] == [6, 3, 3]


def test_usable_images__leaves_out_training_images_without_a_normal_pixel(root):
    images = shared_images(root, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0))["train"]
    with pytest.warns(UserWarning, match="3 of 6 images of 'train'"):
        assert [image.name for image in usable_images(images, "train")] == ["i0", "i2", "i4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(usable_images(images, "test")) == 6


def test_usable_images__leaves_out_test_images_that_are_all_ignored(tmp_path):
    save(tmp_path, "a", 0)
    save(tmp_path, "b", 2)
    images = shared_images(tmp_path, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0))["train"]
    with pytest.warns(UserWarning, match="1 of 2 images of 'test' hold no pixel that is not ignored"):
        assert [image.name for image in usable_images(images, "test")] == ["b"]


def test_usable_images__names_the_classes_found_where_none_is_normal(tmp_path):
    save(tmp_path, "a", 2)
    save(tmp_path, "b", 0)
    images = shared_images(tmp_path, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0))["train"]
    with pytest.raises(ValueError, match=r"normal class \('land',\) among the 2 images .* hold \['void', 'water'\]"):
        usable_images(images, "train")


def test_usable_images__names_images_without_mask(root):
    (root / "masks" / "i3.png").unlink()
    images = shared_images(root, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0))["train"]
    with pytest.raises(SceneNotFoundError, match=r"1 of 6 lack one, such as .*i3\.png.*predict_root="):
        usable_images(images, "train")
    with pytest.raises(ValueError, match="one image for 'val'"):
        usable_images([], "val")


def test_measured_images__refuses_images_of_different_bands_and_masks_of_another_size(root):
    save(root, "i9", 1, bands=1)
    images = shared_images(root, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0))["train"]
    with pytest.raises(ValueError, match=r"as many bands, but got 1 in '.*i9\.png', 3 in '.*i0\.png'"):
        measured_images(images)
    save(root, "i9", 1, mask_size=(8, 11))
    with pytest.raises(ValueError, match=r"Expected 8 x 10 pixels .* but got 8 x 11"):
        measured_images(images)


def test_measured_images__takes_the_bands_that_all_have(root):
    save(root, "i9", 1, bands=1)
    grey = shared_images(root, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0), bands=(0,))["train"]
    assert {image().image.shape for image in measured_images(grey)} == {(1, 8, 10)}
    colours = shared_images(root, LAYOUT, LAND, ShareSplit(1.0, 0.0, 0.0), bands=(0, 2))["train"]
    with pytest.raises(ValueError, match=r"band indices of 0 to 0 in '.*i9\.png', but got 2"):
        measured_images(colours)


def test_unlabelled_images__need_no_masks(root, tmp_path):
    for path in (root / "masks").iterdir():
        path.unlink()
    images = unlabelled_images(root / "images", LAYOUT, LAND, bands=[1])
    assert [image.size for image in images] == [(8, 10)] * 6
    assert images[0]().mask is None
    assert images[0]().image.shape == (1, 8, 10)
