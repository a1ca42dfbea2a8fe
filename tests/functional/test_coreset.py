import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomseg.functional.coreset import Reservoir, greedy_coreset, random_projection


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(count=600, size=6, seed=0):
    return torch.randn(count, size, generator=seeded(seed)) * torch.rand(count, 1, generator=seeded(seed + 1)) + 5.0


def plain_loop(x, count, start):
    """Farthest points one by one in float64: rows and radius."""
    x, rows = x.double(), [start]
    nearest = (x - x[start]).norm(dim=1)
    while len(rows) < count:
        rows.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (x - x[rows[-1]]).norm(dim=1))
    return rows, nearest.max()


@pytest.mark.parametrize("active", [1, 7, 64, 1024])
@pytest.mark.parametrize("count", [1, 2, 40, 300])
def test_greedy_coreset__chooses_what_the_plain_loop_chooses(count, active):
    x = vectors()
    found = greedy_coreset(x, count, start=17, active=active)
    rows, radius = plain_loop(x, count, 17)
    assert found.index.tolist() == rows
    torch.testing.assert_close(found.radius.double(), radius, rtol=1e-5, atol=0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 5))
def test_greedy_coreset__is_spread_wider_than_its_radius(seed, count, size):
    x = torch.randn(count, size, generator=seeded(seed))
    found = greedy_coreset(x, max(2, count // 3), active=5)
    chosen = x[found.index]
    apart = torch.cdist(chosen, chosen) + torch.eye(len(chosen)) * 1e9
    assert float(apart.min()) >= float(found.radius) * (1 - 1e-4)  # which proves that the radius is at most twice the smallest
    torch.testing.assert_close(torch.cdist(x, chosen).amin(1).max(), found.radius, rtol=1e-4, atol=1e-4)


def test_greedy_coreset__of_all_vectors_has_radius_zero_and_repeats_none():
    x = vectors(90)
    found = greedy_coreset(x, 90, active=16)
    assert sorted(found.index.tolist()) == list(range(90))
    assert float(found.radius) == 0.0


def test_greedy_coreset__stops_where_no_other_vector_differs():
    x = vectors(9).repeat(30, 1)
    found = greedy_coreset(x, 50, active=16)
    assert sorted((found.index % 9).tolist()) == list(range(9))
    assert float(found.radius) == 0.0
    assert len(greedy_coreset(torch.ones(40, 3), 5).index) == 1


def test_greedy_coreset__starts_where_the_order_of_vectors_makes_no_difference():
    x = vectors()
    order = torch.randperm(len(x), generator=seeded(3))
    one, other = greedy_coreset(x, 50), greedy_coreset(x[order], 50)
    assert torch.equal(x[one.index], x[order][other.index])


def test_greedy_coreset__resolves_close_vectors_beside_a_far_one():
    x = torch.cat([vectors(50) * 1e-3, torch.full((1, 6), 1e4)])
    found = greedy_coreset(x, 51)
    assert len(set(found.index.tolist())) == 51


def test_greedy_coreset__is_the_same_under_autocast():
    x = vectors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = greedy_coreset(x, 30)
    assert torch.equal(inside.index, greedy_coreset(x, 30).index)


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 11}, {"count": 2, "start": 10}, {"count": 2, "active": 0}])
def test_greedy_coreset__refuses_arguments_outside_their_range(options):
    with pytest.raises(ValueError, match="Expected"):
        greedy_coreset(vectors(10), **options)


def test_random_projection__keeps_distances():
    x = vectors(100, 512)
    ratio = torch.pdist(random_projection(x, 128, seeded())) / torch.pdist(x)
    assert float((ratio - 1).abs().mean()) < 0.1
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)


def test_random_projection__leaves_few_dimensions_and_refuses_none():
    x = vectors(5, 8)
    assert random_projection(x, 8, seeded()) is x
    with pytest.raises(ValueError, match="at least 1 dimension"):
        random_projection(x, 0, seeded())


def filled(parts, capacity, seed=0):
    kept = Reservoir(capacity, seeded(seed))
    for part in parts:
        kept.add(part[:, None].float(), torch.stack([part, part * 2], 1))
    return kept


def test_reservoir__keeps_everything_that_fits():
    kept = filled(torch.arange(90).split(17), 100)
    assert sorted(kept.rows[:, 0].tolist()) == list(range(90))
    assert kept.seen == 90


def test_reservoir__keeps_rows_with_their_tags():
    kept = filled(torch.arange(1000).split(130), 64)
    assert kept.rows.shape == (64, 1)
    assert torch.equal(kept.rows[:, 0].long() * 2, kept.tags[:, 1])
    assert len(set(kept.rows[:, 0].tolist())) == 64


def test_reservoir__keeps_the_rows_with_the_smallest_keys_however_they_come():
    key = torch.rand(500, generator=seeded(5), dtype=torch.float64)
    rows = torch.arange(500.0)[:, None]
    for size in (1, 33, 500):
        kept = Reservoir(40, seeded())
        for part in torch.arange(500).split(size):
            kept.add(rows[part], part[:, None], key[part])
        assert sorted(kept.rows[:, 0].tolist()) == sorted(key.argsort()[:40].tolist())
        assert torch.equal(kept.key, key[kept.rows[:, 0].long()])


def test_reservoir__draws_every_row_equally_often():
    count = torch.zeros(50)
    for seed in range(400):
        count[filled(torch.arange(50).split(8), 10, seed).rows[:, 0].long()] += 1
    assert float(count.mean()) == 80.0
    assert float((count - 80).square().mean()) < 2 * 400 * 0.2 * 0.8  # a fair draw has half of that on average


def test_reservoir__holds_no_more_than_its_capacity():
    kept = filled(torch.arange(5000).split(500), 32)
    assert kept._rows.shape == (32, 1)
    assert len(kept.key) == 32


def test_reservoir__refuses_rows_that_do_not_fit():
    kept = filled([torch.arange(3)], 8)
    with pytest.raises(ValueError, match="Expected rows"):
        kept.add(torch.ones(2, 2), torch.ones(2, 2).long())
    with pytest.raises(ValueError, match="Expected rows"):
        kept.add(torch.ones(2, 1), torch.ones(3, 2).long())
    with pytest.raises(ValueError, match="capacity"):
        Reservoir(0, seeded())


@pytest.mark.parametrize("active", [5, 1024])
def test_greedy_coreset__leaves_copies_out_and_keeps_the_choice(active):
    x = vectors(300)
    copies = torch.cat([x, x[torch.randint(300, (3000,), generator=seeded(7))]])[torch.randperm(3300, generator=seeded(8))]
    start = int((copies == x[17]).all(1).nonzero()[0])
    rows, _ = plain_loop(x, 300, 17)
    found = greedy_coreset(copies, 400, start=start, active=active)
    torch.testing.assert_close(copies[found.index], x[rows])
    assert float(found.radius) == 0.0


def test_greedy_coreset__asks_once_what_is_a_copy(monkeypatch):
    sorted_once, unique = [], torch.unique

    def counted(*args, **kwargs):
        sorted_once.append(1)
        return unique(*args, **kwargs)

    monkeypatch.setattr(torch, "unique", counted)
    greedy_coreset(vectors(200), 150)
    assert not sorted_once  # no copy was met
    assert len(greedy_coreset(vectors(200).repeat(20, 1), 1000).index) == 200
    assert len(sorted_once) == 1
