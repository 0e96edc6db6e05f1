"""The normal bundle against subspaces of known dimension: off the origin, rotated, batches."""

import pytest
import torch

from memfold.denoisers.exact import GaussianDenoiser, MixtureDenoiser
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.linalg.rank import RankWarning
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, unchecked


@pytest.mark.parametrize("rule", ["gap", "threshold", "ratio"])
@pytest.mark.parametrize("k", [0, 1, 5, 11, 12])
def test_every_dimension_of_a_gaussian(k, rule):
    if rule == "ratio" and k in (0, 12):
        pytest.skip("a ratio has no scale, and cannot tell all from none")
    model, mean, variances, basis = gaussian(12, k)
    x = gaussian_points(mean, variances, basis, 3)
    result = normal_bundle(model, x, 0.02, rule=rule, generator=seeded())
    assert result.lid.tolist() == [k] * 3
    assert result.stderr.tolist() == [0] * 3


@pytest.mark.parametrize("rule", ["gap", "threshold"])
def test_mixture_of_subspaces(rule):
    model, points = mixture((3, 17, 60), 150)
    x = torch.cat([points(0, 1), points(1, 2), points(2, 1)])
    result = normal_bundle(model, x, 0.05, rule=rule, generator=seeded())
    assert result.lid.tolist() == [3, 17, 17, 60]
    assert result.method == f"normal bundle (600 residuals, {rule}), points"


def test_curved_manifold():
    # the empirical denoiser of many points on a circle in 6 dimensions
    from memfold.denoisers.exact import EmpiricalDenoiser

    angle = torch.linspace(0, 2 * torch.pi, 401, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1) @ rotation(6, 2, 3).mT + 2
    result = normal_bundle(EmpiricalDenoiser(circle), circle[::150], 0.1, generator=seeded())
    assert result.lid.tolist() == [1] * 3


def test_a_steep_density_adds_a_direction_unless_centered():
    # far out on a narrow subspace the mean residual is sigma z / (l + sigma^2), along a tangent
    model, mean, _, basis = gaussian(12, 5)
    x = (mean + 60 * basis[:, 0])[None]
    options = {"rule": "threshold", "generator": seeded()}
    assert normal_bundle(model, x, 0.05, **options).lid.tolist() == [5]
    assert normal_bundle(model, x, 0.05, center=False, **options).lid.tolist() == [4]


def test_an_undecided_spectrum_has_an_error():
    # variances about sigma^2 / 3: the singular values straddle the threshold of 3/4
    model, mean, _, basis = gaussian(20, 12)
    model = GaussianDenoiser(mean, torch.linspace(0.1, 0.6, 12).double(), basis)
    x = mean[None]
    runs = [
        normal_bundle(model, x, 1.0, rule="threshold", threshold=0.75, generator=seeded(s))
        for s in range(60)
    ]
    lid, stderr = torch.cat([r.lid for r in runs]), torch.cat([r.stderr for r in runs])
    assert float(lid.std()) > 0.2
    assert 0.7 < float((stderr**2).mean().sqrt() / lid.std()) < 3


def test_too_few_residuals():
    model, mean, variances, basis = gaussian(12, 5)
    x = gaussian_points(mean, variances, basis, 2)
    with pytest.raises(InputError, match=r"n_noises = 12 cannot span 12 dimensions; take 4 D = 48"):
        normal_bundle(model, x, 0.1, n_noises=12)
    with pytest.warns(RankWarning, match=r"n_noises = 30 is below 4 D = 48"):
        normal_bundle(model, x, 0.1, n_noises=30)


def test_unknown_rule():
    model, mean, variances, basis = gaussian(12, 5)
    x = gaussian_points(mean, variances, basis, 2)
    with unchecked(), pytest.raises(InputError, match="rule 'elbow' is unknown"):
        normal_bundle(model, x, 0.1, rule="elbow")


@pytest.mark.slow
@pytest.mark.parametrize("component", range(3))
def test_within_one_dimension_up_to_200_in_800(component):
    dims = (10, 80, 200)
    model, points = mixture(dims, 800)
    result = normal_bundle(model, points(component, 1), 0.05, generator=seeded())
    assert abs(float(result.lid) - dims[component]) <= 1


# --- spectra with and without a gap


def ramp(d, low, high):
    """Variances such that the singular values of the residuals fall evenly: no gap."""
    s = torch.linspace(high, low, d, dtype=torch.float64)
    return GaussianDenoiser(torch.full((d,), 2.0).double(), 1 / s - 1, rotation(d, d, 3))


@pytest.mark.parametrize("rule", ["gap", "ratio"])
def test_no_gap_is_no_certainty(rule):
    # at sigma = 1 residuals have s = 1 / (l + 1): the thresholds of the docstring give 4 to 14
    # dimensions of 40; wherever the largest drop lies, the error must reach over them
    d = 40
    model = ramp(d, 0.05, 1.0)
    x = torch.full((1, d), 2.0).double()
    with pytest.warns(RankWarning, match=r"no gap at x\[0\] \(the gap says .*, thresholds "):
        result = normal_bundle(model, x, 1.0, rule=rule, n_noises=64 * d, generator=seeded())
    s = torch.linspace(0.05, 1.0, d, dtype=torch.float64)
    edge = 1 - 1 / 8
    low, high = ((s < edge * q).sum() for q in (0.25, 0.75))
    assert float(result.lid - 2 * result.stderr) < float(low)
    assert float(result.lid + 2 * result.stderr) > float(high)
    assert float(result.stderr) > float(high - low) / 12**0.5 * 0.9


def test_a_gap_is_certain_and_one_row_without_is_named():
    # two components: three dimensions flat, and 20 of all sizes
    d = 24
    far = torch.zeros(d, dtype=torch.float64)
    far[0] = 1000
    s = torch.linspace(0.05, 0.95, d, dtype=torch.float64)
    model = MixtureDenoiser(
        [far * 0, far],
        [torch.full((3,), 400.0).double(), 1 / s - 1],
        [rotation(d, 3, 1), rotation(d, d, 2)],
    )
    x = torch.stack([far * 0, far])
    with pytest.warns(RankWarning, match=r"no gap at x\[1\]"):
        result = normal_bundle(model, x, 1.0, generator=seeded())
    assert (float(result.lid[0]), float(result.stderr[0])) == (3, 0)
    assert float(result.stderr[1]) > 1


def test_rank_of_the_jacobian_by_a_gap_that_is_none():
    d = 40
    model = ramp(d, 0.02, 1.0)
    x = torch.full((1, d), 2.0).double()
    result = jacobian_rank(model, x, 1.0, rule="gap", max_size=d, generator=seeded())
    by_threshold = jacobian_rank(model, x, 1.0, generator=seeded())
    assert float(by_threshold.stderr) == 0
    assert abs(float(result.lid - by_threshold.lid)) < 3 * float(result.stderr)
    assert float(result.stderr) > 1
