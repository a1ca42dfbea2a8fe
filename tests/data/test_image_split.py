import pytest
import torch

from anomseg.data.image_split import NameSplit, ShareSplit, block_windows

NAMES = [f"tile{index:02d}" for index in range(50)]


@pytest.mark.parametrize("split", [ShareSplit(0.7, 0.0, 0.3), ShareSplit(), ShareSplit(0.5, 0.5, 0.0), ShareSplit(1.0, 0.0, 0.0)])
def test_share_split__serves_every_name_once(split):
    parts = split.share(NAMES, seed=3)
    assert sorted(name for part in parts for name in part) == NAMES
    assert [len(part) for part in parts] == [round(50 * share) for share in (split.train, split.val, split.test)]


def test_share_split__follows_the_seed_and_not_the_order():
    split = ShareSplit()
    assert split.share(NAMES, 1) == split.share(NAMES[::-1], 1)
    assert split.share(NAMES, 1) != split.share(NAMES, 2)


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_share_split__leaves_no_wanted_part_empty(count):
    assert min(len(part) for part in ShareSplit(0.9, 0.05, 0.05).share(NAMES[:count], 0)) == 1
    assert min(len(part) for part in ShareSplit(0.02, 0.49, 0.49).share(NAMES[:count], 0)) >= 1


def test_share_split__refuses_fewer_names_than_parts():
    with pytest.raises(ValueError, match=r"at least 3 images.*\['tile00'\].*block="):
        ShareSplit().share(NAMES[:1], 0)


@pytest.mark.parametrize("arguments", [{"train": 0.8}, {"train": 0.0, "val": 0.8}, {"val": -0.1, "test": 0.4}, {"block": 0}])
def test_share_split__refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected"):
        ShareSplit(**arguments)


def test_name_split__takes_the_listed_images_and_names_missing_ones():
    split = NameSplit(("tile03", "tile01"), test=("tile02",))
    assert split.share(NAMES, 0) == (["tile03", "tile01"], [], ["tile02"])
    with pytest.raises(ValueError, match=r"\['tile03'\] \(1 in all\)"):
        split.share(NAMES[:3], 0)
    with pytest.raises(ValueError, match="'b'"):
        NameSplit(("a", "b"), test=("b",))
    with pytest.raises(ValueError, match="none that trains"):
        NameSplit((), test=("b",))


@pytest.mark.parametrize(("size", "block"), [((10, 7), 3), ((5, 5), 9), ((723, 934), 128)])
def test_block_windows__cover_every_pixel_once_in_blocks_of_nearly_one_size(size, block):
    count = torch.zeros(size)
    windows = block_windows(size, block)
    for row, column, height, width in windows:
        count[row : row + height, column : column + width] += 1
    assert bool((count == 1).all())
    for axis in (2, 3):
        sides = {window[axis] for window in windows}
        assert max(sides) - min(sides) <= 1
