import pytest
import torch

from memfold.linalg.subspace import leading_eigenvalues
from tests.oracles import rotation, seeded

D = 40


def operator(*spectra):
    """Return a batch of symmetric operators with the given eigenvalues in random directions."""
    q = rotation(D, D, 1)
    matrices = torch.stack([(q * torch.as_tensor(s).double()) @ q.mT for s in spectra])
    return lambda v: torch.einsum("bij,bj->bi", matrices, v)


def points(b):
    return torch.randn(b, D, generator=seeded(7), dtype=torch.float64)


def low_rank(k, rest=0.0):
    return torch.cat([torch.linspace(0.7, 1, k), torch.full((D - k,), rest)])


@pytest.mark.parametrize("block", [1, 5, 16, 64])
@pytest.mark.parametrize("k", [0, 1, 15, 16, 17, 39, 40])
def test_low_rank_is_exact(k, block):
    found = leading_eigenvalues(operator(low_rank(k)), points(1), above=0.5, block=block, seed=3)
    assert bool(found.complete)
    values = found.values[0]
    torch.testing.assert_close(values[:k], low_rank(k)[:k].flip(0).double(), atol=1e-9, rtol=0)
    assert values[k:].abs().max() < 1e-9 if len(values) > k else True
    assert int(found.products) == 2 * len(values) <= 2 * min(D, k + block)


def test_descending_and_padded_with_nan():
    found = leading_eigenvalues(
        operator(low_rank(2), low_rank(25)), points(2), above=0.5, block=8, seed=3
    )
    assert found.values.shape == (2, 32)
    assert found.products.tolist() == [16, 64]
    assert found.values[0].isnan().sum() == 24
    assert not found.values[1].isnan().any()
    assert bool((found.values[1, :-1] >= found.values[1, 1:]).all())


def test_rows_are_independent():
    both = leading_eigenvalues(
        operator(low_rank(2), low_rank(25)), points(2), above=0.5, block=8, seed=3
    )
    for i, k in enumerate((2, 25)):
        one = leading_eigenvalues(
            operator(low_rank(k)), points(2)[i : i + 1], above=0.5, block=8, seed=3
        )
        torch.testing.assert_close(one.values[0], both.values[i, : one.values.shape[1]])


def test_a_negative_bulk_is_no_hindrance():
    found = leading_eigenvalues(
        operator(low_rank(6, rest=-0.3)), points(1), above=0.5, block=12, seed=3
    )
    values = found.values[0]
    torch.testing.assert_close(values[:6], low_rank(6)[:6].flip(0).double(), atol=0.02, rtol=0)
    assert int((values > 0.5).sum()) == 6


@pytest.mark.parametrize("n_iterations", [1, 3])
def test_a_spectrum_without_a_gap(n_iterations):
    # eigenvalues spread over (0, 1): 20 above 1/2; Ritz values lie below them
    found = leading_eigenvalues(
        operator(torch.linspace(0, 1, D)), points(1), above=0.5, n_iterations=n_iterations, seed=3
    )
    assert 20 - int((found.values[0] > 0.5).sum()) in ((0, 1, 2) if n_iterations == 1 else (0, 1))


def test_too_few_directions_are_reported():
    found = leading_eigenvalues(
        operator(low_rank(2), low_rank(25)), points(2), above=0.5, max_size=20, seed=3
    )
    assert found.complete.tolist() == [True, False]
    assert found.values.shape[1] == 20


def test_nan_products_stay_in_their_row():
    good = operator(low_rank(2), low_rank(25))

    def product(v):
        out = good(v)
        out[0] = torch.nan
        return out

    found = leading_eigenvalues(product, points(2), above=0.5, block=8, seed=3)
    assert found.values[0].isnan().all()
    assert int((found.values[1] > 0.5).sum()) == 25


def test_image_shaped_vectors():
    flat = leading_eigenvalues(operator(low_rank(9)), points(1), above=0.5, seed=3)
    good = operator(low_rank(9))
    image = leading_eigenvalues(
        lambda v: good(v.flatten(1)).reshape(v.shape),
        points(1).reshape(1, 2, 4, 5),
        above=0.5,
        seed=3,
    )
    torch.testing.assert_close(image.values, flat.values)
