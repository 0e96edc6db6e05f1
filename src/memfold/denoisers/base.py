"""The one noun: D(x, sigma, cond) = E[x0 | x0 + sigma n = x] in variance-exploding coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from memfold.tensors import check_tensor, expand
from memfold.types import InputError

_ROUNDING = 1e-2  # images in half precision, or resized with an overshoot, leave [0, 1] by less
HALF = (torch.float16, torch.bfloat16)
_SLACK = 1e-5  # relative room at the ends of the sigma range, for rounding


class Denoiser(ABC):
    """Posterior mean of the clean point, given the point under noise of standard deviation sigma.

    A subclass writes `denoise`; callers call the object. Behaviour is changed by wrapping one
    Denoiser in another, never by overriding. Where `dtype` is half, `denoise` is handed the point
    that the network sees, rounded in its own coordinates: a subclass whose network takes another
    multiple of x than x itself writes `input_scale`, and no adapter has to round.

    Attributes:
        shape: shape of one point, without the batch; None where any shape will do.
        sigma_min: smallest sigma that the model knows.
        sigma_max: largest sigma that the model knows.
        device: where the model computes.
        dtype: what it computes in; points are float32 or wider whatever it is.
        space: "pixels", "latent" or "points": what x is made of.
        range: what the values 0 and 1 of an image become in x; None where x is no image.
        module: the network, where there is one.
        n_classes: how many classes it is conditioned on; None where it takes none.
        null_class: the label that stands for no class; None where there is none.
        rule: what its pipeline makes of both halves of guidance (`guidance.Rule`); None for
            D_0 + w (D_c - D_0).
    """

    shape: tuple[int, ...] | None = None
    sigma_min: float = 0.0
    sigma_max: float = float("inf")
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    space: str = "points"
    range: tuple[float, float] | None = (-1.0, 1.0)
    module: torch.nn.Module | None = None
    n_classes: int | None = None
    null_class: int | None = None
    rule: Any = None

    @abstractmethod
    def denoise(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, "b *ones"], cond: Any
    ) -> Float[Tensor, "b *d"]:
        """Return D(x, sigma, cond); sigma has the shape (b, 1, ..., 1) and lies in the range."""

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: float | Tensor, cond: Any = None
    ) -> Float[Tensor, "b *d"]:
        """Denoise x.

        Args:
            x: noisy points in VE coordinates, x = x0 + sigma n, shape (b, *d).
            sigma: noise standard deviation, one number or one a sample, shape (b,).
            cond: whatever the model is conditioned on; opaque to everything but its adapter.

        Returns:
            The posterior mean, shape (b, *d).

        Raises:
            InputError: the shape is not the model's, or sigma lies outside its range.
        """
        self.check(x, sigma)
        sigma = expand(sigma, x)
        return self.denoise(self.seen(x, sigma), sigma, cond)

    def input_scale(self, sigma: Float[Tensor, "b *ones"]) -> float | Tensor:
        """Return z / x, where z is what the network is handed for the point x."""
        return 1.0

    def seen(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, "b *ones"]) -> Tensor:
        """Return the points that the network really sees: x, rounded where it computes in half.

        D is the posterior mean of the rounded point. With D = x - sigma eps(z) at the x before
        rounding, the rounding itself would stay in x - D, and count as noise that no model removes:
        14 degrees of freedom for a point mass in [-1, 1]^16384, at sigma = 0.03 in bfloat16.
        Derivatives pass as if nothing were rounded.
        """
        if self.dtype not in HALF:
            return x
        scale, plain = self.input_scale(sigma), x.detach()
        return x + ((plain * scale).to(self.dtype).to(x.dtype) / scale - plain)

    def check(self, x: Tensor, sigma: float | Tensor) -> None:
        """Refuse a wrong shape or a sigma outside the range; nothing is clamped."""
        check_tensor(x)
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            msg = f"x has shape {tuple(x.shape)}, but the model takes (batch, {_list(self.shape)})"
            raise InputError(msg)
        values = torch.as_tensor(sigma).detach()
        if values.ndim > 1 or values.numel() not in {1, len(x)}:
            msg = f"sigma has shape {tuple(values.shape)}; pass one number, or one for each of the "
            raise InputError(msg + f"{len(x)} points, shape ({len(x)},)")
        for value in (float(values.min()), float(values.max())):
            if not self.sigma_min * (1 - _SLACK) <= value <= self.sigma_max * (1 + _SLACK):
                msg = f"sigma = {value:.6g} lies outside the model's range; choose one from "
                raise InputError(msg + f"{self.sigma_min:.4g} to {self.sigma_max:.4g}")
            if not 0 < value < float("inf"):
                raise InputError(f"sigma = {value:.6g} is no noise level; choose a number above 0")

    @property
    def point_dtype(self) -> torch.dtype:
        """What points are held in: half precision would round small noises away."""
        return torch.promote_types(self.dtype, torch.float32)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Map images with values in [0, 1] to points x of the model, in float32 or wider."""
        check_images(images)
        return images.to(self.device, self.point_dtype) * 2 - 1

    def decode(self, x: Tensor) -> Float[Tensor, "b c h w"]:
        """Map points x of the model to images; values may leave [0, 1], nothing is clipped."""
        return (x + 1) / 2


class FunctionDenoiser(Denoiser):
    """A plain callable `(x, sigma) -> denoised`, or `(x, sigma, cond)`, as a Denoiser.

    The callable receives sigma with the shape (b, 1, ..., 1), so that it broadcasts against x.

    Args:
        function: the callable.
        shape: shape of one point; None where any will do.
        sigma_range: smallest and largest sigma.
        dtype: half precision if the callable rounds x to it (see `Denoiser.seen`).
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        shape: tuple[int, ...] | None = None,
        sigma_range: tuple[float, float] = (0.0, float("inf")),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.function = function
        self.shape, self.dtype = shape, dtype
        self.sigma_min, self.sigma_max = sigma_range

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Call the function; the condition is passed on where there is one."""
        out = self.function(x, sigma) if cond is None else self.function(x, sigma, cond)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            msg = f"the callable returned {got} for points of shape {tuple(x.shape)}; "
            raise InputError(msg + "return the denoised points, a tensor of the same shape")
        if out.dtype in HALF and x.dtype not in HALF:
            step = torch.finfo(out.dtype).eps * float(out.detach().flatten(1).norm(dim=1).max())
            if step > 2 * float(sigma.min()):
                raise InputError(
                    f"the callable returned {out.dtype}, which rounds D by about {step:.2g}, more "
                    f"than sigma = {float(sigma.min()):.4g}; make D of the network's output in "
                    "float32"
                )
        return out.to(x.dtype)


class Wrapper(Denoiser):
    """A Denoiser around another one: same shape, range, device and images."""

    def __init__(self, inner: Denoiser | Callable[..., Tensor]) -> None:
        self.inner = inner = as_denoiser(inner)
        self.shape, self.space = inner.shape, inner.space
        self.range, self.module = inner.range, inner.module
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max
        self.device, self.dtype = inner.device, inner.dtype
        self.n_classes, self.null_class = inner.n_classes, inner.null_class
        self.rule = inner.rule

    def input_scale(self, sigma: Tensor) -> float | Tensor:
        """Return z / x, as the denoiser inside."""
        return self.inner.input_scale(sigma)

    def encode(self, images: Tensor) -> Tensor:
        """Map images with values in [0, 1] to points x of the model."""
        return self.inner.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        """Map points x of the model to images."""
        return self.inner.decode(x)


class Conditioned(Wrapper):
    """A Denoiser whose condition is fixed: D(x, sigma) := inner(x, sigma, cond)."""

    def __init__(self, inner: Denoiser, cond: Any) -> None:
        super().__init__(inner)
        self.cond = cond

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Denoise with the fixed condition, unless the caller gives another one."""
        return self.inner.denoise(x, sigma, self.cond if cond is None else cond)


def as_denoiser(model: Denoiser | Callable[..., Tensor]) -> Denoiser:
    """Return a Denoiser as it is and a plain callable wrapped as one."""
    if isinstance(model, Denoiser):
        return model
    name = type(model).__name__
    if hasattr(model, "scheduler") and hasattr(model, "components"):
        raise InputError(
            f"{name} is a diffusers pipeline, no denoiser; pass memfold.load(pipeline)"
        )
    if hasattr(model, "denoiser") and hasattr(model, "condition"):
        raise InputError(f"{name} takes a prompt; pass its .denoiser(prompt)")
    if hasattr(model, "config") and hasattr(model, "add_noise"):
        raise InputError(f"{name} is a scheduler, no denoiser; pass memfold.load(pipeline)")
    if isinstance(model, torch.nn.Module) and hasattr(model, "config"):
        raise InputError(
            f"{name} is a network in coordinates of its own, no denoiser; pass "
            "memfold.load(pipeline), or wrap it by its parameterisation (memfold.denoisers)"
        )
    if callable(model) and not isinstance(model, type):
        return FunctionDenoiser(model)
    raise InputError(f"{name} is no denoiser; pass a memfold Denoiser or (x, sigma) -> D")


def check_images(images: Tensor) -> None:
    """Refuse images whose values do not lie in [0, 1], but for rounding.

    Args:
        images: what is to be encoded.

    Raises:
        InputError: they are no tensor of floats, or leave [0, 1], such as 0 to 255.
    """
    if not isinstance(images, Tensor):
        check_tensor(images, "images")
    if not images.is_floating_point():
        raise InputError(f"images have dtype {images.dtype}; pass floats in [0, 1]: images / 255")
    if images.numel() == 0:
        raise InputError(f"images have shape {tuple(images.shape)}: there are none; pass some")
    low, high = (float(v) for v in images.detach().aminmax())
    if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:  # NaN compares with nothing
        raise InputError(
            f"images hold values from {low:g} to {high:g}; encode takes [0, 1]: divide 0 to 255 by "
            "255, and map [-1, 1] by (images + 1) / 2"
        )


def select(cond: Any, index: Tensor, batch: int) -> Any:
    """Pick the conditions of the samples in `index` out of a batch.

    A tensor anywhere in `cond` whose first axis has the length of the batch holds one condition a
    sample; anything else is shared by all samples.
    """

    def pick(leaf: Any) -> Any:
        own = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return leaf[index.to(leaf.device)] if own else leaf

    return tree_map(pick, cond)


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
