import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import anomseg.report.comparison as comparison
from anomseg.report.comparison import ComparisonRow, comparison_sheet, separability_plot
from anomseg.sample import IGNORE


def row(name="scene", size=(20, 30), **changes):
    """Make a scene with two detectors: one that knows the truth, one that draws."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(size, dtype=torch.int64)
    mask[8:10, 8:10], mask[:3] = 1, IGNORE
    noise = torch.rand(size, generator=generator)
    given = {
        "image": torch.rand(5, *size, generator=generator),
        "mask": mask,
        "maps": {"oracle": noise + 9.0 * (mask == 1), "noise": noise},
    }
    return ComparisonRow(name, **{**given, **changes})


def panels(figure):
    """Give the shown planes, by the first and the last line of their titles."""
    return {tuple(axis.get_title().split("\n")): axis.images[0].get_array() for axis in figure.axes if axis.images}


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_sheet__shows_false_colour_truth_and_a_panel_a_detector_with_its_auroc():
    held = row()
    shown = panels(comparison_sheet([held, row("other", size=(40, 30))]))
    noise = held.maps["noise"]
    below = (noise[held.mask == 1][:, None] > noise[held.mask == 0][None]).double().mean()  # Mann-Whitney
    assert list(shown)[:4] == [
        ("scene", "false colour"),
        ("truth", "4 pixels"),
        ("oracle", "AUROC 1.0000"),
        ("noise", f"AUROC {below:.4f}"),
    ]


def test_sheet__colours_every_detector_by_powers_of_ten_of_its_own_ranks():
    plane = panels(comparison_sheet([row()]))["oracle", "AUROC 1.0000"]
    counted = 17 * 30
    assert plane.max() == pytest.approx(math.log10(counted))
    assert plane[8:10, 8:10].min() == pytest.approx(math.log10(counted / 4), abs=1e-6)


def test_sheet__does_not_change_with_the_unit_or_the_power_of_a_score():
    noise = row().maps["noise"]
    plain, bent = (comparison_sheet([row(maps={"noise": score})]) for score in (noise, (10 * noise.double()).exp()))
    assert np.array_equal(drawn(plain), drawn(bent))


def test_sheet__ignores_what_void_pixels_hold():
    held = row()
    poisoned = row(maps={name: score.masked_fill(held.mask == IGNORE, math.nan) for name, score in held.maps.items()})
    assert np.array_equal(drawn(comparison_sheet([held])), drawn(comparison_sheet([poisoned])))


def test_sheet__leaves_pixels_without_data_grey_in_every_panel():
    held = row()
    image = held.image.clone()
    image[2, 15, 4] = math.nan
    shown = panels(comparison_sheet([row(image=image)]))
    for title, plane in shown.items():
        if title[0] in ("scene", "truth"):
            assert plane[15, 4].tolist() == pytest.approx([comparison.NODATA_GREY] * 3)
        else:
            assert np.ma.getmaskarray(plane)[15, 4]
    assert np.ptp(shown["truth", "4 pixels"][:3]) == 0.0  # the mask alone makes pixels void too
    assert np.allclose(shown["truth", "4 pixels"][0, 0], comparison.NODATA_GREY)


def test_sheet__decimates_large_scenes_but_keeps_single_pixels_and_the_auroc(monkeypatch):
    mask = torch.zeros(20, 30, dtype=torch.int64)
    mask[7, 13] = 1
    held = row(mask=mask, maps={"oracle": mask.float()})
    monkeypatch.setattr(comparison, "PANEL_SIDE", 10)
    shown = panels(comparison_sheet([held]))
    assert {plane.shape[:2] for plane in shown.values()} == {(7, 10)}
    assert np.argwhere(shown["truth", "1 pixels"].any(-1)).tolist() == [[2, 4]]
    assert shown["oracle", "AUROC 1.0000"][2, 4] == pytest.approx(math.log10(600))


def test_sheet__says_that_a_scene_without_anomalies_has_no_auroc():
    titles = list(panels(comparison_sheet([row(mask=torch.zeros(20, 30, dtype=torch.int64))])))
    assert ("noise", "no AUROC") in titles


def test_sheet__refuses_rows_of_different_detectors_and_none():
    with pytest.raises(ValueError, match=r"Expected maps of \['oracle', 'noise'\] in every row, but got \['noise'\] in 'other'"):
        comparison_sheet([row(), row("other", maps={"noise": torch.rand(20, 30)})])
    with pytest.raises(ValueError, match="Expected one or more rows"):
        comparison_sheet([])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maps": {"RX": torch.zeros(1, 20, 30)}}, r"Expected RX of shape \(20, 30\) \(H, W\), but got \(1, 20, 30\)"),
        ({"mask": torch.zeros(20, 29, dtype=torch.int64)}, r"Expected mask of shape \(20, 30\)"),
        ({"image": torch.zeros(1, 5, 20, 30)}, r"Expected an image of shape \(C, H, W\)"),
        ({"mask": torch.full((20, 30), 2)}, "Expected mask values"),
        ({"maps": {}}, "Expected one or more maps of scene 'scene'"),
    ],
)
def test_row__refuses_what_does_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        row(**changes)


def boxes(figure):
    """Give (lower, upper) of every box, in the order of drawing."""
    return [(patch.get_path().vertices[:, 1].min(), patch.get_path().vertices[:, 1].max()) for patch in figure.axes[0].patches]


def test_separability_plot__draws_two_boxes_a_map_and_writes_their_gap():
    held = row()
    figure = separability_plot(held.maps, held.mask, "scene")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(boxes(figure)) == 4
    (_, background), (anomaly, _) = boxes(figure)[:2]
    assert texts[0] == f"gap +{anomaly - background:.2f}"
    assert texts[1].startswith("gap −")
    unit = held.maps["noise"][held.mask == 0].numpy()
    counted = held.maps["noise"][held.mask != IGNORE]
    expected = (np.quantile(unit, [0.1, 0.9]) - float(counted.min())) / float(counted.max() - counted.min())
    np.testing.assert_allclose(boxes(figure)[2], expected, atol=1e-6)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["oracle", "noise"]


def test_separability_plot__by_rank_does_not_change_with_the_transform_of_a_score():
    held = row()
    bent = {name: score.double().exp() for name, score in held.maps.items()}
    assert np.array_equal(drawn(separability_plot(held.maps, held.mask, "", "rank")), drawn(separability_plot(bent, held.mask, "", "rank")))
    assert boxes(separability_plot(held.maps, held.mask)) != boxes(separability_plot(bent, held.mask))


def test_separability_plot__draws_no_box_where_there_is_nothing_to_describe():
    score = torch.rand(6, 6)
    alone = separability_plot({"RX": score, "constant": torch.ones(6, 6)}, torch.zeros(6, 6, dtype=torch.int64))
    assert len(boxes(alone)) == 1
    assert [text.get_text() for text in alone.axes[0].texts] == ["no gap", "no gap"]


def test_separability_plot__refuses_maps_that_do_not_fit():
    with pytest.raises(ValueError, match=r"Expected RX of shape \(6, 6\)"):
        separability_plot({"RX": torch.rand(6, 5)}, torch.zeros(6, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="Expected one or more maps"):
        separability_plot({}, torch.zeros(6, 6, dtype=torch.int64))


@pytest.mark.parametrize(("gap", "words"), [(0.123, "gap +0.12"), (-0.123, "gap −0.12"), (-0.001, "gap 0.00"), (math.nan, "no gap")])
def test_gap__is_written_with_its_sign(gap, words):
    assert comparison._gap(gap) == words


def test_comparison__imports_no_matplotlib_until_it_draws():
    code = "import sys, anomseg.report.comparison; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8])
def test_row__makes_no_anomaly_of_missing_data_whatever_the_type_of_the_mask(dtype):
    given = row()
    given.image[:, :, :5] = torch.nan
    mask = (given.mask == 1).long()
    assert torch.equal(row(image=given.image, mask=mask.to(dtype)).truth(), row(image=given.image, mask=mask).truth())
