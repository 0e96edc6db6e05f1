"""Replication evidence: copies neither hide nor feign a copy."""

from __future__ import annotations

import pytest
import torch

from memfold.memorization.replicate import duplicate_groups, nearest_training
from memfold.types import InputError


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def images(n, g, offset=10.0):
    return torch.randn(n, 1, 5, 7, generator=g) + offset


def test_calibrated_distance_by_hand():
    train = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
    found = nearest_training(torch.tensor([[0.25]]), train, k=3, top=2)
    assert found.index.tolist() == [[0, 1]]
    assert found.distance.tolist() == [[0.25, 0.75]]
    mean = (0.25 + 0.75 + 2.75) / 3
    torch.testing.assert_close(found.calibrated, torch.tensor([[0.25, 0.75]]).double() / mean)
    assert found.n_near_duplicates.tolist() == [1]


@pytest.mark.parametrize("jitter", [0.0, 1e-4])
def test_forty_copies_do_not_hide_the_copy(g, jitter):
    train = images(200, g)
    copies = train[:1] + jitter * torch.randn(39, 1, 5, 7, generator=g)
    query = train[:1] + 1e-2 * torch.randn(1, 1, 5, 7, generator=g)
    alone = nearest_training(query, train, k=20)
    crowded = nearest_training(query, torch.cat([train, copies]), k=20)
    assert crowded.n_near_duplicates.tolist() == [40]
    assert alone.n_near_duplicates.tolist() == [1]
    torch.testing.assert_close(crowded.calibrated[0, 0], alone.calibrated[0, 0], rtol=0.05, atol=0)
    assert crowded.calibrated[0, 0] < 0.05
    fresh = nearest_training(images(20, g), torch.cat([train, copies]), k=20)
    assert fresh.calibrated[:, 0].min() > 0.5


def test_nothing_but_copies_divides_by_nothing(g):
    train = images(1, g).expand(60, -1, -1, -1)
    same = nearest_training(train[:1], train, top=1)
    assert same.calibrated.tolist() == [[0.0]]
    assert same.n_near_duplicates.tolist() == [60]
    assert nearest_training(train[:1] + 1, train, top=1).calibrated.tolist() == [[1.0]]
    with pytest.raises(InputError, match="1 distinct images can be found"):
        nearest_training(train[:1], train, top=2)


def test_own_row_is_left_out_and_its_copy_found(g):
    train = images(60, g)
    train[50] = train[3]
    own = torch.tensor([3, 50, 7])
    found = nearest_training(train[own], train, k=20, exclude=own)
    assert found.index[:2, 0].tolist() == [50, 3]
    assert found.distance[:2, 0].tolist() == [0, 0]
    assert found.index[2, 0] != 7
    assert found.n_near_duplicates.tolist() == [1, 1, 1]
    mixed = nearest_training(train[own], train, k=20, exclude=torch.tensor([3, -1, 7]))
    assert mixed.index[:, 0].tolist()[:2] == [50, 3]
    assert mixed.n_near_duplicates.tolist() == [1, 2, 1]


@pytest.mark.parametrize("mask_bytes", [1, 200])
def test_batch_changes_nothing_and_arguments_stay(g, monkeypatch, mask_bytes):
    train, queries = images(80, g), images(6, g)
    before = train.clone()
    monkeypatch.setattr("memfold.memorization.replicate._MASK_BYTES", mask_bytes)
    blocks = nearest_training(queries, train, k=30)
    monkeypatch.undo()
    together = nearest_training(queries, train, k=30)
    assert torch.equal(blocks.index, together.index)
    torch.testing.assert_close(blocks.calibrated, together.calibrated, rtol=1e-12, atol=0)
    for i in range(6):
        alone = nearest_training(queries[i : i + 1], train, k=30)
        assert torch.equal(alone.index[0], together.index[i])
        assert torch.equal(alone.distance[0], together.distance[i])
        torch.testing.assert_close(alone.calibrated[0], together.calibrated[i], rtol=1e-12, atol=0)
    assert torch.equal(train, before)


def test_embedding_is_applied_to_both_sides(g):
    train, queries = images(300, g), images(3, g)

    def embed(x):
        return x.flatten(1)[:, :4] * 2

    found = nearest_training(queries, train, k=10, embed=embed)
    want = nearest_training(embed(queries), embed(train), k=10)
    assert torch.equal(found.index, want.index)
    torch.testing.assert_close(found.distance, want.distance)


def test_refusals(g):
    train = images(20, g)
    with pytest.raises(InputError, match="k is 50"):
        nearest_training(train[:1], train)
    with pytest.raises(InputError, match="tolerance is -1"):
        nearest_training(train[:1], train, k=5, tolerance=-1.0)
    with pytest.raises(InputError, match="row 20 of 20"):
        nearest_training(train[:1], train, k=5, exclude=torch.tensor([20]))


def test_groups_have_bounded_diameter_and_no_chains():
    # The radius is 0.1 times the spread; a chain of steps below it breaks at each leader.
    train = torch.tensor([0.0, 0.8, 1.6, 2.4, 100.0, 100.5]).double()[:, None] + 1e4
    spread = float((train - train.mean()).square().mean().sqrt())
    assert duplicate_groups(train, 1 / spread).tolist() == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("block", [4, 12, 40, 4000])
def test_groups_do_not_depend_on_blocks(g, monkeypatch, block):
    train = images(70, g)
    train[20:40] = train[5] + 1e-5 * torch.randn(20, 1, 5, 7, generator=g)
    train[60] = train[1]
    monkeypatch.setattr("memfold.memorization.replicate._MASK_BYTES", block**2)
    want = list(range(70))
    want[20:40] = [5] * 20
    want[60] = 1
    assert duplicate_groups(train).tolist() == want
