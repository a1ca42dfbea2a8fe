from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.class_rule import ClassTable
from anomseg.data.industrial_images import IndustrialImage, as_channels
from anomseg.data.industrial_layouts import IndustrialFile, IndustrialLayout
from anomseg.data.raster_io import write_geotiff
from anomseg.errors import SceneFormatError, SceneNotFoundError

LAYOUT = IndustrialLayout("{defect}/{name}.*", "{defect}/{name}_mask.*")


def image(tmp_path, array, mask=None, defect="good", layout=LAYOUT, **changes):
    path = tmp_path / "image.png"
    if isinstance(array, np.ndarray):
        Image.fromarray(array).save(path)
    else:
        path = write_geotiff(tmp_path / "image.tif", array, None, None)
    if mask is not None:
        Image.fromarray(mask).save(tmp_path / "mask.png")
    file = IndustrialFile(path, None if mask is None else tmp_path / "mask.png", "nut", defect, None, "image")
    return replace(IndustrialImage(file, layout).measured(), **changes)


def grey(size=(10, 12), dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.linspace(0, top, size[0] * size[1]).reshape(size).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_image__is_brought_to_one_by_the_type_of_its_integers(tmp_path, dtype):
    scene = image(tmp_path, grey(dtype=dtype))()
    assert scene.image.dtype == torch.float32
    torch.testing.assert_close(scene.image[0], torch.from_numpy(grey(dtype=dtype).astype(np.float32)) / np.iinfo(dtype).max)


def test_image__of_floating_numbers_is_left_as_it_is_but_for_a_maximum(tmp_path):
    values = torch.rand(5, 6, 7) * 3000
    values[0, 2, 3] = torch.nan
    scene = image(tmp_path, values)()
    assert bool(scene.image[:, 2, 3].isnan().all())
    assert bool((scene.mask[2, 3] == 0) & (scene.image[:, 0, 0] == values[:, 0, 0]).all())
    half = image(tmp_path, values, layout=replace(LAYOUT, maximum=2.0))()
    torch.testing.assert_close(half.image, scene.image / 2, equal_nan=True)


def test_image__of_a_camera_of_12_bits_takes_its_maximum(tmp_path):
    scene = image(tmp_path, np.full((4, 4), 4095, np.uint16), layout=replace(LAYOUT, maximum=4095))()
    assert float(scene.image.min()) == 1.0


def test_image__carries_label_category_and_name(tmp_path):
    scene = image(tmp_path, grey())()
    assert (scene.name, scene.category, scene.image_label) == ("nut/good/image", "nut", 0)
    assert bool((scene.mask == 0).all())


def test_image__with_a_mask_holds_its_defects(tmp_path):
    mask = np.zeros((10, 12), np.uint8)
    mask[3, 4], mask[5, 5] = 255, 100
    scene = image(tmp_path, grey(), mask, "hole")()
    assert (scene.mask == 1).nonzero().tolist() == [[3, 4]]
    assert scene.image_label == 1


@pytest.mark.parametrize("mask", [None, np.zeros((10, 12), np.uint8)])
def test_image__that_is_defective_nobody_knows_where_is_ignored(tmp_path, mask):
    scene = image(tmp_path, grey(), mask, "hole")()
    assert bool((scene.mask == 255).all())
    assert scene.image_label == 1


def test_image__that_nothing_is_known_of_has_no_truth(tmp_path):
    loaded = image(tmp_path, grey(), None, None)
    assert loaded().mask is None
    assert loaded().image_label == 255
    assert not loaded.facts().has_truth


def test_image__takes_classes_as_normal_that_the_layout_names(tmp_path):
    table = ClassTable(("no data", "field", "road"), void=("no data",))
    layout = IndustrialLayout("{name}.*", "{name}.*", table=table, encoding="index", normal=("field",))
    mask = np.zeros((10, 12), np.uint8)
    mask[4:], mask[8:] = 1, 2
    truth = image(tmp_path, grey(), mask, None, layout).truth()
    assert [set(part.unique().tolist()) for part in truth.split([4, 4, 2])] == [{255}, {0}, {1}]


@pytest.mark.parametrize(("size", "expected"), [((5, 6), (5, 6)), (0.5, (5, 6)), (2.0, (20, 24)), (None, (10, 12)), (0.01, (1, 1))])
def test_size__scales_image_and_mask_alike(tmp_path, size, expected):
    mask = np.zeros((10, 12), np.uint8)
    mask[2:6, 4:8] = 255
    loaded = image(tmp_path, grey(), mask, "hole", size=size)
    scene = loaded()
    assert loaded.facts().size == scene.size == tuple(scene.mask.shape) == expected
    assert bool((scene.mask == 1).any())
    assert float(scene.image.min()) >= 0
    assert float(scene.image.max()) <= 1


def test_window__is_a_part_of_the_whole(tmp_path):
    mask = np.zeros((10, 12), np.uint8)
    mask[3, 4] = 255
    whole = image(tmp_path, grey(), mask, "hole")
    part = replace(whole, window=(2, 3, 5, 6))()
    assert torch.equal(part.image, whole().image[:, 2:7, 3:9])
    assert torch.equal(part.mask, whole().mask[2:7, 3:9])
    assert part.name == "nut/hole/image_r0002_c0003"


def test_channels__repeat_grey_and_average_colours(tmp_path):
    colours = np.stack([grey(), grey()[::-1], np.zeros_like(grey())], -1)
    three = image(tmp_path, colours)
    assert three().image.shape[0] == 3
    torch.testing.assert_close(replace(three, channels=1)().image[0], three().image.mean(0))
    assert torch.equal(replace(three, bands=(1,))().image, three().image[1:2])
    one = image(tmp_path, grey())
    assert torch.equal(replace(one, channels=3)().image, one().image.expand(3, -1, -1))


def test_channels__have_no_rule_for_other_numbers():
    with pytest.raises(SceneFormatError, match="has 4"):
        as_channels(torch.rand(4, 2, 2), 3)


def test_alpha__is_no_band(tmp_path):
    colours = np.dstack([grey()] * 3 + [np.full((10, 12), 255, np.uint8)])
    assert image(tmp_path, colours).shape == (3, 10, 12)


def test_bands__beyond_the_file_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"indices of 0 to 0 in .*image.png.* got 2 in bands="):
        image(tmp_path, grey(), bands=(0, 2))()


def test_measured__says_when_a_mask_has_another_size(tmp_path):
    with pytest.raises(ValueError, match=r"10 x 12 pixels for .*image.png', but .*mask.png' has 5 x 5"):
        image(tmp_path, grey(), np.zeros((5, 5), np.uint8), "hole")


def test_measured__says_which_file_is_unreadable(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    file = IndustrialFile(tmp_path / "broken.png", None, "nut", "good", None, "broken")
    with pytest.raises(SceneFormatError, match=r"broken\.png"):
        IndustrialImage(file, LAYOUT).measured()
    with pytest.raises(SceneNotFoundError, match=r"gone\.png"):
        IndustrialImage(replace(file, path=tmp_path / "gone.png"), LAYOUT).measured()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_image__that_is_cut_short_is_an_error(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(SceneFormatError, match="cut short"):
        IndustrialImage(IndustrialFile(path, None, "nut", "good", None, "image"), LAYOUT).measured()()


def test_image__of_a_palette_is_no_grey_image_but_a_mask_may_be_one(tmp_path):
    drawn = Image.fromarray(np.stack([grey(), grey()[::-1], grey()], -1))
    drawn.quantize(8).save(tmp_path / "image.png")
    file = IndustrialFile(tmp_path / "image.png", None, "nut", "good", None, "image")
    with pytest.raises(SceneFormatError, match="palette"):
        IndustrialImage(file, LAYOUT).measured()
    drawn.save(tmp_path / "image.png")
    Image.fromarray((grey() > 99).astype(np.uint8)).convert("P").save(tmp_path / "mask.png")
    scene = IndustrialImage(replace(file, mask=tmp_path / "mask.png", defect="bent"), LAYOUT).measured()()
    assert torch.equal(scene.mask, torch.from_numpy((grey() > 99).astype(np.int64)))


def test_truth__of_a_normal_image_keeps_what_its_mask_ignores(tmp_path):
    mask = np.zeros((10, 12), np.uint8)
    mask[:, :3], mask[4, 8] = 255, 1
    layout = replace(LAYOUT, encoding="index")
    truth = image(tmp_path, grey(), mask, layout=layout).truth()
    assert bool((truth[:, :3] == 255).all())
    assert not bool(truth[:, 3:].any())
    patch = image(tmp_path, grey(), mask, layout=layout, window=(2, 2, 4, 8)).truth()
    assert patch[:, 0].tolist() == [255] * 4
    assert int((patch == 1).sum()) == 1  # the mask says what little of a normal patch is not


def test_image__does_not_care_what_dropped_bands_lack(tmp_path):
    stored = torch.rand(3, 6, 7)
    stored[1] = torch.nan
    found = image(tmp_path, stored, bands=(2, 0))()
    assert torch.equal(found.image, stored[[2, 0]])
