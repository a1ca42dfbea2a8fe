import pytest
import torch
from matplotlib.image import imread

from anomseg.methods.base import AnomalySegmenter
from anomseg.report.error_map import ERROR_COLOURS, change_panel, error_map, save_change_panel, write_error_maps

FOUND, PASSED, ALARM, MISSED, IGNORED = (torch.tensor(colour) for colour in ERROR_COLOURS.values())


class Difference(AnomalySegmenter):
    learns = False

    def score(self, image):
        return (image[:, 1] - image[:, 0]).nan_to_num().abs().mean(1)


def pair(size=(20, 26)):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(size, dtype=torch.long)
    mask[5:9, 5:9], mask[0] = 1, 255
    image[:, :, -1] = torch.nan
    return image, mask


def test_error_map__colours_each_outcome():
    score = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, torch.nan]])
    mask = torch.tensor([[1, 0, 0, 1, 255, 1]])
    assert torch.equal(error_map(score, mask)[0], torch.stack([FOUND, PASSED, ALARM, MISSED, IGNORED, IGNORED]))


def test_error_map__is_white_and_black_where_nothing_is_wrong():
    _, mask = pair()
    colours = error_map(torch.where(mask == 1, 3.0, 2.0), mask, threshold=2.5)
    assert torch.equal(colours[mask == 1], FOUND.expand(16, 3))
    assert bool((colours[mask == 0] == 0).all())


def test_error_map__refuses_other_shapes():
    with pytest.raises(ValueError, match="one shape"):
        error_map(torch.zeros(1, 4, 4), torch.zeros(4, 4))


def test_change_panel__shows_five_planes_and_the_figures():
    image, mask = pair()
    figure = change_panel(image, mask, torch.where(mask == 1, 1.0, -1.0), title="here")
    assert [axis.get_title(loc="left") for axis in figure.axes[:5]] == ["before", "after", "truth", "score", "errors"]
    assert "here" in figure.get_suptitle()
    assert "F1 1.000" in figure.get_suptitle()
    errors = torch.as_tensor(figure.axes[4].images[0].get_array())
    assert torch.equal(errors[-1], IGNORED.expand(26, 3))  # no data there


def test_change_panel__refuses_one_date():
    image, mask = pair()
    with pytest.raises(ValueError, match="pair of shape"):
        change_panel(image[0], mask, mask.float())
    with pytest.raises(ValueError, match="mask and score"):
        change_panel(image, mask[:3], mask.float())


def test_save_change_panel__writes_a_picture(tmp_path):
    image, mask = pair()
    path = save_change_panel(tmp_path / "deep" / "p.png", image, mask, mask.float(), 0.5, "p")
    assert imread(path).shape[1] == 2100
    assert [entry.name for entry in path.parent.iterdir()] == ["p.png"]


def test_write_error_maps__writes_a_panel_for_each_pair(tmp_path):
    image, mask = pair()
    batch = {"image": torch.stack([image, image]), "mask": torch.stack([mask, mask]), "name": ["a", "b"]}
    written = write_error_maps(Difference(), [batch, batch], tmp_path, 0.5, limit=2)
    assert [path.name for path in written] == ["a_change.png", "b_change.png"]
    assert all(path.is_file() for path in written)


def test_write_error_maps__refuses_tiles(tmp_path):
    image, mask = pair()
    batch = {"image": image[None], "mask": mask[None], "name": ["a"], "scene_size": [(40, 26)]}
    with pytest.raises(ValueError, match="whole pairs"):
        write_error_maps(Difference(), [batch], tmp_path)


def test_write_error_maps__takes_stacked_truth_and_subfolders(tmp_path):
    image, mask = pair()
    batch = {"image": image[None], "mask": mask[None, None], "name": ["north/a"]}
    assert write_error_maps(Difference(), [batch], tmp_path, 0.5) == [tmp_path / "north" / "a_change.png"]


def test_write_error_maps__leaves_other_files_alone(tmp_path):
    image, mask = pair()
    with pytest.raises(ValueError, match=r"'../a' would write into"):
        write_error_maps(Difference(), [{"image": image[None], "mask": mask[None], "name": ["../a"]}], tmp_path / "out")
    assert not any(tmp_path.iterdir())
    twice = {"image": torch.stack([image, image]), "mask": torch.stack([mask, mask]), "name": ["a", "a"]}
    with pytest.raises(ValueError, match="'a' came again and would overwrite"):
        write_error_maps(Difference(), [twice], tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8])
def test_change_panel__makes_no_change_of_missing_data_whatever_the_type_of_the_mask(dtype):
    image, mask = pair()
    mask[mask == 255] = 0
    score = torch.where(mask == 1, 1.0, -1.0)
    assert change_panel(image, mask.to(dtype), score).get_suptitle() == change_panel(image, mask, score).get_suptitle()


def test_change_panel__ignores_scores_that_are_not_finite_in_picture_and_figures():
    image, mask = pair()
    score = torch.where(mask == 1, 1.0, -1.0)
    score[5:7, 5:9] = torch.nan
    figure = change_panel(image, mask, score)
    assert "recall 1.000" in figure.get_suptitle()
    assert figure.axes[3].images[0].get_clim() == (-1.0, 1.0)
    errors = torch.as_tensor(figure.axes[4].images[0].get_array())
    assert torch.equal(errors[5:7, 5:9], IGNORED.expand(2, 4, 3))


def test_change_panel__colours_scores_of_large_pairs_by_their_own_range_too():
    image, mask = torch.rand(2, 1, 1, 1).expand(2, 1, 4097, 4097), torch.zeros(1, 1, dtype=torch.long).expand(4097, 4097)
    figure = change_panel(image, mask, torch.full((1, 1), 0.25).expand(4097, 4097))
    assert figure.axes[3].images[0].get_clim() == (-0.25, 0.25)
    assert len(figure.axes) == 6  # with a bar of colours
