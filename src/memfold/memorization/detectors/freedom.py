"""The degrees of freedom that a prompt takes away: LID(x) - LID(x | c)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.sampling.trajectory import Generation

from .base import NOISES, PROBES, SIGMA, keyed
from .denoising_loss import LOSS_NOISES


def freedom_taken(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """tr J_0 - tr J_c around the finished image, with common noises and common probes.

    Conditioning can only lower the dimension (Ross et al. 2025, their proposition on conditional
    LID), so that the difference is never negative for an exact model; it does not suffer from
    images that are simple in themselves, whose LID is small with and without the prompt.

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): degrees of freedom.
    """
    fresh, lids = keyed(generator), []
    for cond in (generation.uncond, generation.cond):
        fixed = Conditioned(generation.model.model, cond)
        lids.append(
            flipd(
                fixed,
                generation.x,
                sigma,
                n_noises=NOISES,
                trace="hutchinson",
                n_probes=PROBES,
                generator=fresh(),
            ).lid
        )
    return lids[0] - lids[1]


def freedom_taken_loss(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """The same by denoising losses with common noises: forward passes only.

    Args:
        generation: a run with guidance.
        generator: source of noises.
        sigma: scale.

    Returns:
        One score an image, shape (b,): degrees of freedom.
    """
    fresh, x = keyed(generator), generation.x
    without, under = (
        dsm_lid(
            Conditioned(generation.model.model, cond),
            x,
            sigma,
            n_noises=LOSS_NOISES,
            generator=fresh(),
        ).lid
        for cond in (generation.uncond, generation.cond)
    )
    return without - under
