import pytest
import torch

from memfold.linalg.spectrum import lanczos, quadratic_form
from tests.oracles import rotation, seeded, z_score

D = 30


def symmetric(values):
    q = rotation(D, len(values), 1)
    return (q * values) @ q.mT


def starts(n=4):
    return torch.randn(n, D, generator=seeded(), dtype=torch.float64)


def test_all_steps_give_all_eigenvalues():
    values = torch.linspace(-2, 3, D, dtype=torch.float64)
    a = symmetric(values)
    nodes, weights = lanczos(lambda v: v @ a, starts(), D)
    torch.testing.assert_close(nodes, values.expand(4, -1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(weights.sum(1), torch.ones(4).double())
    components = (starts() @ rotation(D, D, 1)) ** 2
    torch.testing.assert_close(weights, components / components.sum(1, True), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("m", [1, 3, 6])
def test_quadrature_is_exact_for_polynomials(m):
    # Gauss: m nodes integrate the powers up to 2 m - 1
    a = symmetric(torch.linspace(-1, 1.5, D, dtype=torch.float64))
    v = starts()
    for power in range(2 * m):
        truth = torch.einsum("bi,ij,bj->b", v, torch.linalg.matrix_power(a, power), v)
        got = quadratic_form(lambda u: u @ a, lambda l, p=power: l**p, v, m)
        torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_steps", [4, 8, 50])
def test_quadratic_form_is_exact_for_few_distinct_eigenvalues(n_steps):
    # 3 distinct ones and 0: 4 steps suffice, and more must not spoil it
    values = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5, -0.25], dtype=torch.float64)
    q, v = rotation(D, 6, 1), starts()
    truth = ((v @ q) ** 2 * values.exp()).sum(1) + (v**2).sum(1) - ((v @ q) ** 2).sum(1)
    got = quadratic_form(lambda u: (u @ q * values) @ q.mT, torch.exp, v, n_steps)
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-10)


def test_no_products_are_taken_once_all_runs_have_ended():
    q, taken = rotation(D, 6, 1), []

    def product(u):
        taken.append(len(u))
        return (u @ q) @ q.mT

    lanczos(product, starts(), 20)
    assert len(taken) == 2  # a projection has two eigenvalues


def test_zero_operator():
    got = quadratic_form(torch.zeros_like, lambda l: l + 2, starts(), 5)
    torch.testing.assert_close(got, 2 * (starts() ** 2).sum(1))


def test_a_batch_of_different_operators():
    matrices = torch.stack([symmetric(torch.linspace(0, s, D).double()) for s in (1, 2, 3, 4)])
    got, _ = lanczos(lambda v: torch.einsum("bij,bj->bi", matrices, v), starts(), 6)
    for i in range(4):
        alone, _ = lanczos(lambda v, i=i: v @ matrices[i], starts()[i : i + 1], 6)
        torch.testing.assert_close(got[i : i + 1], alone)


def test_image_shaped_vectors():
    a, v = symmetric(torch.linspace(0, 1, D).double()), starts()

    def product(u):
        return (u.flatten(1) @ a).reshape(u.shape)

    flat = quadratic_form(lambda u: u @ a, torch.sqrt, v, 5)
    torch.testing.assert_close(quadratic_form(product, torch.sqrt, v.reshape(4, 2, 3, 5), 5), flat)


def test_random_signs_give_the_trace_of_a_function():
    a = symmetric(torch.linspace(0.1, 1, D).double())
    signs = torch.randint(2, (4000, D), generator=seeded(2)).double() * 2 - 1
    each = quadratic_form(lambda v: v @ a, torch.log, signs, 12)
    assert abs(z_score(each - torch.logdet(a))) < 4
