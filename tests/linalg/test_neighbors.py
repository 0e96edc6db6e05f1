"""Exact neighbours: against brute force in exact arithmetic, off the origin, in odd chunks."""

from __future__ import annotations

import pytest
import torch

from memfold.linalg.gram import SharedGram
from memfold.linalg.neighbors import _check, distinct, nearest, within
from memfold.types import InputError


def brute(x, y, k, exclude=None):
    """Differences in float64, one query after the other, ties by index."""
    found = []
    for i, row in enumerate(x.double()):
        d = torch.stack([(row - other).square().sum().sqrt() for other in y.double()])
        if exclude is not None and exclude[i] >= 0:
            d[exclude[i]] = torch.inf
        order = d.sort(stable=True).indices[:k]
        found.append((d[order], order))
    return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("budget", [1, 5000, 2**28])
def test_equals_brute_force_whatever_the_budget(dtype, offset, budget):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(45, 7, generator=g, dtype=dtype) + offset
    x = torch.randn(5, 7, generator=g, dtype=dtype) + offset
    y[20:30] = y[3]  # copies
    y[30:40] = y[4] + 1e-4 * torch.randn(10, 7, generator=g, dtype=dtype)  # near-copies
    x[0], x[1] = y[3], y[4]
    distance, index = nearest(x, y, 12, memory_budget=budget)
    want_distance, want_index = brute(x, y, 12)
    assert torch.equal(index, want_index)
    torch.testing.assert_close(distance, want_distance, rtol=1e-12, atol=0)
    assert distance.dtype == torch.float64


def test_near_duplicates_far_off_the_origin_where_the_expanded_square_fails():
    g = torch.Generator().manual_seed(1)
    base = torch.randn(16, generator=g, dtype=torch.float64)
    y = 1e6 + base + 1e-8 * torch.randn(300, 16, generator=g, dtype=torch.float64)
    y = torch.cat([y, 1e6 + 1e3 * torch.randn(50, 16, generator=g, dtype=torch.float64)])
    x = y[:5]
    expanded = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    _, want = brute(x, y, 30)
    assert not torch.equal(expanded.topk(30, largest=False).indices, want)  # the trap is set
    assert torch.equal(nearest(x, y, 30)[1], want)


def test_the_row_itself_is_left_out_by_index_and_its_copy_stays():
    y = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    distance, index = nearest(y, y, 2, exclude=torch.arange(4))
    assert index.tolist() == [[1, 2], [0, 2], [0, 1], [2, 0]]
    assert distance.tolist() == [[0, 1], [0, 1], [1, 1], [4, 5]]
    mixed = torch.tensor([-1, 1, -1, 3])
    assert nearest(y, y, 2, exclude=mixed)[1].tolist() == [[0, 1], [0, 2], [2, 0], [2, 0]]


def test_leaving_out_finds_all_the_others():
    y = torch.arange(6.0, dtype=torch.float64)[:, None] ** 2
    assert torch.equal(nearest(y, y, 5, exclude=torch.arange(6))[1], brute(y, y, 5, range(6))[1])


def test_one_query_at_a_time_gives_the_same_bits():
    g = torch.Generator().manual_seed(2)
    y = torch.rand(80, 5000, generator=g)
    x = torch.rand(7, 5000, generator=g)
    together = nearest(x, y, 3)
    alone = [nearest(x[i : i + 1], y, 3, memory_budget=999) for i in range(7)]
    assert torch.equal(together[0], torch.cat([a[0] for a in alone]))
    assert torch.equal(together[1], torch.cat([a[1] for a in alone]))


@pytest.mark.parametrize("budget", [1, 700, 2**28])
def test_within_counts_the_boundary_and_sees_near_duplicates(budget):
    y = 1e5 + torch.tensor([[0.0], [1e-7], [2e-7], [1.0], [2.0]], dtype=torch.float64)
    exact = float((y[2] - y[0]).abs())
    mask = within(y[:1], y, exact, memory_budget=budget)
    assert mask.tolist() == [[True, True, True, False, False]]
    assert within(y, y, 1.5, memory_budget=budget)[3].tolist() == [True] * 5


def test_inputs_are_not_written_to():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(3))
    before = x.clone()
    nearest(x, x, 2, exclude=torch.arange(9))
    assert torch.equal(x, before)


def test_refusals_name_the_value_and_the_remedy():
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"k is 4 but must lie in 1\.\.3"):
        nearest(x, x, 4)
    with pytest.raises(InputError, match=r"k is 3 but must lie in 1\.\.2"):
        nearest(x, x, 3, exclude=torch.arange(3))
    with pytest.raises(InputError, match="convert both"):
        nearest(x, x.double(), 1)
    with pytest.raises(InputError, match="NaN or infinity"):
        nearest(x * torch.nan, x, 1)
    with pytest.raises(InputError, match="below 3"):
        nearest(x, x, 1, exclude=torch.tensor([0, 1, 3]))
    with pytest.raises(InputError, match="2 features but the reference has 5"):
        _check(x, torch.zeros(3, 5), 1, None, 1)
    with pytest.raises(InputError, match="positive"):
        nearest(x, x, 1, memory_budget=0)


def test_tree_equals_brute_force_with_ties():
    g = torch.Generator().manual_seed(4)
    y = torch.randint(0, 6, (600, 3), generator=g).double()  # a lattice: many equal distances
    distance, index = nearest(y, y, 9)
    want_distance, want_index = brute(y[:5], y, 9)
    assert torch.equal(index[:5], want_index)
    assert torch.equal(distance[:5], want_distance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [1, 2**28])
def test_distinct_rows(dtype, budget):
    g = torch.Generator().manual_seed(5)
    base = torch.randint(-1, 2, (40, 4), generator=g).to(dtype)
    x = torch.cat([base, -base, 0 * base * -1.0])
    places, inverse, copies = distinct(x, memory_budget=budget)
    assert torch.equal(places[inverse], x)
    assert len(places) == len(torch.unique(x + 0.0, dim=0))
    assert torch.equal(copies, torch.bincount(inverse))
    other, _, _ = distinct(x.flip(0), memory_budget=budget)
    assert torch.equal(other, places)  # the order of the rows does not matter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [1, 5000, 2**28])
def test_faiss_equals_brute_force_among_near_duplicates(dtype, budget):
    pytest.importorskip("faiss", reason="faiss is an extra: pip install 'memfold[faiss]'")
    g = torch.Generator().manual_seed(6)
    y = torch.randn(60, 7, generator=g, dtype=dtype) + 1e3
    y[20:30] = y[3]
    y[30:40] = y[4] + 1e-4 * torch.randn(10, 7, generator=g, dtype=dtype)
    distance, index = nearest(y[:6], y, 12, backend="faiss", memory_budget=budget)
    want_distance, want_index = brute(y[:6], y, 12)
    assert torch.equal(index, want_index)
    torch.testing.assert_close(distance, want_distance, rtol=1e-12, atol=0)


def test_rows_that_agree_in_some_columns_are_told_apart_by_the_others():
    x = torch.zeros(50, 400)
    x[:, 7] = torch.arange(50) // 2  # a column between those that the first hash reads
    places, inverse, copies = distinct(x)
    assert len(places) == 25
    assert torch.equal(places[inverse], x)
    assert copies.tolist() == [2] * 25


def test_shared_products_equal_differences_or_say_that_they_do_not():
    g = torch.Generator().manual_seed(8)
    x = 1e4 + torch.randn(60, 30, generator=g, dtype=torch.float64)
    x[40:50] = x[40] + 1e-7 * torch.randn(10, 30, generator=g, dtype=torch.float64)
    shared = SharedGram(x)
    index = torch.stack([torch.arange(10), torch.arange(40, 50)])
    gram = shared.gather(index)
    assert shared.sure(index, gram).tolist() == [True, False]
    offset = x[index[0]] - x[index[0]].mean(0)
    turn = torch.eye(10, dtype=torch.float64) - 0.1
    found = torch.linalg.eigvalsh(turn @ gram[0] @ turn)
    want = torch.linalg.eigvalsh(offset @ offset.mT)
    ratio = want[-1] / found[-1]
    assert 2.0 ** round(float(ratio.log2())) == pytest.approx(float(ratio), rel=1e-9)
    torch.testing.assert_close(found * ratio, want, rtol=1e-7, atol=1e-7 * float(want[-1]))
