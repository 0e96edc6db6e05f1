"""The degrees of freedom that a prompt takes away: LID(x) - LID(x | c)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import SIGMA
from .shell import shell


def freedom_taken(
    generation: Generation, *, generator: torch.Generator | None = None, sigma: float = SIGMA
) -> Float[Tensor, " b"]:
    """tr J_0 - tr J_c around the finished image, with common noises and common probes.

    It does not suffer from images that are simple in themselves, whose LID is small with and
    without the prompt. Conditioning can only lower the dimension of the support at x (Ross et al.
    2025, their proposition on conditional LID). Of an exact model's trace at a noised point,
    sigma > 0, it holds on average over the conditions that the point may have, by the law of total
    variance, and not for each of them. As sigma -> 0 it is false where the condition takes away a
    point mass at x, or whatever has fewer dimensions there: then LID(x | c) is above LID(x).

    Args:
        generation: a run with guidance.
        generator: source of noises and probes.
        sigma: scale, noise standard deviation in latent units.

    Returns:
        One score an image, shape (b,): degrees of freedom; negative where the prompt adds some.

    Half of the mass on x = 0 and half in a Gaussian of 3 dimensions through x:

    >>> import torch
    >>> from memfold.denoisers.exact import GaussianDenoiser, MixtureDenoiser
    >>> from memfold.lid.flipd import flipd
    >>> x, ones, axes = torch.zeros(1, 8), torch.ones(3), torch.eye(8)[:, :3]
    >>> both = MixtureDenoiser([x[0], x[0]], [ones[:0], ones], [axes[:, :0], axes])
    >>> gaussian = GaussianDenoiser(x[0], ones, axes)  # under the condition "no copy"
    >>> tuple(round(float(flipd(m, x, 1e-3, at="x").lid)) for m in (both, gaussian))
    (0, 3)
    """
    around = shell(generation, sigma, generator)
    return around.trace("without") - around.trace("with")


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
    around = shell(generation, sigma, generator)
    return around.loss("without") - around.loss("with")
