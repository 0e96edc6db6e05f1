"""The noisy points at which an attribution takes its score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import Generation
from memfold.tensors import sample_generators
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
            self.w = generation.guidance_scale
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
        network = g.network
        if self.score in RUNNING:
            own = {} if self.score == "cfg_norm" else {"guidance_scale": self.w}
            for step in self.steps:
                view = g.views[step]
                yield function(network, view.x[part], view.sigma, cond, g.uncond, **own)
            return
        x0, seeds = g.x[part], g.seeds[part]
        noises = keyed_noises(x0, seeds, len(self.sigmas), self.seed)
        probes = None
        if self.score == "-flipd":
            probes = 1 - 2 * (keyed_noises(x0, seeds, _PROBES, self.seed + 1) < 0).to(x0)
        for i, sigma in enumerate(self.sigmas):
            noise = noises[:, i]
            random = {"noise": noise} if probes is None else {"probes": probes}
            yield function(
                network, x0 + sigma * noise, sigma, cond, g.uncond, guidance_scale=self.w, **random
            )


def keyed_noises(
    x: Float[Tensor, "b *d"], seeds: Sequence[int], n: int, key: int
) -> Float[Tensor, "b n *d"]:
    """Draw n standard normal tensors for each image, keyed by the number of its seed.

    Not by its content: an image drawn among others differs from itself drawn alone by rounding,
    and would be given other noises.

    Args:
        x: images, for shape and type.
        seeds: the seed that each was drawn from.
        n: tensors for each image.
        key: of the whole draw.

    Returns:
        The noises.
    """
    numbers = [[float(byte) for byte in (s % 2**64).to_bytes(8, "little")] for s in seeds]
    draws = [
        torch.randn(n, *x.shape[1:], generator=g, dtype=torch.float32)
        for g in sample_generators(torch.tensor(numbers), key)
    ]
    return torch.stack(draws).to(x)
