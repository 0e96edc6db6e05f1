import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.exact import GaussianDenoiser
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


def test_conditioning_lowers_the_dimension():
    model, _, some = two_models()
    x = gaussian_points(*some.mixture.components[0], 3)
    free = flipd(model, x, 0.1, generator=seeded())
    fixed = flipd(model, x, 0.1, cond="label", generator=seeded())
    assert bool((fixed.lid < free.lid - 2).all())
