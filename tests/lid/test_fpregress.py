"""Slopes of explicit densities: against closed forms, FLIPD, and lines with known scatter."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from memfold.denoisers.exact import MixtureDenoiser
from memfold.lid.flipd import flipd
from memfold.lid.fpregress import fpregress, slope_over_log
from memfold.lid.lidl import lidl
from memfold.types import InputError
from tests.oracles import mixture, rotation, seeded, z_score

D, DIMS = 15, (2, 5, 9)


def world():
    """Return means, bases and (x, sigma) -> log density of a mixture, from torch's own normals."""
    g = seeded(4)
    means = [2 * torch.randn(D, generator=g, dtype=torch.float64) for _ in DIMS]
    bases = [rotation(D, k, 10 + k) for k in DIMS]

    def log_prob(x, sigma):
        parts = []
        for mean, basis in zip(means, bases, strict=True):
            cov = basis @ basis.mT + sigma**2 * torch.eye(D, dtype=torch.float64)
            parts.append(MultivariateNormal(mean, cov).log_prob(x))
        return torch.stack(parts).logsumexp(0)

    x = torch.stack(
        [
            m + b @ torch.randn(b.shape[1], generator=g, dtype=torch.float64)
            for m, b in zip(means, bases, strict=True)
        ]
    )
    return means, bases, log_prob, x


def test_dimensions_of_a_mixture():
    _, _, log_prob, x = world()
    result = fpregress(log_prob, x, [0.01, 0.012, 0.014, 0.016])
    torch.testing.assert_close(result.lid, torch.tensor(DIMS).double(), atol=0.01, rtol=0)
    assert result.scale == pytest.approx(0.0128, rel=0.01)
    assert result.method == "FPRegress (4 scales), points"
    models = {s: lambda y, s=s: log_prob(y, s) for s in (0.016, 0.01, 0.012, 0.014)}
    again = lidl(models, x)
    torch.testing.assert_close(again.lid, result.lid)
    assert again.method == "LIDL (4 models), points"


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_slope_of_a_narrow_grid_is_flipd(sigma):
    # the Fokker-Planck equation, off the manifold too
    means, bases, log_prob, x = world()
    x = x + 0.1 * torch.randn(x.shape, generator=seeded(), dtype=torch.float64)
    model = MixtureDenoiser(means, [torch.ones(k).double() for k in DIMS], bases)
    slope = fpregress(log_prob, x, [sigma * (1 + h) for h in (-1e-4, 0, 1e-4)])
    truth = flipd(model, x, sigma, at="x", trace="exact", generator=seeded())
    torch.testing.assert_close(slope.lid, truth.lid, rtol=1e-5, atol=1e-5)


def test_standard_error_of_the_slope_is_calibrated():
    sigmas = [0.01, 0.02, 0.05, 0.1, 0.3]
    noise = 0.2 * torch.randn(3000, 5, generator=seeded(), dtype=torch.float64)
    line = -7 * torch.tensor(sigmas).double().log() + 3
    slope, stderr = slope_over_log(sigmas, line + noise)
    assert abs(z_score(slope + 7)) < 4
    assert abs(z_score((slope + 7) ** 2 - stderr**2)) < 4


def test_a_bent_curve_has_an_error():
    _, _, log_prob, x = world()
    narrow = fpregress(log_prob, x, [0.01, 0.012, 0.014])
    wide = fpregress(log_prob, x, [0.01, 0.3, 9.0])
    assert bool((narrow.stderr < 0.01).all())
    assert bool((wide.stderr > 0.2).all())


def test_image_shaped_points():
    _, _, log_prob, x = world()
    flat = fpregress(log_prob, x, [0.1, 0.2, 0.3])
    image = fpregress(
        lambda y, s: log_prob(y.flatten(1), s), x.reshape(3, 1, 3, 5), [0.1, 0.2, 0.3]
    )
    torch.testing.assert_close(image.lid, flat.lid)


@pytest.mark.parametrize("sigmas", [[0.1, 0.2], [0.2, 0.1, 0.3], [0.1, 0.1, 0.2], [0.0, 0.1, 0.2]])
def test_grids_are_refused(sigmas):
    _, _, log_prob, x = world()
    with pytest.raises(InputError, match="must ascend from above 0 and hold 3 or more"):
        fpregress(log_prob, x, sigmas)


def test_bad_densities_are_refused():
    _, _, log_prob, x = world()
    with pytest.raises(InputError, match=r"log_prob returned shape \(3, 1\) for 3 points"):
        fpregress(lambda y, s: log_prob(y, s)[:, None], x, [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match=r"NaN or infinite at x\[2\], sigma = 0\.1"):
        fpregress(lambda y, s: torch.tensor([0, 0, -torch.inf]), x, [0.1, 0.2, 0.3])
    x[1, 2] = torch.nan
    with pytest.raises(InputError, match=r"x\[1\] holds NaN or infinity"):
        lidl({s: lambda y: y.sum(1) for s in (0.1, 0.2, 0.3)}, x)


def test_large_dimensions_within_one():
    dims = (10, 80, 200)
    model, points = mixture(dims, 800, dtype=torch.float64)

    def log_prob(y, sigma):
        parts = []
        for mean, l, basis in model.components:
            z = (y - mean) @ basis
            off = ((y - mean - z @ basis.mT) ** 2).sum(1)
            quad = (z**2 / (l + sigma**2)).sum(1) + off / sigma**2
            parts.append(
                -(quad + (l + sigma**2).log().sum() + (800 - len(l)) * 2 * _log(sigma)) / 2
            )
        return torch.stack(parts).logsumexp(0)

    x = torch.cat([points(i, 1) for i in range(3)])
    result = fpregress(log_prob, x, [0.03, 0.035, 0.04])
    assert float((result.lid - torch.tensor(dims)).abs().max()) < 1


def _log(sigma):
    return torch.tensor(sigma).double().log()


@pytest.mark.parametrize("method", ["fpregress", "lidl"])
@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("dims", [(2, 5), (1, 12)])
def test_the_error_covers_the_bend(method, n, dims):
    # closed form: at the mean of a Gaussian of k unit variances, LID = k / (1 + sigma^2)
    for k in dims:
        x = torch.zeros(1, 20, dtype=torch.float64)

        def log_prob(y, sigma, k=k):
            return torch.tensor([-k / 2 * math.log(1 + sigma**2) - (20 - k) * math.log(sigma)])

        for middle in (0.03, 0.1, 0.3, 0.6, 1.0):
            grid = (middle * torch.logspace(-0.3, 0.3, n, dtype=torch.float64)).tolist()
            models = {s: lambda y, s=s: log_prob(y, s).double() for s in grid}
            given = (lambda y, s: log_prob(y, s).double(), x, grid)
            result = fpregress(*given) if method == "fpregress" else lidl(models, x)
            here, below = k / (1 + middle**2), k / (1 + grid[0] ** 2)
            assert abs(float(result.lid) - here) < float(result.stderr)
            assert abs(float(result.lid) - below) < 2 * float(result.stderr)
            if middle <= 0.3:  # and all the way to the dimension itself
                assert abs(float(result.lid) - k) < 2 * float(result.stderr)
            assert float(result.stderr) < 2 * abs(below - k / (1 + grid[-1] ** 2))


def test_scatter_alone_is_taken_for_little_bend():
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    values = 3 * u + 0.1 * torch.randn(4000, 9, generator=seeded(), dtype=torch.float64)
    slope, stderr = slope_over_log(u.exp().tolist(), values, bent=True)
    inside = ((slope - 3).abs() < 2 * stderr).double().mean()
    assert 0.9 < float(inside) < 1
    assert float(stderr.median()) < 2 * 0.1 / float((u @ u).sqrt())
