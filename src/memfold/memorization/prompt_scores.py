"""Scores of a prompt at a noisy latent, differentiable in the condition and in the latent.

All are large where memorization is likely. Each takes (model, x, sigma, cond, uncond) and, by name,
only the options that it uses: another one is a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memfold.denoisers.base import Denoiser
from memfold.denoisers.guidance import guide
from memfold.linalg.jacobian import Jacobian, with_graph
from memfold.tensors import expand, per_sample
from memfold.types import InputError

Score = Callable[..., Tensor]


def cfg_norm(
    model: Denoiser, x: Float[Tensor, "b *d"], sigma: float, cond: Any, uncond: Any
) -> Float[Tensor, " b"]:
    """|eps_c - eps_0| = |D_c - D_0| / sigma (Wen et al. 2024)."""
    difference = model(x, sigma, cond) - model(x, sigma, uncond)
    return difference.flatten(1).norm(dim=1) / sigma


def guided_score_norm(
    model: Denoiser,
    x: Float[Tensor, "b *d"],
    sigma: float,
    cond: Any,
    uncond: Any,
    *,
    guidance_scale: float = 7.5,
) -> Float[Tensor, " b"]:
    """|s_w| = |D_w - x| / sigma^2, D_w by the model's own rule of guidance (Ross et al. 2025)."""
    without, under = model(x, sigma, uncond), model(x, sigma, cond)
    guided = guide(model, under, without, guidance_scale, x, sigma)
    return (guided - x).flatten(1).norm(dim=1) / sigma**2


def minus_flipd(
    model: Denoiser,
    x: Float[Tensor, "b *d"],
    sigma: float,
    cond: Any,
    uncond: Any,
    *,
    guidance_scale: float | None = None,
    probes: Float[Tensor, "b k *d"] | None = None,
) -> Float[Tensor, " b"]:
    """-(tr J + |D - x|^2 / sigma^2) at the noisy point x itself (Kamkari et al. 2024).

    J is that of D_c, or of D_w with both of its halves if a guidance scale is given.

    Args:
        model: the pipeline's Denoiser.
        x: points, shape (b, *d).
        sigma: noise standard deviation.
        cond: condition of the prompt.
        uncond: condition of no prompt.
        guidance_scale: w; None for the conditional model.
        probes: random signs for the trace, shape (b, k, *d); exact if None.

    Raises:
        InputError: it is to be differentiated, and the model gives no gradients.
    """

    def f(y: Tensor) -> Tensor:
        denoised = model(y, sigma, cond)
        if guidance_scale is None:
            return denoised
        return guide(model, denoised, model(y, sigma, uncond), guidance_scale, y, sigma)

    wanted = torch.is_grad_enabled() and (x.requires_grad or _hangs(cond))
    with torch.enable_grad(), math_attention(wanted):
        y = x if x.requires_grad else x.detach().requires_grad_()
        denoised = with_graph(f, y)
        if wanted and not denoised.requires_grad:
            raise InputError(
                "the model gives no gradients, so that -flipd cannot be differentiated; take "
                "another score, or a model with gradients"
            )
        jacobian = None if denoised.requires_grad else Jacobian(f, y, sigma)  # by differences
        if probes is None:
            d = y[0].numel()
            eye = torch.eye(d, dtype=y.dtype, device=y.device).reshape(1, d, *y.shape[1:])
            probes = eye.expand(len(y), -1, *y.shape[1:])
        trace, count = torch.zeros(len(y), dtype=y.dtype, device=y.device), probes.shape[1]
        exact = count == y[0].numel()
        for k in range(count):
            v = probes[:, k]
            if jacobian is not None:
                product = jacobian.vjp(v)
            else:
                (product,) = torch.autograd.grad(
                    denoised, y, v, create_graph=wanted, retain_graph=wanted or k + 1 < count
                )
            trace = trace + per_sample(product * v)
        trace = trace if exact else trace / count
        value = -(trace + per_sample((denoised - y) ** 2) / sigma**2)
    return value if wanted else value.detach()


def minus_denoising_loss(
    model: Denoiser,
    x: Float[Tensor, "b *d"],
    sigma: float,
    cond: Any,
    uncond: Any,
    *,
    guidance_scale: float | None = None,
    noise: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, " b"]:
    """-|n - eps(x0 + sigma n)|^2 at x = x0 + sigma n (Yeats et al. 2025).

    Args:
        model: the pipeline's Denoiser.
        x: noisy points, shape (b, *d).
        sigma: noise standard deviation.
        cond: condition of the prompt.
        uncond: condition of no prompt.
        guidance_scale: w; None for the conditional model.
        noise: the n that made x, shape (b, *d).

    Raises:
        InputError: the noise is missing.
    """
    if noise is None:
        raise InputError("the denoising loss needs the noise that made x; pass noise=")
    denoised = model(x, sigma, cond)
    if guidance_scale is not None:
        denoised = guide(model, denoised, model(x, sigma, uncond), guidance_scale, x, sigma)
    return -per_sample((noise - (x - denoised) / expand(sigma, x)) ** 2)


SCORES: dict[str, Score] = {
    "cfg_norm": cfg_norm,
    "guided_score_norm": guided_score_norm,
    "-flipd": minus_flipd,
    "-denoising_loss": minus_denoising_loss,
}


def score_name(name: str) -> str:
    """Find the score that a name means; "flipd" and "neg-flipd" stand for "-flipd".

    A minus at the front of an option's value reads like an option, so the negative scores are also
    known without it: what is large where memorization is likely is the negative alone.

    Args:
        name: as the user gave it.

    Returns:
        A key of `SCORES`.

    Raises:
        InputError: there is no such score.

    >>> score_name("neg-flipd"), score_name("denoising_loss"), score_name("cfg_norm")
    ('-flipd', '-denoising_loss', 'cfg_norm')
    """
    for key in (name, f"-{name.removeprefix('neg-')}"):
        if key in SCORES:
            return key
    raise InputError(f"score = {name!r} is unknown; choose from {', '.join(SCORES)}")


@contextmanager
def math_attention(wanted: bool = True) -> Iterator[None]:
    """Use an attention that can be differentiated twice inside the block, in this thread alone."""
    if not wanted:
        yield
        return
    with _MathAttention():
        yield


class _MathAttention(TorchFunctionMode):
    """Takes the plain kernel; torch's own switch is the whole process's, other draws included."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of tensors, attention by its plain kernel."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _plain_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend by the kernel that `SDPBackend.MATH` stands for."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
            ~attn_mask, float("-inf")
        )
    found = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return found[0]


def _hangs(cond: Any) -> bool:
    """Whether any tensor of a condition requires a gradient."""
    values = [*getattr(cond, "args", ()), *getattr(cond, "kwargs", {}).values()]
    return any(isinstance(v, Tensor) and v.requires_grad for v in values)
