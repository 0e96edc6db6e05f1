"""What the model says on a shell around an image, with the prompt and without it.

FLIPD, the denoising loss, the degrees of freedom taken and the curvature map all ask for the same
few things: D and products with its Jacobian at x + sigma n. With the same noises for all of them a
generation answers each once. Under the usual guidance a guided model is a combination of the two
halves, and so are its residuals and products: D_w = D_0 + w (D_c - D_0). Under a rule that is no
such combination (it renormalises) the guided model is asked itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import Conditioned, Denoiser
from memfold.denoisers.guidance import CFG, Guided
from memfold.lid.noised import (
    MEMORY_BUDGET,
    check_points,
    jacobian_at,
    mean_over_noises,
    noised,
    rows_that_fit,
)
from memfold.sampling.trajectory import Generation
from memfold.tensors import base_seed, rademacher_like

from .base import LOSS_NOISES, NOISES, PROBES

_ROWS = 64  # in one forward pass

Half = Literal["with", "without", "guided"]
Place = Literal["image", "first"]


@dataclass(frozen=True)
class Shell:
    """Points x + sigma n around the images of a generation.

    Attributes:
        generation: the run.
        sigma: noise standard deviation in latent units.
        seed: keys noises and probes, with each image's own numbers.
        place: around the finished "image", or around what the "first" step foresees, D_w(x_T).
    """

    generation: Generation
    sigma: float
    seed: int
    place: Place = "image"

    @property
    def x(self) -> Float[Tensor, "b *d"]:
        """The centres."""
        found = self.generation
        return found.x if self.place == "image" else found.first.guided.to(found.x)

    def noises(self, whole: int) -> int:
        """Count the noises: half as many before the generation, which is to be cheap."""
        return whole if self.place == "image" else whole // 2

    def loss(self, half: Half) -> Float[Tensor, " b"]:
        """Return E |n - eps(x + sigma n)|^2, the LID of `dsm_lid`."""
        residuals = self._both(self.residuals, half)
        return self._mean(residuals.square().flatten(2).sum(2))

    def trace(self, half: Half) -> Float[Tensor, " b"]:
        """Return E tr J(x + sigma n), the LID of `flipd` at noised points by Hutchinson."""
        return self._mean(self._both(self.products, half).flatten(2).sum(2))

    def diagonal(self, half: Half) -> Float[Tensor, "b *d"]:
        """Return E diag J(x + sigma n) (Bekas et al. 2007); its sum is the trace."""
        return self._both(self.products, half).mean(1)

    def residuals(self, half: Half) -> Float[Tensor, "b n *d"]:
        """Return n - eps(x + sigma n) of one half of the model, for each noise."""
        rows = len(self.x) * self.noises(LOSS_NOISES)
        return self._shared("residuals", half, self._residuals, passes=rows)

    def products(self, half: Half) -> Float[Tensor, "b n *d"]:
        """Return v * J^T v of one half of the model for each noise, averaged over probes."""
        rows = len(self.x) * self.noises(NOISES)
        return self._shared("products", half, self._products, passes=rows, products=rows * PROBES)

    def _shared(
        self, what: str, half: Half, compute: Callable[[Conditioned], Tensor], **price: int
    ) -> Tensor:
        key = (what, half, self.sigma, self.seed, self.place)
        return self.generation.memo.get(key, lambda: compute(self._model(half)), **price)

    def _both(self, read: Callable[[Half], Tensor], half: Half) -> Tensor:
        """Read one half, or combine both under guidance."""
        if half != "guided":
            return read(half)
        w, under = self.generation.guidance_scale, read("with")
        if w is None or self.generation.uncond is None:
            return under
        rule = self.generation.network.rule or CFG
        if rule.extra is None:  # no line of both halves
            return read("guided")
        without = read("without")
        return without + (w + rule.extra) * (under - without)

    def _mean(self, each: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        return mean_over_noises(each.flatten(), len(each), self.sigma, "shell").lid

    def _model(self, half: Half) -> Conditioned:
        generation = self.generation
        network: Denoiser = generation.network
        cond = generation.uncond if half == "without" else generation.cond
        if half == "guided":
            w = generation.guidance_scale
            network = network if w is None else Guided(network, w, uncond=generation.uncond)
        model = Conditioned(network, cond)
        check_points(model, self.x, self.sigma)
        return model

    @torch.no_grad()
    def _residuals(self, model: Conditioned) -> Tensor:
        x, sigma, found = self.x, self.sigma, []
        n = self.noises(LOSS_NOISES)
        for rows in noised(model, x, sigma, None, n_noises=n, seed=self.seed, batch_size=_ROWS):
            found.append(rows.noise - (rows.x - rows.f(rows.x)) / sigma)
        return torch.cat(found).unflatten(0, (len(x), n))

    def _products(self, model: Conditioned) -> Tensor:
        x, sigma, found = self.x.detach(), self.sigma, []
        n = self.noises(NOISES)
        size = rows_that_fit(model, x, sigma, None, MEMORY_BUDGET, PROBES)
        for rows in noised(model, x, sigma, None, n_noises=n, seed=self.seed, batch_size=size):
            jacobian = jacobian_at(model, rows, sigma)
            signs = rademacher_like(rows.x, PROBES, self.seed + 1).unbind(1)
            found.append(torch.stack([v * jacobian.vjp(v) for v in signs]).mean(0))
        return torch.cat(found).unflatten(0, (len(x), n))


def shell(
    generation: Generation,
    sigma: float,
    generator: torch.Generator | None,
    place: Place = "image",
) -> Shell:
    """Return the shell at a scale; detectors with equal generators share its noises.

    Args:
        generation: the run.
        sigma: noise standard deviation in latent units.
        generator: source of noises and probes.
        place: "image" or "first".

    Returns:
        The shell.
    """
    return Shell(generation, float(sigma), base_seed(generator), place)
