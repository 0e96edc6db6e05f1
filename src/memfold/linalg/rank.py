"""The one rank rule: how many of a spectrum's values are large, by a threshold or a gap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memfold.types import InputError

Order = Literal["descending", "ascending"]
Rule = Literal["threshold", "gap", "ratio"]

RULES = ("threshold", "gap", "ratio")


class RankWarning(UserWarning):
    """A count of large values that the numbers at hand do not settle."""


def count_large(
    values: Float[Tensor, "b n"],
    *,
    order: Order,
    rule: Rule = "threshold",
    threshold: float = 0.5,
    ends: tuple[float, float] | None = None,
) -> Int[Tensor, " b"]:
    """Count the large values of each row, which must be sorted as `order` says.

    With s_1 >= s_2 >= ... >= s_n the values in descending order, whichever way they came:

    - "threshold": how many s_i > threshold;
    - "gap": the i with the largest drop s_i - s_(i+1);
    - "ratio": the i with the largest s_i / s_(i+1), for values over many orders of magnitude.

    A drop between n values lies after the first at the earliest and before the last at the latest,
    so that "gap" alone never answers 0 or n. `ends` = (high, low) adds what is known of the
    spectrum, a value above and one below all others: with the eigenvalues of a projection and
    ends (1, 0), a row of ones counts n and a row of zeros none.

    Args:
        values: one spectrum a row, shape (b, n), n >= 1.
        order: "descending" or "ascending": how each row is sorted. A row sorted otherwise is an
            error: the same rule read from the wrong end counts the small ones.
        rule: "threshold", "gap" or "ratio".
        threshold: for the rule of that name.
        ends: for the other two, values (high, low) that stand before the first and after the last,
            both above 0 for "ratio"; those that would break the order are moved to it.

    Returns:
        The number of large values, shape (b,).

    Raises:
        InputError: an unknown order or rule, values that are not sorted so, or unfit ends.

    >>> import torch
    >>> s = torch.tensor([[9.0, 8.0, 7.0, 0.2, 0.1]])
    >>> count_large(s, order="descending", rule="gap")
    tensor([3])
    >>> count_large(s.flip(1), order="ascending", rule="gap")
    tensor([3])
    """
    if rule not in RULES:
        raise InputError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    if order not in ("descending", "ascending"):
        raise InputError(f"order {order!r} is unknown; choose 'descending' or 'ascending'")
    s = values if order == "descending" else values.flip(1)
    if s.shape[1] == 0 or not bool((s[:, :-1] >= s[:, 1:]).all()):
        raise InputError(f"values of shape {tuple(values.shape)} are not sorted in {order} order")
    if rule == "threshold":
        return (s > threshold).sum(1)
    if ends is not None:
        if rule == "ratio" and not min(ends) > 0:
            raise InputError(f"ends = {ends} give infinite ratios; take both above 0, or none")
        high, low = s[:, :1].clamp_min(ends[0]), s[:, -1:].clamp_max(ends[1])
        s = torch.cat([high, s, low], 1)
    elif s.shape[1] == 1:
        raise InputError("one value has no gap; give ends, or use rule='threshold'")
    if rule == "ratio":
        tiny = torch.finfo(s.dtype).eps * s[:, :1].clamp_min(torch.finfo(s.dtype).tiny)
        s = torch.maximum(s, tiny).log()
    return (s[:, :-1] - s[:, 1:]).argmax(1) + (1 if ends is None else 0)


def doubt(
    values: Float[Tensor, "b n"], count: Float[Tensor, " b"], low: float, high: float
) -> Float[Tensor, " b"]:
    """Measure how far a count is from those that thresholds between two bounds give.

    Where the spectrum has a gap that holds [low, high], all agree and the doubt is 0. Where it has
    none, the largest drop lies anywhere, and says nothing: not even its own repetition does.

    Args:
        values: one spectrum a row, in any order, NaN where there is none, shape (b, n).
        count: how many values were called large, shape (b,).
        low: the largest value that is small beyond doubt.
        high: the smallest value that is large beyond doubt.

    Returns:
        Root mean square over thresholds uniform in [low, high], shape (b,).

    >>> import torch
    >>> doubt(torch.tensor([[1.0, 0.9, 0.05], [1.0, 0.6, 0.4]]), torch.tensor([2.0, 1.0]), 0.2, 0.8)
    tensor([0.0000, 1.2910])
    """
    edges = values.nan_to_num(nan=-float("inf")).clamp(low, high).sort(1, descending=True).values
    ends = torch.full_like(edges[:, :1], high), torch.full_like(edges[:, :1], low)
    edges = torch.cat([ends[0], edges, ends[1]], 1)
    share = (edges[:, :-1] - edges[:, 1:]) / (high - low)  # of the thresholds that count 0, 1, ...
    counts = torch.arange(share.shape[1]).to(share)
    return (share * (counts - count[:, None]) ** 2).sum(1).sqrt()


def jackknife_count(
    rows: Float[Tensor, "n d"],
    count: Callable[[Float[Tensor, "g m"]], Tensor],
    *,
    center: bool = True,
    groups: int = 10,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Apply a count to the singular values of some rows, with a grouped jackknife error.

    The rows are dealt into g groups, c_i is the count without group i, and
    stderr^2 = (g - 1) / g sum (c_i - mean)^2. Leaving out one row at a time would not do for
    counts, which jump (Shao and Wu 1989); as it is, it errs on the large side, by up to a factor
    of two. A count that no group changes has standard error 0: the choice is then clear, which is
    not to say right.

    Args:
        rows: n vectors, shape (n, d).
        count: from singular values / sqrt(n), DESCENDING, shape (1, min(n, d)), to one number.
        center: subtract the mean of the rows first.
        groups: how many groups, at most n.

    Returns:
        The count of all rows and its standard error.
    """
    rows = rows.double()
    groups = min(groups, len(rows))
    group = torch.arange(len(rows), device=rows.device) % groups
    if len(rows) < rows.shape[1]:  # a turn of space keeps all singular values
        rows = torch.linalg.qr(rows.mT).R.mT
    whole = _moments(rows)
    value = count(_singular(*whole, center)).to(rows).sum()
    each = []
    for i in range(groups):
        part = _moments(rows[group == i])
        n, total, square = (a - b for a, b in zip(whole, part, strict=True))
        each.append(count(_singular(n, total, square, center)).to(rows).sum())
    spread = torch.stack(each).var(correction=0) * (groups - 1)
    return value, spread.sqrt()


def singular_values(rows: Float[Tensor, "n d"], *, center: bool = True) -> Float[Tensor, " m"]:
    """Compute the singular values of some rows over sqrt(n), DESCENDING, as `jackknife_count`."""
    rows = rows.double()
    if len(rows) < rows.shape[1]:
        rows = torch.linalg.qr(rows.mT).R.mT
    return _singular(*_moments(rows), center)[0]


def warn_unsettled(message: str) -> None:
    """Warn that a count is not settled by the numbers at hand."""
    warnings.warn(message, RankWarning, stacklevel=4)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(float(len(rows))).to(rows), rows.sum(0), rows.mT @ rows


def _singular(n: Tensor, total: Tensor, square: Tensor, center: bool) -> Float[Tensor, "1 m"]:
    second = square / n - (torch.outer(total, total) / n**2 if center else 0)
    return torch.linalg.eigvalsh(second).clamp_min(0).sqrt().flip(0)[None]
