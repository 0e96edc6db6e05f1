"""Denoisers that give no gradients, or wrong ones: differences with a warning, never a crash."""

import numpy as np
import pytest
import torch

from memfold.denoisers.base import Conditioned, FunctionDenoiser
from memfold.denoisers.parameterizations import EpsDenoiser
from memfold.denoisers.schedules import ve_schedule
from memfold.lid.decoder_rank import decoder_rank, decoder_slope
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.spectral import spectral_lid, transition_mass
from memfold.linalg.jacobian import GradientWarning
from memfold.memorization.prompt_scores import minus_flipd
from memfold.types import InputError
from tests.oracles import gaussian, gaussian_points, seeded

D, K, SIGMA = 40, 6, 0.1
MODEL, MEAN, VARIANCES, BASIS = gaussian(D, K)
X = gaussian_points(MEAN, VARIANCES, BASIS, 3)
NEED = {
    "flipd": (flipd, {}),
    "flipd at x": (flipd, {"at": "x"}),
    "flipd exact": (flipd, {"trace": "exact"}),
    "flipd hutchinson": (flipd, {"trace": "hutchinson"}),
    "spectral": (spectral_lid, {}),
    "rank": (jacobian_rank, {}),
}


def plain(y, s):
    return MODEL.denoise(y, s, None)


def without(y, s):
    with torch.no_grad():
        return plain(y, s)


def by_numpy(y, s):  # as an ONNX session is fed: a leaf of a graph refuses to be an array
    return torch.from_numpy(np.copy(plain(torch.from_numpy(y.numpy()), s.detach()).numpy()))


def half_of_it(y, s):  # x - sigma eps, with a graph through x alone
    return y - s * ((y - without(y, s)) / s)


def a_network(y, s):
    def eps(z, t, cond):
        at = z.detach() * (1 + s**2).sqrt()
        return (at - without(at, s)) / s

    return EpsDenoiser(eps, ve_schedule(0.01, 10.0))(y, s.flatten())


SILENT = {"no_grad": without, "numpy": by_numpy, "half": half_of_it, "network": a_network}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("name", NEED)
def test_differences_stand_in(name, kind):
    f, options = NEED[name]
    want = f(plain, X, SIGMA, generator=seeded(), **options)
    with pytest.warns(GradientWarning, match="central differences, two passes each"):
        got = f(SILENT[kind], X, SIGMA, generator=seeded(), **options)
    # the model is linear: a difference is exact but for rounding
    torch.testing.assert_close(got.lid, want.lid, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.stderr, want.stderr, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NEED)
@pytest.mark.parametrize("shape", [(3,), (D,)])
def test_a_constant_has_no_free_direction(name, shape):
    f, options = NEED[name]
    point = torch.full(shape, 2.0, dtype=torch.float64)
    x = point.expand(2, *shape)
    with pytest.warns(GradientWarning):
        result = f(lambda y, s: point.expand_as(y).clone(), x, SIGMA, generator=seeded(), **options)
    torch.testing.assert_close(result.lid, torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.stderr, torch.zeros(2).double(), rtol=0, atol=1e-9)


def test_what_needs_no_gradients_asks_for_none():
    for kind in (without, by_numpy):
        assert normal_bundle(kind, X, SIGMA, generator=seeded()).lid.tolist() == [K] * 3
        dsm_lid(kind, X, SIGMA, generator=seeded())


def test_transition_mass():
    want = transition_mass(plain, X, SIGMA, generator=seeded())
    with pytest.warns(GradientWarning):
        got = transition_mass(by_numpy, X, SIGMA, generator=seeded())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_that_hold_draw_no_warning_and_no_further_passes():
    # warnings are errors here; steep, curved and singular models have gradients all the same
    from memfold.denoisers.exact import EmpiricalDenoiser

    points = torch.randn(8, D, generator=seeded(3), dtype=torch.float64)
    for sigma in (0.01, 0.3, 1.0, 3.0):
        for x in (points, (points[:4] + points[4:]) / 2):
            flipd(EmpiricalDenoiser(points), x, sigma, generator=seeded())
    flipd(lambda y, s: y, X, SIGMA, generator=seeded())
    calls = []

    class Network(FunctionDenoiser):
        pass

    model = Network(lambda y, s: calls.append(len(y)) or plain(y, s))
    flipd(model, X, SIGMA, at="x", generator=seeded())
    first = len(calls)
    flipd(model, X, SIGMA, at="x", generator=seeded())
    assert (first, len(calls) - first) == (2 + 2, 2)  # one difference, once; budget and graph


def test_decoders():
    scales = torch.tensor([2.0, 1.0, 1e-3, 0.0])

    def decoder(z):
        return torch.from_numpy((z.numpy() * scales.numpy() + 7).astype("float32"))

    with pytest.warns(GradientWarning):
        assert decoder_rank(decoder, torch.zeros(1, 4), 0.1).lid.tolist() == [2]
    with pytest.warns(GradientWarning):
        decoder_slope(decoder, torch.zeros(1, 4), 0.1, generator=seeded())


def test_scores_of_prompts():
    want = minus_flipd(MODEL, X, SIGMA, None, None)
    silent = FunctionDenoiser(by_numpy)
    with pytest.warns(GradientWarning):
        got = minus_flipd(silent, X, SIGMA, None, None)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="gives no gradients, so that -flipd cannot be"):
        minus_flipd(silent, X.clone().requires_grad_(True), SIGMA, None, None)


def test_errors_of_the_model_pass():
    def broken(y, s):
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        flipd(Conditioned(FunctionDenoiser(broken), None), X, SIGMA)
