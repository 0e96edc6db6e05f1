"""LID of a decoder G(z) (GAN, VAE, flow): the rank of dG/dz, as it is, sampled, or smoothed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.decoders.base import Decoder, as_decoder
from memfold.linalg.jacobian import Jacobian, with_graph
from memfold.linalg.rank import Rule, count_large, jackknife_count, warn_unsettled
from memfold.tensors import base_seed, check_tensor, normal_like, per_sample
from memfold.types import Estimate, InputError

DecoderRule = Literal["threshold", "gap", "ratio", "soft"]

_FEW = 0.1  # share of effective samples below which the smoothed slope is not to be trusted


def singular_values(
    decoder: Decoder | Callable[[Tensor], Tensor], z: Float[Tensor, "b *k"]
) -> Float[Tensor, "b m"]:
    """Compute the singular values of dG/dz at each latent.

    Args:
        decoder: a Decoder, or any module z -> x.
        z: latents, shape (b, *k).

    Returns:
        Singular values, DESCENDING, in units of x a unit of z; m = min(k, d), shape (b, m).

    Raises:
        InputError: latents that cannot be used.
    """
    return torch.linalg.svdvals(_finite(_jacobian(as_decoder(decoder), z), "the Jacobian"))


def decoder_rank(
    decoder: Decoder | Callable[[Tensor], Tensor],
    z: Float[Tensor, "b *k"],
    sigma: float | None = None,
    *,
    rule: DecoderRule = "threshold",
) -> Estimate:
    """Count the directions in which G moves x: the rank of dG/dz.

    LID_theta of a GAN in the framework of memorization by LID (Ross et al. 2025, arXiv 2411.00113).
    With a standard normal prior G spreads x by s_i along the i-th singular direction of dG/dz: a
    variance of s_i^2, for which a denoiser's Jacobian at noise sigma has the eigenvalue
    s_i^2 / (s_i^2 + sigma^2). So

    - "threshold": how many s_i > sigma, the count of those eigenvalues above 1/2;
    - "soft": sum s_i^2 / (s_i^2 + sigma^2), their trace, as `flipd` has it;
    - "gap", "ratio": before the largest drop, or the largest ratio, of consecutive singular
      values, down to sigma where it is given (0 else).

    Args:
        decoder: a Decoder, or any module z -> x (see `find_latents` for the z of an x).
        z: latents, shape (b, *k).
        sigma: the scale in units of x; "threshold" and "soft" need it.
        rule: one of the four.

    Returns:
        LID, shape (b,); nothing is random, so the standard error is 0, which is not to say that
        the count is right.

    Raises:
        InputError: latents, sigma or options that cannot be used.

    >>> import torch
    >>> scales = torch.tensor([2.0, 1.0, 1e-3, 0.0])
    >>> decoder_rank(lambda z: z * scales + 7, torch.zeros(1, 4), 0.1).lid
    tensor([2.])
    """
    decoder = as_decoder(decoder)
    _check(decoder, z, sigma, rule)
    lid = _count(singular_values(decoder, z), rule, sigma)
    return Estimate(lid, torch.zeros_like(lid), _scale(sigma), f"rank of dG/dz ({rule}), decoder")


@torch.no_grad()
def decoder_lpca(
    decoder: Decoder | Callable[[Tensor], Tensor],
    z: Float[Tensor, "b *k"],
    sigma: float | None = None,
    *,
    spread: float = 0.05,
    n_samples: int | None = None,
    rule: DecoderRule = "threshold",
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> Estimate:
    """Count the principal components of G(z + spread n): local PCA of perturbed latents.

    Cov G(z + spread n) / spread^2 = J J^T, J = dG/dz, where G is straight over that distance, so
    that the components' standard deviations over `spread` are the singular values of J; where it is
    not, bends count too. Local PCA (Fukunaga and Olsen 1971) on points that the model makes itself,
    by passes forward only.

    Args:
        decoder: a Decoder, or any module z -> x.
        z: latents, shape (b, *k).
        sigma: as in `decoder_rank`.
        spread: standard deviation of the perturbation, where that of the prior is 1.
        n_samples: perturbed latents a point; 10 k where None.
        rule: as in `decoder_rank`.
        generator: source of the perturbations; a sample's own depend on it and on the sample.
        batch_size: latents in one pass.

    Returns:
        LID and a grouped jackknife error over the perturbed latents, on the large side, (b,).

    Raises:
        InputError: latents, sigma or options that cannot be used.

    >>> import torch
    >>> scales = torch.tensor([2.0, 1.0, 1e-3, 0.0])
    >>> decoder_lpca(lambda z: z * scales + 7, torch.zeros(1, 4), 0.1).lid
    tensor([2.])
    """
    decoder = as_decoder(decoder)
    _check(decoder, z, sigma, rule)
    k = z[0].numel()
    n = 10 * k if n_samples is None else n_samples
    if n <= k or not spread > 0:
        raise InputError(
            f"n_samples = {n}, spread = {spread}: take more samples than the {k} latent "
            "coordinates, and a spread above 0"
        )
    seed, results = base_seed(generator), []
    for row in z.detach().split(1):
        moved = row + spread * normal_like(row, n, seed)[0]
        x = torch.cat([decoder(part).flatten(1) for part in moved.split(batch_size)])
        x = _finite(x, "the decoder") / spread
        results.append(jackknife_count(x, lambda s: _count(s[:, :k], rule, sigma)))
    lid, stderr = (torch.stack(column).to(z) for column in zip(*results, strict=True))
    name = f"local PCA of G(z + {spread:g} n) ({rule}), decoder"
    return Estimate(lid, stderr, _scale(sigma), name)


@torch.no_grad()
def decoder_slope(
    decoder: Decoder | Callable[[Tensor], Tensor],
    z: Float[Tensor, "b *k"],
    sigma: float,
    *,
    n_samples: int = 256,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> Estimate:
    """Estimate LID(x) = D + d log p_sigma(x) / d log sigma at x = G(z), p_sigma the smoothed model.

    p_sigma(x) = int N(z'; 0, I) N(x; G(z'), sigma^2 I) dz' gives, under the integral sign,
    LID = E |x - G(z')|^2 / sigma^2 over the posterior of z' given x: FLIPD of the decoder, at x
    itself (Kamkari et al. 2024, arXiv 2406.03537), with no density and no regression. The posterior
    is sampled around z by importance from its Gaussian approximation there, of precision
    I + J^T J / sigma^2; other latents that lead to x are not seen.

    Args:
        decoder: a Decoder, or any module z -> x, with a standard normal prior.
        z: latents, shape (b, *k).
        sigma: the scale in units of x.
        n_samples: latents a point.
        generator: source of the samples; a sample's own depend on it and on the sample.
        batch_size: latents in one pass.

    Returns:
        LID and its standard error over the samples, shape (b,). A warning counts the points where
        G bends too much for the approximation: less than a tenth of the samples carry weight.

    Raises:
        InputError: latents, sigma or options that cannot be used.

    >>> import torch
    >>> scales = torch.tensor([2.0, 1.0, 1e-3, 0.0])
    >>> generator = torch.Generator().manual_seed(0)
    >>> decoder_slope(
    ...     lambda z: z * scales + 7, torch.zeros(1, 4), 0.1, generator=generator
    ... ).lid.round()
    tensor([2.])
    """
    decoder = as_decoder(decoder)
    _check(decoder, z, sigma, "soft")
    if n_samples < 2:
        raise InputError(f"n_samples = {n_samples} gives no standard error; take 2 or more")
    seed, lid, stderr, poor = base_seed(generator), [], [], 0
    for row in z.detach().split(1):
        x = decoder(row)
        center, factor = _laplace(_finite(_jacobian(decoder, row)[0], "the Jacobian"), row, sigma)
        noise = normal_like(row, n_samples, seed)[0].flatten(1).double()
        latents = center + torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
        parts = latents.to(row).reshape(-1, *row.shape[1:]).split(batch_size)
        square = torch.cat([per_sample((decoder(part) - x) ** 2) for part in parts]).double()
        square = _finite(square[:, None], "the decoder")[:, 0] / sigma**2
        weights = ((noise**2 - latents**2).sum(1) / 2 - square / 2).softmax(0)
        mean = (weights * square).sum()
        lid.append(mean)
        stderr.append((weights**2 * (square - mean) ** 2).sum().sqrt())
        poor += int(1 / (weights**2).sum() < _FEW * n_samples)
    if poor:
        warn_unsettled(
            f"at {poor} of {len(z)} latents G bends within sigma = {sigma:.4g}: fewer than a "
            "tenth of the samples carry weight; take more samples, or a smaller sigma"
        )
    name = f"smoothed slope ({n_samples} latents), decoder"
    return Estimate(torch.stack(lid).to(z), torch.stack(stderr).to(z), float(sigma), name)


def _laplace(j: Float[Tensor, "d k"], z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of the precision of z' given x = G(z), G straight around z."""
    j = j.double()
    precision = torch.eye(j.shape[1]).to(j) + j.mT @ j / sigma**2
    factor = torch.linalg.cholesky(precision)
    start = z.flatten().double()
    return start - torch.cholesky_solve(start[:, None], factor)[:, 0], factor


def _jacobian(decoder: Decoder, z: Tensor) -> Float[Tensor, "b d k"]:
    """Compute dG/dz column by column, or row by row where x has fewer coordinates than z."""
    z, k = z.detach(), z[0].numel()
    with torch.enable_grad():
        leaf = z.clone().requires_grad_(True)
        x = with_graph(decoder, leaf)
    d = x[0].numel()
    if d < k and x.requires_grad:
        rows = []
        for i in range(d):
            unit = torch.zeros_like(x).flatten(1)
            unit[:, i] = 1
            (row,) = torch.autograd.grad(x, leaf, unit.reshape(x.shape), retain_graph=True)
            rows.append(row.flatten(1))
        return torch.stack(rows, 1)
    jacobian, columns = Jacobian(decoder, z, 1.0, network=decoder), []
    for i in range(k):
        unit = torch.zeros_like(z).flatten(1)
        unit[:, i] = 1
        columns.append(jacobian.jvp(unit.reshape(z.shape)).flatten(1))
    return torch.stack(columns, 2)


def _count(s: Float[Tensor, "b m"], rule: DecoderRule, sigma: float | None) -> Float[Tensor, " b"]:
    if rule == "soft":
        square = s**2
        return (square / (square + float(sigma or 0) ** 2)).sum(1)
    top = float(s.amax())
    low = (sigma or 0.0) if rule != "ratio" else (sigma or torch.finfo(s.dtype).eps * top)
    # the high end, which is moved to the first value of each row, is no drop: 0 needs a threshold
    high = -float("inf") if rule != "ratio" else torch.finfo(s.dtype).tiny
    ends = None if rule == "threshold" or top == 0 else (high, low)
    hard: Rule = "threshold" if top == 0 else rule
    return count_large(s, order="descending", rule=hard, threshold=float(sigma or 0), ends=ends).to(
        s
    )


def _check(decoder: Decoder, z: Tensor, sigma: float | None, rule: str) -> None:
    if rule not in ("threshold", "gap", "ratio", "soft"):
        raise InputError(f"rule {rule!r} is unknown; choose from threshold, gap, ratio, soft")
    if sigma is None and rule in ("threshold", "soft"):
        raise InputError(f"rule {rule!r} needs a scale: pass sigma, in units of x")
    if sigma is not None and not 0 < sigma < float("inf"):
        raise InputError(f"sigma = {sigma} is no scale; choose a number above 0")
    check_tensor(z, "z")
    if z.ndim < 2 or len(z) == 0:
        raise InputError(f"z has shape {tuple(z.shape)}; pass a batch of latents, (b, *k)")
    if z.dtype not in (torch.float32, torch.float64):
        raise InputError(f"z has dtype {z.dtype}; pass floating-point latents, float32 or wider")
    bad = ~z.flatten(1).isfinite().all(1)
    if bad.any():
        raise InputError(f"z[{int(bad.nonzero()[0])}] holds NaN or infinity; remove that latent")


def _finite(value: Tensor, what: str) -> Tensor:
    if not value.isfinite().all():
        raise InputError(f"{what} gave NaN or infinity; compute in float32, or remove that latent")
    return value


def _scale(sigma: float | None) -> float:
    return float("nan") if sigma is None else float(sigma)
