"""Products with the Jacobian J = dD/dx at a batch of points, without ever forming it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.types import InputError

from .products import HALF, WAYS, adjoint_holds, difference_jvp, forward_jvp


class Jacobian:
    """J = df/dx at each point of a batch, as an operator.

    Vector-Jacobian products share one retained graph. Jacobian-vector products are central
    differences unless told otherwise, two forward passes each: they keep nothing in memory, and
    work with fused attention and in any precision. Two other ways are exact, where f allows them:
    double backward through the graph, which is faster but keeps a second graph, and forward mode,
    which keeps none but takes torch seconds to start (see `products`).

    Args:
        f: maps (b, *d) to (b, *e), sample by sample.
        x: the points, shape (b, *d).
        scale: the length over which f is smooth (sigma, for a denoiser): sets the difference's
            step.
        way: of `jvp`: "difference", "double-backward", "forward", or "auto": the first of
            double backward, forward mode and difference that the first product shows to work,
            tested by <u, J v> = <J^T u, v>.

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
        way: str = "difference",
    ) -> None:
        if way not in ("auto", *WAYS):
            raise InputError(f"way = {way!r} is unknown; choose from auto, {', '.join(WAYS)}")
        self.f, self.scale, self.way = f, scale, way
        with torch.enable_grad():
            self.x = x.detach().requires_grad_(True)
            self._y = f(self.x)
        self.value = self._y.detach()
        self._image: tuple[Tensor, Tensor] | None = None

    def vjp(self, v: Float[Tensor, "b *e"]) -> Float[Tensor, "b *d"]:
        """Return J^T v: one backward pass through the retained graph."""
        (out,) = torch.autograd.grad(self._y, self.x, v.to(self._y), retain_graph=True)
        return out

    def jvp(self, v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *e"]:
        """Return J v; exact but for the central difference, of second order in its step."""
        ways = WAYS if self.way == "auto" else (self.way,)
        for way in ways:
            try:
                out = self._jvp(way, v)
            except (RuntimeError, NotImplementedError):
                if len(ways) == 1 or way == "difference":
                    raise
                continue
            if len(ways) == 1 or way == "difference" or self._trusted(out, v):
                self.way = way
                break
        return out

    def _trusted(self, out: Tensor, v: Tensor) -> bool:
        return out.dtype not in HALF and adjoint_holds(self._y, self.x, out, v)

    def _jvp(self, way: str, v: Tensor) -> Tensor:
        if way == "forward":
            return forward_jvp(self.f, self.x, v)
        if way == "double-backward":
            return self._double_backward(v)
        return difference_jvp(self.f, self.x, v, self.scale)

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
        """Return (J + J^T) v / 2."""
        return (self.jvp(v) + self.vjp(v)) / 2


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
        f(x.detach().requires_grad_(True))
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
