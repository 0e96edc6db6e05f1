"""J v in three ways against the dense Jacobian."""

import pytest
import torch

from memfold.linalg.products import (
    WAYS,
    difference_jvp,
    double_backward_jvp,
    forward_jvp,
    jvp,
    way_that_works,
)
from memfold.types import InputError
from tests.oracles import seeded, unchecked

EXACT = [forward_jvp, double_backward_jvp]


def square(x):
    a = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    return torch.tanh(x @ a) + 0.3 * x.roll(1, 1) * x


def wider(x):
    a = torch.randn(6, 9, generator=seeded(), dtype=torch.float64)
    return torch.sin(x @ a).reshape(len(x), 3, 3)


def linear(x):
    a = torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    return x @ a


def point(n=3):
    return torch.randn(n, 6, generator=seeded(1), dtype=torch.float64)


def truth(f, x, v):
    rows = [torch.autograd.functional.jacobian(lambda y: f(y[None])[0], row) for row in x]
    return torch.stack([torch.tensordot(j, u, 1) for j, u in zip(rows, v, strict=True)])


@pytest.mark.parametrize("f", [square, wider, linear])
def test_every_way_is_the_dense_product(f):
    x, v = point(), torch.randn(3, 6, generator=seeded(2), dtype=torch.float64)
    want = truth(f, x, v)
    for product in EXACT:
        torch.testing.assert_close(product(f, x, v), want)
    got = difference_jvp(f, x, v, 1e-3)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for way in (*WAYS, "auto"):
        torch.testing.assert_close(jvp(f, x, v, way=way, scale=1e-3), want, rtol=1e-6, atol=1e-6)


def test_constant_maps():
    for product in (*EXACT, difference_jvp):
        out = product(lambda x: torch.ones(len(x), 2, dtype=x.dtype), point(), point())
        assert out.tolist() == [[0, 0]] * 3
        assert product(lambda x: 0 * x + 1, point(), point()).abs().max() == 0


class OnlyBackward(torch.autograd.Function):
    """tanh with a first derivative and no other, like a fused kernel."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class Twice(torch.autograd.Function):
    """tanh with two derivatives and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class OnlyForward(torch.autograd.Function):
    """tanh with a first derivative and a forward mode, but no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.tanh()

    backward = OnlyBackward.backward

    @staticmethod
    def jvp(ctx, v):
        (x,) = ctx.saved_tensors
        return v * (1 - x.tanh() ** 2)


@pytest.mark.parametrize(
    ("f", "way"),
    [
        (square, "forward"),
        (Twice.apply, "double-backward"),
        (OnlyForward.apply, "forward"),
        (OnlyBackward.apply, "difference"),
    ],
)
def test_the_way_is_chosen_by_what_works(f, way):
    assert way_that_works(f, point()) == way
    x, v = point(), torch.randn(3, 6, generator=seeded(2), dtype=torch.float64)
    want = truth(f, x, v)
    torch.testing.assert_close(jvp(f, x, v, scale=1e-3), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_an_exact_way_where_there_is_one(dtype):
    assert way_that_works(torch.tanh, point().to(dtype)) == "forward"
    assert way_that_works(lambda x: x.to(dtype).tanh().float(), point().float()) == "forward"
    assert way_that_works(OnlyBackward.apply, point().to(dtype)) == "difference"


def test_errors_of_the_map_itself_are_its_own():
    def broken(x):
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        way_that_works(broken, point())


def test_nothing_is_left_behind():
    x, v = point(), point()
    with torch.no_grad():
        for way in WAYS:
            assert not jvp(square, x, v, way=way).requires_grad
    assert x.grad is None
    assert not x.requires_grad


def test_unknown_way():
    with unchecked(), pytest.raises(InputError, match="way = 'sideways' is unknown"):
        jvp(square, point(), point(), way="sideways")
