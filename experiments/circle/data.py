"""The law on the circle, a training set with one isolated point, and what may be compared with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memfold.datasets.manifolds import circle_with_point_mass

CONCENTRATION, MASS = 2.0, 0.2
ARC = 0.8  # radians to both sides of t = pi, the thin part of the law
APART = 0.5  # distance from the isolated point to all other rows, in radii


@dataclass(frozen=True)
class Rows:
    """A training set.

    Attributes:
        x: the rows, shape (n, 2); the isolated one comes first, the origin's copies last.
        n_origin: how many rows lie at the origin.
    """

    x: Tensor
    n_origin: int

    @property
    def places(self) -> Tensor:
        """Distinct rows: the isolated one, the origin, the rest of the circle; (m, 2)."""
        circle = self.x[: -self.n_origin]
        return torch.cat([circle[:1], self.x[-1:], circle[1:]])


def training_rows(n: int, generator: torch.Generator, tries: int = 10_000) -> Rows:
    """Draw rows of the law until one, and one alone, lies in the thin arc, apart from all others.

    Args:
        n: how many rows.
        generator: source of the draws.
        tries: how many sets are drawn at most.

    Raises:
        RuntimeError: no set did; n is far too large or too small.
    """
    for _ in range(tries):
        found = split(law(n, generator))
        if found is not None:
            return found
    raise RuntimeError(f"{tries} sets of {n} rows without an isolated point; take another n")


def split(x: Tensor) -> Rows | None:
    """Put the isolated row first; None if there is not exactly one, or no row at the origin."""
    on_circle = x.norm(dim=1) > 0.5
    circle = x[on_circle]
    inside = torch.atan2(circle[:, 1], circle[:, 0]).abs() > math.pi - ARC
    n_origin = int((~on_circle).sum())
    if int(inside.sum()) != 1 or n_origin == 0:
        return None
    lone, others = circle[inside], circle[~inside]
    if float((others - lone).norm(dim=1).min()) < APART:
        return None
    return Rows(torch.cat([lone, others, x[~on_circle]]), n_origin)


def law(n: int, generator: torch.Generator) -> Tensor:
    """Draw n points of the ground truth, shape (n, 2)."""
    return circle_with_point_mass(n, concentration=CONCENTRATION, mass=MASS, generator=generator).x


def scale(rows: Rows) -> float:
    """Return the sigma between what it must exceed and what must exceed it.

    The geometric mean of the median distance between neighbouring rows of the circle, below which
    a model sees single rows, and of the radius, 1, beyond which a circle is no line.
    """
    circle = rows.x[: -rows.n_origin]
    distance = torch.cdist(circle, circle, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distance.fill_diagonal_(torch.inf).amin(1).median().sqrt())


def reference(rows: Rows, n: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Draw fresh points of the circle, where the training set covers it.

    A model cannot have memorized what it never saw. A fresh point beside the isolated row would be
    a near copy of that row, though, and one in the gap would have no data around it: a point is
    kept if two rows or more lie within 2 sigma of it.
    """
    fresh = law(n, generator)
    fresh = fresh[fresh.norm(dim=1) > 0.5]
    near = torch.cdist(fresh, rows.places) < 2 * sigma
    return fresh[near.sum(1) >= 2]


def copies(samples: Tensor, rows: Rows) -> tuple[int, int]:
    """Count samples whose nearest place is the isolated row, and near copies of it among them.

    A near copy lies at less than a third of the distance to the second nearest place.
    """
    distance, place = torch.cdist(samples, rows.places).topk(2, largest=False)
    own = place[:, 0] == 0
    return int(own.sum()), int((own & (distance[:, 0] < distance[:, 1] / 3)).sum())
