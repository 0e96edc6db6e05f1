"""LHSD and the transition mass against closed forms of exact denoisers."""

import pytest
import torch

from memfold.denoisers.exact import GaussianDenoiser
from memfold.lid.spectral import spectral_lid, transition_mass
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, unchecked, z_score

D, K = 20, 5


def published(variances, sigma, d, c=0.2, p=4.0):
    """f of the Hessian's own eigenvalues: -1 / (l + sigma^2), and -1 / sigma^2 off the subspace."""
    h = torch.cat([-1 / (variances + sigma**2), torch.full((d - len(variances),), -1 / sigma**2)])
    kappa = c / sigma**2
    return 1 / (1 + (h.abs() / kappa) ** p)


@pytest.mark.parametrize(
    "options", [{}, {"c": 0.5}, {"c": 0.3, "power": 2.0}, {"threshold": 0.8, "power": 2.0}]
)
def test_closed_form_and_calibrated_error(options):
    model, mean, variances, basis = gaussian(D, K)
    x = gaussian_points(mean, variances, basis, 300)
    result = spectral_lid(model, x, 0.8, count="lhsd", n_steps=6, generator=seeded(), **options)
    c, p = options.get("c", 1 - options.get("threshold", 0.8)), options.get("power", 4.0)
    error = result.lid - published(variances, 0.8, D, c, p).sum()
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - result.stderr**2)) < 4


def test_default_is_five_steps_and_they_suffice():
    model, mean, variances, basis = gaussian(D, K)
    x = gaussian_points(mean, variances, basis, 1)
    few = spectral_lid(model, x, 0.8, count="lhsd", n_noises=300, generator=seeded())
    many = spectral_lid(model, x, 0.8, count="lhsd", n_noises=300, n_steps=6, generator=seeded())
    assert few.method == "LHSD (5 Lanczos steps), points"
    assert abs(float(few.lid - many.lid)) < 0.01  # the same noises and probes


@pytest.mark.parametrize("c", [None, 0.5])
def test_normals_add_their_share_each_and_none_by_the_default_count(c):
    model, points = mixture((17,), 500)
    x = points(0, 2)
    lhsd = spectral_lid(model, x, 0.05, count="lhsd", c=c, n_noises=16, generator=seeded())
    ours = spectral_lid(model, x, 0.05, n_noises=16, generator=seeded())
    floor = (c or 0.2) ** 4 / (1 + (c or 0.2) ** 4)
    truth = 17 + (500 - 17) * floor
    assert bool(((lhsd.lid - truth).abs() < 4 * lhsd.stderr + 0.01).all())
    assert bool(((ours.lid - 17).abs() < 4 * ours.stderr + 0.01).all())


def test_more_probes_lower_the_error():
    model, mean, variances, basis = gaussian(D, K)
    x = gaussian_points(mean, variances, basis, 100)
    one = spectral_lid(model, x, 0.8, count="lhsd", generator=seeded())
    eight = spectral_lid(model, x, 0.8, count="lhsd", n_probes=8, generator=seeded())
    ratio = float((one.stderr**2).mean() / (eight.stderr**2).mean())
    assert ratio == pytest.approx(8, rel=0.3)  # J is the same at every noise here


@pytest.mark.parametrize("count", ["one-sided", "lhsd"])
def test_transition_mass_in_closed_form(count):
    model, mean, variances, basis = gaussian(D, K)
    x = gaussian_points(mean, variances, basis, 300)
    options = {"count": count, "n_steps": 6, "generator": seeded()}
    mass, stderr = transition_mass(model, x, 0.8, **options)
    if count == "lhsd":
        f = published(variances, 0.8, D)
    else:
        l = variances / (variances + 0.64)
        f = l**4 / (l**4 + (1 - l) ** 4)
    error = mass - (4 * f * (1 - f)).sum()
    assert abs(z_score(error)) < 4
    assert abs(z_score(error**2 - stderr**2)) < 4


def test_transition_mass_counts_the_directions_at_the_threshold():
    # 3 directions of variance sigma^2, eigenvalue 1/2: undecided; 4 large ones: decided
    sigma = 0.3
    variances = torch.tensor([sigma**2] * 3 + [900.0] * 4, dtype=torch.float64)
    basis = rotation(30, 7, 2)
    mean = torch.full((30,), 2.0, dtype=torch.float64)
    x = mean[None]
    model = GaussianDenoiser(mean, variances, basis)
    mass, stderr = transition_mass(model, x, sigma, n_noises=400, generator=seeded())
    assert abs(float(mass) - 3) < 4 * float(stderr)
    plain = GaussianDenoiser(mean, variances[3:], basis[:, 3:])
    mass, _ = transition_mass(plain, x, sigma, n_noises=8, generator=seeded())
    assert float(mass) < 1e-6
    # LHSD decides on no normal: 4 f (1 - f) each, f = c^4 / (1 + c^4)
    for c in (0.2, 0.5):
        options = {"count": "lhsd", "c": c, "n_noises": 400, "generator": seeded()}
        mass, stderr = transition_mass(plain, x, sigma, **options)
        assert abs(float(mass) - 26 * 4 * c**4 / (1 + c**4) ** 2) < 4 * float(stderr)


def test_negative_curvature_is_one_sided_only_by_default():
    # an eigenvalue of J below 0 is a curvature beyond 1 / sigma^2, and one above 1 is convex
    q = rotation(D, D, 1)
    l = torch.zeros(D, dtype=torch.float64)
    l[:4], l[4:8] = 1.9, -0.5
    j = (q * l) @ q.mT
    x = torch.randn(60, D, generator=seeded(), dtype=torch.float64)
    for count, truth in (
        ("one-sided", 4.0),
        ("lhsd", 4 / (1 + 1.8**4) + 4 / (1 + 3**4) + 12 / 17),
    ):
        options = {"count": count, "threshold": 0.5, "generator": seeded()}
        result = spectral_lid(lambda y, s: y @ j.mT, x, 0.5, **options)
        assert abs(z_score(result.lid - truth)) < 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"count": "soft"}, "count = 'soft' is unknown; choose from one-sided, lhsd"),
        ({"n_probes": 0}, "n_probes = 0"),
        ({"c": 0.2}, "c = 0.2 with count = 'one-sided'"),
        ({"c": 0.2, "threshold": 0.8, "count": "lhsd"}, "pass one of them"),
        ({"c": 1.2, "count": "lhsd"}, "threshold between 0 and 1"),
        ({"n_noises": 1}, "n_noises = 1 gives no standard error"),
    ],
)
def test_options_are_refused(options, match):
    model, mean, variances, basis = gaussian(D, K)
    x = gaussian_points(mean, variances, basis, 1)
    for f in (spectral_lid, transition_mass):
        with unchecked(), pytest.raises(InputError, match=match):
            f(model, x, 0.5, **options)


def test_in_many_dimensions_the_normals_do_not_drown_the_tangent():
    # at c = 1/2 the 2,990 normals of an exact model add 176; at the default less than 5
    model, points = mixture((10, 72), 3072)
    x = points(1, 2)
    options = {"count": "lhsd", "n_noises": 8, "generator": seeded()}
    result = spectral_lid(model, x, 0.05, **options)
    floor = 3000 * 0.2**4 / (1 + 0.2**4)
    assert floor < 5
    assert bool(((result.lid - 72 - floor).abs() < 4 * result.stderr + 0.1).all())
