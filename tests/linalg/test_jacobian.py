import gc
from itertools import pairwise

import pytest
import torch

from memfold.linalg.jacobian import Jacobian, graph_bytes
from memfold.types import InputError
from tests.oracles import seeded, tiny_unet, unchecked


def curved(x):
    """Return a nonlinear, nonsymmetric map of each row."""
    a = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    return torch.tanh(x @ a) + 0.3 * x.roll(1, 1) * x


def unet_function():
    net = tiny_unet().double()

    def f(x):
        return net(x, torch.full((len(x),), 300.0, dtype=torch.float64)).sample

    return f


CASES = {
    "curved": (curved, torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)),
    "unet": (unet_function(), torch.randn(2, 2, 8, 8, generator=seeded(2), dtype=torch.float64)),
}


def dense(f, x):
    """Jacobian of each row by autograd, shape (b, d, d): every unit vector in one backward pass."""
    rows, n = [], x[0].numel()
    for row in x:
        y = row.expand(n, *row.shape).clone().requires_grad_(True)
        units = torch.eye(n, dtype=x.dtype).reshape(n, *row.shape)
        rows.append(torch.autograd.grad(f(y), y, units)[0].flatten(1))
    return torch.stack(rows)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    f, x = CASES[request.param]
    v = torch.randn(x.shape, generator=seeded(3), dtype=torch.float64)
    return f, x, v, dense(f, x)


def times(matrix, v):
    return torch.einsum("bij,bj->bi", matrix, v.flatten(1)).reshape(v.shape)


def test_vjp_equals_dense(case):
    f, x, v, j = case
    jacobian = Jacobian(f, x, 1.0)
    torch.testing.assert_close(jacobian.vjp(v), times(j.mT, v))
    torch.testing.assert_close(jacobian.vjp(2 * v), 2 * times(j.mT, v))  # the graph is retained
    torch.testing.assert_close(jacobian.value, f(x))


def test_jvp_error_is_of_second_order(case):
    f, x, v, j = case
    truth = times(j, v)
    errors = [
        float((Jacobian(f, x, s, way="difference").jvp(v) - truth).norm())
        for s in (2.0, 1.0, 0.5, 0.25)
    ]
    orders = [float(torch.tensor(a / b).log2()) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2, 2, 2], abs=0.15)
    assert errors[-1] < 1e-3 * float(truth.norm())


@pytest.mark.parametrize("way", ["auto", "forward", "double-backward"])
def test_exact_ways(way):
    f, x = CASES["curved"]
    v, j = x.flip(0), dense(f, x)
    jacobian = Jacobian(f, x, 1.0, way=way)
    for u in (v, -2 * v):  # the graph is retained
        torch.testing.assert_close(jacobian.jvp(u), times(j, u))
    assert jacobian.way == {"auto": "forward"}.get(way, way)


def test_fused_attention_leaves_the_difference():
    f, x = CASES["unet"]
    jacobian = Jacobian(f, x, 1e-2, way="auto")
    v = x.flip(0)
    truth = times(dense(f, x), v)
    assert float((jacobian.jvp(v) - truth).norm()) < 1e-4 * float(truth.norm())
    assert jacobian.way == "difference"


def test_unknown_way():
    f, x = CASES["curved"]
    with unchecked(), pytest.raises(InputError, match="way = 'sideways' is unknown"):
        Jacobian(f, x, 1.0, way="sideways")


def test_more_outputs_than_inputs():
    a = torch.randn(6, 9, generator=seeded(), dtype=torch.float64)
    x, v = CASES["curved"][1], CASES["curved"][1].flip(0)
    for way in ("forward", "double-backward", "difference"):
        jacobian = Jacobian(lambda y: (y @ a).reshape(-1, 3, 3), x, 1.0, way=way)
        torch.testing.assert_close(jacobian.jvp(v), (v @ a).reshape(-1, 3, 3))
        u = torch.ones(3, 3, 3, dtype=torch.float64)
        torch.testing.assert_close(jacobian.vjp(u), u.flatten(1) @ a.mT)


def test_symmetric_is_half_the_sum(case):
    f, x, v, j = case
    truth = times((j + j.mT) / 2, v)
    difference = Jacobian(f, x, 1e-3, way="difference").symmetric(v) - truth
    assert float(difference.norm()) < 1e-6 * float(truth.norm())


def test_jvp_scales_with_each_sample():
    f, x = CASES["curved"]
    v = torch.randn(x.shape, generator=seeded(3), dtype=torch.float64)
    scale = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    whole = Jacobian(f, x, scale, way="difference").jvp(v)
    for i in range(3):
        alone = Jacobian(f, x[i : i + 1], float(scale[i]), way="difference").jvp(v[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone)


def test_jvp_does_not_depend_on_the_length_of_v():
    f, x = CASES["curved"]
    v = torch.randn(x.shape, generator=seeded(3), dtype=torch.float64)
    j = Jacobian(f, x, 0.5, way="difference")
    torch.testing.assert_close(j.jvp(1e6 * v) / 1e6, j.jvp(v), rtol=1e-9, atol=1e-12)
    assert j.jvp(torch.zeros_like(v)).abs().max() == 0


def test_a_long_single_direction_stays_in_the_neighbourhood():
    # D between two point masses 2 sigma apart, in 10,000 dimensions: tanh with a width of sigma.
    # .02 sqrt(10,000) = 2 sigma along that direction would see nothing of its slope.
    d, sigma = 10_000, 0.1
    e = torch.zeros(1, d, dtype=torch.float64)
    e[0, 0] = 1

    def f(x):
        return sigma * torch.tanh(x[:, :1] / sigma) * e

    jacobian = Jacobian(f, torch.zeros(1, d, dtype=torch.float64), sigma, way="difference")
    # tanh(h) / h = 1 - h^2 / 3 at h = 1/4
    assert float(jacobian.jvp(e)[0, 0]) == pytest.approx(1 - 0.25**2 / 3, abs=1e-3)


def test_works_where_the_caller_switched_gradients_off(case):
    f, x, v, j = case
    with torch.no_grad():
        out = Jacobian(f, x, 1.0).vjp(v)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(out, times(j.mT, v))


def test_point_and_vector_are_left_alone():
    f, x = CASES["curved"]
    x, v = x.clone(), torch.ones_like(x)
    before = x.clone()
    jacobian = Jacobian(f, x, 1.0)
    for product in (jacobian.vjp, jacobian.jvp, jacobian.symmetric):
        assert not product(v).requires_grad
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert not x.requires_grad
    assert x.grad is None


def test_graph_bytes_counts_what_grows_with_the_batch():
    weight = torch.nn.Parameter(torch.eye(64), requires_grad=False)

    def f(x):
        return torch.tanh(x @ weight.T)  # tanh keeps its output; the weight is there anyway

    assert graph_bytes(f, torch.zeros(1, 64)) == 64 * 4
    assert graph_bytes(f, torch.zeros(10, 64)) == 10 * 64 * 4


def test_graph_bytes_keeps_nothing():
    f, x = CASES["unet"]
    graph_bytes(f, x)

    def living():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    before = living()
    for _ in range(3):
        graph_bytes(f, x)
    assert living() == before
