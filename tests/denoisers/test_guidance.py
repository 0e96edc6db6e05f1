import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.exact import GaussianDenoiser, MixtureDenoiser
from memfold.denoisers.guidance import Guided
from memfold.lid.flipd import flipd
from tests.oracles import gaussian_points, rotation, seeded

D = 8


def two_models():
    """Return a conditional model that is one of two Gaussians, and those two."""
    none = GaussianDenoiser(
        torch.ones(D).double(), torch.full((5,), 2.0).double(), rotation(D, 5, 0)
    )
    some = GaussianDenoiser(
        -torch.ones(D).double(), torch.full((2,), 0.5).double(), rotation(D, 2, 1)
    )

    def function(x, sigma, cond=None):
        return (none if cond is None else some).denoise(x, sigma, None)

    return FunctionDenoiser(function), none, some


def points():
    return torch.randn(3, D, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_scale_of_zero_and_one_are_the_halves(w):
    model, none, some = two_models()
    guided = Guided(model, w)(points(), 0.4, "label")
    torch.testing.assert_close(guided, (some if w else none)(points(), 0.4))


@pytest.mark.parametrize("w", [-1.0, 2.5, 7.5])
def test_guided_is_linear_in_the_scale(w):
    model, none, some = two_models()
    x = points()
    expected = (1 - w) * none(x, 0.4) + w * some(x, 0.4)
    torch.testing.assert_close(Guided(model, w)(x, 0.4, "label"), expected)


@pytest.mark.parametrize("w", [0.0, 1.0, 7.5])
def test_jacobian_holds_both_halves(w):
    model, _, _ = two_models()
    guided, x, sigma = Guided(model, w), points(), 0.4
    result = flipd(guided, x, sigma, cond="label", at="x", trace="exact", generator=seeded())

    def row(y):
        return guided(y[None], sigma, "label")[0]

    for i in range(3):
        dense = torch.autograd.functional.jacobian(row, x[i])
        square = float(((row(x[i]) - x[i]) ** 2).sum())
        assert float(result.lid[i]) == pytest.approx(float(dense.trace()) + square / sigma**2)
    # and in closed form: traces of both halves, 5 and 2 dimensions
    trace = (1 - w) * 5 * 2 / (2 + sigma**2) + w * 2 * 0.5 / (0.5 + sigma**2)
    noised = flipd(guided, x, sigma, cond="label", trace="exact", generator=seeded())
    torch.testing.assert_close(noised.lid, torch.full((3,), trace).double())


def test_other_null_condition_is_passed_on():
    model = FunctionDenoiser(lambda x, sigma, cond: x * cond)
    out = Guided(model, 3.0, uncond=2.0)(torch.ones(1, 1), 1.0, 5.0)
    assert float(out) == 2 + 3 * (5 - 2)


def test_wrapper_keeps_what_it_wraps():
    model = FunctionDenoiser(lambda x, sigma, cond: x, shape=(4,), sigma_range=(0.1, 9.0))
    guided = Guided(model, 2.0)
    assert (guided.shape, guided.sigma_min, guided.sigma_max) == ((4,), 0.1, 9.0)


def test_conditioning_lowers_exact_traces_on_average_and_not_each():
    # Var(x0 | x) = E_c Var(x0 | x, c) + Var_c D_c, c among what a noisy point may come from
    sigma, model = (
        0.5,
        MixtureDenoiser(
            [torch.zeros(D).double(), torch.full((D,), 0.4).double(), -torch.ones(D).double()],
            [torch.ones(k).double() for k in (5, 0, 2)],
            [rotation(D, k, k) for k in (5, 0, 2)],
        ),
    )
    parts = [MixtureDenoiser([m], [v], [b]) for m, v, b in model.components]
    x = torch.randn(6, D, generator=seeded(), dtype=torch.float64) / 2
    cov = [m_cov(v, b, sigma) for _, v, b in model.components]
    mean = [m for m, _, _ in model.components]
    logs = [
        torch.distributions.MultivariateNormal(m, c).log_prob(x)
        for m, c in zip(mean, cov, strict=True)
    ]
    weights = torch.stack(logs).softmax(0)
    whole = trace_at(model, x, sigma)
    each = torch.stack([trace_at(part, x, sigma) for part in parts])
    between = torch.stack([part(x, sigma) for part in parts])
    spread = (weights[..., None] * (between - model(x, sigma)) ** 2).sum((0, 2)) / sigma**2
    torch.testing.assert_close(whole, (weights * each).sum(0) + spread)
    assert bool((whole > (weights * each).sum(0)).all())
    assert bool((each > whole).any())  # for one condition alone it may be larger


@pytest.mark.parametrize("k", [1, 3, 6])
def test_condition_that_takes_a_point_mass_away_raises_the_dimension(k):
    # sigma -> 0: LID(x) is the smallest of the parts' dimensions at x, whatever their weights
    x, one = torch.ones(1, D).double(), torch.ones(k).double()
    basis = rotation(D, k, 0)
    for weights in ((0.5, 0.5), (0.01, 0.99)):
        both = MixtureDenoiser(
            [x[0], x[0]], [one[:0], one], [basis[:, :0], basis], torch.tensor(weights).double()
        )
        gaussian = GaussianDenoiser(x[0], one, basis)
        without, within = (float(flipd(f, x, 1e-5, at="x").lid) for f in (both, gaussian))
        # the Gaussian's weight at x is w / (1 - w) sigma^k, and a copy of it counts k
        assert without == pytest.approx(0, abs=2 * k * 99 * 1e-5**k)
        assert within == pytest.approx(k, abs=k * 1e-9)


def m_cov(variances, basis, sigma):
    return basis * variances @ basis.mT + sigma**2 * torch.eye(D).double()


def trace_at(model, x, sigma):
    rows = [torch.autograd.functional.jacobian(lambda y: model(y[None], sigma)[0], r) for r in x]
    return torch.stack([row.trace() for row in rows])


def test_conditioning_lowers_the_dimension_where_no_point_mass_goes():
    model, _, some = two_models()
    x = gaussian_points(*some.mixture.components[0], 3)
    free = flipd(model, x, 0.1, generator=seeded())
    fixed = flipd(model, x, 0.1, cond="label", generator=seeded())
    assert bool((fixed.lid < free.lid - 2).all())
