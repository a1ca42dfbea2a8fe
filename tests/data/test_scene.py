import pytest
import torch

from anomseg.data.scene import Scene


def test_scene__knows_its_size():
    assert Scene("a", torch.rand(3, 4, 5)).size == (4, 5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"image": torch.rand(4, 5)}, r"\(C, H, W\)"),
        ({"image": torch.rand(3, 4, 5), "mask": torch.zeros(5, 4).long()}, "another scene"),
        ({"image": torch.rand(3, 4, 5), "mask": torch.full((4, 5), 3)}, "0 \\(normal\\)"),
        ({"image": torch.rand(3, 4, 5), "label": torch.zeros(5, 4).long()}, r"labels of shape \(4, 5\)"),
        ({"image": torch.rand(3, 4, 5), "label": torch.zeros(4, 5)}, "integer labels"),
        ({"image": torch.rand(3, 4, 5), "wavelength": (1.0,)}, "3 wavelengths"),
    ],
)
def test_scene__says_what_does_not_fit(arguments, text):
    with pytest.raises(ValueError, match=text):
        Scene("a", **arguments)


def test_scene__holds_two_dates():
    scene = Scene("pair", torch.zeros(2, 3, 4, 5), torch.zeros(4, 5, dtype=torch.int64), wavelength=(1.0, 2.0, 3.0))
    assert scene.size == (4, 5)
    with pytest.raises(ValueError, match=r"\(2, C, H, W\) for two dates"):
        Scene("three", torch.zeros(3, 3, 4, 5))
    with pytest.raises(ValueError, match=r"shape \(4, 5\)"):
        Scene("pair", torch.zeros(2, 3, 4, 5), torch.zeros(3, 4, dtype=torch.int64))


def test_scene__carries_the_truth_of_the_whole_image():
    assert Scene("a", torch.zeros(1, 2, 2), image_label=255, category="nut").image_label == 255
    with pytest.raises(ValueError, match=r"1 \(anomalous\) or 255"):
        Scene("a", torch.zeros(1, 2, 2), image_label=2)


@pytest.mark.parametrize("wrong", [300, -1])
def test_scene__names_labels_that_a_byte_cannot_hold(wrong):
    label = torch.tensor([[0, 254], [255, wrong]])
    with pytest.raises(ValueError, match=rf"0 to 254 in the labels of scene 'a'.*got \[{wrong}\]"):
        Scene("a", torch.zeros(1, 2, 2), label=label)
    assert Scene("a", torch.zeros(1, 2, 2), label=label.clamp(0, 255)).label is not None
