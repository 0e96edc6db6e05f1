"""A soft count of the directions that the model leaves free, from the spectrum of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser, select
from memfold.linalg.spectrum import quadratic_form
from memfold.tensors import base_seed, rademacher_like, sphere_like
from memfold.types import Estimate, InputError

from .noised import (
    MEMORY_BUDGET,
    check_points,
    jacobian_at,
    mean_over_noises,
    noised,
    rows_that_fit,
)

Count = Literal["one-sided", "lhsd"]

_C = 0.2  # LHSD's c: see `spectral_lid`
_AGREE = 1e-5  # relative spread over noises below which random signs agree

_STEPS: dict[str, int] = {"one-sided": 8, "lhsd": 5}  # Lanczos steps


def spectral_lid(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    count: Count = "one-sided",
    n_noises: int = 8,
    n_steps: int | None = None,
    n_probes: int = 1,
    threshold: float | None = None,
    c: float | None = None,
    power: float = 4.0,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Estimate:
    """Count the eigenvalues of (J + J^T) / 2 near 1 at noised points.

    LID = E_n tr f(S), where S = I + sigma^2 H and H is the Hessian of log p_sigma.

    - "one-sided": f(l) = l^p / (l^p + (t (1 - l) / (1 - t))^p) on [0, 1], 0 below, 1 above, so
      that f(t) = 1/2, t the `threshold`. Normal directions (l = 0), and the negative eigenvalues
      that trained networks have in numbers, count nothing.
    - "lhsd": 1 / (1 + (|h| / kappa)^p) on the eigenvalues h of H, kappa = c / sigma^2: small
      curvatures count (Osada 2026, arXiv 2605.01221). In terms of l = 1 + sigma^2 h it is
      1 / (1 + (|1 - l| / c)^p), so that each normal direction adds c^p / (1 + c^p).

    Of "lhsd" the paper's, as far as it is known here, are the filter, its cutoff's form, p = 4,
    5 Lanczos steps and the idea of a transition mass. There is no public code, and which c, noises
    and sigmas its tables were made with is not known here: the default c = 0.2, the average over
    noised points and the noises are ours. c was chosen on exact mixtures other than those it is
    reported on, where transition mass and error are small (`benchmarks/accuracy_model.py lhsd`). A
    direction of variance v counts only where sigma^2 / (v + sigma^2) is well below c.

    By stochastic Lanczos quadrature (Ubaru et al. 2017). `transition_mass` says how many
    directions either count leaves undecided.

    Args:
        denoiser: a Denoiser, or a plain `(x, sigma) -> denoised`.
        x: clean points, shape (b, *d).
        sigma: the scale, a noise standard deviation in the units of x.
        cond: condition, passed through.
        count: "one-sided" or "lhsd".
        n_noises: noises a sample.
        n_steps: Lanczos steps, each a product with S; 8 where None, and 5 for "lhsd".
        n_probes: random signs a noise.
        threshold: the eigenvalue t of J at which a direction counts one half, in (0, 1); 0.5, or
            1 - c of "lhsd", where None.
        c: LHSD's cutoff, in (0, 1): the curvature, in units of 1 / sigma^2, that counts one half;
            0.2 where None. For "lhsd" alone, and in place of `threshold`.
        power: p, the sharpness of the count.
        generator: source of noises and probes; a sample's own depend on it and on the sample.
        memory_budget: bytes that retained graphs may keep at a time.

    Returns:
        LID and its standard error over noises, shape (b,).

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def plane(x, sigma):  # normal along the first two of three axes
    ...     return x * torch.tensor([1.0, 1.0, 0.0]) / (1 + sigma**2)
    >>> spectral_lid(plane, torch.zeros(1, 3), 0.1).lid.round()
    tensor([2.])
    """
    f, steps = _filter(count, threshold, c, power, n_steps, n_probes)
    kind = "LHSD" if count == "lhsd" else "spectral count"
    name = f"{kind} ({steps} Lanczos steps), {as_denoiser(denoiser).space}"
    sizes = _Sizes(n_noises, steps, n_probes, memory_budget)
    return _mean_trace(denoiser, x, sigma, cond, f, sizes, generator, name)


def transition_mass(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Float[Tensor, "b *d"],
    sigma: float,
    *,
    cond: Any = None,
    count: Count = "one-sided",
    n_noises: int = 8,
    n_steps: int | None = None,
    n_probes: int = 1,
    threshold: float | None = None,
    c: float | None = None,
    power: float = 4.0,
    generator: torch.Generator | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Measure how many directions a spectral count leaves undecided: E_n tr 4 f (1 - f).

    An eigenvalue at the threshold, which counts one half, adds 1; one that counts all or nothing
    adds 0. Where this is a large part of the LID, the spectrum has no gap at this scale, and the
    LID depends on the threshold as much as on the model. The idea is that of LHSD (Osada 2026,
    arXiv 2605.01221); this formula is ours, and need not be the paper's. With the count of LHSD
    each normal direction adds 4 c^p / (1 + c^p)^2, since none is ever decided.

    Args:
        denoiser: as in `spectral_lid`, like all that follow.
        x: clean points, shape (b, *d).
        sigma: the scale.
        cond: condition, passed through.
        count: "one-sided" or "lhsd".
        n_noises: noises a sample.
        n_steps: Lanczos steps.
        n_probes: random signs a noise.
        threshold: the eigenvalue that counts one half.
        c: the same for "lhsd", as 1 - threshold.
        power: p.
        generator: in the same state as for the LID, it gives the same noises and probes.
        memory_budget: bytes that retained graphs may keep at a time.

    Returns:
        The mass in degrees of freedom and its standard error over noises, shape (b,) each.

    Raises:
        InputError: points, sigma or options that cannot be used.

    >>> import torch
    >>> def edge(x, sigma):  # one direction free, one at the threshold, one normal
    ...     return x * torch.tensor([1.0, 0.5, 0.0])
    >>> transition_mass(edge, torch.zeros(1, 3), 0.1)[0].round()
    tensor([1.])
    """
    f, steps = _filter(count, threshold, c, power, n_steps, n_probes)

    def undecided(l: Tensor) -> Tensor:
        return 4 * f(l) * (1 - f(l))

    sizes = _Sizes(n_noises, steps, n_probes, memory_budget)
    mass = _mean_trace(denoiser, x, sigma, cond, undecided, sizes, generator, "transition mass")
    return mass.lid, mass.stderr


@dataclass(frozen=True)
class _Sizes:
    """How many noises, Lanczos steps and probes, and the bytes for graphs."""

    noises: int
    steps: int
    probes: int
    memory: int


def _mean_trace(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Tensor,
    sigma: float,
    cond: Any,
    f: Callable[[Tensor], Tensor],
    sizes: _Sizes,
    generator: torch.Generator | None,
    name: str,
) -> Estimate:
    """Average tr f(S) over noises; where all agree, random directions give the standard error.

    Random signs give the same w^T f(S) w at all n noises with probability 2^(1 - n) where the
    tangent is that of two images that differ in two pixels. The value stays: it is unbiased.

    Raises:
        InputError: fewer than two noises, or points that cannot be used.
    """
    if sizes.noises < 2:
        raise InputError(f"n_noises = {sizes.noises} gives no standard error; take 2 or more")
    denoiser = as_denoiser(denoiser)
    check_points(denoiser, x, sigma)
    x, seed = x.detach(), base_seed(generator)
    each = _traces(denoiser, x, sigma, cond, f, sizes, seed, rademacher_like)
    found = mean_over_noises(each, len(x), sigma, name)
    agree = found.stderr <= _AGREE * found.lid.abs()
    if not agree.any():
        return found
    index = agree.nonzero()[:, 0]
    own = select(cond, index, len(x))
    again = _traces(denoiser, x[index], sigma, own, f, sizes, seed, sphere_like)
    spread = mean_over_noises(again, len(index), sigma, name).stderr
    return replace(found, stderr=found.stderr.index_copy(0, index, spread))


def _traces(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    cond: Any,
    f: Callable[[Tensor], Tensor],
    sizes: _Sizes,
    seed: int,
    draw: Callable[[Tensor, int, int], Tensor],
) -> Float[Tensor, " r"]:
    """Estimate tr f(S) at every noised point, from probes that `draw` makes."""
    rows_each = rows_that_fit(denoiser, x, sigma, cond, sizes.memory, sizes.steps + sizes.probes)
    each = []
    for rows in noised(
        denoiser, x, sigma, cond, n_noises=sizes.noises, seed=seed, batch_size=rows_each
    ):
        jacobian = jacobian_at(denoiser, rows, sigma)
        probes = draw(rows.x, sizes.probes, seed + 1).unbind(1)
        forms = [quadratic_form(jacobian.symmetric, f, probe, sizes.steps) for probe in probes]
        each.append(torch.stack(forms).mean(0))
    return torch.cat(each)


def _filter(
    count: str,
    threshold: float | None,
    c: float | None,
    power: float,
    n_steps: int | None,
    n_probes: int,
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return the count as a function of eigenvalues, and the number of Lanczos steps."""
    if count not in _STEPS:
        raise InputError(f"count = {count!r} is unknown; choose from {', '.join(_STEPS)}")
    if c is not None and (count != "lhsd" or threshold is not None):
        raise InputError(
            f"c = {c} with count = {count!r}, threshold = {threshold}: c is the cutoff of 'lhsd', "
            "in place of threshold = 1 - c; pass one of them"
        )
    if threshold is None:
        threshold = 0.5 if count != "lhsd" else 1 - (_C if c is None else c)
    steps = _STEPS[count] if n_steps is None else n_steps
    if steps < 1 or n_probes < 1 or not 0 < threshold < 1 or not power > 0:
        raise InputError(
            f"n_steps = {steps}, n_probes = {n_probes}, threshold = {threshold}, power = {power}: "
            "n_steps, n_probes and power must be above 0, threshold between 0 and 1"
        )

    at = threshold

    def one_sided(l: Tensor) -> Tensor:
        l = l.clamp(0, 1)
        up, down = l**power, (at * (1 - l) / (1 - at)) ** power
        return up / (up + down)

    def lhsd(l: Tensor) -> Tensor:
        return 1 / (1 + ((1 - l).abs() / (1 - at)) ** power)

    return (lhsd if count == "lhsd" else one_sided), steps
