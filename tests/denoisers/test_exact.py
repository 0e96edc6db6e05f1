import pytest
import torch

from memfold.denoisers.exact import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.spectral import spectral_lid
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, rotation, seeded


def log_density(x, sigma, means, covariances):
    """Log density of a uniform mixture under noise, by torch.distributions."""
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    parts = [
        torch.distributions.MultivariateNormal(m, c + sigma**2 * eye).log_prob(x)
        for m, c in zip(means, covariances, strict=True)
    ]
    return torch.stack(parts).logsumexp(0)


def test_mixture_obeys_tweedie():
    d, dims = 6, (0, 2, 4)
    means = [torch.randn(d, generator=seeded(i), dtype=torch.float64) for i in range(3)]
    bases = [rotation(d, k, i) if k else torch.zeros(d, 0).double() for i, k in enumerate(dims)]
    variances = [0.3 + torch.arange(k, dtype=torch.float64) for k in dims]
    model = MixtureDenoiser(means, variances, bases)
    covariances = [(b * l) @ b.mT for b, l in zip(bases, variances, strict=True)]
    x = torch.randn(7, d, generator=seeded(9), dtype=torch.float64, requires_grad=True)
    for sigma in (0.2, 0.9, 4.0):
        (score,) = torch.autograd.grad(log_density(x, sigma, means, covariances).sum(), x)
        torch.testing.assert_close(model(x, sigma), x + sigma**2 * score, rtol=1e-9, atol=1e-9)


def test_mixture_weights_count():
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    point = [torch.zeros(0).double()] * 2, [torch.zeros(1, 0).double()] * 2
    model = MixtureDenoiser([zero, one], *point, weights=torch.tensor([3.0, 1.0]).double())
    # halfway between two point masses only the prior speaks
    torch.testing.assert_close(model(torch.full((1, 1), 0.5).double(), 0.7), one[None] / 4)


def test_weights_do_not_cancel_near_subspaces_far_from_the_origin():
    # Two parallel planes .02 apart and 100 from the origin: |y|^2 - |z|^2 in single precision
    # would be off by 1e4 * 6e-8, against the true 4e-4.
    d = 20
    columns = rotation(d, 4, 0)
    basis, normal = columns[:, :3], columns[:, 3]
    inside = basis @ torch.full((3,), 60.0, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        means = [torch.zeros(d, dtype=dtype), (0.02 * normal).to(dtype)]
        l, b = torch.full((3,), 1e4, dtype=dtype), basis.to(dtype)
        model = MixtureDenoiser(means, [l, l], [b, b])
        out = model((inside + 0.02 * normal).to(dtype)[None], 0.01)
        height = float((out[0].double() - inside) @ normal)
        weight = 1 / (1 + torch.tensor(-2.0).exp())  # exp(-(.02 / .01)^2 / 2) against 1
        assert height == pytest.approx(float(0.02 * weight), abs=1e-4)


def test_empirical_denoiser_is_the_weighted_mean():
    y = torch.randn(5, 2, 3, generator=seeded(), dtype=torch.float64)
    times = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    x = torch.randn(4, 2, 3, generator=seeded(1), dtype=torch.float64)
    sigma = torch.tensor([0.3, 0.8, 1.0, 3.0], dtype=torch.float64)
    expected = []
    for row, s in zip(x, sigma, strict=True):
        w = torch.stack(
            [
                t * (-((row - p) ** 2).sum() / (2 * s**2)).exp()
                for t, p in zip(times, y, strict=True)
            ]
        )
        expected.append((w[:, None, None] * y).sum(0) / w.sum())
    torch.testing.assert_close(EmpiricalDenoiser(y, times)(x, sigma), torch.stack(expected))


def test_empirical_denoiser_tells_near_duplicates_apart():
    # |x|^2 + |y|^2 - 2 x y would see a distance of 1e-3 at norm 1e3 as rounding
    y = torch.full((2, 4), 500.0)
    y[1, 0] += 1e-3
    out = EmpiricalDenoiser(y)(y, 1e-4)
    torch.testing.assert_close(out, y, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", [flipd, dsm_lid, spectral_lid])
def test_perfect_memorizer_has_dimension_zero(estimator):
    points = torch.randn(20, 50, generator=seeded())  # distances about 10
    result = estimator(EmpiricalDenoiser(points), points, 0.05, generator=seeded(1))
    # weights of the others are exp(-10^2 / (2 * .05^2)) = 0; what is left is rounding of eps
    assert float(result.lid.abs().max()) < 1e-6
    assert float(result.stderr.max()) < 1e-6


def padded(extra: int):
    model, mean, variances, basis = gaussian()
    wide = GaussianDenoiser(
        torch.cat([mean, mean.new_zeros(extra)]),
        variances,
        torch.cat([basis, basis.new_zeros(extra, basis.shape[1])]),
    )
    x = gaussian_points(mean, variances, basis, 6)
    return model, wide, x, torch.cat([x, x.new_zeros(len(x), extra)], 1)


def test_zero_dimensions_change_nothing_in_closed_form():
    model, wide, x, wide_x = padded(30)
    options = {"at": "x", "trace": "exact", "generator": seeded()}
    narrow, broad = flipd(model, x, 0.3, **options), flipd(wide, wide_x, 0.3, **options)
    torch.testing.assert_close(broad.lid, narrow.lid, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [flipd, dsm_lid, spectral_lid])
def test_zero_dimensions_change_nothing_within_error(estimator):
    model, wide, x, wide_x = padded(30)
    a = estimator(model, x, 0.3, n_noises=64, generator=seeded())
    b = estimator(wide, wide_x, 0.3, n_noises=64, generator=seeded(1))
    error = (a.stderr**2 + b.stderr**2).sqrt() + 1e-6
    assert float(((a.lid - b.lid).abs() / error).max()) < 4.5  # of 6, t with about 100 degrees


def test_components_without_partners_are_refused():
    with pytest.raises(InputError, match="1 means, 0 variances and 1 bases"):
        MixtureDenoiser([torch.zeros(2)], [], [torch.eye(2)])
