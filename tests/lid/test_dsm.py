import pytest
import torch

from memfold.denoisers.exact import EmpiricalDenoiser
from memfold.lid.dsm import denoising_residuals, dsm_lid
from tests.oracles import gaussian, gaussian_points, mixture, seeded, z_score


def closed_form(x, sigma, mean, variances, basis):
    """E |n - eps|^2 of a Gaussian: sum (l/(l+s^2))^2 + s^2 z^2/(l+s^2)^2, and what is off."""
    y = x - mean
    z, total = y @ basis, variances + sigma**2
    off = ((y - z @ basis.mT) ** 2).sum(1)
    inside = (variances / total).square().sum() + ((sigma * z / total) ** 2).sum(1)
    return inside + off / sigma**2


@pytest.mark.parametrize("sigma", [0.1, 0.6, 3.0])
def test_closed_form_and_calibrated_error(sigma):
    model, mean, variances, basis = gaussian(20, 5)
    x = gaussian_points(mean, variances, basis, 1000)
    x = x + 0.02 * torch.randn(x.shape, generator=seeded(), dtype=torch.float64)
    result = dsm_lid(model, x, sigma, generator=seeded(1))
    error = result.lid - closed_form(x, sigma, mean, variances, basis)
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - result.stderr**2)) < 4


def test_stderr_over_seeds_at_one_point():
    model, mean, variances, basis = gaussian(20, 5)
    x = gaussian_points(mean, variances, basis, 1)
    runs = [dsm_lid(model, x, 0.3, generator=seeded(s)) for s in range(300)]
    error = torch.cat([r.lid for r in runs]) - closed_form(x, 0.3, mean, variances, basis)
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - torch.cat([r.stderr for r in runs]) ** 2)) < 4


@pytest.mark.parametrize(("component", "dimension"), [(0, 3), (1, 17), (2, 60)])
def test_mixture_within_four_standard_errors(component, dimension):
    model, points = mixture((3, 17, 60), 500)
    result = dsm_lid(model, points(component, 4), 0.02, n_noises=256, generator=seeded())
    assert float(((result.lid - dimension).abs() / result.stderr).max()) < 4


def test_orthogonality_gap_averages_zero_over_the_data():
    model, mean, variances, basis = gaussian(20, 5)
    x = gaussian_points(mean, variances, basis, 2000)
    _, gap = denoising_residuals(model, x, 0.5, n_noises=2, generator=seeded())
    assert gap.shape == (2000, 2)
    assert abs(z_score(gap.mean(1))) < 4


def test_orthogonality_gap_shows_a_misfit():
    # the model's mean lies 1 away, at sigma = .5 : eps has a constant part of 2, so the gap is 4
    model, mean, variances, basis = gaussian(20, 5)
    away = torch.zeros(20, dtype=torch.float64)
    away[0] = 1
    away = away - basis @ (basis.mT @ away)
    away = away / away.norm()
    x = gaussian_points(mean, variances, basis, 2000) + away
    _, gap = denoising_residuals(model, x, 0.5, n_noises=2, generator=seeded())
    assert abs(z_score(gap.mean(1) - 4)) < 4


def test_residuals_are_what_they_say():
    # for one point y: D = y, eps = (x + s n - y) / s
    y = torch.zeros(1, 6, dtype=torch.float64)
    x = torch.full((1, 6), 0.5, dtype=torch.float64)
    loss, gap = denoising_residuals(EmpiricalDenoiser(y), x, 0.25, n_noises=5, generator=seeded())
    torch.testing.assert_close(loss, torch.full((1, 5), 6 * 4.0).double())  # |x - y|^2 / s^2
    # <eps, eps - n> = 4 * 6 + 2 sum n: mean 24, variance 4 * 6
    many = denoising_residuals(EmpiricalDenoiser(y), x, 0.25, n_noises=4000, generator=seeded())[1]
    assert abs(z_score(many - 24)) < 4
    assert float(gap.std()) > 0
