"""Tangents on a few pixels, as exact copies have: no model-side LID is sure of a wrong number.

Random signs on two coordinates are collinear with probability 1/2. Truths are closed forms, by
quadrature over the noise along the one direction that matters.
"""

import numpy as np
import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.exact import EmpiricalDenoiser, GaussianDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.spectral import spectral_lid
from tests.oracles import rotation, seeded, z_score

D, SIGMA, POINTS = 64, 0.05, 400
FEW = 20  # points for what draws no signs, and takes longer
WAYS = {
    "flipd at x": (flipd, {"at": "x"}),
    "flipd": (flipd, {"n_noises": 2}),
    "flipd by xnystrace": (flipd, {"at": "x", "trace": "xnystrace", "n_probes": 12}),
    "flipd by hutch++": (flipd, {"at": "x", "trace": "hutch++", "n_probes": 6}),
    "flipd by hutchinson": (flipd, {"at": "x", "trace": "hutchinson"}),
    "spectral": (spectral_lid, {"n_noises": 3}),
    "lhsd": (spectral_lid, {"n_noises": 3, "count": "lhsd"}),
    "rank": (jacobian_rank, {"n_noises": 2}),
    "loss": (dsm_lid, {"n_noises": 8}),
}


def turned(model, q):
    """The model in rotated coordinates."""
    return FunctionDenoiser(lambda y, s: model.denoise(y @ q, s, None) @ q.mT)


def free_pixels(rank):
    """A Gaussian of `rank` free pixels, off the origin."""
    basis = torch.eye(D, dtype=torch.float64)[:, torch.randperm(D, generator=seeded(rank))[:rank]]
    return _gaussian(basis)


def tied_pixels(n):
    """One direction free, along which n pixels change by the same amount, up or down."""
    return _gaussian(two_images(n)[2][:, None])


def _gaussian(basis):
    """The denoiser, points, and the LID."""
    g, rank = seeded(basis.shape[1]), basis.shape[1]
    mean = 3 * torch.randn(D, generator=g, dtype=torch.float64)
    x = mean + torch.randn(POINTS, rank, generator=g, dtype=torch.float64) @ basis.mT
    return GaussianDenoiser(mean, torch.ones(rank).double(), basis), x, rank


FLAT = {f"{r} free": (free_pixels, r) for r in (1, 2, 4, 8)}
FLAT |= {f"{n} tied": (tied_pixels, n) for n in (2, 3)}


def two_images(pixels):
    """Two images, 2 sigma apart in a few pixels: the denoiser, the first, the unit step."""
    g = seeded(pixels)
    one = torch.rand(D, generator=g, dtype=torch.float64)
    step = torch.zeros(D, dtype=torch.float64)
    change = (-1.0) ** torch.arange(pixels).double() / pixels**0.5
    step[torch.randperm(D, generator=g)[:pixels]] = change
    model = EmpiricalDenoiser(torch.stack([one, one + 2 * SIGMA * step]))
    return model, one, step


def near(one, step):
    """Points at the first image, moved a little towards the second, and by how much."""
    along = 0.1 * torch.rand(POINTS, 1, generator=seeded(5), dtype=torch.float64)
    return one + 2 * SIGMA * along * step, along[:, 0]


def of_two(name, along):
    """The truth of `two_images`: J = w (1 - w) d d^T / sigma^2, d the step of 2 sigma."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    if name.startswith("flipd") and name != "flipd":
        nodes, weights = np.zeros(1), np.ones(1)
    t, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    place = 2 * along[:, None] + t  # from the first image, in units of sigma
    w = torch.sigmoid(2 * place - 2)
    l = 4 * w * (1 - w)
    if name == "loss":
        value = (2 * w - 2 * along[:, None]) ** 2
    elif name == "spectral":
        up = l.clamp(0, 1) ** 4
        value = up / (up + (1 - l.clamp(0, 1)) ** 4)
    else:
        value = l + (2 * w - place) ** 2 * (name != "flipd")
    return (value * weights).sum(1)


def check(estimate, truth, exact):
    """No sure answer is wrong; all are right on average."""
    error = estimate.lid - truth
    assert not bool(((estimate.stderr < 1e-4) & (error.abs() > 0.01)).any())
    if exact:
        assert float(error.abs().max()) < 0.01
    else:
        spread = 1e-3 * torch.randn(len(error), generator=seeded(3), dtype=torch.float64)
        assert abs(z_score(error + spread)) < 4  # where all are exact but for rounding too


@pytest.mark.parametrize("tangent", FLAT)
@pytest.mark.parametrize("name", WAYS)
def test_flat_tangents(name, tangent):
    make, size = FLAT[tangent]
    model, x, rank = make(size)
    f, options = WAYS[name]
    x = x[:FEW] if name == "rank" else x
    result = f(model, x, 1e-3, generator=seeded(1), **options)
    truth = torch.full((len(x),), float(rank)).double()
    if name == "lhsd":
        truth = truth + (D - rank) / (1 + 5**4)  # c = 0.2, p = 4
    check(result, truth, name in ("flipd", "flipd at x", "flipd by xnystrace", "rank"))


def test_rotated_tangents():
    q = rotation(D, D, 9)
    model, x, _ = free_pixels(4)
    for name in ("flipd at x", "flipd by xnystrace", "flipd by hutchinson"):
        f, options = WAYS[name]
        result = f(turned(model, q), x @ q.mT, 1e-3, generator=seeded(1), **options)
        check(result, torch.full((POINTS,), 4.0).double(), name != "flipd by hutchinson")


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_two_images_that_differ_in_a_few_pixels(pixels):
    model, one, step = two_images(pixels)
    x, along = near(one, step)
    for name, (f, options) in WAYS.items():
        if name in ("rank", "lhsd") or (name == "spectral" and pixels != 2):
            continue
        n = POINTS if options.get("at") == "x" else 100
        result = f(model, x[:n], SIGMA, generator=seeded(1), **options)
        truth = of_two(name, along[:n])
        if name in ("spectral", "flipd", "loss"):
            # the noise decides how free the step is: 2 or 3 of them agree now and then
            assert abs(z_score(result.lid - truth)) < 4, name
        else:
            check(result, truth, name in ("flipd at x", "flipd by xnystrace"))


@pytest.mark.parametrize("rank", [1, 4])
def test_normal_bundle(rank):
    model, x, _ = free_pixels(rank)
    result = normal_bundle(model, x[:4], 1e-3, generator=seeded(1))
    assert result.lid.tolist() == [rank] * 4
