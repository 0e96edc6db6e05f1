"""The manifolds are what they say: their equations hold, and their rank is their dimension."""

from __future__ import annotations

import math

import pytest
import torch

from memfold.datasets.manifolds import (
    circle_with_point_mass,
    lollipop,
    place,
    sphere,
    subspaces,
    swiss_roll,
    torus,
)
from memfold.datasets.memorized import Kind, memorized
from memfold.types import InputError


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def rank(x):
    """Dimension of the affine hull."""
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    return int((values > 1e-4 * values[0]).sum())


def test_sphere_has_its_radius_about_a_centre_off_the_origin(g):
    s = sphere(3, 10, 500, generator=g)
    assert rank(s.x) == 4
    # |x - c|^2 = 1 is linear in (c, |c|^2 - 1): solve for the centre within the hull.
    flat = torch.linalg.svd((s.x - s.x.mean(0)).double(), full_matrices=False)
    y = flat.U[:, :4] * flat.S[:4]
    solution = torch.linalg.lstsq(torch.cat([2 * y, torch.ones(500, 1)], 1), y.square().sum(1))
    radius = (y - solution.solution[:4]).norm(dim=1)
    torch.testing.assert_close(radius, torch.ones_like(radius), atol=1e-4, rtol=0)
    assert s.x.mean(0).norm() > 0.5
    assert (s.lid == 3).all()


@pytest.mark.parametrize("make", [torus, swiss_roll])
def test_surfaces_fill_three_dimensions_and_carry_lid_two(make, g):
    s = make(300, ambient=12, generator=g)
    assert s.x.shape == (300, 12)
    assert rank(s.x) == 3
    assert (s.lid == 2).all()


def test_subspaces_have_their_ranks_and_stand_apart(g):
    s = subspaces((3, 17, 60), 500, 400, generator=g)
    for i, dim in enumerate((3, 17, 60)):
        part = s.x[s.component == i]
        assert rank(part) == dim
        assert (s.lid[s.component == i] == dim).all()
        assert part.mean(0).norm() > 50  # off the origin: 5 sqrt(500) = 112


def test_lollipop_parts(g):
    s = lollipop(3000, generator=g)
    point, stick, disc = (s.x[s.component == i] for i in range(3))
    assert (point == 0).all()
    torch.testing.assert_close(stick[:, 0], stick[:, 1])
    length = stick.norm(dim=1)
    assert length.min() >= 1 - 1e-6
    assert length.max() <= 3 * math.sqrt(2) - 1 + 1e-6
    radius = (disc - 3).norm(dim=1)
    assert radius.max() <= 1 + 1e-6
    # Uniform on the disc: E r^2 = 1/2 with variance 1/12.
    error = 4 * (1 / 12 / len(disc)) ** 0.5
    assert float(radius.square().mean()) == pytest.approx(0.5, abs=error)
    assert torch.equal(s.lid, s.component.float())
    assert abs(len(point) - 300) < 4 * (3000 * 0.1 * 0.9) ** 0.5


def test_circle_follows_von_mises(g):
    s = circle_with_point_mass(5000, concentration=2.0, mass=0.25, generator=g)
    circle = s.x[s.component == 1]
    torch.testing.assert_close(circle.norm(dim=1), torch.ones(len(circle)))
    assert (s.x[s.component == 0] == 0).all()
    assert abs((s.lid == 0).sum() - 1250) < 4 * (5000 * 0.25 * 0.75) ** 0.5
    kappa = torch.tensor(2.0, dtype=torch.float64)
    want = float(torch.special.i1(kappa) / torch.special.i0(kappa))  # E cos t
    assert float(circle[:, 0].mean()) == pytest.approx(want, abs=4 / len(circle) ** 0.5)
    assert float(circle[:, 1].mean()) == pytest.approx(0, abs=4 / len(circle) ** 0.5)


def test_placing_keeps_all_distances(g):
    x = torch.randn(20, 4, generator=g)
    y = place(x, 30, spread=3.0, generator=g)
    torch.testing.assert_close(torch.pdist(y), torch.pdist(x), rtol=1e-4, atol=1e-4)
    assert (y.abs().sum(0) > 0).all()  # turned out of every axis


def test_same_seed_same_points():
    first = sphere(2, 5, 9, generator=torch.Generator().manual_seed(7)).x
    assert torch.equal(first, sphere(2, 5, 9, generator=torch.Generator().manual_seed(7)).x)
    assert not torch.equal(first, sphere(2, 5, 9, generator=torch.Generator().manual_seed(8)).x)


def test_refusals(g):
    with pytest.raises(InputError, match="ambient is 2"):
        sphere(2, 2, 5, generator=g)
    with pytest.raises(InputError, match="shares of 0 or more"):
        circle_with_point_mass(5, mass=1.5, generator=g)
    with pytest.raises(InputError, match="concentration is -1"):
        circle_with_point_mass(5, concentration=-1.0, generator=g)
    with pytest.raises(InputError, match="copies is 1"):
        memorized(copies=1, generator=g)


def test_memorized_set_keeps_its_promises(g):
    data = memorized(generator=g)
    x, kind = data.train.x, data.train.component
    assert len(x) == 1000 + 300 + 10 * 40 + 20
    assert len(data.held_out.x) == 900
    for row in (0, 100, 1000):
        same = (x == x[row]).all(1)
        assert torch.equal(same, data.group == data.group[row])
        assert int(same.sum()) == int(data.copies[row])
    assert (data.copies[kind == Kind.DUPLICATED] == 40).all()
    assert (data.copies[kind != Kind.DUPLICATED] == 1).all()
    for which, lid in ((Kind.COMMON, 8), (Kind.SIMPLE, 2), (Kind.DUPLICATED, 0), (Kind.RARE, 8)):
        assert (data.train.lid[kind == which] == lid).all()
    assert rank(x[kind == Kind.SIMPLE]) == 2
    assert rank(x[kind != Kind.SIMPLE]) == 8
    assert not set(data.held_out.component.tolist()) & {int(Kind.DUPLICATED)}
    gap = torch.cdist(x[kind == Kind.RARE], x)
    nearest = gap.topk(2, largest=False).values[:, 1]
    usual = torch.cdist(x[kind == Kind.COMMON], x).topk(2, largest=False).values[:, 1]
    assert nearest.min() > 2 * usual.median()  # alone, far and wide
    assert not any((x == row).all(1).any() for row in data.held_out.x)
