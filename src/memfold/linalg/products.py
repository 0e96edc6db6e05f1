"""J v, the product of a Jacobian with a vector, in three ways that stand and fall apart."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import expand, per_sample
from memfold.types import InputError

WAYS = ("forward", "double-backward", "difference")  # the order in which they are tried

HALF = (torch.float16, torch.bfloat16)

# Step of the central difference in units of the scale: root mean square over coordinates, and at
# most this long, since a long step along a single direction leaves the neighbourhood. Half
# precision rounds short ones away: its error falls with the step, that of curvature grows.
_STEPS = dict.fromkeys(HALF, (0.3, 2.0))
_STEP = (0.02, 0.25)  # in float32 and wider

# The way that worked, by network and by (dtype, device, precision), as long as the network lives.
_known: weakref.WeakKeyDictionary[object, dict[object, str]] = weakref.WeakKeyDictionary()
_TOLERANCE, _TOLERANCE_HALF = 1e-2, 5e-2  # of the adjoint test, relative

Map = Callable[[Tensor], Tensor]


def jvp(
    f: Map,
    x: Float[Tensor, "b *d"],
    v: Float[Tensor, "b *d"],
    *,
    way: str = "auto",
    scale: float | Tensor = 1.0,
    precision: torch.dtype | None = None,
) -> Float[Tensor, "b *e"]:
    """Return J v, J = df/dx at each point of a batch.

    Args:
        f: maps (b, *d) to (b, *e), sample by sample.
        x: the points, shape (b, *d).
        v: one vector a point, shape (b, *d).
        way: "forward", "double-backward", "difference", or "auto" for what `way_that_works` finds.
        scale: the length over which f is smooth, for the difference.
        precision: what f computes in, where that is not the dtype of x.

    Returns:
        One vector a point, shape (b, *e).

    Raises:
        InputError: an unknown way.
    """
    if way == "auto":
        way = way_that_works(f, x, precision=precision)
    if way == "forward":
        return forward_jvp(f, x, v)
    if way == "double-backward":
        return double_backward_jvp(f, x, v)
    if way == "difference":
        return difference_jvp(f, x, v, scale, precision=precision)
    raise InputError(f"way = {way!r} is unknown; choose from auto, {', '.join(WAYS)}")


def way_that_works(
    f: Map, x: Float[Tensor, "b *d"], *, precision: torch.dtype | None = None
) -> str:
    """Find the first way that f allows: forward mode, double backward, or else a difference.

    Fused attention has neither a second derivative nor a forward mode: there the difference is
    left. Each way is tried and compared with J^T (`adjoint_holds`): code that stops gradients gives
    wrong ones silently. In half precision the exact ways round as f does, a difference by much
    more: by a fifth where the points are 30 times their scale, in float16, and without any
    accuracy in bfloat16.

    Args:
        f: the map.
        x: points that it takes, shape (b, *d); one will do where f takes any number.
        precision: what f computes in, where that is not the dtype of x.

    Returns:
        "forward", "double-backward" or "difference".
    """
    for way, product in (("forward", forward_jvp), ("double-backward", double_backward_jvp)):
        try:
            if _agrees(f, x.detach(), product, precision):
                return way
        except (RuntimeError, NotImplementedError):
            continue
    return "difference"


def known_way(network: object | None, x: Tensor, precision: object) -> str | None:
    """Return the way that worked for a network before, at this dtype and on this device."""
    found = None if network is None else _known.get(network)
    return None if found is None else found.get((x.dtype, x.device, precision))


def remember(network: object | None, x: Tensor, precision: object, way: str) -> None:
    """Keep the way that worked for a network, as long as the network lives."""
    if network is not None:
        _known.setdefault(network, {})[x.dtype, x.device, precision] = way


def _agrees(
    f: Map, x: Tensor, product: Callable[[Map, Tensor, Tensor], Tensor], precision: Any
) -> bool:
    """Run the adjoint test on one way of making products."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        y = f(leaf)
    return adjoint_holds(y, leaf, lambda v: product(f, x, v), precision)


def adjoint_holds(
    y: Tensor,
    x: Tensor,
    product: Callable[[Tensor], Tensor],
    precision: torch.dtype | None = None,
) -> bool:
    """Test a product that claims to be v -> J v against J^T, where y = f(x) has a graph.

    With u a random vector and v = J^T u, <u, J v> must be |v|^2; and for this v and a random one,
    <J^T w, v> must be |w|^2, w = J v. All compare vectors with their own like, so that a part of J
    that is missing or too much shows by its own share; with two random vectors it would drown in
    high dimensions.
    """
    half = precision in HALF or y.dtype in HALF or x.dtype in HALF
    tolerance = _TOLERANCE_HALF if half else _TOLERANCE

    def back(u: Tensor) -> Tensor:
        if not y.requires_grad:
            return torch.zeros_like(x)
        (out,) = torch.autograd.grad(y, x, u.to(y), retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if out is None else out

    def same(a: Tensor, b: Tensor, c: Tensor) -> bool:
        """Tell whether <a, b> = |c|^2."""
        want = c.double().square().sum()
        return bool(((a.double() * b.double()).sum() - want).abs() <= tolerance * want)

    generator = torch.Generator().manual_seed(0)
    u = torch.randn(y.shape, generator=generator).to(y)
    v, other = back(u), torch.randn(x.shape, generator=generator).to(x)
    w, further = product(v), product(other)
    return same(u, w, v) and same(back(w), v, w) and same(back(further), other, further)


def forward_jvp(f: Map, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Tensor:
    """Return J v by forward-mode differentiation: one pass, exact."""
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own rules of forward mode are compiled by what torch now deprecates
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        with forward_ad.dual_level():
            y = f(forward_ad.make_dual(x.detach(), v.to(x)))
            tangent = forward_ad.unpack_dual(y).tangent
            return torch.zeros_like(y) if tangent is None else tangent.detach()


def double_backward_jvp(f: Map, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Tensor:
    """Return J v as the derivative of u -> J^T u along v: one pass and two back, exact."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = f(x)
        if not y.requires_grad:
            return torch.zeros_like(y)
        u = torch.zeros_like(y, requires_grad=True)
        (image,) = torch.autograd.grad(y, x, u, create_graph=True, allow_unused=True)
        if image is None:
            return torch.zeros_like(y).detach()
        (out,) = torch.autograd.grad(image, u, v.to(image))
    return out.detach()


def difference_jvp(
    f: Map,
    x: Float[Tensor, "b *d"],
    v: Float[Tensor, "b *d"],
    scale: float | Tensor = 1.0,
    *,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Return J v by a central difference: two passes, the error of second order in the step.

    The step is longer where `precision`, what f computes in, or the points' own dtype is half.
    """
    rms, longest = _STEPS.get(x.dtype if precision is None else precision, _STEP)
    size = (per_sample(v**2) / v[0].numel()).sqrt().clamp_min(torch.finfo(v.dtype).tiny)
    step = min(rms, longest / v[0].numel() ** 0.5) * expand(scale, x) / expand(size, v)
    with torch.no_grad():
        x = x.detach()
        out = f(x + step * v) - f(x - step * v)
        return out / (2 * step.reshape(-1, *[1] * (out.ndim - 1)))
