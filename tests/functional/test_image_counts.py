import pytest
import torch

from anomseg.functional.image_counts import (
    ImageCounts,
    WeightedCounts,
    canonical_order,
    count_image,
    join_image_counts,
    unpack_image_counts,
)
from anomseg.functional.score_curves import auroc, average_precision
from anomseg.functional.score_histogram import count_scores, key_to_score, score_to_key

FIELDS = ("score", "label", "image", "key", "normal", "anomalous", "mass")


def drawn(images: int = 6, pixels: int = 400, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    scores = [3 * torch.randn(pixels, generator=generator) - 1 for _ in range(images)]
    return [(s[: pixels - 7 * i], s[pixels - 7 * i :] + 2) for i, s in enumerate(scores)]


def counted(shift: int = 0, **arguments: int) -> list[ImageCounts]:
    images = enumerate(drawn(**arguments))
    return [count_image(torch.tensor(float(i)), int(i > 0), n, a, torch.full_like(a, 0.25), shift) for i, (n, a) in images]


def same(a: ImageCounts, b: ImageCounts) -> bool:
    return a.shift == b.shift and all(torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def test_weighted_counts__equal_those_of_repeated_images():
    images = drawn()
    weights = torch.tensor([2, 0, 1, 3, 1, 0])
    pixels, regions = WeightedCounts(join_image_counts(counted())).weighted(weights)
    repeated = [(n, a) for (n, a), w in zip(images, weights.tolist(), strict=True) for _ in range(w)]
    exact = count_scores([t for pair in repeated for t in pair], [a for _, a in repeated])
    filled = (pixels.normal > 0) | (pixels.anomalous > 0)
    assert torch.equal(pixels.lower[filled], exact.lower)
    assert torch.equal(pixels.normal[filled], exact.normal)
    assert torch.equal(pixels.anomalous[filled], exact.anomalous)
    assert torch.equal(regions.anomalous, 0.25 * pixels.anomalous)
    assert float(auroc(pixels)) == float(auroc(exact))


@pytest.mark.parametrize("shift", [0, 12, 20])
def test_count_image__counts_a_wide_range_as_a_narrow_one(shift):
    normal, anomalous = torch.tensor([-1e20, 0.5, 0.5, 1e20]), torch.tensor([0.5, 3.0])
    found = count_image(torch.tensor(1.0), 1, normal, anomalous, None, shift)
    keys = score_to_key(torch.tensor([-1e20, 0.5, 3.0, 1e20])).long() >> shift
    assert torch.equal(found.key, keys)
    assert found.normal.tolist() == [1, 2, 0, 1]
    assert found.anomalous.tolist() == [0, 1, 1, 0]
    near = count_image(torch.tensor(1.0), 1, normal[1:3], anomalous[:1], None, shift)
    assert (near.key.tolist(), near.normal.tolist(), near.mass.tolist()) == ([int(keys[1])], [2], [1.0])


def test_coarser_counts__are_those_of_coarser_keys():
    fine = join_image_counts(counted())
    for shift in (3, 16, 32):
        assert same(fine.coarser(shift), join_image_counts(counted(shift)))


def test_memory__is_bounded_whatever_the_order_and_the_parts():
    parts = counted(images=8)
    at_once = join_image_counts(parts, entries=500)
    assert 250 < len(at_once.key) <= 500
    held = parts[0]
    for part in parts[1:]:
        held = join_image_counts([held, part], entries=500)
    assert same(held, at_once)
    backward = join_image_counts(parts[::-1], entries=500)
    assert backward.shift == at_once.shift
    assert int(backward.normal.sum()) == int(at_once.normal.sum()) == sum(len(n) for n, _ in drawn(images=8))


def test_bounded_memory__hardly_moves_the_figures():
    images = drawn(images=40, pixels=2000)
    exact = count_scores([t for pair in images for t in pair], [a for _, a in images])
    held = join_image_counts(counted(images=40, pixels=2000), entries=20_000)
    bounded, _ = WeightedCounts(held, cells=4096).weighted(torch.ones(40).long())
    assert len(bounded.lower) <= 4096
    assert float(auroc(bounded)) == pytest.approx(float(auroc(exact)), abs=2e-4)
    assert float(average_precision(bounded)) == pytest.approx(float(average_precision(exact)), abs=2e-3)


def test_packed_counts__come_back_also_joined():
    a, b = join_image_counts(counted()), join_image_counts(counted(5, seed=1))
    nothing = count_image(torch.tensor(torch.nan), 255, torch.empty(0), torch.empty(0))
    back = unpack_image_counts(torch.cat([a.pack(), b.pack(), nothing.pack()]))
    assert same(back[0], a)
    assert same(back[1], b)
    assert back[2].score.isnan().all()
    assert back[2].label.tolist() == [255]
    assert key_to_score(back[0].key).min() < 0  # negative scores survive


def test_canonical_order__does_not_depend_on_the_order_of_the_images():
    parts = counted(images=8)
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    first, second = join_image_counts(parts), join_image_counts([parts[i] for i in shuffled])
    assert canonical_order(first).tolist() == [shuffled[i] for i in canonical_order(second).tolist()]
    alike = [ImageCounts(p.shift, torch.zeros(1), torch.zeros(1).long(), *(getattr(p, f) for f in FIELDS[2:])) for p in parts]
    first, second = join_image_counts(alike), join_image_counts([alike[i] for i in shuffled])
    assert canonical_order(first).tolist() == [shuffled[i] for i in canonical_order(second).tolist()]
