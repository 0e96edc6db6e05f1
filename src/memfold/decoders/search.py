"""Finding the latent of a point: by the encoder, by search, or by both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.tensors import base_seed, expand, per_sample, sample_generators
from memfold.types import InputError

from .base import Decoder, as_decoder


@dataclass(frozen=True)
class Latents:
    """A latent for each point, and how well it explains the point.

    Attributes:
        z: latents, shape (b, *k).
        error: root mean square of G(z) - x over coordinates, in the units of x, shape (b,).
        start_errors: the error that each start of the search came to before the best was refined,
            shape (b, starts); one column where nothing was searched.
    """

    z: Float[Tensor, "b *k"]
    error: Float[Tensor, " b"]
    start_errors: Float[Tensor, "b starts"]


def find_latents(
    decoder: Decoder | Callable[[Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    *,
    n_starts: int = 8,
    n_steps: int = 300,
    n_refine: int = 50,
    lr: float = 0.1,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> Latents:
    """Find z with G(z) close to x: minimize |G(z) - x|^2 from several starts.

    Starts are draws of the prior, and the encoder's answer where there is an encoder. All take
    `n_steps` of Adam with a learning rate that falls to 0 (its step is one coordinate's own
    affair, so that samples do not touch each other); the best then takes `n_refine` of L-BFGS. A
    point that the model cannot make keeps its error: read it before the LID.

    Args:
        decoder: a Decoder, or any module z -> x.
        x: points, shape (b, *d).
        n_starts: draws of the prior; 0 for the encoder alone.
        n_steps: steps of Adam; 0 to leave starts where they are.
        n_refine: iterations of L-BFGS, one point at a time; 0 for none.
        lr: learning rate of Adam.
        generator: source of the starts; a sample's own depend on it and on the sample.
        batch_size: latents in one pass.

    Returns:
        Latents with their errors.

    Raises:
        InputError: neither encoder nor starts, or no latent shape to draw starts in.

    >>> import torch
    >>> from memfold.decoders.base import FunctionDecoder
    >>> a = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    >>> decoder = FunctionDecoder(lambda z: z @ a.T + 1, latent_shape=(2,))
    >>> found = find_latents(decoder, decoder(torch.tensor([[0.5, -1.0]])), n_steps=50)
    >>> found.z.round(decimals=3)
    tensor([[ 0.5000, -1.0000]])
    """
    decoder, x = as_decoder(decoder), x.detach()
    starts = _starts(decoder, x, n_starts, base_seed(generator))
    n = starts.shape[1]
    z, goal = starts.flatten(0, 1), x.repeat_interleave(n, 0)
    parts = [
        _adam(decoder, z[i : i + batch_size], goal[i : i + batch_size], n_steps, lr)
        for i in range(0, len(z), batch_size)
    ]
    z = torch.cat(parts)
    with torch.no_grad():
        errors = torch.cat(
            [
                _error(decoder, z[i : i + batch_size], goal[i : i + batch_size])
                for i in range(0, len(z), batch_size)
            ]
        ).reshape(len(x), n)
    best = errors.nan_to_num(nan=float("inf")).argmin(1)
    z = z.reshape(len(x), n, *z.shape[1:])[torch.arange(len(x)), best]
    refined = torch.cat(
        [_lbfgs(decoder, z[i : i + 1], x[i : i + 1], n_refine) for i in range(len(x))]
    )
    with torch.no_grad():
        old, new = _error(decoder, z, x), _error(decoder, refined, x)
    better = new < old
    z = torch.where(expand(better.to(z), z) > 0, refined, z)
    return Latents(z, torch.where(better, new, old), errors)


def _starts(decoder: Decoder, x: Tensor, n: int, seed: int) -> Float[Tensor, "b n *k"]:
    parts = []
    if decoder.has_encoder:
        with torch.no_grad():
            parts.append(decoder.encode(x)[:, None])
    if n > 0:
        shape = parts[0].shape[2:] if parts else decoder.latent_shape
        if shape is None:
            raise InputError("a search needs the shape of a latent; pass latent_shape=(k,)")
        draws = [torch.randn(n, *shape, generator=g) for g in sample_generators(x, seed)]
        parts.append(torch.stack(draws).to(x))
    if not parts:
        raise InputError("n_starts = 0 and no encoder: nowhere to start; take 1 or more")
    return torch.cat(parts, 1)


def _error(decoder: Decoder, z: Tensor, x: Tensor) -> Float[Tensor, " b"]:
    return (per_sample((decoder(z) - x) ** 2) / x[0].numel()).sqrt()


@torch.enable_grad()
def _adam(decoder: Decoder, z: Tensor, x: Tensor, n_steps: int, lr: float) -> Tensor:
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=lr)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / n_steps)
        (z.grad,) = torch.autograd.grad(((decoder(z) - x) ** 2).sum(), z)
        optimizer.step()
    return z.detach()


@torch.enable_grad()
def _lbfgs(decoder: Decoder, z: Tensor, x: Tensor, n_steps: int) -> Tensor:
    if n_steps == 0:
        return z
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([z], max_iter=n_steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = ((decoder(z) - x) ** 2).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        return loss

    optimizer.step(closure)
    return z.detach()
