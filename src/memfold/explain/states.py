"""The noisy points at which an attribution takes its score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import Generation
from memfold.tensors import normal_like, rademacher_like
from memfold.types import InputError

RUNNING = ("cfg_norm", "guided_score_norm")  # taken at the states of the generation
_SIGMAS = (0.3, 0.6, 1.2)  # scales around the finished image, for the others
_PROBES = 4


class States:
    """The points at which the score is taken: the same for every condition."""

    def __init__(
        self,
        generation: Generation,
        score: str,
        steps: Sequence[int] | None,
        guidance_scale: float | None,
        seed: int,
    ) -> None:
        self.generation, self.score, self.seed = generation, score, seed
        n = len(generation.views)
        self.w = guidance_scale
        if self.w is None and score in RUNNING:
            self.w = generation.guidance_scale or 1.0
        self.steps = list(range(n // 2, n, 2)) if steps is None else [int(s) for s in steps]
        bad = [s for s in self.steps if not 0 <= s < n]
        if bad or not self.steps:
            raise InputError(f"steps = {list(steps or ())}; choose from 0 to {n - 1}")
        if score in RUNNING:
            self.where = f"steps {', '.join(str(s + 1) for s in self.steps)} of {n}"
            return
        self.sigmas = self._around(given=steps is not None)
        shown = ", ".join(f"{s:.3g}" for s in self.sigmas)
        self.where = f"around the finished image, sigma {shown}"

    def _around(self, *, given: bool) -> list[float]:
        """Choose the noise levels around the finished image."""
        if given:
            return [self.generation.views[s].sigma for s in self.steps]
        network = self.generation.model.model
        low, high = network.sigma_min, network.sigma_max
        found = [s for s in _SIGMAS if low <= s <= high]
        if not found:
            raise InputError(
                f"the model's sigmas, {low:.3g} to {high:.3g}, hold none of {_SIGMAS}; give steps"
            )
        return found

    def scores(self, cond: Any, part: slice = slice(None)) -> Iterator[Float[Tensor, " b"]]:
        """Yield the score at each state, one number for each seed of a part of them."""
        g, function = self.generation, SCORES[self.score]
        network = g.model.model
        if self.score in RUNNING:
            for step in self.steps:
                view = g.views[step]
                x = view.x[part]
                yield function(network, x, view.sigma, cond, g.uncond, guidance_scale=self.w)
            return
        x0 = g.x[part]
        noises = normal_like(x0, len(self.sigmas), self.seed)
        probes = rademacher_like(x0, _PROBES, self.seed + 1)
        for i, sigma in enumerate(self.sigmas):
            noise = noises[:, i]
            yield function(
                network, x0 + sigma * noise, sigma, cond, g.uncond, guidance_scale=self.w,
                noise=noise, probes=probes,
            )  # fmt: skip
