"""The rank of J by subspace iteration: exact on exact models, robust to what networks have."""

import pytest
import torch

from memfold.lid.jacobian_rank import jacobian_rank
from memfold.linalg.rank import RankWarning
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, unchecked


@pytest.mark.parametrize("rule", ["threshold", "gap", "ratio"])
@pytest.mark.parametrize("block", [3, 16])
@pytest.mark.parametrize("k", [0, 1, 5, 11, 12])
def test_every_dimension_of_a_gaussian(k, rule, block):
    model, mean, variances, basis = gaussian(12, k)
    x = gaussian_points(mean, variances, basis, 2)
    result = jacobian_rank(model, x, 0.02, rule=rule, block=block, generator=seeded())
    assert result.lid.tolist() == [k] * 2
    assert result.stderr.tolist() == [0] * 2
    assert result.method == f"rank of J ({rule}, 4 noises), points"


@pytest.mark.parametrize("rule", ["threshold", "gap"])
def test_mixture_of_subspaces(rule):
    model, points = mixture((3, 17, 60), 500)
    x = torch.cat([points(0, 1), points(1, 2), points(2, 1)])
    result = jacobian_rank(model, x, 0.05, rule=rule, n_noises=2, generator=seeded())
    assert result.lid.tolist() == [3, 17, 17, 60]


def test_products_grow_with_the_dimension_found(monkeypatch):
    calls = []
    from memfold.linalg.jacobian import Jacobian

    inner = Jacobian.symmetric
    monkeypatch.setattr(Jacobian, "symmetric", lambda j, v: calls.append(len(v)) or inner(j, v))
    model, points = mixture((3, 60), 500)
    jacobian_rank(model, points(0, 1), 0.05, n_noises=2, generator=seeded())
    assert len(calls) == 2 * 16  # two products a direction, and 3 < 16
    calls.clear()
    jacobian_rank(model, points(1, 1), 0.05, n_noises=2, generator=seeded())
    assert len(calls) == 2 * 64


def test_threshold_decides():
    model, mean, variances, basis = gaussian(12, 8)
    l = variances / (variances + 0.64)
    c = float(l.sort().values[2:4].mean())  # between the third and the fourth smallest
    x = gaussian_points(mean, variances, basis, 2)
    result = jacobian_rank(model, x, 0.8, threshold=c, generator=seeded())
    assert result.lid.tolist() == [5, 5]


def test_negative_and_antisymmetric_parts_do_not_count():
    d = 20
    q = rotation(d, d, 1)
    l = torch.full((d,), -0.3, dtype=torch.float64)
    l[:4] = 1
    skew = 0.5 * torch.randn(d, d, generator=seeded(2), dtype=torch.float64)
    j = (q * l) @ q.mT + skew - skew.mT
    x = torch.randn(5, d, generator=seeded(), dtype=torch.float64)
    result = jacobian_rank(lambda y, s: y @ j.mT, x, 0.5, block=8, generator=seeded())
    assert result.lid.tolist() == [4] * 5


def test_the_error_is_that_over_noises():
    # J depends on the noise: where the mask of a coordinate is open, one more direction is free
    q = rotation(12, 12, 3)

    def model(y, s):
        z = y @ q
        free = torch.ones_like(z)
        free[:, 5:] = 0
        free[:, 4] = (z[:, 11] > 0).to(z)
        return (z * free) @ q.mT

    x = torch.zeros(1, 12, dtype=torch.float64)
    result = jacobian_rank(model, x, 0.5, n_noises=400, generator=seeded())
    assert abs(float(result.lid) - 4.5) < 4 * 0.5 / 20
    assert float(result.stderr) == pytest.approx(0.5 / 20, rel=0.05)


def test_too_few_directions_warn():
    model, points = mixture((3, 17), 40)
    with pytest.warns(RankWarning, match=r"2 of 4 noised points have more than max_size = 10"):
        result = jacobian_rank(
            model, torch.cat([points(0, 1), points(1, 1)]), 0.05, n_noises=2, max_size=10
        )
    assert result.lid.tolist() == [3, 10]
    assert result.stderr.isnan().tolist() == [False, True]  # a bound has no standard error


@pytest.mark.parametrize("options", [{"threshold": 1.0}, {"block": 0}, {"n_iterations": 0}])
def test_options_out_of_range_are_refused(options):
    model, mean, variances, basis = gaussian(12, 5)
    with pytest.raises(InputError, match="threshold must lie between 0 and 1, the others be 1"):
        jacobian_rank(model, gaussian_points(mean, variances, basis, 1), 0.5, **options)


def test_unknown_rule():
    model, mean, variances, basis = gaussian(12, 5)
    x = gaussian_points(mean, variances, basis, 2)
    with unchecked(), pytest.raises(InputError, match="rule 'elbow' is unknown"):
        jacobian_rank(model, x, 0.1, rule="elbow")


@pytest.mark.slow
@pytest.mark.parametrize("component", range(3))
def test_within_one_dimension_up_to_200_in_800(component):
    dims = (10, 80, 200)
    model, points = mixture(dims, 800)
    result = jacobian_rank(model, points(component, 1), 0.05, n_noises=2, generator=seeded())
    assert abs(float(result.lid) - dims[component]) <= 1
