import pytest
import torch

from memfold.lid.spectral import spectral_lid
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, z_score

D = 20


def weight(l, c=0.5, p=4.0):
    """The soft count of one eigenvalue, from the docstring."""
    return l**p / (l**p + (c * (1 - l) / (1 - c)) ** p)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.8, "power": 2.0}])
def test_closed_form_and_calibrated_error(options):
    model, mean, variances, basis = gaussian(D, 5)
    sigma = 0.8
    x = gaussian_points(mean, variances, basis, 250)
    result = spectral_lid(model, x, sigma, generator=seeded(), **options)
    l = variances / (variances + sigma**2)
    error = result.lid - weight(l, options.get("threshold", 0.5), options.get("power", 4.0)).sum()
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - result.stderr**2)) < 4


def test_stderr_over_seeds_at_one_point():
    model, mean, variances, basis = gaussian(D, 5)
    x, l = gaussian_points(mean, variances, basis, 1), variances / (variances + 0.25)
    runs = [spectral_lid(model, x, 0.5, generator=seeded(s)) for s in range(120)]
    error = torch.cat([r.lid for r in runs]) - weight(l).sum()
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - torch.cat([r.stderr for r in runs]) ** 2)) < 4


@pytest.mark.parametrize(("component", "dimension"), [(0, 3), (1, 17), (2, 60)])
def test_mixture_within_four_standard_errors(component, dimension):
    model, points = mixture((3, 17, 60), 500)
    result = spectral_lid(model, points(component, 3), 0.05, n_noises=16, generator=seeded())
    assert float(((result.lid - dimension).abs() / result.stderr).max()) < 4


def test_negative_and_antisymmetric_parts_do_not_count():
    # J = 4 ones, the rest a negative bulk, and an antisymmetric part: what trained networks have
    q = rotation(D, D, 1)
    l = torch.full((D,), -0.8, dtype=torch.float64)
    l[:4] = 1
    skew = 0.5 * torch.randn(D, D, generator=seeded(2), dtype=torch.float64)
    j = (q * l) @ q.mT + skew - skew.mT
    x = torch.randn(200, D, generator=seeded(), dtype=torch.float64)
    result = spectral_lid(lambda y, s: y @ j.mT, x, 0.5, n_steps=4, generator=seeded(1))
    assert abs(z_score(result.lid - 4)) < 4


@pytest.mark.parametrize("options", [{"n_steps": 0}, {"threshold": 1.0}, {"power": 0.0}])
def test_options_out_of_range_are_refused(options):
    model, mean, variances, basis = gaussian(D, 5)
    with pytest.raises(InputError, match="must be above 0, threshold between 0 and 1"):
        spectral_lid(model, gaussian_points(mean, variances, basis, 1), 0.5, **options)
