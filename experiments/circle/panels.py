"""The six cases of LID_theta against LID_*, as exact models in the plane (the paper's Figure 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memfold.denoisers.exact import MixtureDenoiser
from memfold.lid.dsm import denoising_residuals
from memfold.lid.flipd import flipd
from memfold.sampling.grids import karras_sigmas
from memfold.sampling.solvers import heun

SIGMA = 0.03
LEFT = torch.tensor([[-1.0, 0.6], [-1.0, 0.0], [-1.0, -0.6]], dtype=torch.float64)
Part = tuple[Tensor, Tensor, Tensor]  # mean, variances, basis


@dataclass(frozen=True)
class Case:
    """A ground truth and a model.

    Attributes:
        title: what the case shows.
        truth: the law of the data.
        model: what was learned.
        expected: the verdict that the framework gives at the three leftmost rows.
    """

    title: str
    truth: MixtureDenoiser
    model: MixtureDenoiser
    expected: str


def cases() -> list[Case]:
    """Build the six cases, in the order of the paper's panels."""
    right = _flat((0.9, 0.0), (0.12, 0.2))
    left, line = _flat((-1.0, 0.0), (0.06, 0.2)), _line((-1.0, 0.0), 0.25, (0.0, 1.0))
    points = [_point(p) for p in LEFT]
    wide, spots = _mix([right, left]), _mix([right, *points], [3.0, 1.0, 1.0, 1.0])
    lined = _mix([right, line])
    elsewhere = _mix([_line((0.1, 0.2), 0.3, (0.8, 0.6)), _point(torch.tensor([0.3, -0.9]))])
    return [
        Case("(a) overfitting, exact", wide, spots, "overfitting"),
        Case("(b) overfitting, in part", wide, lined, "overfitting"),
        Case("(c) a good fit", wide, wide, "none"),
        Case("(d) the data, exact", spots, spots, "data"),
        Case("(e) the data, in part", lined, lined, "data"),
        Case("(f) a poor fit", wide, elsewhere, "undetermined"),
    ]


def measure(case: Case, generator: torch.Generator) -> dict[str, float | str]:
    """Measure both LIDs at the leftmost rows and give the framework's verdict.

    Undetermined where the model does not fit: its gap <eps, eps - n>, 0 on average for a model
    that fits, exceeds the D_amb = 2 degrees of freedom there are. Else overfitting where
    LID_theta misses half a degree of freedom or more, data where LID_* itself does.
    """
    theta = flipd(case.model, LEFT, SIGMA, n_noises=64, generator=generator).lid.mean()
    star = flipd(case.truth, LEFT, SIGMA, n_noises=64, generator=generator).lid.mean()
    _, gap = denoising_residuals(case.model, LEFT, SIGMA, n_noises=64, generator=generator)
    found = {"theta": float(theta), "star": float(star), "gap": float(gap.mean())}
    return {**found, "verdict": verdict(**found)}


def verdict(theta: float, star: float, gap: float) -> str:
    """Name the case by the framework's definitions; see `measure`."""
    if gap > 2:
        return "undetermined"
    if theta < star - 0.5:
        return "overfitting"
    return "data" if star < 1.5 else "none"


def draw(model: MixtureDenoiser, n: int, generator: torch.Generator) -> Tensor:
    """Draw n samples of an exact model by its probability flow."""
    sigmas = karras_sigmas(0.002, 20.0, 40).tolist()
    x = sigmas[0] * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    for step in heun(model, x, sigmas):
        x = step.x
    return x


def _mix(parts: list[Part], weights: list[float] | None = None) -> MixtureDenoiser:
    means, variances, bases = (list(values) for values in zip(*parts, strict=True))
    w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    return MixtureDenoiser(means, variances, bases, w)


def _flat(mean: tuple[float, float], variances: tuple[float, float]) -> Part:
    eye = torch.eye(2, dtype=torch.float64)
    return eye.new_tensor(mean), eye.new_tensor(variances), eye


def _line(mean: tuple[float, float], variance: float, along: tuple[float, float]) -> Part:
    axis = torch.tensor(along, dtype=torch.float64)
    return axis.new_tensor(mean), axis.new_tensor([variance]), (axis / axis.norm())[:, None]


def _point(at: Tensor) -> Part:
    at = at.to(torch.float64)
    return at, at.new_zeros(0), at.new_zeros(2, 0)
