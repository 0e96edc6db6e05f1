"""J v, the product of a Jacobian with a vector, in three ways that stand and fall apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import expand, per_sample
from memfold.types import InputError

WAYS = ("forward", "double-backward", "difference")

# Step of the central difference in units of the scale: root mean square over coordinates, and at
# most this long, since a long step along a single direction leaves the neighbourhood.
_STEP, _LONGEST = 0.02, 0.25

_HALF = (torch.float16, torch.bfloat16)
_TOLERANCE = 1e-3  # of the adjoint test, relative

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
        way: "forward", "double-backward", "difference", or "auto" for what `way_that_works` finds.
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
    """Find the first way that f allows: forward mode, double backward, or else a difference.

    Fused attention has no forward mode and no second derivative; there, and in half precision,
    where derivatives of derivatives underflow, the difference is left. One point is tried, and
    <u, J v> = <J^T u, v> is tested there: code that stops gradients gives wrong ones silently.

    Args:
        f: the map.
        x: points that it takes, shape (b, *d).

    Returns:
        "forward", "double-backward" or "difference".
    """
    if x.dtype in _HALF:
        return "difference"
    for way, product in (("forward", forward_jvp), ("double-backward", double_backward_jvp)):
        try:
            if _agrees(f, x[:1].detach(), product):
                return way
        except (RuntimeError, NotImplementedError):
            continue
    return "difference"


def _agrees(f: Map, x: Tensor, product: Callable[[Map, Tensor, Tensor], Tensor]) -> bool:
    """Test <u, J v> = <J^T u, v> for a pair of vectors; False in half precision."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        y = f(leaf)
        if y.dtype in _HALF:
            return False
        u = torch.linspace(-1, 1, y.numel()).to(y).cos().reshape(y.shape)
        back = torch.autograd.grad(y, leaf, u, allow_unused=True)[0] if y.requires_grad else None
    v = torch.linspace(-2, 1, x.numel()).to(x).cos().reshape(x.shape)
    image = product(f, x, v)
    want = torch.zeros(()).to(x) if back is None else (back * v).sum()
    size = image.norm() * u.norm() + (0 if back is None else back.norm() * v.norm())
    return bool(((u * image).sum() - want).abs() <= _TOLERANCE * size)


def forward_jvp(f: Map, x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Tensor:
    """Return J v by forward-mode differentiation: one pass, exact."""
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own rules of forward mode are compiled by what torch now deprecates
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        return torch.func.jvp(f, (x.detach(),), (v,))[1].detach()


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
