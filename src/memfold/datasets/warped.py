"""Curved mixtures of known dimension: affine subspaces, bent by a diffeomorphism of the space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.datasets.manifolds import subspaces
from memfold.tensors import check_generator
from memfold.types import InputError, Samples


def squiggly(
    dims: Sequence[int] = (10, 25, 50),
    ambient: int = 100,
    n: int = 1000,
    *,
    amplitude: float = 0.5,
    frequency: float = 2.0,
    spread: float = 5.0,
    generator: torch.Generator,
) -> Samples:
    """Draw from a mixture of affine Gaussian subspaces, every coordinate of the space rippled.

    The points of `subspaces` are moved by y = x + (a / w) sin(w x) in each coordinate, with a the
    amplitude and w the frequency. Its derivative 1 + a cos(w x) lies between 1 - a and 1 + a, so
    that it is a diffeomorphism and leaves LID as it was; its curvature is up to a w. Mixtures like
    these, 10/25/50 dimensions in 100 and 10/80/200 in 800, are those of Kamkari et al. (2024,
    arXiv 2406.03537, section 4) and Tempczyk et al. (2022, arXiv 2206.14882); the ripple is ours.

    Args:
        dims: dimension of each subspace.
        ambient: dimension of the space, at least the largest of dims.
        n: number of points in all; each comes from a subspace drawn with equal chance.
        amplitude: a, from 0 (flat) to below 1.
        frequency: w, in radians per unit of a coordinate, above 0.
        spread: standard deviation of each coordinate of the offsets; within a subspace it is 1.
        generator: source of everything random.

    Returns:
        Samples with x of shape (n, ambient); `component` tells the subspace.

    Raises:
        InputError: if a subspace does not fit, or the ripple would not be a diffeomorphism.

    >>> import torch
    >>> s = squiggly((1, 3), 6, 5, generator=torch.Generator().manual_seed(0))
    >>> sorted({int(lid) for lid in s.lid})
    [1, 3]
    """
    check_generator(generator)
    if not 0 <= amplitude < 1:
        raise InputError(f"amplitude is {amplitude}: pass 0 or more and less than 1")
    if not 0 < frequency < float("inf"):
        raise InputError(f"frequency is {frequency}: pass a positive number")
    flat = subspaces(dims, ambient, n, spread=spread, generator=generator)
    return Samples(ripple(flat.x, amplitude, frequency), flat.lid, flat.component)


def flow_warped(
    dims: Sequence[int] = (10, 25, 50),
    ambient: int = 100,
    n: int = 1000,
    *,
    layers: int = 4,
    strength: float = 0.3,
    spread: float = 5.0,
    generator: torch.Generator,
) -> Samples:
    """Draw from a mixture of affine Gaussian subspaces, bent by a random `Flow`.

    A diffeomorphism leaves LID as it was. Kamkari et al. (2024, arXiv 2406.03537, section 4) bend
    theirs by spline flows; the couplings here are simpler.

    Args:
        dims: dimension of each subspace.
        ambient: dimension of the space, at least the largest of dims and 2.
        n: number of points in all; each comes from a subspace drawn with equal chance.
        layers: couplings of the flow; 0 leaves the subspaces flat.
        strength: how far a coupling stretches, as in `Flow`.
        spread: standard deviation of each coordinate of the offsets; within a subspace it is 1.
        generator: source of everything random: first the points, then the flow.

    Returns:
        Samples with x of shape (n, ambient); `component` tells the subspace.

    Raises:
        InputError: if a subspace does not fit, or the flow cannot be made.

    >>> import torch
    >>> s = flow_warped((1, 3), 6, 5, generator=torch.Generator().manual_seed(0))
    >>> sorted({int(lid) for lid in s.lid})
    [1, 3]
    """
    check_generator(generator)
    flat = subspaces(dims, ambient, n, spread=spread, generator=generator)
    flow = Flow(ambient, layers=layers, strength=strength, generator=generator)
    return Samples(flow(flat.x), flat.lid, flat.component)


def ripple(x: Float[Tensor, "*b"], amplitude: float, frequency: float) -> Float[Tensor, "*b"]:
    """Move each coordinate by (amplitude / frequency) sin(frequency x)."""
    return x + amplitude / frequency * torch.sin(frequency * x)


class Flow:
    """A random diffeomorphism of the space: affine couplings (Dinh et al. 2017, eq. 7 and 8).

    Each layer deals the coordinates at random into halves u and v, and moves one by the other:

        v' = v exp(c tanh s(u)) + tanh t(u),    (s, t)(u) = W tanh(V u + b),

    c the strength. Its Jacobian is triangular, with a diagonal between exp(-c) and exp(c): nowhere
    singular. Coordinates of the size of ten or less bend it most.

    Args:
        dim: dimension of the space, at least 2.
        layers: number of couplings.
        strength: c, 0 or more.
        generator: source of the halves and the weights.

    Raises:
        InputError: if a number is out of range.

    >>> import torch
    >>> flow = Flow(3, generator=torch.Generator().manual_seed(0))
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> flow.inverse(flow(x))
    tensor([[1.0000, 2.0000, 3.0000]])
    """

    _hidden = 64

    def __init__(
        self, dim: int, *, layers: int = 4, strength: float = 0.3, generator: torch.Generator
    ) -> None:
        check_generator(generator)
        if dim < 2 or layers < 0 or not 0 <= strength < 10:
            raise InputError(
                f"dim is {dim}, layers {layers}, strength {strength}: "
                "a flow needs 2 dimensions, 0 or more layers and a strength from 0 to 10"
            )
        self.strength = strength
        self._layers = [self._layer(dim, generator) for _ in range(layers)]

    def _layer(self, dim: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        half, h = dim // 2, self._hidden
        order = torch.randperm(dim, generator=generator)
        first = torch.randn(h, half, generator=generator) / (2 * half**0.5)
        shift = torch.randn(h, generator=generator)
        last = torch.randn(2 * (dim - half), h, generator=generator) / h**0.5
        return order[:half], order[half:], first, shift, last

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Map points, shape (n, d)."""
        for layer in self._layers:
            log_scale, move = self._change(x, layer)
            x = x.index_copy(1, layer[1], x[:, layer[1]] * log_scale.exp() + move)
        return x

    def inverse(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Undo the map, shape (n, d)."""
        for layer in reversed(self._layers):
            log_scale, move = self._change(x, layer)
            x = x.index_copy(1, layer[1], (x[:, layer[1]] - move) * (-log_scale).exp())
        return x

    def _change(self, x: Tensor, layer: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        by, _, first, shift, last = layer
        both = torch.tanh(x[:, by] @ first.T.to(x) + shift.to(x)) @ last.T.to(x)
        log_scale, move = both.chunk(2, 1)
        return self.strength * torch.tanh(log_scale), torch.tanh(move)
