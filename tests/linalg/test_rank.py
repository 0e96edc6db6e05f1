"""The rank rule: orders, gaps, ends, and the error of a count."""

import pytest
import torch

from memfold.linalg.rank import count_large, jackknife_count
from memfold.types import InputError
from tests.oracles import rotation, seeded, unchecked

ORDERS = ["descending", "ascending"]
# 8 singular values of which 3 are large
EIGHT = torch.tensor([[10.0, 9.5, 9.0, 0.5, 0.4, 0.3, 0.2, 0.1]])


def sort(values, order):
    return values.sort(1, descending=order == "descending").values


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", ["threshold", "gap", "ratio"])
def test_three_of_eight_in_either_order(order, rule):
    # copied from one order to the other without a thought, the gap rule says 5
    assert count_large(sort(EIGHT, order), order=order, rule=rule, threshold=1.0).tolist() == [3]


@pytest.mark.parametrize("order", ORDERS)
def test_the_wrong_order_is_refused(order):
    other = ORDERS[1 - ORDERS.index(order)]
    with pytest.raises(InputError, match=f"not sorted in {order} order"):
        count_large(sort(EIGHT, other), order=order, rule="gap")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", range(9))
def test_ends_allow_none_and_all(order, k):
    values = torch.cat([torch.linspace(0.8, 1, 8)[:k], torch.linspace(0, 0.2, 8)[k:]])[None]
    found = count_large(sort(values, order), order=order, rule="gap", ends=(1.0, 0.0))
    assert found.tolist() == [k]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", range(1, 8))
def test_every_rule_on_a_batch(order, k):
    big = 5 + torch.rand(4, k, generator=seeded())
    values = sort(torch.cat([big, 0.1 * torch.rand(4, 8 - k, generator=seeded(1))], 1), order)
    scale = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    for rule in ("gap", "ratio"):
        assert count_large(values * scale, order=order, rule=rule).tolist()[:1] == [k]
    assert count_large(values, order=order, rule="gap").tolist() == [k] * 4
    assert count_large(values, order=order).tolist() == [k] * 4


def test_ratio_sees_what_a_gap_cannot():
    values = torch.tensor([[1000.0, 100.0, 10.0, 1.0, 1e-5, 1e-6]])
    assert count_large(values, order="descending", rule="ratio").tolist() == [4]
    assert count_large(values, order="descending", rule="gap").tolist() == [1]
    zeros = torch.tensor([[2.0, 1.0, 0.0, 0.0]])  # exact zeros are small, not infinitely apart
    assert count_large(zeros, order="descending", rule="ratio").tolist() == [2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rule": "elbow"}, "rule 'elbow' is unknown; choose from threshold, gap, ratio"),
        ({"order": "up"}, "order 'up' is unknown; choose 'descending' or 'ascending'"),
    ],
)
def test_unknown_words_are_refused(options, match):
    with unchecked(), pytest.raises(InputError, match=match):
        count_large(EIGHT, **({"order": "descending"} | options))


def test_one_value_has_no_gap():
    with pytest.raises(InputError, match="one value has no gap"):
        count_large(EIGHT[:, :1], order="descending", rule="gap")


def test_a_ratio_needs_ends_above_zero():
    with pytest.raises(InputError, match="give infinite ratios; take both above 0"):
        count_large(EIGHT, order="descending", rule="ratio", ends=(20.0, 0.0))


def test_the_argument_is_left_alone():
    before = EIGHT.clone()
    count_large(EIGHT, order="descending", rule="ratio", ends=(20.0, 0.01))
    torch.testing.assert_close(EIGHT, before, rtol=0, atol=0)


@pytest.mark.parametrize("n", [7, 200])
@pytest.mark.parametrize("center", [True, False])
def test_singular_values_are_those_of_the_rows(n, center):
    rows = torch.randn(n, 12, generator=seeded(), dtype=torch.float64) + 3
    seen = []

    def count(s):
        seen.append(s[0])
        return (s > 1).sum()

    jackknife_count(rows, count, center=center)
    plain = torch.linalg.svdvals(rows - rows.mean(0) if center else rows) / n**0.5
    torch.testing.assert_close(seen[0], plain, atol=1e-7, rtol=1e-9)
    groups = min(10, n)
    assert len(seen) == 1 + groups
    rest = rows[torch.arange(n) % groups != 4]
    rest = (rest - rest.mean(0) if center else rest) / len(rest) ** 0.5
    short = torch.linalg.svdvals(rest)
    torch.testing.assert_close(seen[5][: len(short)], short, atol=1e-7, rtol=1e-9)


def test_a_clear_rank_has_no_error_and_an_unclear_one_an_honest_error():
    def run(scales, seed):
        z = torch.randn(150, len(scales), generator=seeded(seed), dtype=torch.float64)
        rows = z * scales @ rotation(20, len(scales), 3).mT + 1
        return jackknife_count(rows, lambda s: (s > 1).sum())

    value, stderr = run(torch.tensor([5.0, 4.0, 3.0, 0.01]).double(), 0)
    assert (float(value), float(stderr)) == (3, 0)
    results = [run(torch.linspace(0.7, 1.3, 12).double(), seed) for seed in range(150)]
    values, errors = (torch.stack(column) for column in zip(*results, strict=True))
    true_variance, claimed = float(values.var()), float((errors**2).mean())
    assert 1 < claimed / true_variance < 5  # never too sure; counts jump, so up to twice the error
