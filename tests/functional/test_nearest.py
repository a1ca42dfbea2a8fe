import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anomseg.functional.nearest as module
from anomseg.functional.nearest import nearest


def vectors(count, size, seed=0, dtype=torch.float32):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference(queries, library, k):
    """All distances in float64 by differences, equal ones in the order of the library."""
    distance = (queries.double()[:, None] - library.double()).square().sum(-1).sqrt()
    value, index = distance.sort(dim=1, stable=True)
    return value[:, :k], index[:, :k]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 5, 37, 1024, 1030, 2500])
def test_nearest__equals_all_distances_in_double_precision(count, k):
    k = min(k, count)
    queries, library = vectors(50, 7), vectors(count, 7, 1)
    found = nearest(queries, library, k)
    value, index = reference(queries, library, k)
    torch.testing.assert_close(found.distance.double(), value, rtol=1e-6, atol=1e-7)
    assert torch.equal(found.index, index)


def test_nearest__equals_cdist_where_its_matrix_product_cancels():
    library = vectors(300, 16) + 1000.0  # squares of 1.6e7, differences of about 1
    queries = library[:40] + 0.01 * vectors(40, 16, 2)
    found = nearest(queries, library)
    exact = torch.cdist(queries, library, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    torch.testing.assert_close(found.distance[:, 0], exact.values, rtol=1e-6, atol=0.0)
    assert torch.equal(found.index[:, 0], exact.indices)


def test_nearest__finds_a_member_at_distance_zero():
    library = vectors(2000, 64) * 100
    found = nearest(library[::7], library)
    assert torch.equal(found.index[:, 0], torch.arange(0, 2000, 7))
    assert float(found.distance.max()) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 4), st.integers(1, 5))
def test_nearest__gives_the_lowest_rows_of_equal_distances(seed, count, size, k):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (9, size), generator=generator).float()
    library = torch.randint(-2, 3, (count, size), generator=generator).float()
    k = min(k, count)
    value, index = reference(queries, library, k)
    found = nearest(queries, library, k)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.distance.double(), value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory", [1 << 16, 1 << 20, 1 << 30])
def test_nearest__gives_the_same_in_any_memory(memory):
    queries, library = vectors(3000, 12), vectors(2100, 12, 1)
    found, whole = nearest(queries, library, 2, memory), nearest(queries, library, 2)
    assert torch.equal(found.index, whole.index)
    torch.testing.assert_close(found.distance, whole.distance, rtol=1e-6, atol=0.0)


def test_nearest__holds_no_more_than_its_memory(monkeypatch):
    held = []
    minima = module._Search._group_minima

    def watched(self, x0):
        held.append(len(x0) * self.numbers_per_query * 4)
        return minima(self, x0)

    monkeypatch.setattr(module._Search, "_group_minima", watched)
    nearest(vectors(5000, 8), vectors(4000, 8, 1), memory=1 << 20)
    assert len(held) > 1
    assert max(held) <= 1 << 20


def test_nearest__asks_the_whole_library_only_where_rounding_could_decide(monkeypatch):
    asked = []
    whole = module._by_differences

    def watched(x, library, k):
        asked.append(len(x))
        return whole(x, library, k)

    monkeypatch.setattr(module, "_by_differences", watched)
    nearest(vectors(400, 32), vectors(3000, 32, 1))
    assert sum(asked) < 20
    asked.clear()
    nearest(vectors(10, 4), torch.ones(64, 4))
    assert sum(asked) == 10


def test_nearest__is_float32_under_autocast_and_for_half_precision():
    queries, library = vectors(20, 33), vectors(100, 33, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nearest(queries, library)
    assert torch.equal(inside.distance, nearest(queries, library).distance)
    assert nearest(queries.bfloat16(), library.bfloat16()).distance.dtype == torch.float32
    assert nearest(queries.double(), library).distance.dtype == torch.float64


def test_nearest__is_exact_where_products_may_be_rounded_more():
    queries, library = vectors(60, 40), vectors(500, 40, 1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = nearest(queries, library, 2)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.index, reference(queries, library, 2)[1])


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="PyTorch knows one precision for all backends")
@pytest.mark.parametrize(("backend", "precision"), [("cuda", "tf32"), ("mkldnn", "tf32"), ("mkldnn", "bf16")])
def test_nearest__is_exact_where_one_backend_may_round_more(backend, precision):
    queries, library = vectors(60, 40), vectors(500, 40, 1)
    product = getattr(torch.backends, backend).matmul
    before = product.fp32_precision
    try:
        product.fp32_precision = precision
        found = nearest(queries, library, 2)
    finally:
        product.fp32_precision = before
    assert torch.equal(found.index, reference(queries, library, 2)[1])


def test_nearest__of_no_queries_is_empty():
    found = nearest(torch.empty(0, 3), torch.ones(2, 3), 2)
    assert found.distance.shape == found.index.shape == (0, 2)


@pytest.mark.parametrize(
    "wrong", [(torch.ones(2, 3), torch.ones(2, 4)), (torch.ones(3), torch.ones(2, 3)), (torch.ones(2, 3), torch.ones(0, 3))]
)
def test_nearest__refuses_wrong_shapes(wrong):
    with pytest.raises(ValueError, match="Expected"):
        nearest(*wrong)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 3}, {"memory": 100}])
def test_nearest__refuses_arguments_outside_their_range(options):
    with pytest.raises(ValueError, match="Expected 1 <= k"):
        nearest(torch.ones(2, 3), torch.ones(2, 3), **options)
