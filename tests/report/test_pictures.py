import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

import anomseg.report.pictures as pictures
from anomseg.report.pictures import NODATA_GREY, false_colour, heat_colours, save_panel, scene_panel, thinned


def ramp(bands, size=(20, 30)):
    return torch.rand(bands, *size, generator=torch.Generator().manual_seed(0))


def panel_arguments(size=(20, 30)):
    image, mask = ramp(4, size), torch.zeros(size, dtype=torch.int64)
    image[:, :3] = torch.nan
    mask[:3], mask[8:10, 8:10] = 255, 1
    return image, image[0].nan_to_num() * 9, image[0].nan_to_num(), mask


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 100])
def test_false_colour__gives_three_channels_between_0_and_1(bands):
    picture = false_colour(ramp(bands))
    assert tuple(picture.shape) == (20, 30, 3)
    assert picture.dtype == torch.float32
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert bool((picture[..., 0] == picture[..., 1]).all()) == (bands < 3)


@pytest.mark.parametrize(
    ("wavelength", "expected"),
    [
        ((450.0, 550.0, 650.0, 850.0, 1600.0, 2200.0), (2, 1, 0)),  # the sensor covers the visible
        ((850.0, 1000.0, 1300.0, 1600.0, 1900.0, 2200.0), (5, 3, 1)),  # it does not: long wavelengths are red
        ((2200.0, 1900.0, 1600.0, 1300.0, 1000.0, 850.0), (0, 2, 4)),  # neither, and in descending order
        (None, (5, 3, 1)),
    ],
)
def test_false_colour__picks_bands_by_wavelength(wavelength, expected):
    image = ramp(6)
    alone = torch.stack([false_colour(image[band : band + 1])[..., 0] for band in expected], dim=-1)
    assert torch.equal(false_colour(image, wavelength), alone)


def test_false_colour__takes_three_bands_without_wavelengths_as_red_green_blue():
    image = ramp(3)
    assert torch.equal(false_colour(image), false_colour(image, (650.0, 550.0, 450.0)))


def test_false_colour__paints_pixels_without_data_grey_and_ignores_them_in_the_stretch():
    image = ramp(3)
    spoilt = image.clone()
    spoilt[1, :2] = torch.nan
    spoilt[0, :2] = 1e6
    picture = false_colour(spoilt)
    assert bool((picture[:2] == NODATA_GREY).all())
    torch.testing.assert_close(picture[2:], false_colour(image[:, 2:]))


def test_false_colour__is_half_grey_for_a_constant_band_and_grey_without_any_data():
    assert bool((false_colour(torch.full((3, 8, 8), 7.0)) == 0.5).all())
    assert bool((false_colour(torch.full((3, 8, 8), torch.nan)) == NODATA_GREY).all())


@pytest.mark.parametrize(("image", "wavelength"), [(torch.zeros(8, 8), None), (torch.zeros(3, 8, 8), (1.0, 2.0))])
def test_false_colour__refuses_shapes_that_do_not_fit(image, wavelength):
    with pytest.raises(ValueError, match=r"Expected .*but got"):
        false_colour(image, wavelength)


def test_heat_colours__keeps_one_scale_for_every_map():
    low, high = heat_colours(torch.tensor([[0.0, 0.2]])), heat_colours(torch.tensor([[0.2, 1.0]]))
    assert torch.equal(low[0, 1], high[0, 0])
    assert bool((heat_colours(torch.tensor([[torch.nan]])) == NODATA_GREY).all())
    assert torch.equal(heat_colours(torch.tensor([[1.5]])), heat_colours(torch.tensor([[1.0]])))


def test_scene_panel__draws_a_histogram_only_with_a_mask():
    image, score, heatmap, mask = panel_arguments()
    with_mask, without = scene_panel(image, score, heatmap, mask, "scene"), scene_panel(image, score, heatmap)
    titles = [axis.get_title(loc="left") for axis in with_mask.axes]
    assert sum(bool(title) for title in titles) == 4
    assert sum(bool(axis.get_title(loc="left")) for axis in without.axes) == 3
    histogram = with_mask.axes[titles.index(next(title for title in titles if "histogram" in title))]
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["normal (506)", "anomalous (4)"]


def test_scene_panel__decimates_large_scenes_but_counts_every_pixel(monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_SIDE", 10)
    figure = scene_panel(*panel_arguments((20, 30)))
    assert figure.axes[0].images[0].get_array().shape == (7, 10, 3)
    assert "normal (506)" in [text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()]


def test_thinned__keeps_a_single_pixel():
    plane = torch.zeros(9, 9, dtype=torch.bool)
    plane[4, 7] = True
    assert pictures._thinned(plane, 4).nonzero().tolist() == [[1, 1]]


def test_pixel_edges__closes_around_one_pixel():
    plane = torch.zeros(3, 3, dtype=torch.bool)
    plane[1, 2] = True
    edges = pictures._pixel_edges(plane)
    assert edges.shape == (4, 2, 2)
    assert set(map(tuple, edges.reshape(-1, 2).tolist())) == {(1.5, 0.5), (2.5, 0.5), (1.5, 1.5), (2.5, 1.5)}


def test_pixel_edges__join_those_in_one_line():
    plane = torch.zeros(6, 9, dtype=torch.bool)
    plane[1:4, 2:8] = True
    plane[5, 0] = True
    lines = {frozenset(map(tuple, edge)) for edge in pictures._pixel_edges(plane).tolist()}
    corners = [(1.5, 0.5), (7.5, 0.5), (7.5, 3.5), (1.5, 3.5)]
    assert {frozenset(pair) for pair in zip(corners, corners[1:] + corners[:1], strict=True)} <= lines
    assert len(lines) == 8


def test_pixel_edges__have_the_length_of_all_borders():
    plane = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    padded = torch.nn.functional.pad(plane, (1, 1, 1, 1))
    borders = int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())
    edges = pictures._pixel_edges(plane)
    assert abs(edges[:, 0] - edges[:, 1]).sum() == borders


def test_histogram__counts_more_pixels_than_float32_can():
    axis = Figure().subplots()
    pictures._histogram(axis, torch.zeros(2**24 + 5), torch.ones(3))
    assert axis.patches[0].get_data().values.max() == 2**24 + 5


def test_scene_panel__refuses_planes_of_another_size():
    image, score, heatmap, mask = panel_arguments()
    with pytest.raises(ValueError, match=r"Expected mask of shape \(20, 30\)"):
        scene_panel(image, score, heatmap, mask[:-1])


def test_save_panel__writes_a_png_and_nothing_else(tmp_path):
    path = save_panel(tmp_path / "new" / "scene.png", *panel_arguments(), title="scene")
    assert [child.name for child in path.parent.iterdir()] == ["scene.png"]
    assert imread(path).ndim == 3


def test_save_panel__draws_a_scene_without_any_data(tmp_path):
    size = (12, 12)
    arguments = (torch.full((3, *size), torch.nan), torch.zeros(size), torch.zeros(size), torch.full(size, 255))
    assert save_panel(tmp_path / "scene.png", *arguments).stat().st_size > 0


def test_save_panel__keeps_the_old_file_and_leaves_nothing_behind_on_failure(tmp_path):
    for name in ("scene.png", "scene.unknown"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match="unknown"):
        save_panel(tmp_path / "scene.unknown", *panel_arguments())
    with pytest.raises(ValueError, match="Expected score"):
        save_panel(tmp_path / "scene.png", torch.zeros(3, 8, 8), torch.zeros(4, 4), torch.zeros(8, 8))
    assert {child.name: child.read_text() for child in tmp_path.iterdir()} == {"scene.png": "old", "scene.unknown": "old"}


def test_pictures__import_no_matplotlib_until_they_draw():
    code = "import sys, anomseg.report.pictures; sys.exit('matplotlib' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scene_panel__shows_both_dates_of_a_pair():
    image, score, heatmap, mask = panel_arguments()
    pair = torch.stack([image, image.flip(0)])
    titles = [axis.get_title(loc="left") for axis in scene_panel(pair, score, heatmap, mask).axes[:5]]
    assert [title.split(" · ")[0] for title in titles] == ["before", "after", "raw score", "heat map", "score histogram"]
    one = scene_panel(image, score, heatmap, mask)
    other = scene_panel(pair, score, heatmap, mask)
    assert torch.equal(torch.as_tensor(one.axes[0].images[0].get_array()), torch.as_tensor(other.axes[0].images[0].get_array()))


def test_false_colour__of_another_images_scale_compares_with_it():
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(false_colour(image, scale_of=image), false_colour(image))
    darker = false_colour(image - 0.3, scale_of=image)
    assert darker.mean() < false_colour(image).mean() - 0.2
    assert torch.equal(false_colour(torch.zeros_like(image), scale_of=image), torch.zeros(20, 20, 3))
    with pytest.raises(ValueError, match="3 bands of the image"):
        false_colour(image, scale_of=image[:1])


def test_thinned__keeps_few_values_all_and_many_at_equal_steps():
    few = torch.rand(1000)
    assert torch.equal(thinned(few), few)
    many = torch.arange(5_000_000)
    assert torch.equal(thinned(many), many[::5])
