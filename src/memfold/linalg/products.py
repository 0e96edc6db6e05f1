"""J v, the product of a Jacobian with a vector, in three ways that stand and fall apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import expand, per_sample
from memfold.types import InputError

WAYS = ("double-backward", "forward", "difference")  # the order in which they are tried

# Step of the central difference in units of the scale: root mean square over coordinates, and at
# most this long, since a long step along a single direction leaves the neighbourhood.
_STEP, _LONGEST = 0.02, 0.25

HALF = (torch.float16, torch.bfloat16)
_TOLERANCE = 1e-2  # of the adjoint test, relative

Map = Callable[[Tensor], Tensor]


def jvp(
    f: Map,
    x: Float[Tensor, "b *d"],
    v: Float[Tensor, "b *d"],
    *,
    way: str = "auto",
    scale: float | Tensor = 1.0,
) -> Float[Tensor, "b *e"]:
    """Return J v, J = df/dx at each point of a batch.

    Args:
        f: maps (b, *d) to (b, *e), sample by sample.
        x: the points, shape (b, *d).
        v: one vector a point, shape (b, *d).
        way: "double-backward", "forward", "difference", or "auto" for what `way_that_works` finds.
        scale: the length over which f is smooth, for the difference.

    Returns:
        One vector a point, shape (b, *e).

    Raises:
        InputError: an unknown way.
    """
    if way == "auto":
        way = way_that_works(f, x)
    if way == "forward":
        return forward_jvp(f, x, v)
    if way == "double-backward":
        return double_backward_jvp(f, x, v)
    if way == "difference":
        return difference_jvp(f, x, v, scale)
    raise InputError(f"way = {way!r} is unknown; choose from auto, {', '.join(WAYS)}")


def way_that_works(f: Map, x: Float[Tensor, "b *d"]) -> str:
    """Find the first way that f allows: double backward, forward mode, or else a difference.

    Fused attention has neither a second derivative nor a forward mode; there, and in half
    precision, where derivatives of derivatives underflow, the difference is left. Each way is
    tried, and <u, J v> = <J^T u, v> tested: code that stops gradients gives wrong ones silently.

    Args:
        f: the map.
        x: points that it takes, shape (b, *d); one will do where f takes any number.

    Returns:
        "double-backward", "forward" or "difference".
    """
    if x.dtype in HALF:
        return "difference"
    for way, product in (("double-backward", double_backward_jvp), ("forward", forward_jvp)):
        try:
            if _agrees(f, x.detach(), product):
                return way
        except (RuntimeError, NotImplementedError):
            continue
    return "difference"


def _agrees(f: Map, x: Tensor, product: Callable[[Map, Tensor, Tensor], Tensor]) -> bool:
    """Run one product and its adjoint test; False in half precision."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        y = f(leaf)
    if y.dtype in HALF:
        return False
    v = torch.linspace(-2, 1, x.numel()).to(x).cos().reshape(x.shape)
    return adjoint_holds(y, leaf, product(f, x, v), v)


def adjoint_holds(y: Tensor, x: Tensor, image: Tensor, v: Tensor) -> bool:
    """Test <u, J v> = <J^T u, v>, where y = f(x) has a graph and J v is said to be `image`."""
    u = torch.linspace(-1, 1, y.numel()).to(y).cos().reshape(y.shape)
    back = None
    if y.requires_grad:
        (back,) = torch.autograd.grad(y, x, u, retain_graph=True, allow_unused=True)
    want = torch.zeros(()).to(x) if back is None else (back * v).sum()
    size = image.norm() * u.norm() + (0 if back is None else back.norm() * v.norm())
    return bool(((u * image).sum() - want).abs() <= _TOLERANCE * size)


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
    f: Map, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], scale: float | Tensor = 1.0
) -> Tensor:
    """Return J v by a central difference: two passes, the error of second order in the step."""
    size = (per_sample(v**2) / v[0].numel()).sqrt().clamp_min(torch.finfo(v.dtype).tiny)
    step = min(_STEP, _LONGEST / v[0].numel() ** 0.5) * expand(scale, x) / expand(size, v)
    with torch.no_grad():
        x = x.detach()
        out = f(x + step * v) - f(x - step * v)
        return out / (2 * step.reshape(-1, *[1] * (out.ndim - 1)))
