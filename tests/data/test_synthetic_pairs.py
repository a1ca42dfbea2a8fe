import pytest
import torch

from anomseg.data.synthetic_pairs import PairDifficulty, synthetic_pair
from anomseg.functional.registration import global_shift
from anomseg.functional.score_curves import auroc, average_precision
from anomseg.functional.score_histogram import count_scores

EASY = PairDifficulty(0.0, 0.0, 0.0, 0.0)


def difference(scene):
    return (scene.image[0] - scene.image[1]).norm(dim=0)


def test_synthetic_pair__is_decided_by_its_seed():
    torch.manual_seed(1)
    first = synthetic_pair(seed=4)
    torch.manual_seed(2)
    again, other = synthetic_pair(seed=4), synthetic_pair(seed=5)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.mask, other.mask)


@pytest.mark.parametrize(("size", "bands"), [((48, 64), 1), ((128, 128), 3), ((100, 90), 7)])
def test_synthetic_pair__keeps_the_contract(size, bands):
    scene = synthetic_pair(size, 0, bands)
    assert scene.image.shape == (2, bands, *size)
    assert scene.image.dtype == torch.float32
    assert bool(torch.isfinite(scene.image).all())
    assert 0.0 <= float(scene.image.min()) <= float(scene.image.max()) < 3.0
    assert scene.mask.unique().tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_pair__holds_buildings_that_come_and_go(seed):
    scene = synthetic_pair((128, 128), seed)
    assert 0.01 < float(scene.mask.float().mean()) < 0.1


def test_synthetic_pair__leaves_a_difference_in_the_truth_where_nothing_else_differs():
    scenes = [synthetic_pair(seed=seed, difficulty=EASY) for seed in range(4)]
    inside = torch.cat([difference(scene)[scene.mask == 1] for scene in scenes])
    outside = torch.cat([difference(scene)[scene.mask == 0] for scene in scenes])
    assert float(inside.mean()) > 4 * float(outside.mean())


def test_synthetic_pair__is_hard_for_a_difference_alone():
    scenes = [synthetic_pair(seed=seed) for seed in range(8)]
    every = torch.cat([difference(scene).flatten() for scene in scenes])
    changed = torch.cat([difference(scene)[scene.mask == 1] for scene in scenes])
    counts = count_scores([every], [changed])
    assert 0.6 < float(auroc(counts)) < 0.85
    assert float(average_precision(counts)) < 0.4


def test_synthetic_pair__lies_beside_itself_within_its_shift():
    still, moved = (synthetic_pair((160, 160), 3, difficulty=PairDifficulty(0.0, 0.0, shift, 0.0)) for shift in (0.0, 6.0))
    assert torch.equal(still.mask, moved.mask)
    shift, _ = global_shift(still.image[0], moved.image[0], 8)
    assert shift != (0, 0)
    assert shift[0] ** 2 + shift[1] ** 2 <= 6.8**2
    assert torch.equal(still.image[1], moved.image[1])


def test_synthetic_pair__says_what_is_wrong():
    with pytest.raises(ValueError, match="48 x 48"):
        synthetic_pair((20, 100))
    with pytest.raises(ValueError, match="one band"):
        synthetic_pair(bands=0)
    with pytest.raises(ValueError, match="at least 0"):
        PairDifficulty(shift=-1.0)
