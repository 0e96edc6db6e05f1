"""LID from the span of the scores around a point (Stanczuk et al. 2024, arXiv 2212.12611)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser, select
from memfold.linalg.rank import (
    Rule,
    count_large,
    doubt,
    jackknife_count,
    singular_values,
    warn_unsettled,
)
from memfold.tensors import base_seed
from memfold.types import Estimate, InputError

from .noised import check_points, noised

_OPEN = 0.5  # doubt, in dimensions, from which a warning names the point


@torch.no_grad()
def normal_bundle(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    n_noises: int | None = None,
    rule: Rule = "gap",
    threshold: float = 0.25,
    center: bool = True,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Estimate:
    """Estimate LID_theta(x) = D - (number of directions that the scores around x span).

    Close to a manifold the score points back to it, along the normals. The K >= 4 D residuals
    eps(x + sigma n_i) fill these: their singular values over sqrt(K) are sigma^2 / (l + sigma^2)
    in a direction of variance l, 1 along a normal. By the law of Marchenko and Pastur K random
    vectors spread that 1 over 1 - sqrt(D / K) to 1 + sqrt(D / K), which is why K must be 4 D.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        n_noises: residuals K a sample, one forward pass each; 4 D where None. Fewer than 4 D draw
            a warning, fewer than D are refused.
        rule: "gap" (largest drop between singular values, with 1 and 0 at the ends), "threshold",
            or "ratio", which has no scale and so never answers 0 or D.
        threshold: the singular value above which "threshold" counts a normal.
        center: subtract the mean residual first, which is the slope of the density, and no normal;
            False as published.
        generator: source of the noises; a sample's own depend on it and on the sample.
        batch_size: rows (noises of samples) in one forward pass.

    Returns:
        LID and its standard error, shape (b,): a grouped jackknife over residuals, on the large
        side; 0 where no tenth of them matters, which is not to say that the count is right. With
        "gap" and "ratio" the doubt where there is no gap is added: normals have singular values
        above e = 1 - sqrt(D / K), and those of tangents vanish, so that all thresholds between
        e / 4 and 3 e / 4 must give the same count; the root mean square by which they do not is
        part of the error, and a warning names the point.

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def plane(x, sigma):  # normal along the first two of three axes
    ...     return x * torch.tensor([1.0, 1.0, 0.0]) / (1 + sigma**2)
    >>> normal_bundle(plane, torch.zeros(1, 3), 0.1).lid.round()
    tensor([2.])
    """
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    d, space = x[0].numel(), denoiser.space
    k = 4 * d if n_noises is None else n_noises
    _check_number(k, d)

    ends = (1.0, 0.0) if rule == "gap" else None

    def normals(s: Tensor) -> Tensor:
        return count_large(s, order="descending", rule=rule, threshold=threshold, ends=ends)

    edge, open_ = 1 - (d / k) ** 0.5, []
    lid, stderr, seed = [], [], base_seed(generator)
    for i in range(len(x)):
        own = select(cond, torch.tensor([i]), len(x))
        chunks = noised(
            denoiser, x[i : i + 1], sigma, own, n_noises=k, seed=seed, batch_size=batch_size
        )
        residuals = torch.cat([((r.x - r.f(r.x)) / sigma).flatten(1) for r in chunks])
        if not residuals.isfinite().all():
            raise InputError(
                f"the model returned NaN or infinity at x[{i}], sigma = {sigma:.4g}; compute in "
                "float32, or remove that point"
            )
        count, error = jackknife_count(residuals, normals, center=center)
        if rule != "threshold":
            s = singular_values(residuals, center=center)
            off = doubt(s[None], count[None], edge / 4, 3 * edge / 4)[0]
            error = (error**2 + off**2).sqrt()
            most, least = (d - int((s > edge * q).sum()) for q in (3 / 4, 1 / 4))
            if float(off) > _OPEN:
                open_.append(
                    f"x[{i}] (the gap says {d - int(count)}, thresholds {least} to {most})"
                )
        lid.append(d - count)
        stderr.append(error)
    if open_:
        more = f" and {len(open_) - 1} more" if len(open_) > 1 else ""
        warn_unsettled(
            f"the singular values have no gap at {open_[0]}{more}, sigma = {sigma:.4g}: the "
            "standard error holds that; take another sigma, or rule='threshold'"
        )
    name = f"normal bundle ({k} residuals, {rule}), {space}"
    return Estimate(torch.stack(lid).to(x), torch.stack(stderr).to(x), float(sigma), name)


def _check_number(k: int, d: int) -> None:
    if k < 2:
        raise InputError(f"n_noises = {k} gives no standard error; take 2 or more, best {4 * d}")
    if k <= d:
        raise InputError(f"n_noises = {k} cannot span {d} dimensions; take 4 D = {4 * d} or more")
    if k < 4 * d:
        warn_unsettled(
            f"n_noises = {k} is below 4 D = {4 * d}: normals drown among tangents, and the LID "
            "comes out too large"
        )
