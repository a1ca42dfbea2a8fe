import torch

from anomseg.report.tables import figure_table


def test_figure_table__has_a_row_for_each_scene_their_mean_and_all_pixels():
    figures = {
        "test_auroc/b": 0.5,
        "test_auroc/a": torch.tensor(0.25),
        "test_auroc_mean": 0.375,
        "test_auroc": 0.4,
        "val_auroc": 0.9,
        "test_ap": 0.1,
    }
    lines = figure_table(figures).splitlines()
    assert lines[0].split() == ["auroc", "ap"]
    assert [line.split() for line in lines[1:3]] == [["a", "0.2500"], ["b", "0.5000"]]
    assert lines[3].split() == ["mean", "of", "scenes", "0.3750"]
    assert lines[4].split() == ["all", "pixels", "0.4000", "0.1000"]


def test_figure_table__of_pooled_figures_alone():
    assert figure_table({"val_auroc": 0.5}, "val_").splitlines()[1].split() == ["all", "pixels", "0.5000"]


def test_figure_table__has_a_row_for_each_category_and_the_mean_of_classes():
    figures = {"test_image_auroc/nut": 0.9, "test_image_auroc/bolt": 0.7, "test_image_auroc_mean_over_class": 0.8, "test_image_auroc": 0.75}
    lines = figure_table({**figures, "test_auroc": 0.6}).splitlines()
    assert lines[0].split() == ["image_auroc", "auroc"]
    assert lines[3].split() == ["mean", "of", "classes", "0.8000"]
    assert lines[4].split() == ["all", "pixels", "0.7500", "0.6000"]
    assert len({len(line.rstrip()) for line in lines[1:4]}) == 1


def test_figure_table__shows_figures_of_change_classes_and_heat():
    figures = {
        "test_auroc": 0.9,
        "test_change_f1": 0.5,
        "test_change_iou": 0.4,
        "test_change_kappa": 0.3,
        "test_miou": 0.7,
        "test_heat_ece": 0.1,
    }
    lines = figure_table(figures).splitlines()
    assert lines[0].split() == ["auroc", "change_f1", "change_iou", "change_kappa", "miou", "heat_ece"]
    assert lines[1].split() == ["all", "pixels", "0.9000", "0.5000", "0.4000", "0.3000", "0.7000", "0.1000"]


def test_figure_table__leaves_undefined_figures_out():
    figures = {"test_image_auroc": torch.tensor(torch.nan), "test_auroc": 0.5}
    assert figure_table(figures).splitlines()[0].split() == ["auroc"]


def test_figure_table__shows_the_pooled_row_where_unnamed_scenes_count_in_it():
    figures = {"test_auroc/with": 1.0, "test_auroc_mean": 1.0, "test_auroc": 0.756}
    assert [line.split() for line in figure_table(figures).splitlines()[1:]] == [["with", "1.0000"], ["all", "pixels", "0.7560"]]


def test_figure_table__repeats_no_figures_of_the_only_scene():
    figures = {"test_auroc/a": 0.5, "test_auroc_mean": 0.5, "test_auroc": torch.tensor(0.5)}
    assert [line.split() for line in figure_table(figures).splitlines()[1:]] == [["a", "0.5000"]]
