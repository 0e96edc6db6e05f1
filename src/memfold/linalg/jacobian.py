"""Products with the Jacobian J = dD/dx at a batch of points, without ever forming it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError

from .products import (
    HALF,
    WAYS,
    adjoint_holds,
    difference_jvp,
    forward_jvp,
    known_way,
    remember,
)

_FALSE, _SEEN = 0.5, 0.02  # how much gradients may miss of what f does, and of |v|^2 at least
_FINER, _STEADY = 8, 0.2  # a second step, and how well the difference must agree with itself
_STEP, _RESOLVED = 0.25, 0.1  # the step's length over the scale, and the rounding allowed in it


class GradientWarning(UserWarning):
    """A function gives no gradients, or wrong ones: its Jacobian is taken from differences."""


class Jacobian:
    """J = df/dx at each point of a batch, as an operator.

    Vector-Jacobian products share one retained graph. Jacobian-vector products take the first way
    that f allows (see `products`): forward mode, exact, a pass each; double backward through the
    graph, exact too, which keeps a second one; and else, as with fused attention, a central
    difference of two passes. The first product tries them, and compares them with J^T;
    what works is remembered with the network.

    Args:
        f: maps (b, *d) to (b, *e), sample by sample.
        x: the points, shape (b, *d).
        scale: the length over which f is smooth (sigma, for a denoiser): sets the difference's
            step.
        way: of `jvp`: "auto", "forward", "double-backward" or "difference".
        network: what f calls, any object: for it, "auto" is decided once in its lifetime.
        precision: what the network computes in, where that is not the dtype of x: sets the
            difference's step and the test's tolerance.

    Attributes:
        value: f(x), shape (b, *e).

    Raises:
        InputError: an unknown way.
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        x: Float[Tensor, "b *d"],
        scale: float | Tensor,
        *,
        way: str = "auto",
        network: object | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        if way not in ("auto", *WAYS):
            raise InputError(f"way = {way!r} is unknown; choose from auto, {', '.join(WAYS)}")
        self.f, self.scale, self.way = f, scale, way
        self.network, self.precision = network, precision
        with torch.enable_grad():
            self.x = x.detach().requires_grad_(True)
            self._y = with_graph(f, self.x)
        self.value = self._y.detach()
        self._image: tuple[Tensor, Tensor] | None = None
        self._trust: bool | None = None

    def vjp(self, v: Float[Tensor, "b *e"]) -> Float[Tensor, "b *d"]:
        """Return J^T v: one backward pass through the retained graph; J v where there is none.

        Raises:
            InputError: f has no gradients, and maps to another shape, so that J^T is not J.
        """
        if not self.has_gradients():
            if v.shape != self.x.shape:
                raise InputError(
                    f"the function from {tuple(self.x.shape)} to {tuple(v.shape)} gives no "
                    "gradients, and J^T v is not to be had by differences; give it gradients"
                )
            return self._jvp("difference", v)
        (out,) = torch.autograd.grad(self._y, self.x, v.to(self._y), retain_graph=True)
        return out

    def jvp(self, v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *e"]:
        """Return J v; exact but for the central difference, of second order in its step."""
        if not self.has_gradients():
            return self._jvp("difference", v)
        if self.way == "auto":
            self.way = known_way(self.network, self.x, self.precision) or self._find_way()
        try:
            return self._jvp(self.way, v)
        except (RuntimeError, NotImplementedError):
            if self.network is None or self.way == "difference":
                raise
            self.way = self._find_way()  # the network has changed since
            return self._jvp(self.way, v)

    def has_gradients(self) -> bool:
        """Tell whether f has a graph, and one that agrees with what f does; asked once a network.

        A warning says where it has not.
        """
        if self._trust is None:
            key = ("gradients", self.precision)
            known = known_way(self.network, self.x, key)
            self._trust = self._agrees() if known is None else known == "yes"
            remember(self.network, self.x, key, "yes" if self._trust else "no")
            if not self._trust:
                warnings.warn(
                    "the model gives no gradients (or none that agree with what it does): products "
                    "with its Jacobian are central differences, two passes each, and the Jacobian "
                    "is taken to be symmetric",
                    GradientWarning,
                    stacklevel=2,
                )
        return self._trust

    def _agrees(self) -> bool:
        """Compare v^T J v by the graph with a central difference, for one random v a point.

        The graph is overruled only where it is wrong by half, and by two hundredths of |v|^2, and
        where a difference with another step says the same; half precision has no such differences.
        """
        if not self._y.requires_grad:
            return False
        half = self.precision in HALF or self._y.dtype in HALF or self.x.dtype in HALF
        if half or self._y.shape != self.x.shape or not self._resolved():
            return True
        g = torch.Generator().manual_seed(0)
        v = torch.randn(self.x.shape, generator=g).to(self.x)
        (back,) = torch.autograd.grad(
            self._y, self.x, v.to(self._y), retain_graph=True, allow_unused=True
        )
        if back is None:
            return False
        said, size = float((back * v).sum()), float((v * v).sum())

        def done(finer: int) -> float:
            scale = torch.as_tensor(self.scale) / finer
            return float((difference_jvp(self.f, self.x, v, scale) * v).sum())

        seen = done(1)
        miss = abs(seen - said)
        if miss > max(_FALSE * abs(said), _SEEN * size):
            return abs(done(_FINER) - seen) > _STEADY * miss
        return True  # NaN too, which others refuse

    def _resolved(self) -> bool:
        """Tell whether the points are held finely enough for differences to judge a graph."""
        size = float(self.x.detach().flatten(1).norm(dim=1).max())
        least = float(torch.as_tensor(self.scale).min()) * _STEP / _FINER
        return torch.finfo(self.x.dtype).eps * size <= _RESOLVED * least

    def _find_way(self) -> str:
        for way in WAYS[:-1]:
            try:
                if adjoint_holds(self._y, self.x, partial(self._jvp, way), self.precision):
                    break
            except (RuntimeError, NotImplementedError):
                continue
        else:
            way = "difference"
        remember(self.network, self.x, self.precision, way)
        return way

    def _jvp(self, way: str, v: Tensor) -> Tensor:
        if way == "forward":
            return forward_jvp(self.f, self.x, v)
        if way == "double-backward":
            return self._double_backward(v)
        return difference_jvp(self.f, self.x, v, self.scale, precision=self.precision)

    def _double_backward(self, v: Tensor) -> Tensor:
        """Differentiate u -> J^T u, which is linear in u and built once, along v."""
        if self._image is None:
            with torch.enable_grad():
                u = torch.zeros_like(self._y, requires_grad=True)
                (image,) = torch.autograd.grad(self._y, self.x, u, create_graph=True)
            self._image = (image, u)
        image, u = self._image
        (out,) = torch.autograd.grad(image, u, v.to(image), retain_graph=True)
        return out

    def symmetric(self, v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return (J + J^T) v / 2; J v where f has no gradients."""
        if not self.has_gradients():
            return self._jvp("difference", v)
        return (self.jvp(v) + self.vjp(v)) / 2


def with_graph(f: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *e"]:
    """Return f(x) with its graph; without one where f calls numpy on x, which refuses a leaf."""
    try:
        return f(x)
    except RuntimeError as error:
        if "requires grad" not in str(error):
            raise
        with torch.no_grad():
            return f(x.detach())


def graph_bytes(f: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"]) -> int:
    """Measure how many bytes the graph of f keeps for a backward pass at x.

    Args:
        f: the function.
        x: the points, shape (b, *d).

    Returns:
        Bytes of the tensors that autograd saves, each storage counted once, without the weights,
        which are there anyway.
    """
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> None:
        # Nothing is unpacked. Without its graph: kept as it is, it would hold itself for ever.
        source = tensor if tensor._base is None else tensor._base
        if not isinstance(source, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with_graph(f, x.detach().requires_grad_(True))
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
