import numpy as np
import pytest
import torch

from anomseg.report import reconstruction_panel as panels
from anomseg.report.reconstruction_panel import (
    Frame,
    reconstruction_panel,
    reconstruction_strip,
    residual_limit,
    residual_map,
    save_reconstruction_panel,
    spread_indices,
    strip_pictures,
)


def scene(bands=3, size=(20, 30)):
    image = torch.rand(bands, *size, generator=torch.Generator().manual_seed(0))
    image[:, :2, :3] = torch.nan
    mask = torch.zeros(size, dtype=torch.int64)
    mask[8:12, 10:14] = 1
    mask[:2, :3] = 255
    return image, mask


def frame(image, epoch=0, heat=True):
    rebuilt = image.nan_to_num(0.5) * 0.8
    score = residual_map(image.nan_to_num(0.5), rebuilt)
    return Frame(epoch, rebuilt, score, score.clamp(0, 1) if heat else None)


def pictures(figure):
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_residual_map__is_the_root_mean_square_over_bands():
    image = torch.tensor([3.0, 0.0])[:, None, None].expand(2, 4, 5)
    assert torch.equal(residual_map(image, torch.tensor([0.0, 4.0])[:, None, None].expand(2, 4, 5)), torch.full((4, 5), 12.5).sqrt())
    assert residual_map(torch.full((1, 2, 2), torch.nan), torch.zeros(1, 2, 2)).isnan().all()


def test_residual_limit__is_two_standard_deviations_of_the_input_and_never_zero():
    image = torch.tensor([[[0.0, 2.0, torch.nan]]])
    assert residual_limit(image) == pytest.approx(2)
    assert residual_limit(torch.ones(1, 3, 3)) == residual_limit(torch.full((1, 3, 3), torch.nan)) == 1


@pytest.mark.parametrize("bands", [1, 2, 3, 10])
def test_panel__shows_six_pictures_on_scales_that_it_states(bands):
    image, mask = scene(bands)
    figure = reconstruction_panel(image, frame(image, 7), mask, (0.0, 0.4), "name")
    assert len(pictures(figure)) == 6
    limit = residual_limit(image)
    residual, score = (figure.axes[i].images[0] for i in (2, 3))
    assert residual.get_clim() == (0.0, limit)
    assert score.get_clim() == (0.0, 0.4)
    assert f"0–{limit:.3g}, two s.d." in titles(figure)[2]
    assert titles(figure)[3] == "score · 0 to 0.4"
    assert titles(figure)[4] == "heat map · 0–1"
    assert figure.get_suptitle() == "name · epoch 7"


def test_panel__gives_a_reconstruction_the_colours_of_its_input():
    image, _ = scene()
    known = torch.isfinite(image.sum(0)).numpy()
    same = Frame(0, image.nan_to_num(9.0), torch.zeros(20, 30))
    first, second = pictures(reconstruction_panel(image, same))[:2]
    assert (first[known] == second[known]).all()
    black = pictures(reconstruction_panel(image, Frame(0, torch.zeros_like(image), torch.zeros(20, 30))))[1]
    assert (black[known] == 0).all()  # not stretched to grey


def test_panel__says_what_is_missing():
    image, _ = scene()
    figure = reconstruction_panel(image, frame(image, heat=False))
    said = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert said == ["not calibrated yet", "no truth"]
    assert len(pictures(figure)) == 4
    unknown = reconstruction_panel(image, frame(image), torch.full((20, 30), 255))
    assert titles(unknown)[5] == "truth · all ignored"


def test_panel__shrinks_large_images_and_keeps_small_anomalies(monkeypatch):
    monkeypatch.setattr(panels, "SIDE", 10)
    image, mask = scene()
    mask[mask == 1] = 0
    mask[7, 11] = 1
    shown = pictures(reconstruction_panel(image, frame(image), mask))
    assert all(one.shape[:2] == (7, 10) for one in shown)
    assert abs(shown[5] - torch.tensor(panels._TRUTH["anomalous"]).numpy()).max(-1).min() < 1e-6


def test_strip__shows_the_first_and_the_last_epoch_on_one_scale():
    image, mask = scene()
    frames = [frame(image, epoch) for epoch in range(12)]
    figure = reconstruction_strip(image, frames, mask, "name", columns=4)
    assert [t for t in titles(figure) if t.startswith("epoch")] == ["epoch 0", "epoch 4", "epoch 7", "epoch 11"]
    limits = {axis.images[0].get_clim() for axis in figure.axes if axis.images and axis.images[0].get_array().ndim == 2}
    assert limits == {(0.0, residual_limit(image))}
    assert len(pictures(figure)) == 2 + 3 * 4


def test_strip__of_small_pictures_is_that_of_the_frames(monkeypatch):
    monkeypatch.setattr(panels, "STRIP_SIDE", 10)
    image, mask = scene(7)
    frames = [frame(image, epoch, heat=epoch > 0) for epoch in range(3)]
    small = [strip_pictures(image, one) for one in frames]
    assert {tuple(one.residual.shape) for one in small} == {(7, 10)}
    assert sum(one.rebuilt.numel() for one in small) == 3 * 3 * 70
    expected, found = (pictures(reconstruction_strip(image, given, mask)) for given in (frames, small))
    assert len(expected) == len(found) == 2 + 3 * 3 - 1
    assert all(np.array_equal(a.filled(9), b.filled(9)) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(("count", "most", "expected"), [(1, 5, [0]), (3, 3, [0, 1, 2]), (10, 2, [0, 9]), (9, 3, [0, 4, 8])])
def test_spread_indices__hold_both_ends(count, most, expected):
    assert spread_indices(count, most) == expected


def test_save__writes_a_whole_picture(tmp_path):
    image, mask = scene()
    path = save_reconstruction_panel(tmp_path / "new" / "one.png", image, frame(image), mask)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["one.png"]


def test_pictures__say_what_does_not_fit():
    image, mask = scene()
    with pytest.raises(ValueError, match="one shape"):
        residual_map(image, image[:1])
    with pytest.raises(ValueError, match="Expected mask of height and width"):
        reconstruction_panel(image, frame(image), mask[:5])
    with pytest.raises(ValueError, match="Expected frames"):
        reconstruction_strip(image, [])
