import pytest
import torch

from anomseg.functional.windows import pad_to_multiple, random_blocks, taper, tile_cores, tile_origins, tile_windows


@pytest.mark.parametrize(
    ("length", "tile", "stride"), [(1, 1, 1), (10, 4, 4), (10, 4, 3), (7, 16, 8), (16, 16, 1), (17, 16, 16), (101, 10, 7)]
)
def test_tile_origins__cover_every_pixel_and_stay_inside(length, tile, stride):
    origins = tile_origins(length, tile, stride)
    covered = {pixel for origin in origins for pixel in range(origin, min(origin + tile, length))}
    assert covered == set(range(length))
    assert origins == sorted(set(origins))
    assert max(origins) + min(tile, length) == length


def test_tile_origins__shift_the_last_tile_inwards():
    assert tile_origins(10, 4, 4) == [0, 4, 6]


@pytest.mark.parametrize("arguments", [(0, 4, 4), (10, 0, 1), (10, 4, 0), (10, 4, 5)])
def test_tile_origins__refuse_gaps_and_empty_axes(arguments):
    with pytest.raises(ValueError, match="Expected"):
        tile_origins(*arguments)


def test_tile_windows__share_one_size_and_cover_the_scene():
    windows = tile_windows((50, 33), tile=16, overlap=5)
    hits = torch.zeros(50, 33)
    for row, column, height, width in windows:
        hits[row : row + height, column : column + width] += 1
    assert hits.min() >= 1
    assert {window[2:] for window in windows} == {(16, 16)}


def test_tile_windows__take_a_short_axis_whole():
    assert tile_windows((5, 20), tile=10) == [(0, 0, 5, 10), (0, 10, 5, 10)]


def test_tile_windows__refuse_an_overlap_as_large_as_the_tile():
    with pytest.raises(ValueError, match=r"overlap of 0 to 7 pixels"):
        tile_windows((20, 20), tile=8, overlap=8)


def test_taper__ramps_of_two_neighbours_add_up_to_one():
    ramp = taper(20, 40, overlap=6)[:, 20]
    torch.testing.assert_close(ramp[:6] + ramp[-6:], torch.ones(6), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width", "overlap"), [(8, 8, 0), (8, 12, 4), (5, 5, 9), (1, 1, 3)])
def test_taper__stays_above_its_floor_and_symmetric(height, width, overlap):
    weights = taper(height, width, overlap)
    assert weights.shape == (height, width)
    assert weights.min() >= 1e-3
    assert weights.max() <= 1
    torch.testing.assert_close(weights, weights.flip(0, 1))


def test_taper__blends_a_constant_map_to_itself():
    total, weight = torch.zeros(40, 40), torch.zeros(40, 40)
    tile_weight = taper(16, 16, overlap=4)
    for row, column, height, width in tile_windows((40, 40), tile=16, overlap=4):
        total[row : row + height, column : column + width] += 3.0 * tile_weight
        weight[row : row + height, column : column + width] += tile_weight
    torch.testing.assert_close(total / weight, torch.full((40, 40), 3.0))


@pytest.mark.parametrize("arguments", [(0, 4, 1), (4, 4, -1), (4, 4, 1, 0.0)])
def test_taper__refuses_weights_that_vanish(arguments):
    with pytest.raises(ValueError, match="Expected"):
        taper(*arguments)


def test_random_blocks__draw_the_share_in_whole_blocks():
    chosen = random_blocks((100, 80), block=10, share=0.25, seed=3)
    blocks = chosen.view(10, 10, 8, 10).float().mean(dim=(1, 3))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert int(blocks.sum()) == 20


def test_random_blocks__depend_on_the_seed_alone():
    torch.manual_seed(0)
    first = random_blocks((55, 47), 10, 0.5, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, random_blocks((55, 47), 10, 0.5, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, random_blocks((55, 47), 10, 0.5, seed=2))


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_random_blocks__leave_both_parts_some_blocks(share):
    chosen = random_blocks((20, 20), 10, share, seed=0)
    assert 0 < int(chosen.sum()) < 400


@pytest.mark.parametrize("arguments", [((0, 5), 2, 0.5, 0), ((5, 5), 0, 0.5, 0), ((5, 5), 2, 0.0, 0), ((5, 5), 2, 1.0, 0)])
def test_random_blocks__refuse_impossible_shares(arguments):
    with pytest.raises(ValueError, match="Expected"):
        random_blocks(*arguments)


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (8, 8), (5, 64)])
@pytest.mark.parametrize("before", [(3,), (2, 3), (2, 2, 3), (0, 3)])
def test_pad_to_multiple__keeps_the_image_in_its_corner(size, before):
    image = torch.rand(*before, *size)
    padded = pad_to_multiple(image, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(padded[..., : size[0], : size[1]], image)
    assert padded.shape[:-2] == before


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((100, 100), 64, 0), ((100, 70), 64, 20), ((20, 90), 32, 31), ((64, 64), 32, 0), ((9, 7), 10, 3)]
)
def test_tile_cores__share_out_every_pixel_once_within_their_tiles(size, tile, overlap):
    windows, cores = tile_windows(size, tile, overlap), tile_cores(size, tile, overlap)
    owned = torch.zeros(size)
    for (top, left, height, width), (row, column, rows, columns) in zip(windows, cores, strict=True):
        assert top <= row < row + rows <= top + height
        assert left <= column < column + columns <= left + width
        owned[row : row + rows, column : column + columns] += 1
    assert bool((owned == 1).all())


def test_tile_cores__cut_what_two_tiles_share_in_the_middle():
    assert tile_cores((10, 16), 10, 0) == [(0, 0, 10, 8), (0, 8, 10, 8)]
