"""One exact model told in every parameterisation: all estimators must give the same numbers."""

import pytest
import torch

from memfold.denoisers.parameterizations import (
    EDMDenoiser,
    EpsDenoiser,
    FlowDenoiser,
    ScoreDenoiser,
    VDenoiser,
    X0Denoiser,
)
from memfold.denoisers.schedules import edm_schedule, flow_schedule, ve_schedule, vp_schedule
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.scale import lid_curve
from memfold.lid.spectral import spectral_lid
from tests.oracles import mixture, seeded

D, SIGMA = 14, 0.137  # between two rows of every table


def vp():
    return vp_schedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0))


def flow():
    s = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    return flow_schedule(s, 1000 * s)


def noise_level(schedule, z, t):
    return schedule.sigma(t).to(z)[:, None]


def as_eps(exact, schedule):
    def network(z, t, cond):
        s = noise_level(schedule, z, t)
        x = z * (1 + s**2).sqrt()
        return (x - exact.denoise(x, s, None)) / s

    return EpsDenoiser(network, schedule, shape=(D,))


def as_v(exact, schedule):
    def network(z, t, cond):  # v = a n - a sigma x0
        s = noise_level(schedule, z, t)
        a = (1 + s**2).rsqrt()
        x0 = exact.denoise(z / a, s, None)
        return a * (z / a - x0) / s - a * s * x0

    return VDenoiser(network, schedule, shape=(D,))


def as_x0(exact, schedule):
    def network(z, t, cond):
        s = noise_level(schedule, z, t)
        return exact.denoise(z * (1 + s**2).sqrt(), s, None)

    return X0Denoiser(network, schedule, shape=(D,))


def as_flow(exact, schedule):
    def network(z, t, cond):  # u = n - x0
        s = noise_level(schedule, z, t)
        x = z * (1 + s)
        x0 = exact.denoise(x, s, None)
        return (x - x0) / s - x0

    return FlowDenoiser(network, schedule, shape=(D,))


def as_score(exact, schedule):
    def network(x, t, cond):
        s = noise_level(schedule, x, t)
        return (exact.denoise(x, s, None) - x) / s**2

    return ScoreDenoiser(network, schedule, shape=(D,))


def as_edm(exact, schedule):
    def network(z, t, cond):
        s = noise_level(schedule, z, t)
        total = s**2 + 0.25
        x = z * total.sqrt()
        return (exact.denoise(x, s, None) - 0.25 / total * x) * total.sqrt() / (s * 0.5)

    return EDMDenoiser(network, schedule, shape=(D,))


FORMS = {
    "eps": (as_eps, vp),
    "v": (as_v, vp),
    "x0": (as_x0, vp),
    "flow": (as_flow, flow),
    "ve": (as_score, lambda: ve_schedule(0.01, 50.0)),
    "edm": (as_edm, lambda: edm_schedule(0.002, 80.0)),
}


def lid_and_error(f, **options):
    def run(model, x):
        result = f(model, x, SIGMA, generator=seeded(), **options)
        return torch.stack([result.lid, result.stderr])

    return run


def curve(model, x):
    return lid_curve(model, x, [0.1, SIGMA, 0.3], generator=seeded()).lid.T


FAMILY = {
    "flipd": lid_and_error(flipd),
    "flipd at x": lid_and_error(flipd, at="x"),
    "flipd by hutchinson": lid_and_error(flipd, trace="hutchinson"),
    "dsm_lid": lid_and_error(dsm_lid),
    "spectral_lid": lid_and_error(spectral_lid),
    "lhsd": lid_and_error(spectral_lid, count="lhsd"),
    "jacobian_rank": lid_and_error(jacobian_rank),
    "normal_bundle": lid_and_error(normal_bundle),
    "lid_curve": curve,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILY)
def test_the_parameterisation_changes_nothing(name, form):
    exact, points = mixture((2, 6), D, dtype=torch.float64)
    x = torch.cat([points(0, 2), points(1, 2)])
    make, schedule = FORMS[form]
    model = make(exact, schedule())
    want, got = (FAMILY[name](m, x) for m in (exact, model))
    # rounding, but for counts of Ritz values that stand at a bound: there are none in this model
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    assert float(want[0].std()) > 0.5  # the two components differ: nothing is constant


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_scale_would_show(form):
    exact, points = mixture((2, 6), D, dtype=torch.float64)
    x = points(1, 2)
    make, schedule = FORMS[form]
    model = make(exact, schedule())
    off = model(x + 0.1, 1.01 * SIGMA) - exact(x + 0.1, SIGMA)
    assert float(off.abs().max()) > 1e-5
