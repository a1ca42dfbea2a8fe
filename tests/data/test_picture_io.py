import numpy as np
import pytest
import torch
from PIL import Image

from anomseg.data.picture_io import check_picture, rasterised, read_picture
from anomseg.errors import SceneFormatError, SceneNotFoundError


def test_read_picture__keeps_the_alpha_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert torch.equal(picture, torch.from_numpy(pixels.transpose(2, 0, 1)).float() / 255)


def test_read_picture__looks_the_colours_of_a_palette_up(tmp_path):
    colours = np.random.default_rng(1).integers(0, 4, (9, 7, 3), dtype=np.uint8) * 60
    Image.fromarray(colours).quantize(64).save(tmp_path / "p.png")
    expected = np.array(Image.open(tmp_path / "p.png").convert("RGB")).transpose(2, 0, 1)
    assert torch.equal(read_picture(tmp_path / "p.png")[:3], torch.from_numpy(expected).float() / 255)


def test_read_picture__refuses_what_is_missing_or_no_picture_of_bytes(tmp_path):
    with pytest.raises(SceneNotFoundError):
        read_picture(tmp_path / "none.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SceneFormatError, match="bytes"):
        read_picture(tmp_path / "deep.png")


def test_rasterised__fills_the_union_of_polygons():
    filled = rasterised([[1, 1, 5, 1, 5, 4, 1, 4], [6, 6, 8, 6, 8, 8, 6, 8]], (10, 12))
    expected = torch.zeros(10, 12, dtype=torch.bool)
    expected[1:4, 1:5] = expected[6:8, 6:8] = True
    assert torch.equal(filled, expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_check_picture__refuses_indices_of_colours_but_not_of_greys(tmp_path, suffix):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)).quantize(8)
    picture.save(tmp_path / f"a.{suffix}")
    with pytest.raises(SceneFormatError, match=r"colours in .*a\..* indices of a palette.*RGB"):
        check_picture(tmp_path / f"a.{suffix}")
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(8, 9)).save(tmp_path / f"b.{suffix}")
    check_picture(tmp_path / f"b.{suffix}")


def test_check_picture__refuses_what_a_viewer_turns(tmp_path):
    picture = Image.fromarray(np.zeros((8, 9, 3), np.uint8))
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(tmp_path / f"{orientation}.jpg", exif=exif)
    check_picture(tmp_path / "1.jpg")
    with pytest.raises(SceneFormatError, match=r"6\.jpg.* EXIF orientation is 6.*upright"):
        check_picture(tmp_path / "6.jpg")
