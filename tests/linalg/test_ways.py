"""Each kind of product on exact denoisers, in every precision, and what is remembered of it."""

import gc
import weakref

import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.spectral import spectral_lid
from memfold.linalg import products
from memfold.linalg.jacobian import Jacobian
from memfold.linalg.products import WAYS, difference_jvp
from tests.linalg.test_products import OnlyBackward, OnlyForward, Twice
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded

SIGMA = 0.1


def exact(dtype=torch.float64):
    """Return D of a mixture between its two subspaces, where J bends, and points there."""
    model, points = mixture((2, 7), 30, dtype=dtype)
    middle = (points(0, 3) + points(1, 3)) / 2
    return (lambda y: model(y, 3.0)), middle, model


def dense(f, x):
    whole = torch.autograd.functional.jacobian(lambda y: f(y).sum(0), x, vectorize=True)
    return whole.permute(1, 0, 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_way_on_an_exact_denoiser(way, dtype):
    f, x, _ = exact(dtype)
    v = torch.randn(x.shape, generator=seeded(5)).to(x)
    want = torch.einsum("bij,bj->bi", dense(f, x), v)
    got = Jacobian(f, x, 3.0, way=way).jvp(v)
    # the difference errs with the square of its step, the others round
    bound = 5e-3 if way == "difference" else 20 * torch.finfo(dtype).eps
    assert float((got - want).norm()) <= bound * float(want.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backward_products_on_an_exact_denoiser(dtype):
    f, x, _ = exact(dtype)
    v = torch.randn(x.shape, generator=seeded(5)).to(x)
    want = torch.einsum("bij,bi->bj", dense(f, x), v)
    torch.testing.assert_close(Jacobian(f, x, 3.0).vjp(v), want, rtol=1e-4, atol=1e-6)


class Coarse(torch.autograd.Function):
    """The identity, without forward mode and without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 1.0 * g


def in_half(dtype, d=64, k=8, *, last=torch.clone):
    """Return D of a Gaussian whose network computes in half, and the same in double."""
    _, mean, variances, basis = gaussian(d, k)
    gain = variances / (variances + SIGMA**2)
    wide = (basis * gain) @ basis.mT
    x = gaussian_points(mean, variances, basis, 4)
    x = (x + SIGMA * torch.randn(x.shape, generator=seeded(2))).float()
    low, shift = wide.to(dtype), mean.to(dtype)

    def network(y):  # eps, from an input and with weights in half
        y = y.to(dtype) - shift
        return last((y - y @ low) / SIGMA)

    return (lambda y: y - SIGMA * network(y).float()), wide, x


HALF = [(torch.float16, 2e-3), (torch.bfloat16, 16e-3)]  # twice the spacing of numbers at 1


@pytest.mark.parametrize(("dtype", "bound"), HALF, ids=["fp16", "bf16"])
@pytest.mark.parametrize("way", ["forward", "double-backward", "backward"])
def test_exact_ways_in_half_precision_round_as_the_network_does(way, dtype, bound):
    f, wide, x = in_half(dtype)
    v = torch.randn(x.shape, generator=seeded(5))
    want = (v.double() @ wide).float()
    if way == "backward":
        got = Jacobian(f, x, SIGMA, precision=dtype).vjp(v)
    else:
        got = Jacobian(f, x, SIGMA, way=way, precision=dtype).jvp(v)
    assert float((got - want).norm() / want.norm()) < bound
    chosen = Jacobian(f, x, SIGMA, precision=dtype)
    chosen.jvp(v)
    assert chosen.way == "forward"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_differences_in_half_precision_take_a_longer_step(dtype):
    f, wide, x = in_half(dtype, last=Coarse.apply)
    v = torch.randn(x.shape, generator=seeded(5))
    want = (v.double() @ wide).float()

    def error(out):
        return float((out - want).norm() / want.norm())

    jacobian = Jacobian(f, x, SIGMA, precision=dtype)
    good = error(jacobian.jvp(v))
    assert jacobian.way == "difference"
    # the points are 3 / SIGMA = 30 times the scale, so that rounding takes most of the digits
    assert good < {torch.float16: 0.1, torch.bfloat16: 0.6}[dtype]
    assert error(difference_jvp(f, x, v, SIGMA)) > 5 * good  # as if all were in single


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("estimator", [spectral_lid, jacobian_rank])
def test_estimators_count_in_half_precision(estimator, dtype):
    f, _, x = in_half(dtype)
    model = FunctionDenoiser(lambda y, s: f(y))
    model.dtype = dtype
    result = estimator(model, x, SIGMA, n_noises=4, generator=seeded())
    assert float((result.lid - 8).abs().max()) < 0.5 + 4 * float(result.stderr.max())


class Network:
    """Something to remember, over tanh with chosen derivatives."""

    def __init__(self, tanh):
        self.tanh, self.calls = tanh, 0
        self.mix = rotation(6, 6, 0)

    def __call__(self, x):
        self.calls += 1
        return self.tanh(x @ self.mix)


CASES = [
    (torch.tanh, "forward"),
    (OnlyForward.apply, "forward"),
    (Twice.apply, "double-backward"),
    (OnlyBackward.apply, "difference"),
]


@pytest.mark.parametrize(("tanh", "way"), CASES)
def test_the_way_is_found_once_in_the_life_of_a_network(tanh, way, monkeypatch):
    network = Network(tanh)
    x = torch.randn(3, 6, generator=seeded(), dtype=torch.float64)
    first = Jacobian(lambda y: network(y), x, 0.01, network=network)
    first.jvp(x)
    assert first.way == way
    tried = []
    inner = Jacobian._jvp

    def spy(self, which, v):
        tried.append(which)
        return inner(self, which, v)

    monkeypatch.setattr(Jacobian, "_jvp", spy)
    other = Jacobian(lambda y: network(y), -x, 0.01, network=network)
    other.jvp(x)
    other.jvp(-x)
    assert tried == [way, way]
    gone = weakref.ref(network)
    del network, first, other
    gc.collect()
    assert gone() is None


def test_a_network_that_changes_falls_back():
    network = Network(torch.tanh)
    x = torch.randn(3, 6, generator=seeded(), dtype=torch.float64)
    Jacobian(network, x, 0.01, network=network).jvp(x)
    network.tanh = OnlyBackward.apply
    jacobian = Jacobian(network, x, 0.01, network=network)
    want = (1 - (x @ network.mix).tanh() ** 2) * (x @ network.mix)
    torch.testing.assert_close(jacobian.jvp(x), want, rtol=1e-4, atol=1e-5)
    assert jacobian.way == "difference"


class Lies(torch.autograd.Function):
    """2 x with a forward mode that is wrong."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g

    @staticmethod
    def jvp(ctx, v):
        return 5 * v


@pytest.mark.parametrize("d", [6, 20_000])
@pytest.mark.parametrize(
    ("f", "way", "factor"),
    [
        (Lies.apply, "double-backward", 2.0),
        # a part that has no second derivative is dropped from the double backward in silence
        (lambda x: x + 3 * OnlyBackward.apply(1e-3 * x), "difference", 1 + 3e-3),
        (lambda x: x + OnlyBackward.apply(x), "difference", 2.0),
    ],
    ids=["wrong forward mode", "small part missing", "half missing"],
)
def test_wrong_derivatives_are_found_out_in_any_dimension(f, way, factor, d):
    x = 1e-3 * torch.randn(2, d, generator=seeded(), dtype=torch.float64)
    jacobian = Jacobian(f, x, 1e-4)
    torch.testing.assert_close(jacobian.jvp(x), factor * x, rtol=1e-2, atol=0)
    assert jacobian.way in (way, "double-backward")  # less than a hundredth is let pass
    if factor == 2:
        assert jacobian.way == way


def test_nothing_is_remembered_without_a_network():
    before = len(products._known)
    x = torch.randn(3, 6, generator=seeded(), dtype=torch.float64)
    Jacobian(torch.tanh, x, 0.01).jvp(x)
    assert len(products._known) == before
