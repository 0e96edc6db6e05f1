"""A class-conditional law in closed form, on which the propositions can be checked exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.base import Denoiser, as_denoiser
from memfold.denoisers.exact import MixtureDenoiser
from memfold.denoisers.guidance import Guided
from memfold.lid.flipd import flipd
from memfold.sampling.grids import karras_sigmas
from memfold.sampling.solvers import euler

DIM, WITHIN, SIDE, SPACING, COPIES = 12, 3, 9, 0.5, 4
SIGMA = 0.4


class ClassMixture(Denoiser):
    """Classes that divide a sheet among them, and classes that are one point each.

    The points of a class (c = 0 ... 80) fill WITHIN = 3 directions with variance 4; the classes'
    means stand on a 9 x 9 grid in two more, so that all classes together fill 5 directions at
    scales above the grid's spacing. The last COPIES classes are point masses on that sheet.

    Args:
        generator: source of the directions and of the point masses.
    """

    def __init__(self, generator: torch.Generator) -> None:
        axes = torch.linalg.qr(
            torch.randn(DIM, WITHIN + 2, generator=generator, dtype=torch.float64)
        )[0]
        line = SPACING * (torch.arange(SIDE, dtype=torch.float64) - SIDE // 2)
        grid = torch.cartesian_prod(line, line)
        spots = torch.randn(COPIES, WITHIN + 2, generator=generator, dtype=torch.float64)
        self.means = torch.cat([grid @ axes[:, WITHIN:].T, spots @ axes.T])
        self.n_ordinary = len(grid)
        self.weights = torch.cat([(-grid.square().sum(1) / 2).exp(), 0.2 * torch.ones(COPIES)])
        flat = torch.full((WITHIN,), 4.0, dtype=torch.float64)
        thin = [(flat, axes[:, :WITHIN])] * len(grid)
        thin += [(flat[:0], axes[:, :0])] * COPIES
        variances, bases = (list(v) for v in zip(*thin, strict=True))
        self.whole = MixtureDenoiser(list(self.means), variances, bases, self.weights)
        self.parts = [
            MixtureDenoiser([m], [v], [b])
            for m, v, b in zip(self.means, variances, bases, strict=True)
        ]
        self.axes, self.shape, self.dtype = axes, (DIM,), torch.float64

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return D_c for the class c, D_0 without one."""
        return (self.whole if cond is None else self.parts[cond]).denoise(x, sigma, None)

    def draw(self, c: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points of the class c."""
        z = 2 * torch.randn(n, WITHIN, generator=generator, dtype=torch.float64)
        along = z @ self.axes[:, :WITHIN].T if c < self.n_ordinary else torch.zeros(n, DIM)
        return self.means[c] + along.to(z)

    def classes(self, n: int, generator: torch.Generator) -> list[int]:
        """Pick n ordinary classes by their weights, then all the point masses."""
        own = torch.multinomial(self.weights[: self.n_ordinary], n, generator=generator)
        return [*own.tolist(), *range(self.n_ordinary, len(self.means))]


def conditioning(seed: int, n: int, points: int) -> dict[str, Any]:
    """Compute LID(x) and LID(x | c) at points of n ordinary classes and of the point masses.

    Args:
        seed: of the law, its classes and the points.
        n: ordinary classes.
        points: points a class.
    """
    source = torch.Generator().manual_seed(seed)
    law, found = ClassMixture(source), []
    classes = law.classes(n, source)
    for c in classes:
        x = law.draw(c, points, source)
        found.append([_flipd(law, x, seed, cond).mean() for cond in (None, c)])
    table = torch.tensor(found)
    memorized = torch.tensor(classes) >= law.n_ordinary
    return {"without": table[:, 0], "with": table[:, 1], "memorized": memorized}


def guidance(seed: int, n: int, points: int, scales: Sequence[float]) -> dict[str, Any]:
    """Compute the LID of the guided law D_w at points that are generated with the same w.

    Args:
        seed: of the law, its classes and the noise.
        n: ordinary classes.
        points: points a class and scale.
        scales: values of w.
    """
    source = torch.Generator().manual_seed(seed)
    law, rows = ClassMixture(source), []
    classes = law.classes(n, source)
    sigmas = karras_sigmas(0.02, 20.0, 24).tolist()
    noise = sigmas[0] * torch.randn(points, DIM, generator=source, dtype=torch.float64)
    for c in classes:
        row = []
        for w in scales:
            guided, x = Guided(law, w), noise
            for step in euler(guided, x, sigmas, c):
                x = step.x
            row.append([_flipd(d, x, seed, c).mean() for d in (guided, law)])
        rows.append(row)
    table = torch.tensor(rows)  # (classes, scales, guided or conditional)
    memorized = torch.tensor(classes) >= law.n_ordinary
    return {"guided": table[:, :, 0], "conditional": table[:, :, 1], "memorized": memorized}


def _flipd(model: Denoiser, x: Tensor, seed: int, cond: int | None) -> Tensor:
    """FLIPD with the same noises for every model: the generator starts alike."""
    same = torch.Generator().manual_seed(seed)
    return flipd(as_denoiser(model), x, SIGMA, cond=cond, generator=same).lid
