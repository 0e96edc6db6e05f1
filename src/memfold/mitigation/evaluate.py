"""What a mitigation did: copies that are left, quality lost, and whether it can be undone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import sqrtm
from torch import Tensor

from memfold.denoisers.adapters._calls import Condition
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.tensors import per_sample
from memfold.types import InputError


def copies(x: Float[Tensor, "b *d"], reference: Float[Tensor, "n *d"], limit: float) -> Tensor:
    """Tell which latents lie on a reference latent.

    Args:
        x: latents, shape (b, *d).
        reference: latents of training images, shape (n, *d).
        limit: root mean square distance below which one is a copy.

    Returns:
        Booleans, shape (b,).
    """
    rows = x.flatten(1)
    mode = "donot_use_mm_for_euclid_dist"  # the other way cancels between near-duplicates
    distance = torch.cdist(rows, reference.flatten(1).to(rows), compute_mode=mode)
    return distance.min(1).values / rows.shape[1] ** 0.5 < limit


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Frechet distance |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017).

    Small samples make it too large; compare equal numbers.

    Args:
        a: embeddings.
        b: embeddings.

    Returns:
        The distance, in squared units of the embedding.

    Raises:
        InputError: fewer than two on a side.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"{len(a)} and {len(b)} embeddings; the distance needs two of each")
    one, two = (t.double().numpy() for t in (a, b))
    c, d = np.cov(one.T), np.cov(two.T)
    root = np.real(sqrtm(c @ d))
    apart = one.mean(0) - two.mean(0)
    return float(apart @ apart + np.trace(c + d - 2 * root))


def recheck(
    model: TextToImage,
    cond: Condition,
    x: Float[Tensor, "b *d"],
    *,
    generator: torch.Generator,
    sigmas: Sequence[float] = (0.6, 1.2, 2.5),
    learning_rate: float = 0.05,
    iterations: int = 60,
) -> Condition:
    """Try to bring an image back: optimise the embedding so that the model denoises to it.

    AdamW on E |D_c(y + sigma n) - y|^2 / sigma^2 over the images y. If what a mitigation kept back
    comes back under the result, while an image that the model does not know by heart does not come
    by the same attack, the memory is suppressed and not removed.

    Args:
        model: the pipeline.
        cond: where to begin, such as `Mitigation.cond`.
        x: latents of the images, shape (b, *d).
        generator: source of the noises.
        sigmas: scales, noise standard deviations in latent units.
        learning_rate: of AdamW.
        iterations: how many.

    Returns:
        The optimised condition.

    Raises:
        InputError: there is no embedding to move.
    """
    leaves: dict[str, Tensor] = {}

    def lift(name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim != 3:
            return tensor
        leaves[name] = tensor.detach().clone().requires_grad_()
        return leaves[name]

    lifted = cond.map(lift)
    if not leaves:
        raise InputError(f"{model.name} gives its network no embedding of the prompt to move")
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=learning_rate, weight_decay=0.0)
    for _ in range(iterations):
        with torch.enable_grad():
            loss = torch.zeros(())
            for sigma in sigmas:
                y = x + sigma * torch.randn(x.shape, generator=generator).to(x)
                loss = loss + per_sample((model.model(y, sigma, lifted) - x) ** 2).mean() / sigma**2
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return lifted.map(lambda name, tensor: tensor.detach())
