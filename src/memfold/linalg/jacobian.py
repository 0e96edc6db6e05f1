"""Products with the Jacobian J = dD/dx at a batch of points, without ever forming it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import expand, per_sample

# Step of the central difference in units of the scale: root mean square over coordinates, and at
# most this long, since a long step along a single direction leaves the neighbourhood.
_STEP, _LONGEST = 0.02, 0.25


class Jacobian:
    """J = df/dx at each point of a batch, as an operator.

    Vector-Jacobian products share one retained graph. Jacobian-vector products are central
    differences, two forward passes each: they work where neither forward-mode nor double backward
    does (fused attention) and in any precision.

    Args:
        f: maps (b, *d) to (b, *d), sample by sample.
        x: the points, shape (b, *d).
        scale: the length over which f is smooth (sigma, for a denoiser): sets the step.

    Attributes:
        value: f(x), shape (b, *d).
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"], scale: float | Tensor
    ) -> None:
        self.f, self.scale = f, expand(scale, x)
        with torch.enable_grad():
            self.x = x.detach().requires_grad_(True)
            self._y = f(self.x)
        self.value = self._y.detach()

    def vjp(self, v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return J^T v: one backward pass through the retained graph."""
        (out,) = torch.autograd.grad(self._y, self.x, v.to(self._y), retain_graph=True)
        return out

    def jvp(self, v: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return J v by a central difference; the error is of second order in the step."""
        size = (per_sample(v**2) / v[0].numel()).sqrt().clamp_min(torch.finfo(v.dtype).tiny)
        step = min(_STEP, _LONGEST / v[0].numel() ** 0.5) * self.scale / expand(size, v)
        with torch.no_grad():
            x = self.x.detach()
            return (self.f(x + step * v) - self.f(x - step * v)) / (2 * step)

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
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        source = tensor if tensor._base is None else tensor._base
        if not isinstance(source, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f(x.detach().requires_grad_(True))
    return sum(seen.values())
