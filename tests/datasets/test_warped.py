"""Bent subspaces keep their dimension: the rank of the parametrisation's exact Jacobian says so."""

from __future__ import annotations

import pytest
import torch

from memfold.datasets.manifolds import subspaces
from memfold.datasets.warped import Flow, flow_warped, ripple, squiggly
from memfold.types import InputError

MIXTURES = [((10, 25, 50), 100), ((10, 80, 200), 800), ((2, 30), 3072)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def basis(x):
    """Directions of the affine hull of points, in float64, by their singular values."""
    _, values, axes = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    return axes[values > 1e-4 * values[0]]


def bend(kind, ambient, generator):
    if kind == "squiggly":
        return lambda x: ripple(x, 0.5, 2.0)
    return Flow(ambient, generator=generator)


@pytest.mark.parametrize(("dims", "ambient"), MIXTURES)
@pytest.mark.parametrize(("kind", "make"), [("squiggly", squiggly), ("flow", flow_warped)])
def test_rank_of_the_jacobian_is_the_stated_lid(kind, make, dims, ambient):
    # The chart of a point is z -> bend(x0 + z A), A spanning the subspace that it came from.
    g = seeded()
    n = 50 + 4 * max(dims)
    flat = subspaces(dims, ambient, n, generator=g)
    warp = bend(kind, ambient, g)
    bent = make(dims, ambient, n, generator=seeded())
    torch.testing.assert_close(bent.x, warp(flat.x), rtol=0, atol=0)  # nothing else was done
    assert float((bent.x - flat.x).abs().mean()) > 0.05
    for component, dim in enumerate(dims):
        rows = torch.nonzero(flat.component == component)[:, 0]
        axes = basis(flat.x[rows])
        for row in rows[:2]:
            x0 = flat.x[row].double()

            def chart(z, x0=x0, axes=axes):
                return warp((x0 + z @ axes)[None])[0]

            z = torch.zeros(len(axes), dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(chart, z, vectorize=True)
            values = torch.linalg.svdvals(jacobian)
            assert int((values > 1e-3 * values[0]).sum()) == dim == int(bent.lid[row])


@pytest.mark.parametrize(("kind", "make"), [("squiggly", squiggly), ("flow", flow_warped)])
def test_it_is_bent(kind, make):
    # A flat subspace of 3 dimensions spans 3, a bent one as many as the space has.
    s = make((3,), 20, 300, generator=seeded())
    assert len(basis(s.x)) == 20
    values = torch.linalg.svdvals((s.x - s.x.mean(0)).double())
    assert values[3] > 0.05 * values[2]


@pytest.mark.parametrize("dim", [2, 5, 300])
def test_flow_is_undone(dim):
    flow = Flow(dim, layers=6, strength=0.8, generator=seeded(1))
    x = 10 * torch.randn(40, dim, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x)), x, rtol=1e-9, atol=1e-9)


def test_volume_stays_within_what_the_docstring_says():
    flow = Flow(7, layers=1, strength=0.4, generator=seeded(3))
    for x in 10 * torch.randn(20, 7, generator=seeded(4), dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow(y[None])[0], x)
        assert abs(float(torch.linalg.slogdet(jacobian).logabsdet)) <= 4 * 0.4  # 4 of 7 move


@pytest.mark.parametrize("make", [squiggly, flow_warped])
def test_same_seed_same_points(make):
    one, two, other = (make((1, 2), 5, 30, generator=seeded(s)).x for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_refusals():
    with pytest.raises(InputError, match=r"amplitude is 1\.0"):
        squiggly(amplitude=1.0, generator=seeded())
    with pytest.raises(InputError, match="frequency is 0"):
        squiggly(frequency=0.0, generator=seeded())
    with pytest.raises(InputError, match="ambient is 40, but the points need 50"):
        flow_warped((50,), 40, generator=seeded())
    with pytest.raises(InputError, match="dim is 1, layers 4"):
        Flow(1, generator=seeded())
