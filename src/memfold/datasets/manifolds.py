"""Samples from manifolds whose dimension is known: the truth travels with the points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import check_generator
from memfold.types import InputError, Samples


def sphere(dim: int, ambient: int, n: int, *, generator: torch.Generator) -> Samples:
    """Draw uniformly from the unit sphere of dimension `dim`, turned and moved in space.

    Args:
        dim: dimension of the sphere, the LID of every point.
        ambient: dimension of the space, at least dim + 1.
        n: number of points.
        generator: source of the points, the rotation and the offset.

    Returns:
        Samples with x of shape (n, ambient).

    Raises:
        InputError: if the space is too small.

    >>> import torch
    >>> sphere(2, 5, 10, generator=torch.Generator().manual_seed(0)).x.shape
    torch.Size([10, 5])
    """
    check_generator(generator)
    x = torch.randn(n, dim + 1, generator=generator)
    return _one(place(x / x.norm(dim=1, keepdim=True), ambient, generator=generator), dim)


def torus(
    n: int,
    *,
    ambient: int = 3,
    major: float = 2.0,
    minor: float = 1.0,
    generator: torch.Generator,
) -> Samples:
    """Draw from a torus of revolution (LID 2), both angles uniform, turned and moved in space.

    Args:
        n: number of points.
        ambient: dimension of the space, at least 3.
        major: distance from the centre to the middle of the tube.
        minor: radius of the tube.
        generator: source of the points, the rotation and the offset.

    Returns:
        Samples with x of shape (n, ambient).

    Raises:
        InputError: if the space is too small.
    """
    check_generator(generator)
    u, v = 2 * math.pi * torch.rand(2, n, generator=generator)
    ring = major + minor * v.cos()
    x = torch.stack([ring * u.cos(), ring * u.sin(), minor * v.sin()], 1)
    return _one(place(x, ambient, generator=generator), 2)


def swiss_roll(n: int, *, ambient: int = 3, generator: torch.Generator) -> Samples:
    """Draw from the Swiss roll (LID 2) with angles in 3 pi (1..3) / 2, turned and moved in space.

    Args:
        n: number of points.
        ambient: dimension of the space, at least 3.
        generator: source of the points, the rotation and the offset.

    Returns:
        Samples with x of shape (n, ambient); the roll is 21 wide, its leaves 2 pi apart.

    Raises:
        InputError: if the space is too small.
    """
    check_generator(generator)
    angle, height = torch.rand(2, n, generator=generator)
    angle = 1.5 * math.pi * (1 + 2 * angle)
    x = torch.stack([angle * angle.cos(), 21 * height, angle * angle.sin()], 1)
    return _one(place(x, ambient, generator=generator), 2)


def subspaces(
    dims: Sequence[int] = (3, 17, 60),
    ambient: int = 500,
    n: int = 1000,
    *,
    spread: float = 5.0,
    generator: torch.Generator,
) -> Samples:
    """Draw from a mixture of affine Gaussian subspaces, each turned and moved at random.

    Args:
        dims: dimension of each subspace.
        ambient: dimension of the space, at least the largest of dims.
        n: number of points in all; each comes from a subspace drawn with equal chance.
        spread: standard deviation of each coordinate of the offsets; within a subspace it is 1.
        generator: source of everything random.

    Returns:
        Samples with x of shape (n, ambient); `component` tells the subspace.

    Raises:
        InputError: if a subspace does not fit into the space.
    """
    check_generator(generator)
    component = torch.randint(len(dims), (n,), generator=generator)
    x = torch.empty(n, ambient)
    for i, dim in enumerate(dims):
        flat = torch.randn(int((component == i).sum()), dim, generator=generator)
        x[component == i] = place(flat, ambient, spread=spread, generator=generator)
    return Samples(x, torch.tensor(dims, dtype=x.dtype)[component], component)


def lollipop(
    n: int, *, weights: tuple[float, float, float] = (0.1, 0.3, 0.6), generator: torch.Generator
) -> Samples:
    """Draw from a point (LID 0), a stick (LID 1) and a disc (LID 2) in the plane.

    The disc of radius 1 is centred at (3, 3), the stick runs towards it along the diagonal, from
    1 to the disc's edge, and the point mass stands at the origin.

    Args:
        n: number of points.
        weights: shares of point, stick and disc, which are components 0, 1 and 2.
        generator: source of the points.

    Returns:
        Samples with x of shape (n, 2).

    Raises:
        InputError: if a weight is negative or all are 0.
    """
    check_generator(generator)
    component = _components(weights, n, generator)
    u, v = torch.rand(2, n, generator=generator)
    along = 1 + u * (3 * math.sqrt(2) - 2)  # distance from the origin
    stick = along[:, None].expand(-1, 2) / math.sqrt(2)
    angle = 2 * math.pi * v
    disc = 3 + u.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    x = torch.stack([torch.zeros(n, 2), stick, disc])[component, torch.arange(n)]
    return Samples(x, component.to(x.dtype), component)


def circle_with_point_mass(
    n: int, *, concentration: float = 1.0, mass: float = 0.2, generator: torch.Generator
) -> Samples:
    """Draw a von Mises law on the unit circle (LID 1), mixed with a point mass at the origin.

    The density at angle t is exp(concentration cos t) / (2 pi I_0(concentration)): thin at
    t = pi, where single points stand alone (Ross et al. 2025, section 5).

    Args:
        n: number of points.
        concentration: how much the law gathers at (1, 0); 0 is uniform.
        mass: share of the origin.
        generator: source of the points.

    Returns:
        Samples with x of shape (n, 2); component 0 is the origin (LID 0), 1 the circle (LID 1).

    Raises:
        InputError: if the mass is no share or the concentration is negative.
    """
    check_generator(generator)
    if concentration < 0:
        raise InputError(f"concentration is {concentration}: pass 0 or more")
    component = _components((mass, 1 - mass), n, generator)
    angle = torch.empty(0)
    while len(angle) < n:  # rejection from the uniform law
        t, u = torch.rand(2, 4 * n + 16, generator=generator)
        t = 2 * math.pi * t - math.pi
        angle = torch.cat([angle, t[u < torch.exp(concentration * (t.cos() - 1))]])
    x = torch.stack([angle[:n].cos(), angle[:n].sin()], 1) * component[:, None]
    return Samples(x, component.to(x.dtype), component)


def place(
    x: Float[Tensor, "n d"], ambient: int, *, spread: float = 1.0, generator: torch.Generator
) -> Float[Tensor, "n ambient"]:
    """Put points into a larger space, turned at random and moved off the origin.

    Args:
        x: points, shape (n, d).
        ambient: dimension of the space, at least d.
        spread: standard deviation of each coordinate of the offset.
        generator: source of the rotation and the offset.

    Returns:
        The points, with all distances kept, shape (n, ambient).

    Raises:
        InputError: if the space is too small.
    """
    check_generator(generator)
    d = x.shape[1]
    if ambient < d:
        raise InputError(f"ambient is {ambient}, but the points need {d} dimensions or more")
    axes, _ = torch.linalg.qr(torch.randn(ambient, d, generator=generator))
    return x @ axes.T + spread * torch.randn(ambient, generator=generator)


def _one(x: Tensor, dim: int) -> Samples:
    return Samples(x, torch.full((len(x),), float(dim)), torch.zeros(len(x), dtype=torch.long))


def _components(weights: Sequence[float], n: int, generator: torch.Generator) -> Tensor:
    if min(weights) < 0 or sum(weights) <= 0:
        raise InputError(f"weights are {tuple(weights)}: pass shares of 0 or more")
    return torch.multinomial(torch.tensor(weights), n, replacement=True, generator=generator)
