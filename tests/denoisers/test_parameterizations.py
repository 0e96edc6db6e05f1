"""One exact Gaussian through every parameterisation is the same D."""

import numpy as np
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
from tests.oracles import gaussian, gaussian_points, seeded

VP = vp_schedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
S = torch.arange(1, 1001, dtype=torch.float64) / 1000
FLOW = flow_schedule(3 * S / (1 + 2 * S), 3 * S / (1 + 2 * S) * 1000)
VE = ve_schedule(0.01, 50.0)
EDM = edm_schedule(0.002, 80.0)


def sigma_at(schedule, t):
    """Invert the schedule: sigma that belongs to the time t."""
    logs = np.interp(t.numpy(), schedule.times.numpy(), schedule.sigmas.log().numpy())
    return torch.from_numpy(logs).exp()[:, None]


def eps_network(exact):
    def network(z, t, cond):
        s = sigma_at(VP, t)
        x = z * (1 + s**2).sqrt()
        return (x - exact.denoise(x, s, None)) / s

    return network


def v_network(exact):
    # v = alpha n - s x0 for z = alpha x0 + s n, with alpha^2 + s^2 = 1
    def network(z, t, cond):
        s = sigma_at(VP, t)
        x = z * (1 + s**2).sqrt()
        x0 = exact.denoise(x, s, None)
        alpha, noise = 1 / (1 + s**2).sqrt(), (x - x0) / s
        return alpha * noise - (1 - alpha**2).sqrt() * x0

    return network


def x0_network(exact):
    def network(z, t, cond):
        s = sigma_at(VP, t)
        return exact.denoise(z * (1 + s**2).sqrt(), s, None)

    return network


def flow_network(exact):
    # z = (1 - r) x0 + r n and u = n - x0, at sigma = r / (1 - r)
    def network(z, t, cond):
        s = sigma_at(FLOW, t)
        r = s / (1 + s)
        x0 = exact.denoise(z / (1 - r), s, None)
        return (z - (1 - r) * x0) / r - x0

    return network


def score_network(exact):
    def network(z, t, cond):
        s = sigma_at(VE, t)
        return (exact.denoise(z, s, None) - z) / s**2

    return network


def edm_network(exact):
    def network(z, t, cond):
        s, data = (4 * t).exp()[:, None], 0.5
        x = z * (s**2 + data**2).sqrt()
        skip, out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
        return (exact.denoise(x, s, None) - skip * x) / out

    return network


CASES = {
    "eps": (EpsDenoiser, eps_network, VP),
    "v": (VDenoiser, v_network, VP),
    "x0": (X0Denoiser, x0_network, VP),
    "flow": (FlowDenoiser, flow_network, FLOW),
    "score": (ScoreDenoiser, score_network, VE),
    "edm": (EDMDenoiser, edm_network, EDM),
}


@pytest.mark.parametrize("name", CASES)
def test_parameterisation_gives_exact_denoiser(name):
    kind, network, schedule = CASES[name]
    exact, mean, variances, basis = gaussian()
    model = kind(network(exact), schedule, shape=(12,))
    sigma = torch.tensor([0.02, 0.0713, 0.5, 1.9, 11.0], dtype=torch.float64)
    x = gaussian_points(mean, variances, basis, 5)
    x = x + sigma[:, None] * torch.randn(5, 12, generator=seeded(), dtype=torch.float64)
    # rounding of D is eps |D|, amplified by at most 1 / sigma_min in the network's own units
    torch.testing.assert_close(model(x, sigma), exact(x, sigma), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_range_is_that_of_the_schedule(name):
    kind, network, schedule = CASES[name]
    exact, *_ = gaussian()
    model = kind(network(exact), schedule)
    assert (model.sigma_min, model.sigma_max) == (schedule.sigma_min, schedule.sigma_max)


def test_network_sees_unit_variance_in_vp_coordinates():
    seen = {}

    def network(z, t, cond):
        seen["z"], seen["t"] = z, t
        return z

    n = torch.randn(4000, 3, generator=seeded(), dtype=torch.float64)
    sigma = float(VP.sigmas[700])
    EpsDenoiser(network, VP)(n + sigma * n.flip(0), sigma)  # x0 and noise of unit variance
    # Var of the sample variance of a normal: 2 / n
    assert abs(float(seen["z"].var()) - 1) < 4 * (2 / 12000) ** 0.5
    torch.testing.assert_close(seen["t"], torch.full((4000,), 700.0, dtype=torch.float64))


def test_condition_reaches_the_network():
    model = X0Denoiser(lambda z, t, cond: z + cond, VP)
    x = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x, 1.0, 5.0) - model(x, 1.0, 2.0), torch.full_like(x, 3.0))
