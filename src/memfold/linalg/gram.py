"""Gram matrices of many neighbourhoods, gathered from the products of all rows."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from memfold.linalg._screens import Product

_SURE = 1e-7  # of the largest eigenvalue: what the gathered matrix may be wrong by


class SharedGram:
    """Scalar products of all rows about their common mean, in float64: n^2 numbers.

    The k x k Gram matrix of a neighbourhood is then read off, where computing it costs k^2 d. A
    product is wrong by at most e = 4 (d + 16) u max |y|^2, u the unit roundoff and y the centred
    rows (scaled by a power of 2, so that nothing overflows), so that the eigenvalues of the matrix
    centred a second time, about the neighbourhood's own mean, are wrong by at most k e. `sure`
    tells where that is below 1e-7 of the largest one, known to exceed trace / (k - 1). It is not
    among near-duplicates or in a tight cluster: take differences there.

    Args:
        x: rows, shape (n, d).

    >>> import torch
    >>> shared = SharedGram(torch.tensor([[0.0], [2.0], [7.0]]))
    >>> shared.gather(torch.tensor([[0, 1]]))
    tensor([[[0.0352, 0.0117],
             [0.0117, 0.0039]]], dtype=torch.float64)
    """

    def __init__(self, x: Float[Tensor, "n d"]) -> None:
        screen = Product(x, x, fine=True)
        y = screen.place(x)
        self._error = screen.error
        self._products = y @ y.T
        self._square = y.square().sum(1)

    def gather(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k k"]:
        """Read off the Gram matrices of neighbourhoods, about the mean of all rows."""
        n, (b, k) = len(self._products), index.shape
        flat = index[:, :, None] * n + index[:, None]
        return self._products.view(-1).index_select(0, flat.view(-1)).view(b, k, k)

    def sure(self, index: Int[Tensor, "b k"], gram: Float[Tensor, "b k k"]) -> Bool[Tensor, " b"]:
        """Tell which gathered matrices are good to 1e-7 of their largest centred eigenvalue."""
        k = index.shape[1]
        square = self._square[index]
        trace = square.sum(1) - gram.sum((1, 2)) / k
        return k * self._error * square.amax(1) <= _SURE * trace / (k - 1)
